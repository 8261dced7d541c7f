"""Weights for a proof are read from a pool of numbers; none is another one."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from models import noise, randomized
from torch import nn

from automap.canonical.lower import lower
from automap.capture import record
from automap.inputs import Inputs
from automap.verify import draw


@pytest.mark.parametrize("pool", [101, 1_000_003])
def test_no_two_weights_and_no_two_rows_are_alike(pool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "_POOL", pool)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    flow = lower(record(randomized(model, 1), Inputs.of(noise(2, 16))))
    drawn = draw.conditioned_weights(flow, 3)
    rows = [row for value in drawn.values() for row in value.reshape(-1, 16)]
    assert len(rows) == 4 * 17
    assert not any(torch.allclose(a, b) for a, b in combinations(rows, 2))
    again = draw.conditioned_weights(flow, 3)
    assert all(torch.equal(drawn[i], again[i]) for i in drawn)
