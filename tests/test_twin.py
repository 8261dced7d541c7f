"""Narrow twins: models that a caller builds, whose plan is made larger, and flow graphs that a match narrows itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from models import noise, randomized
from models.twins import TWIN, Sizes, twins
from torch import Tensor, nn
from torch.nn import functional as F

import automap
from automap.canonical.lower import lower
from automap.capture import capture
from automap.plan import Concat, Expr, Fill, Gather, Permute, Plan, Reshape, Shape, Slice, Source, format_expr
from automap.twin import NotEnlarged, Twins, enlarged, narrow_twins
from automap.twin.dims import Digits
from automap.twin.shrink import full_work

solving = importlib.import_module("automap.align.solve")

SIBLING = Sizes(blocks=80, groups=4, queries=2, head=16, width=48, inner=60, words=70)
FULL = Sizes(blocks=80, groups=8, queries=8, head=128, width=8192, inner=28672, words=128256)  # Llama 70B


@cache
def found(sizes: Sizes) -> Plan:
    """The plan that matching both models finds."""
    src, dest = (randomized(model, seed) for seed, model in enumerate(twins(sizes)))
    match = automap.match(src, dest, torch.randint(sizes.words, (2, 7)))
    assert match.is_complete, match.findings
    return match.plan


def found_without_values(sizes: Sizes) -> Plan:
    """The plan that matching both models finds where no weight has values."""
    with torch.device("meta"):
        src, dest = twins(sizes)
    match = automap.match(src, dest, torch.randint(sizes.words, (1, 7)))
    assert match.is_complete, match.findings
    assert set(match.evidence.values()) == {"aligned"}
    return match.plan


def shapes(sizes: Sizes) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The shapes of dest and of src, from models without memory."""
    with torch.device("meta"):
        src, dest = twins(sizes)
    return shapes_of(dest), shapes_of(src)


def shapes_of(model: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.slow
def test_what_the_twin_says_of_eighty_blocks_is_what_matching_them_finds() -> None:
    made = found(TWIN).for_model(*shapes(SIBLING), dims={TWIN.groups: SIBLING.groups})
    assert made.entries == found(SIBLING).entries


def test_the_twin_says_how_a_model_of_140_gigabytes_is_made() -> None:
    dest, src = shapes(FULL)
    made = found(TWIN).for_model(dest, src, dims={TWIN.groups: FULL.groups})
    assert (made.dest_shapes, made.src_shapes) == (dest, src)
    assert [str(rule).partition("   for ")[2] for rule in made.rules()].count("i in 0..79") == 9
    assert len(made.rules()) == len(found(TWIN).rules()) == 12


def test_the_number_of_groups_has_to_be_told() -> None:
    with pytest.raises(automap.AutomapError, match="2 x 30 in the plan is 8192 here"):
        found(TWIN).for_model(*shapes(FULL))


def test_the_twin_says_of_a_model_without_values_what_matching_it_finds() -> None:
    full = replace(FULL, blocks=3)
    made = found(TWIN).for_model(*shapes(full), dims={TWIN.groups: full.groups})
    assert made.entries == found_without_values(full).entries


def test_values_change_nothing_in_what_is_found() -> None:
    assert found_without_values(TWIN).entries == found(TWIN).entries


class Convs(nn.Module):
    """A depthwise, a grouped and a plain convolution, batch norms, a head; `is_linear`: the 1x1 as a linear layer."""

    def __init__(self, width: int, is_linear: bool) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.grouped = nn.Conv2d(width, 2 * width, 3, 1, 1, groups=4)
        self.mix = nn.Linear(2 * width, width) if is_linear else nn.Conv2d(2 * width, width, 1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.grouped(self.depthwise(x)))
        x = self.mix(x.movedim(1, -1)).movedim(-1, 1) if isinstance(self.mix, nn.Linear) else self.mix(x)
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """One projection for q, k and v, laid out head by head if is_by_head, or three; a residual and a gated product."""

    def __init__(self, width: int, *, is_fused: bool, is_by_head: bool = False) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)
        self.qkv = nn.ModuleList([nn.Linear(width, 3 * width)] if is_fused else [nn.Linear(width, width)] * 0)
        self.each = nn.ModuleList(nn.Linear(width, width) for _ in range(0 if is_fused else 3))
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down, self.is_by_head = nn.Linear(2 * width, width), is_by_head

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.each:
            q, k, v = (each(y).unflatten(-1, (4, -1)) for each in self.each)
        else:
            parts = self.qkv[0](y).unflatten(-1, (4, 3, -1) if self.is_by_head else (3, 4, -1))
            q, k, v = parts.unbind(-2 if self.is_by_head else -3)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Words(nn.Module):
    def __init__(self, block: nn.Module, width: int, count: int = 512) -> None:
        super().__init__()
        self.words, self.block, self.head = nn.Embedding(count, width), block, nn.Linear(width, count)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block(self.words(ids)))


def attentions(fused: bool, by_head: bool = False) -> nn.Module:
    return Words(Attention(64, is_fused=fused, is_by_head=by_head), 64)


NARROWED = [
    pytest.param(lambda: Convs(64, False), lambda: Convs(64, True), (2, 3, 8, 8), id="convolutions"),
    pytest.param(lambda: Convs(64, True), lambda: Convs(64, False), (2, 3, 8, 8), id="linear-to-convolution"),
    pytest.param(lambda: attentions(True), lambda: attentions(False), None, id="fused-to-split"),
    pytest.param(lambda: attentions(False), lambda: attentions(True), None, id="split-to-fused"),
    pytest.param(lambda: attentions(True, True), lambda: attentions(False), None, id="by-head-to-split"),
    pytest.param(lambda: attentions(True, True), lambda: attentions(True), None, id="by-head-to-fused"),
]


