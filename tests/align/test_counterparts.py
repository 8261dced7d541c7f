"""What dest does just as src does is matched by its ops, whatever the shapes, and numbers decide on the rest."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from models import noise, randomized
from models.nets import Net
from torch import Tensor, nn
from torch.nn import functional as F

import automap
from automap.align import Solution, ends, solve
from automap.align import run as runs
from automap.align.search import Search
from automap.capture import capture
from automap.inputs import Inputs

WIDTH = 6


def block(is_flat: bool = False, *, is_scaled: bool = False) -> nn.Module:
    """A norm, a layer and a residual, on rows of any number of dims; perhaps with a scale behind the layer."""

    def forward(net: Any, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH) if is_flat else x
        rows = net.norm(rows)
        rows = F.linear(F.gelu(net.up(rows)), net.down.weight, net.down.bias)
        rows = rows * net.scale if is_scaled else rows
        return x + rows.reshape(x.shape)

    scale = {"scale": nn.Parameter(torch.ones(WIDTH))} if is_scaled else {}
    layers = {"norm": nn.LayerNorm(WIDTH), "up": nn.Linear(WIDTH, 9), "down": nn.Linear(9, WIDTH)}
    return Net(forward, **layers, **scale)


def solved(src: nn.Module, dest: nn.Module, *inputs: Tensor) -> Solution:
    given = Inputs(inputs, {})
    return solve(capture(src, given), capture(dest, given), dest, given, seed=0)


@contextmanager
def walks() -> Iterator[list[bool]]:
    """For each walk begun meanwhile whether it goes by ops; a second one makes up for what the first got wrong."""
    module = sys.modules[solve.__module__]
    walked, begun = module._walked, list[bool]()

    def counted(*args: Any, is_structural: bool) -> Any:
        begun.append(is_structural)
        return walked(*args, is_structural=is_structural)

    with mock.patch.object(module, "_walked", counted):
        yield begun


def decided_by_ops(solution: Solution) -> list[bool]:
    return ["same" in choice.taken.key for choice in solution.outcome.choices.values()]


def test_models_that_differ_in_shapes_alone_are_matched_without_computing_anything() -> None:
    src = randomized(nn.Sequential(block(), block()), 1)
    dest = randomized(nn.Sequential(block(is_flat=True), block()), 2)
    with mock.patch.object(runs, "compute", side_effect=AssertionError("computed")):
        solution = solved(src, dest, noise(2, 5, WIDTH))
    assert decided_by_ops(solution)
    assert all(decided_by_ops(solution))
    assert automap.transfer(src, dest, noise(2, 5, WIDTH)).is_equal


def scaled(shape: tuple[int, ...], *, is_first: bool) -> nn.Module:
    """A convolution whose channels are scaled by a table that is stored or seen in some shape of ones and channels."""

    def forward(net: Any, x: Tensor) -> Tensor:
        table = net.scale if net.scale.dim() > 1 else net.scale.reshape(shape)
        return table * net.conv(x) if is_first else net.conv(x) * table

    stored = nn.Parameter(torch.ones(WIDTH if is_first else shape))
    return Net(forward, conv=nn.Conv2d(3, WIDTH, 3), scale=stored)


def test_a_table_is_met_by_ops_whatever_dims_of_size_one_it_has() -> None:
    src, dest = (
        randomized(scaled((1, WIDTH, 1, 1), is_first=True), 1),
        randomized(scaled((WIDTH, 1, 1), is_first=False), 2),
    )
    with mock.patch.object(runs, "compute", side_effect=AssertionError("computed")):
        assert all(decided_by_ops(solved(src, dest, noise(1, 3, 5, 5))))
    assert automap.transfer(src, dest, noise(1, 3, 5, 5)).is_equal
    assert torch.equal(dest.scale.reshape(-1), src.scale)  # type: ignore[operator, union-attr]


def test_a_table_over_other_dims_is_not_met_by_ops() -> None:
    """As many numbers, and rows of pixels in one, channels in the other."""
    src, dest = randomized(scaled((WIDTH, 1, 1), is_first=False), 1), randomized(scaled((1, WIDTH), is_first=False), 2)
    assert not automap.transfer(src, dest, noise(1, 3, 8, 8), strict=False).is_equal


def test_a_product_that_goes_on_otherwise_is_left_to_numbers() -> None:
    """Src scales what its layer gives and dest does not: the layer's weight is not taken as it is."""
    src, dest = randomized(block(is_scaled=True), 1), randomized(block(), 2)
    with walks() as begun:
        solution = solved(src, dest, noise(2, 5, WIDTH))
    assert begun == [True]
    choices = [choice for _, choice in sorted(solution.outcome.choices.items())]
    products = [c for c in choices if solution.dest.flow[c.key[0]].op == "matmul"]
    assert ["same" in c.taken.key for c in products] == [True, False]
    result = automap.transfer(src, dest, noise(2, 5, WIDTH))
    assert result.is_equal
    assert torch.allclose(dest.down.weight, src.down.weight * src.scale[:, None])  # type: ignore[operator, union-attr]


