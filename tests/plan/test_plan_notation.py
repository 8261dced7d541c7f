from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_strategies import expands, permutes, reshapes, shapes
from torch import Tensor

from automap.plan import Concat, Expr, Fill, Pad, Plan, Slice, Source, evaluate, expand, fold, format_expr
from automap.plan.shown import ShownInt, size_names, size_text


def groups_of(side: str) -> list[list[str]]:
    """The names of the axes in each dim of one side of a pattern."""
    return [token.strip("()").replace("1", "").split() for token in re.findall(r"\([^)]*\)|\S+", side)]


def einops(value: Tensor, pattern: str, sizes: dict[str, int]) -> Tensor:
    """`rearrange` and `repeat` of the package einops, as its documentation has them."""
    left, right = map(groups_of, pattern.split(" -> "))
    assert len(left) == value.dim()
    sizes = dict(sizes)
    for group, size in zip(left, value.shape, strict=True):
        unknown = [axis for axis in group if axis not in sizes]
        assert len(unknown) <= 1
        sizes |= {axis: size // math.prod(sizes[other] for other in group if other != axis) for axis in unknown}
    axes = [axis for group in left for axis in group]
    target = [axis for group in right for axis in group]
    new = [axis for axis in target if axis not in axes]
    value = value.reshape([sizes[axis] for axis in axes]).expand([sizes[axis] for axis in (*new, *axes)])
    moved = value.permute([(*new, *axes).index(axis) for axis in target])
    return moved.reshape([math.prod(sizes[axis] for axis in group) for group in right])


@given(st.data(), shapes)
@settings(max_examples=150, deadline=None)
def test_patterns_say_what_is_done(data: st.DataObject, shape: tuple[int, ...]) -> None:
    expr: Expr = Source("x", shape)
    for kind in data.draw(st.lists(st.sampled_from([reshapes, permutes]), max_size=3)):
        expr = data.draw(kind(expr))
    if data.draw(st.booleans()):
        expr = data.draw(expands(expr))
    for kind in data.draw(st.lists(st.sampled_from([reshapes, permutes]), max_size=3)):
        expr = data.draw(kind(expr))
    found = re.fullmatch(r"(rearrange|repeat)\(x, \"(.*)\"((?:, \w+=\d+)*)\)", format_expr(expr))
    if found is None:
        return
    sizes = {name: int(size) for name, size in re.findall(r"(\w+)=(\d+)", found[3])}
    value = torch.arange(math.prod(shape)).view(shape)
    assert torch.equal(einops(value, found[2], sizes), evaluate(expr, {"x": value}))


def test_an_integer_with_a_text_is_that_integer() -> None:
    shown = ShownInt(768, "d")
    assert (shown, str(shown), f"{shown}", shown + 1, hash(shown)) == (768, "d", "d", 769, hash(768))


@pytest.mark.parametrize(("size", "text"), [(64, "d"), (128, "2d"), (1024, "16d"), (1088, "1088"), (24, "e"), (7, "7")])
def test_sizes_are_named_or_small_multiples(size: int, text: str) -> None:
    assert size_text(size, {64: "d", 24: "e"}) == text


def rows(source: Source, start: int, stop: int) -> Expr:
    rest = len(source.shape) - 1
    return Slice(source, (start, *(0,) * rest), (stop, *source.shape[1:]), (1,) * (rest + 1))


def test_rules_name_the_sizes_that_follow_from_shapes() -> None:
    entries: dict[str, Expr] = {}
    for block in range(2):
        qkv, kv = Source(f"h.{block}.qkv", (192, 64)), Source(f"h.{block}.gate_up", (80, 64))
        entries |= {f"layers.{block}.{name}": rows(qkv, 64 * n, 64 * n + 64) for n, name in enumerate("qkv")}
        entries |= {f"layers.{block}.gate": rows(kv, 0, 40), f"layers.{block}.up": rows(kv, 40, 80)}
        entries[f"layers.{block}.bias"] = Concat((Source(f"h.{block}.b", (128,)), Fill(0.0, (64,))), 0)
        entries[f"layers.{block}.pad"] = Pad(Source(f"h.{block}.p", (64, 5)), (0, 1), (0, 2))
        entries[f"layers.{block}.some"] = rows(qkv, 3, 64)
    assert str(Plan(entries).rules()).splitlines() == [
        "layers.{i}.q <- h.{i}.qkv[0:d]   for i in 0..1",
        "layers.{i}.k <- h.{i}.qkv[d:2d]   for i in 0..1",
        "layers.{i}.v <- h.{i}.qkv[2d:3d]   for i in 0..1",
        "layers.{i}.gate <- h.{i}.gate_up[0:e]   for i in 0..1",
        "layers.{i}.up <- h.{i}.gate_up[e:2e]   for i in 0..1",
        "layers.{i}.bias <- cat(h.{i}.b, zeros(d), dim=0)   for i in 0..1",
        "layers.{i}.pad <- pad(h.{i}.p, 0, 1+2)   for i in 0..1",
        "layers.{i}.some <- h.{i}.qkv[3:64]   for i in 0..1",
        "where d = 64, e = 40",
    ]


def test_a_rule_by_itself_has_numbers() -> None:
    plan = Plan({f"layers.{n}.q": rows(Source(f"h.{n}.qkv", (192, 64)), 0, 64) for n in range(2)})
    assert str(next(iter(plan.rules()))) == "layers.{i}.q <- h.{i}.qkv[0:64]   for i in 0..1"


def test_no_names_are_left_over() -> None:
    assert size_names([Source("w", (64, 64)), rows(Source("v", (64, 64)), 3, 64)]) == {}


@pytest.mark.parametrize(
    ("count", "length", "text"),
    [
        pytest.param(1, 1, "i:i+1", id="one-each"),
        pytest.param(40, 40, "i*d:(i+1)*d", id="one-behind-the-other"),
        pytest.param(80, 40, "i*2d:i*2d+d", id="first-halves"),
        pytest.param(7, 5, "i*7:i*7+5", id="numbers"),
    ],
)
def test_cuts_that_follow_an_index_fold(count: int, length: int, text: str) -> None:
    packed = Source("packed", (count * 6, 3))
    plan = Plan({f"e.{n}.w": rows(packed, n * count, n * count + length) for n in range(6)})
    names = "\nwhere d = 40" if "d" in text else ""
    assert str(fold(plan, cuts=True)) == f"e.{{i}}.w <- packed[{text}]   for i in 0..5{names}"
    assert expand(fold(plan, cuts=True)) == plan
    assert len(fold(plan)) == 6


def test_cuts_of_a_later_start_are_counted_from_it() -> None:
    packed = Source("packed", (60, 3))
    plan = Plan({f"e.{n}.w": rows(packed, 10 * n - 7, 10 * n - 2) for n in range(1, 4)})
    assert str(fold(plan, cuts=True)) == "e.{i}.w <- packed[(i-1)*10+3:(i-1)*10+8]   for i in 1..3"
    assert expand(fold(plan, cuts=True)) == plan


def test_cuts_do_not_fold_where_names_go_on_too() -> None:
    plan = Plan({f"e.{n}.w": rows(Source(f"s.{n}.w", (40, 3)), 4 * n, 4 * n + 4) for n in range(6)})
    assert len(fold(plan, cuts=True)) == 6