@pytest.mark.parametrize(("make_src", "make_dest", "shape"), NARROWED)
def test_twins_give_the_plan_that_the_models_give(
    make_src: Callable[[], nn.Module], make_dest: Callable[[], nn.Module], shape: tuple[int, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    src, dest = randomized(make_src(), 1), randomized(make_dest(), 2)
    sample = torch.tensor([[3, 500, 500, 7, 99]]) if shape is None else noise(*shape)
    whole = automap.match(src, dest, sample)
    narrowed: list[Twins] = []

    def watched(*args: Any, **options: Any) -> Twins | None:
        narrowed.extend(twins := [made] if (made := narrow_twins(*args, least_work=0, least_gain=2.0)) else [])
        return twins[0] if twins else None

    monkeypatch.setattr(solving, "narrow_twins", watched)
    found = automap.match(src, dest, sample)
    assert len(narrowed) == 1
    assert full_work(narrowed[0].src) * 8 < full_work(lower(capture(src, sample)))
    assert found.is_complete
    assert found.plan.entries == whole.plan.entries
    assert set(found.evidence.values()) == {"proved"}
    assert automap.transfer(src, dest, sample).is_equal


def test_what_only_the_full_size_shows_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan from twins that the models do not bear out is dropped, and the models themselves are matched."""
    src, dest = randomized(Convs(64, False), 1), randomized(Convs(64, True), 2)
    monkeypatch.setattr(solving, "narrow_twins", lambda *args, **_: narrow_twins(*args, least_work=0, least_gain=0.0))
    right = automap.match(src, dest, noise(2, 3, 8, 8)).plan
    swapped = {"mix.weight": right.entries["mix.weight"], "stem.bias": right.entries["norm.bias"]}
    wrong = replace(right, entries={**right.entries, **swapped})
    monkeypatch.setattr("automap.matching.enlarged_plan", lambda *_: wrong)
    assert automap.match(src, dest, noise(2, 3, 8, 8)).plan.entries == right.entries
    assert automap.transfer(src, dest, noise(2, 3, 8, 8)).match.plan.entries == right.entries


D = Digits


@pytest.mark.parametrize(
    ("expr", "dest", "wanted"),
    [
        pytest.param(Source("a", (4,)), [D(1, 64, 4, 1)], "a", id="as it is"),
        pytest.param(Slice(Source("b", (12,)), (4,), (8,), (1,)), [D(1, 64, 4, 1)], "b[64:128]", id="a part of three"),
        pytest.param(
            Reshape(Permute(Reshape(Source("c", (16,)), (2, 4, 2)), (0, 2, 1)), (16,)),
            [D(4, 64, 4, 1)],
            'rearrange(c, "(a b c) -> (a c b)", a=2, b=64, c=2)',
            id="pairs to halves, head by head",
        ),
        pytest.param(Slice(Source("d", (8,)), (1,), (8,), (2,)), [D(1, 64, 4, 1)], "d[1:128:2]", id="every other one"),
        pytest.param(
            Concat((Source("a", (4,)), Source("a", (4,))), 0), [D(2, 64, 4, 1)], "cat(a, a, dim=0)", id="joined"
        ),
        pytest.param(Fill(0.0, (4,)), [D(1, 64, 4, 1)], "zeros(64)", id="a constant"),
    ],
)
def test_what_is_found_on_twins_is_written_for_the_models(expr: Expr, dest: list[Digits], wanted: str) -> None:
    src = {"a": (D(1, 64, 4, 1),), "b": (D(3, 64, 4, 1),), "c": (D(2, 64, 4, 2),), "d": (D(1, 64, 4, 2),)}
    assert format_expr(enlarged(expr, src, tuple(dest))) == wanted


@pytest.mark.parametrize(
    ("expr", "dest"),
    [
        pytest.param(Slice(Source("a", (4,)), (0,), (2,), (1,)), [D(1, 2, 2, 1)], id="a slice through what is narrow"),
        pytest.param(Reshape(Source("a", (4,)), (2, 2)), [D(1, 2, 2, 1), D(1, 2, 2, 1)], id="a reshape through it"),
        pytest.param(Gather(Source("a", (4,)), 0, (3, 1, 0, 2)), [D(1, 64, 4, 1)], id="single rows of it"),
        pytest.param(Source("a", (4,)), [D(1, 4, 4, 1)], id="another size in the model"),
        pytest.param(Concat((Source("a", (4,)), Fill(0.0, (4,))), 0), [D(2, 64, 4, 1)], id="a constant beside it"),
    ],
)
def test_sizes_that_do_not_follow_are_not_made_up(expr: Expr, dest: list[Digits]) -> None:
    with pytest.raises(NotEnlarged):
        enlarged(expr, {"a": (D(1, 64, 4, 1),)}, tuple(dest))


class Counted(nn.Module):
    """An op that is told a size of its own, which no rule knows of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = torch.fft.rfft(x).abs()  # half as many, and one more
        return self.last(F.pad(x, (0, x.shape[-1] - 2)))


def test_an_op_that_ties_sizes_keeps_them() -> None:
    src, dest = randomized(Counted(64), 1), randomized(Counted(64), 2)
    flows = [lower(capture(model, noise(2, 64))) for model in (src, dest)]
    assert narrow_twins(*flows, least_work=0, least_gain=2.0) is None
    assert automap.match(src, dest, noise(2, 64)).is_complete


def test_tokens_without_elements_are_no_reason_to_fail() -> None:
    flows = [lower(capture(attentions(True), torch.zeros(1, 0, dtype=torch.long))) for _ in range(2)]
    assert narrow_twins(*flows, least_work=0, least_gain=0.0) is not None