def test_which_of_two_interchangeable_branches_is_which_is_not_told_by_ops() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.a(x) + net.b(x)

    src, dest = (randomized(Net(forward, a=nn.Linear(6, 4), b=nn.Linear(6, 4)), seed) for seed in (1, 2))
    solution = solved(src, dest, noise(5, 6))
    products = {node.index for node in solution.dest.flow.nodes if node.op == "matmul"}
    decided = [choice for key, choice in solution.outcome.choices.items() if key[0] in products]
    assert len(decided) == 2
    assert all(len(choice.candidates) > 1 for choice in decided)


class Recurrent(nn.Module):
    """Two loops one after the other, each from a state of zeros, which are the same numbers."""

    def __init__(self, is_split: bool) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(4, 5), nn.LSTM(5, 5)
        self.mix = nn.ModuleList(nn.Linear(5, 5) for _ in range(2)) if is_split else nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)[0]
        parts = [m(x) for m in self.mix] if isinstance(self.mix, nn.ModuleList) else self.mix(x).chunk(2, -1)
        return self.second(torch.tanh(parts[0]) * parts[1])[0]


@pytest.mark.parametrize("is_split", [False, True])
def test_states_of_zeros_are_not_one_because_they_hold_the_same_numbers(is_split: bool) -> None:
    src, dest = randomized(Recurrent(is_split), 1), randomized(Recurrent(not is_split), 2)
    with walks() as begun:
        result = automap.transfer(src, dest, noise(3, 2, 4))
    assert begun == [True]
    assert result.is_equal
    for name in ("first.bias_hh_l0", "second.bias_hh_l0", "second.weight_hh_l0"):
        assert torch.equal(src.state_dict()[name], dest.state_dict()[name])


@pytest.mark.parametrize("is_structural", [True, False])
def test_an_output_that_src_computes_and_does_not_give_calls_nothing_into_question(is_structural: bool) -> None:
    def forward(net: Any, x: Tensor) -> Any:
        one, other = net.a(x), net.b(x)
        return (one + other) / 2 if net.is_plain else ((one + other) / 2, one, other)

    heads = [{"a": nn.Linear(6, 4), "b": nn.Linear(6, 4), "is_plain": is_plain} for is_plain in (True, False)]
    src, dest = (randomized(Net(forward, **parts), seed) for seed, parts in enumerate(heads))
    given = Inputs((noise(5, 6),), {})
    pins = () if is_structural else ("a.weight=a.weight",)  # numbers alone decide where there are pins
    with mock.patch.object(ends, "mend", side_effect=AssertionError("called into question")):
        solution = solve(capture(src, given), capture(dest, given), dest, given, seed=0, pins=pins)
    assert [(path, other) for path, other, _ in solution.outcome.matched_outputs] == [("", "0")]


class Gated(nn.Module):
    """Residual blocks, each a product of two layers, perhaps of one layer's halves."""

    def __init__(self, depth: int, is_fused: bool) -> None:
        super().__init__()
        layers = [nn.Linear(6, 12)] if is_fused else [nn.Linear(6, 6), nn.Linear(6, 6)]
        self.blocks = nn.ModuleList(nn.ModuleList(copy.deepcopy(layers)) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            parts = [layer(x) for layer in block]  # type: ignore[union-attr]
            gate, value = parts if len(parts) > 1 else parts[0].chunk(2, -1)
            x = x + torch.tanh(gate) * value
        return x


def test_decisions_that_are_borne_out_are_not_carried_on() -> None:
    """What is open behind a value does not grow with the depth of the model."""
    src, dest = randomized(Gated(9, False), 1), randomized(Gated(9, True), 2)
    searches: list[Search] = []
    walk = Search.walk

    def watched(search: Search, *args: Any) -> Any:
        searches.append(search)
        return walk(search, *args)

    with mock.patch.object(Search, "walk", watched):
        solution = solved(src, dest, noise(4, 6))
    assert len([choice for choice in solution.outcome.choices.values() if len(choice.candidates) > 1]) >= 9
    assert max(len(keys) for keys in searches[-1].ripe.values()) <= 4
    assert automap.transfer(src, dest, noise(4, 6)).is_equal
