"""Units that never turn on in the sample: their order is seen where nothing is cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import noise, randomized
from models.nets import Net
from torch import Tensor, nn
from torch.nn import functional as F

import automap

IMAGE = noise(1, 3, 8, 8)


def flattened(is_channel_last: bool, cut: Callable[[Tensor], Tensor] = F.relu) -> nn.Module:
    """A convolution flattened into a classifier, as (channel, row, column) or as (row, column, channel)."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = F.max_pool2d(cut(net.stem(x)), 2)
        return net.out(cut(net.fc((x.permute(0, 2, 3, 1) if is_channel_last else x).flatten(1))))

    return Net(forward, stem=nn.Conv2d(3, 5, 3, padding=1), fc=nn.Linear(80, 6), out=nn.Linear(6, 4))


@pytest.mark.parametrize("is_reverse", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("cut", [F.relu, F.relu6], ids=["relu", "relu6"])
def test_dead_units_are_told_apart(cut: Callable[[Tensor], Tensor], is_reverse: bool) -> None:
    src, dest = randomized(flattened(is_reverse, cut), 1), randomized(flattened(not is_reverse, cut), 2)
    found = automap.match(src, dest, IMAGE)
    assert found.verdict == "complete"
    dest.load_state_dict(found.plan.apply(src.state_dict()))
    other = noise(3, 3, 8, 8, seed=8)
    with torch.no_grad():
        torch.testing.assert_close(dest(other), src(other), rtol=1e-4, atol=1e-5)


def test_units_that_are_dead_for_another_reason_stay_a_guess() -> None:
    """Zeros that stand beside an image are zeros whatever is let through."""

    def padded(is_flipped: bool) -> nn.Module:
        def forward(net: Any, x: Tensor) -> Tensor:
            x = torch.cat([F.relu(net.stem(x)), torch.zeros_like(x)], 1)
            return net.fc((x.flip(1) if is_flipped else x).flatten(1))

        return Net(forward, stem=nn.Conv2d(3, 5, 3, padding=1), fc=nn.Linear(512, 6))

    src, dest = randomized(padded(False), 1), randomized(padded(True), 2)
    assert automap.match(src, dest, IMAGE).verdict == "ambiguous"
