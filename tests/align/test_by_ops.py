"""Large models that do the same op for op are matched without computing anything; small ones stand for them here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
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
from automap.align import Flows, counterparts, run, solve_by_ops
from automap.capture import capture
from automap.inputs import Inputs

by_ops, matching = (importlib.import_module(f"automap.{name}") for name in ("align.by_ops", "matching"))
IMAGE = noise(2, 8, 6, 6)


@pytest.fixture(autouse=True)
def _however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_ops, "SMALL", 0)


def merged(cut: Callable[[Tensor], Tensor], width: int = 8) -> nn.Module:
    """Four neighbouring pixels each become one, whose channels a layer mixes; channels are last."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.mix(F.gelu(net.norm(cut(x.permute(0, 2, 3, 1))))).mean((1, 2))

    return Net(forward, norm=nn.LayerNorm(4 * width), mix=nn.Linear(4 * width, width))


def by_slices(x: Tensor) -> Tensor:
    return torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)


def by_slices_in_rows(x: Tensor) -> Tensor:
    return torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)


def by_views(x: Tensor) -> Tensor:
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
    return x.flatten(3)


def pooled(is_last: bool) -> nn.Module:
    """The mean over pixels, with channels in front or behind."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = F.relu(net.conv(x)).permute(0, 2, 3, 1)
        y = y.mean((1, 2)) if is_last else y.permute(0, 3, 1, 2).mean((-1, -2), keepdim=True).flatten(1)
        return net.head(y)

    return Net(forward, conv=nn.Conv2d(8, 8, 3), head=nn.Linear(8, 3))


def apart(function: Callable[[Tensor], Tensor]) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.b(function(net.a(x.mean((2, 3)))))

    return Net(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 3))


SAME = [
    pytest.param(lambda: merged(by_views), lambda: merged(by_slices), id="slices-that-are-joined"),
    pytest.param(lambda: merged(by_slices), lambda: merged(by_views), id="pixels-side-by-side"),
    pytest.param(lambda: pooled(True), lambda: pooled(False), id="means-over-moved-dims"),
    pytest.param(lambda: pooled(False), lambda: pooled(True), id="means-over-other-dims"),
    pytest.param(lambda: apart(torch.tanh), lambda: apart(torch.tanh), id="the-same"),
]
OTHERS = [
    pytest.param(lambda: merged(by_views), lambda: merged(by_slices_in_rows), id="pixels-in-another-order"),
    pytest.param(lambda: apart(torch.tanh), lambda: apart(torch.sigmoid), id="another-function"),
    pytest.param(lambda: apart(torch.tanh), lambda: apart(lambda x: x), id="no-function"),
    pytest.param(lambda: apart(torch.tanh), lambda: apart(lambda x: torch.tanh(x).flip(1)), id="moved-at-the-end"),
]


@contextmanager
def nothing_computed() -> Iterator[None]:
    """Of what is recorded constants alone may be computed."""
    compute = run.compute

    def checked(node: Any, value_of: Any) -> Any:
        assert node.role.value == "constant", node
        return compute(node, value_of)

    with mock.patch.object(run, "compute", checked):
        yield


def runs_of(model: nn.Module) -> list[None]:
    """Grows by one whenever a model runs."""
    found: list[None] = []
    model.register_forward_pre_hook(lambda *_: found.append(None))
    return found


@pytest.mark.parametrize(("make_src", "make_dest"), SAME)
def test_the_same_ops_give_the_map_that_numbers_give(
    make_src: Any, make_dest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, dest = randomized(make_src(), 1), randomized(make_dest(), 2)
    with monkeypatch.context() as patched:
        patched.setattr(matching, "solve_by_ops", lambda *_: None)
        wanted = automap.match(src, dest, IMAGE)
    counts = runs_of(src), runs_of(dest)
    with nothing_computed():
        found = automap.match(src, dest, IMAGE)
    assert [len(count) for count in counts] == [1, 1]
    assert found.is_complete
    assert found.plan.entries == wanted.plan.entries
    assert found.evidence == wanted.evidence
    assert found.unused == wanted.unused


@pytest.mark.parametrize(("make_src", "make_dest"), OTHERS)
def test_where_an_op_differs_numbers_decide(make_src: Any, make_dest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    src, dest = randomized(make_src(), 1), randomized(make_dest(), 2)
    given = Inputs.of(IMAGE)
    mine = capture(src, given)
    assert solve_by_ops(mine, Flows.of(mine, capture(dest, given))) is None
    found = automap.match(src, dest, IMAGE)
    monkeypatch.setattr(matching, "solve_by_ops", lambda *_: None)
    wanted = automap.match(src, dest, IMAGE)
    assert (found.verdict, found.findings, found.plan) == (wanted.verdict, wanted.findings, wanted.plan)


def test_large_values_are_not_followed_through_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    src, dest = randomized(merged(by_views), 1), randomized(merged(by_slices), 2)
    given = Inputs.of(IMAGE)
    mine = capture(src, given)
    flows = Flows.of(mine, capture(dest, given))
    assert solve_by_ops(mine, flows) is not None
    monkeypatch.setattr(counterparts, "_FOLLOWED", IMAGE.numel() - 1)
    assert solve_by_ops(mine, flows) is None


def test_which_of_two_branches_is_which_is_left_to_numbers() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.a(x) + net.b(x)

    src, dest = (randomized(Net(forward, a=nn.Linear(6, 4), b=nn.Linear(6, 4)), seed) for seed in (1, 2))
    given = Inputs.of(noise(5, 6))
    mine = capture(src, given)
    assert solve_by_ops(mine, Flows.of(mine, capture(dest, given))) is None


def test_an_output_of_another_shape_is_left_to_numbers() -> None:
    src, dest = (nn.Sequential(nn.Linear(6, 4), nn.Unflatten(-1, shape)) for shape in ((2, 2), (4, 1)))
    given = Inputs.of(noise(5, 6))
    mine = capture(src, given)
    assert solve_by_ops(mine, Flows.of(mine, capture(dest, given))) is None


def test_inputs_that_are_equal_on_the_sample_go_with_each_other_in_order() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(self.a(x)) * self.b(y)

    src, dest = randomized(Two(), 1), randomized(Two(), 2)
    result = automap.transfer(src, dest, (noise(5, 6), noise(5, 6)), verify="quick")
    assert result.is_equal
    assert torch.equal(src.a.weight, dest.a.weight)
    assert torch.allclose(src(noise(5, 6), -noise(5, 6)), dest(noise(5, 6), -noise(5, 6)))


@pytest.mark.parametrize("verify", ["quick", "default", "thorough"])
def test_a_plan_found_by_ops_is_tested_on_twins_where_that_is_asked_for(verify: Any) -> None:
    src, dest = randomized(merged(by_views), 1), randomized(merged(by_slices), 2)
    with mock.patch.object(matching, "on_twins", wraps=matching.on_twins) as narrowed:
        result = automap.transfer(src, dest, IMAGE, verify=verify)
    assert result.is_equal
    assert narrowed.call_count == (verify != "quick")
    assert result.parity is not None
    kinds = {(check.weights, check.inputs) for check in result.parity.checks}
    drawn = set() if verify == "quick" else {("random", "sample"), ("random", "random")}
    assert kinds == {("own", "sample")} | drawn
    for (name, mine), theirs in zip(src.state_dict().items(), dest.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_wrong_plan_found_by_ops_does_not_pass_the_test_on_twins() -> None:
    """Another weight of the same shape is put in the place of one: with equal weights on both sides only drawn ones
    tell.
    """

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.b(torch.tanh(net.a(x.mean((2, 3)))))

    src, dest = (Net(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8)) for _ in range(2))
    with torch.no_grad():
        for weight in src.parameters():
            weight.fill_(0.1)
    walked = by_ops._walked

    def wrong(*sides: Any) -> Any:
        agreement = walked(*sides)
        whole = dict(agreement.whole)
        first, second = (leaf for leaf in whole if sides[1].flow[leaf].shape == (8, 8))
        agreement.whole |= {first: whole[second], second: whole[first]}
        return agreement

    with mock.patch.object(by_ops, "_walked", wrong), pytest.raises(automap.MismatchError, match="outputs differ"):
        automap.transfer(src, dest, IMAGE)
