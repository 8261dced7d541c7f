from __future__ import annotations

import pytest
import torch
from torch import Tensor

from automap.align.assignment import UNKNOWN
from automap.plan import SourceTensor
from automap.planning import extended

BEFORE, TABLE, AFTER = (
    SourceTensor(n, s, "float32", o) for n, s, o in (("a", (5,), 0), ("t", (6, 4), 5), ("z", (7,), 29))
)
SOURCES = [BEFORE, TABLE, AFTER]
IDS = torch.arange(5, 29).view(6, 4)


def forgotten(whole: Tensor, *rows: int) -> Tensor:
    """The numbers with some rows unknown."""
    ids = whole.clone()
    ids[list(rows)] = UNKNOWN
    return ids


@pytest.mark.parametrize(
    ("whole", "rows"),
    [
        pytest.param(IDS, (3, 4, 5), id="last-rows"),
        pytest.param(IDS, (0, 2, 5), id="rows-between"),
        pytest.param(IDS, (1, 2, 3, 4, 5), id="all-but-one-row"),
        pytest.param(IDS.T.contiguous(), (2, 3), id="transposed"),
        pytest.param(IDS.flip(0), (4, 5), id="reversed"),
        pytest.param(IDS[::2], (2,), id="every-other-row"),
        pytest.param(IDS[2:], (0, 3), id="from-the-third-row-on"),
    ],
)
def test_rows_not_read_go_on_as_the_known_ones(whole: Tensor, rows: tuple[int, ...]) -> None:
    assert torch.equal(extended(forgotten(whole, *rows), SOURCES), whole)


def test_rows_out_of_range_stay_unknown() -> None:
    longer = torch.arange(5, 5 + 8 * 4).view(8, 4)
    found = extended(forgotten(longer, 4, 5, 6, 7), SOURCES)
    assert torch.equal(found[:6], IDS)
    assert bool((found[6:] == UNKNOWN).all())


def test_rows_before_the_first_stay_unknown() -> None:
    ids = torch.cat([torch.full((2, 4), UNKNOWN), IDS[:3]])
    assert torch.equal(extended(ids, SOURCES), ids)


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(IDS[torch.tensor([0, 3, 1, 5, 2, 4])], id="rows-without-order"),
        pytest.param(torch.full((6, 4), UNKNOWN), id="nothing-known"),
    ],
)
def test_without_regular_steps_unknown_stays_unknown(whole: Tensor) -> None:
    ids = forgotten(whole, 5)
    assert torch.equal(extended(ids, SOURCES), ids)


def test_an_element_is_not_given_out_twice() -> None:
    ids = torch.stack([IDS[0], IDS[1], torch.full((4,), UNKNOWN), IDS[3]])
    assert torch.equal(extended(ids, SOURCES)[2], IDS[2])
