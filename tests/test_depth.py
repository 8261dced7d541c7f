"""What is said of two models that differ in depth."""

from __future__ import annotations

import torch
from torch import nn

from automap.capture import Weight, weights_of
from automap.depth import depth_finding


def weights(sizes: list[int], list_name: str = "blocks") -> tuple[Weight, ...]:
    """The weights of a model with a numbered list of linear layers of these widths."""
    return weights_of(nn.ModuleDict({list_name: nn.ModuleList(nn.Linear(size, size) for size in sizes)}))


def test_the_side_with_more_blocks_is_named_with_both_counts() -> None:
    found = depth_finding(weights([4, 4]), weights([4, 4, 4, 4], "layers"))
    assert found is not None
    assert found.code == "unmatched-weight"
    assert found.message == (
        "dest has 2 blocks more than src (of 20 parameters each): src has 2 like `blocks.1`, dest 4 like `layers.3`"
    )
    assert found.dest is not None
    assert found.dest.name == "layers.3"
    back = depth_finding(weights([4, 4, 4]), weights([4, 4]))
    assert back is not None
    assert (back.code, back.dest) == ("unused-source", None)
    assert back.message.startswith("src has 1 block more than dest (of 20 parameters each)")


def test_the_largest_kind_of_block_speaks_for_all() -> None:
    found = depth_finding(weights([2, 4, 4]), weights([2, 2, 4, 4, 4]))
    assert found is not None
    assert "of 20 parameters each" in found.message


def test_equal_depth_and_unlike_blocks_say_nothing() -> None:
    assert depth_finding(weights([4, 4]), weights([4, 4], "layers")) is None
    assert depth_finding(weights([4, 4]), weights([5, 5, 5])) is None
    assert depth_finding((), (Weight(("a",), torch.rand(3), True, ("a",)),)) is None
