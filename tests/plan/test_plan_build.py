from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_strategies import element_map, gathered, layouts, map_of, same
from torch import Tensor, arange

from automap.errors import PlanError
from automap.plan import (
    Concat,
    ElementMap,
    Expr,
    Fill,
    Gather,
    SourceTensor,
    build_expr,
    dtype_of,
    evaluate,
    format_expr,
    shape_of,
    simplify,
    sources_of,
)
from automap.plan.expr import args_of

D, H = 48, 4  # width and heads; a head has 12 channels
C = D // H


def built(map: ElementMap) -> Expr:
    """The expression of a map, checked against the gather that it stands for."""
    expr = build_expr(map)
    state = {s.name: torch.randn(s.shape).to(getattr(torch, s.dtype)) for s in map.sources}
    assert same(evaluate(expr, state), gathered(map, state))
    assert shape_of(expr) == map.shape
    assert dtype_of(expr) == map.dtype
    assert simplify(expr) == expr
    return expr


def ids(*shape: int, offset: int = 0) -> Tensor:
    return arange(offset, offset + torch.Size(shape).numel()).view(shape)


@given(layouts())
@settings(max_examples=300, deadline=None)
def test_evaluating_what_is_built_equals_the_gather(expr: Expr) -> None:
    built(map_of(expr))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_ids_without_any_structure_are_built_exactly(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), max_size=3))
    count = torch.Size(shape).numel()
    values = data.draw(st.lists(st.integers(-3, 17), min_size=count, max_size=count))
    shapes = {"a": (3, 2), "b": (0, 3), "c": (2, 2, 2), "d": (), "e": (3, 1)}
    built(element_map(shapes, torch.tensor(values).view(shape), (2.5, -0.0)))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_parts_of_one_source_in_any_order_are_built_exactly(data: st.DataObject) -> None:
    rows = ids(data.draw(st.sampled_from([16, 24, 36])), 3)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1), max_size=4)))
    parts = data.draw(st.permutations(rows.tensor_split(cuts)))
    source_ids = torch.cat(parts)[:: data.draw(st.sampled_from([1, 2]))]
    built(element_map({"x": tuple(rows.shape)}, source_ids.T if data.draw(st.booleans()) else source_ids))


QKV = ids(3 * D, D)
PER_HEAD = QKV.view(H, 3, C, D)
EXPERTS = ids(16, 6, 4)


@pytest.mark.parametrize(
    ("source_ids", "shape", "text"),
    [
        pytest.param(QKV, (3 * D, D), "x", id="same"),
        pytest.param(QKV[D : 2 * D], (3 * D, D), "x[48:96]", id="fused-qkv-to-k"),
        pytest.param(QKV.T, (3 * D, D), "x.T", id="linear-to-conv1d-of-gpt2"),
        pytest.param(QKV[:, 12:36], (3 * D, D), "x[:, 12:36]", id="columns"),
        pytest.param(QKV[1::2, ::3], (3 * D, D), "x[1:144:2, 0:48:3]", id="steps-in-both-dims"),
        pytest.param(
            PER_HEAD.permute(1, 0, 2, 3).reshape(3 * D, D),
            (3 * D, D),
            'rearrange(x, "(a three b) c -> (three a b) c", a=4, three=3, b=12)',
            id="qkv-interleaved-per-head-to-fused",
        ),
        pytest.param(
            PER_HEAD[:, 2].reshape(D, D),
            (3 * D, D),
            'rearrange(rearrange(x, "(a b) c -> a b c", a=4, b=36)[:, 24:36], "a b c -> (a b) c")',
            id="qkv-interleaved-per-head-to-v",
        ),
        pytest.param(
            QKV[D : 2 * D].view(H, 2, C // 2, D).transpose(1, 2).reshape(D, D),
            (3 * D, D),
            'rearrange(x[48:96], "(a two b) c -> (a b two) c", a=4, two=2, b=6)',
            id="rotary-halves-to-interleaved",
        ),
        pytest.param(
            QKV[7 : 7 + D].view(H, C // 2, 2, D).transpose(1, 2).reshape(D, D),
            (3 * D, D),
            'rearrange(x[7:55], "(a b two) c -> (a two b) c", a=4, b=6, two=2)',
            id="rotary-interleaved-to-halves-at-an-odd-row",
        ),
        pytest.param(
            ids(8, 6, 49).transpose(1, 2).reshape(8, 294),
            (8, 294),
            'rearrange(x, "a (b c) -> a (c b)", b=6, c=49)',
            id="columns-after-flatten-nchw-to-nhwc",
        ),
        pytest.param(ids(8, 6), (8, 6, 1, 1), 'rearrange(x, "a b 1 1 -> a b")', id="conv1x1-to-linear"),
        pytest.param(ids(8, 6, 1, 1), (8, 6), 'rearrange(x, "a b -> a b 1 1")', id="linear-to-conv1x1"),
        pytest.param(
            ids(8, 3, 5, 5).permute(0, 2, 3, 1).reshape(8, 75),
            (8, 3, 5, 5),
            'rearrange(x, "a three b c -> a (b c three)")',
            id="patch-kernel-flattened-in-another-order",
        ),
        pytest.param(
            ids(9, 5, 4).permute(2, 0, 1), (9, 5, 4), 'rearrange(x, "a b c -> c a b")', id="permuted-three-dims"
        ),
        pytest.param(torch.cat([QKV[D:], QKV[:D]]), (3 * D, D), "cat(x[48:144], x[0:48], dim=0)", id="swapped-parts"),
        pytest.param(
            torch.cat([QKV[:D].T, QKV[D:]]), (3 * D, D), "cat(x[0:48].T, x[48:144], dim=0)", id="part-of-it-transposed"
        ),
        pytest.param(
            torch.cat([ids(732)[-3:], ids(732)[:-3]]), (732,), "cat(x[729:732], x[0:729], dim=0)", id="rolled-table"
        ),
        pytest.param(
            QKV.view(12, C, D)[[5, 0, 3, 1, 11, 2, 4, 7, 6, 8, 10, 9]].reshape(3 * D, D),
            (3 * D, D),
            'rearrange(take(rearrange(x, "(a b) c -> a b c", a=12, b=12), '
            '[5, 0, 3, 1, 11, 2, 4, 7, ... 4 more], dim=0), "a b c -> (a b) c")',
            id="heads-in-any-order",
        ),
        pytest.param(QKV[[5, 3, 99]], (3 * D, D), "take(x, [5, 3, 99], dim=0)", id="single-rows"),
        pytest.param(
            ids(8, 9)[[3, 1, 0, 6]][:, [8, 2, 3, 0, 1]],
            (8, 9),
            "take(take(x, [3, 1, 0, 6], dim=0), [8, 2, 3, 0, 1], dim=1)",
            id="rows-and-columns",
        ),
        pytest.param(
            ids(8, 3, 3).flip(1, 2), (8, 3, 3), "take(take(x, [2, 1, 0], dim=1), [2, 1, 0], dim=2)", id="flipped-kernel"
        ),
        pytest.param(
            ids(4, 1, 6).expand(4, 2, 6).reshape(8, 6),
            (4, 6),
            'repeat(x, "a b -> (a two) b", two=2)',
            id="repeated-rows",
        ),
        pytest.param(
            torch.tensor([[2, 4], [4, 6]]),
            (2, 4),
            'rearrange(take(rearrange(x, "two a -> (two a)"), [2, 4, 4, 6], dim=0), "(a b) -> a b", a=2, b=2)',
            id="windows-that-overlap",
        ),
        pytest.param(ids(5)[3], (5,), 'rearrange(x[3:4], "1 -> ")', id="scalar-from-vector"),
        pytest.param(torch.tensor([[0]]), (), "x.reshape(1, 1)", id="scalar-to-matrix"),
    ],
)
def test_one_source(source_ids: Tensor, shape: tuple[int, ...], text: str) -> None:
    assert format_expr(built(element_map({"x": shape}, source_ids))) == text


Q, K, V = (ids(D, D, offset=part * D * D) for part in range(3))
THREE = {"q": (D, D), "k": (D, D), "v": (D, D)}


@pytest.mark.parametrize(
    ("source_ids", "shapes", "text"),
    [
        pytest.param(torch.cat([Q, K, V]), THREE, "cat(q, k, v, dim=0)", id="fused-qkv"),
        pytest.param(torch.cat([K, Q], 1), THREE, "cat(k, q, dim=1)", id="side-by-side"),
        pytest.param(torch.cat([Q.T, K.T, V.T], 1), THREE, "cat(q.T, k.T, v.T, dim=1)", id="conv1d-of-gpt2"),
        pytest.param(
            torch.stack([Q, K], 1).reshape(-1, D),
            THREE,
            'rearrange(stack(q, k, dim=1), "a two b -> (a two) b")',
            id="gate-and-up-row-by-row",
        ),
        pytest.param(
            torch.cat([part.view(H, C, D) for part in (Q, K, V)], 1).reshape(3 * D, D),
            THREE,
            'rearrange(cat(rearrange(q, "(a b) c -> a b c", a=4, b=12), rearrange(k, "(a b) c -> a b c", a=4, b=12), '
            'rearrange(v, "(a b) c -> a b c", a=4, b=12), dim=1), "a b c -> (a b) c")',
            id="qkv-interleaved-per-head",
        ),
        pytest.param(
            torch.cat([Q, K, V]).view(3, H, 2, C // 2, D).transpose(2, 3).reshape(3 * D, D),
            THREE,
            'cat(rearrange(q, "(a two b) c -> (a b two) c", a=4, two=2, b=6), '
            'rearrange(k, "(a two b) c -> (a b two) c", a=4, two=2, b=6), '
            'rearrange(v, "(a two b) c -> (a b two) c", a=4, two=2, b=6), dim=0)',
            id="fused-and-rotary-permuted",
        ),
        pytest.param(
            EXPERTS, {f"e.{n}.w": (6, 4) for n in range(16)}, "stack(e.{e}.w for e in 0..15, dim=0)", id="experts"
        ),
        pytest.param(
            EXPERTS.transpose(1, 2),
            {f"e.{n}.w": (6, 4) for n in range(16)},
            "stack(e.{e}.w.T for e in 0..15, dim=0)",
            id="experts-transposed",
        ),
        pytest.param(
            torch.cat([EXPERTS, EXPERTS + 16 * 24], 2).transpose(1, 2),
            {f"{kind}.{n}.w": (6, 4) for kind in ("gate", "up") for n in range(16)},
            "cat(stack(gate.{e}.w.T for e in 0..15, dim=0), stack(up.{e}.w.T for e in 0..15, dim=0), dim=1)",
            id="experts-with-gate-and-up-fused",
        ),
        pytest.param(
            torch.cat([ids(D), torch.full((D,), -1), ids(D, offset=D)]),
            {"q_bias": (D,), "v_bias": (D,)},
            "cat(q_bias, zeros(48), v_bias, dim=0)",
            id="bias-of-beit",
        ),
        pytest.param(
            torch.cat([torch.cat([ids(3, 4), ids(2, 4, offset=12)]), ids(5, 3, offset=20)], 1),
            {"a": (3, 4), "b": (2, 4), "c": (5, 3)},
            "cat(cat(a, b, dim=0), c, dim=1)",
            id="cat-in-cat-tears-nothing-apart",
        ),
        pytest.param(
            torch.nn.functional.pad(ids(3, 4), (1, 2, 1, 0), value=-1),
            {"a": (3, 4)},
            "cat(zeros(1, 7), cat(zeros(3, 1), a, zeros(3, 2), dim=1), dim=0)",
            id="padded",
        ),
        pytest.param(torch.full((3, 2), -2), {"a": (1,)}, "full((3, 2), 2.5)", id="constant"),
        pytest.param(
            torch.tensor([4, 9, 1, -1, 5, 8, 3, 0, -2, 7, 2, 6, 6, 0, 9, 1]),
            {"a": (5,), "b": (5,)},
            "take(cat(full((1), 2.5), zeros(1), a, b, dim=0), [6, 11, 3, 1, 7, 10, 5, 2, ... 8 more], dim=0)",
            id="no-order-at-all",
        ),
    ],
)
def test_several_sources(source_ids: Tensor, shapes: dict[str, tuple[int, ...]], text: str) -> None:
    assert format_expr(built(element_map(shapes, source_ids, (2.5,)))) == text


def test_partial_rotary_is_a_concat_within_each_head() -> None:
    heads = QKV[:D].view(H, C, D)
    turned = heads[:, :4].reshape(H, 2, 2, D).transpose(1, 2).reshape(H, 4, D)
    expr = built(element_map({"x": (3 * D, D)}, torch.cat([turned, heads[:, 4:]], 1).reshape(D, D)))
    assert not any(isinstance(node, Gather) for node in nodes(expr))
    assert sum(isinstance(node, Concat) for node in nodes(expr)) == 1


def nodes(expr: Expr) -> list[Expr]:
    return [expr, *(node for arg in args_of(expr) for node in nodes(arg))]


def test_one_wrong_element_is_not_lost() -> None:
    almost = ids(30, 40).T.contiguous()
    almost[17, 23] = 5
    assert format_expr(built(element_map({"x": (30, 40)}, almost))) != "x.T"


def test_sources_that_do_not_occur_are_left_out() -> None:
    expr = built(element_map({"a": (4,), "b": (0,), "c": (4,), "d": (9,)}, ids(4, offset=4)))
    assert [source.name for source in sources_of(expr)] == ["c"]


def test_a_dest_tensor_without_elements_is_a_constant() -> None:
    assert build_expr(element_map({"a": (4,)}, ids(0, 3))) == Fill(0.0, (0, 3), "float32")


def test_another_dtype_is_a_cast() -> None:
    sources = (SourceTensor("a", (4,), "bfloat16", 0), SourceTensor("b", (4,), "float32", 4))
    padded = torch.cat([torch.tensor([-1, -2]), ids(8)])
    expr = built(ElementMap((10,), "float32", padded, sources, (0.1,)))
    assert format_expr(expr) == "cat(zeros(1), full((1), 0.1), a.to(float32), b, dim=0)"


@pytest.mark.parametrize(
    ("source_ids", "message"),
    [
        pytest.param(ids(5), "id 4 belongs to no source", id="past-the-end"),
        pytest.param(torch.tensor([0, -2]), "id -2 names a constant that the map does not have", id="no-such-constant"),
    ],
)
def test_ids_that_mean_nothing_are_refused(source_ids: Tensor, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        build_expr(element_map({"a": (4,)}, source_ids))


def test_ids_between_sources_are_refused() -> None:
    sources = (SourceTensor("a", (2,), "float32", 0), SourceTensor("b", (2,), "float32", 4))
    with pytest.raises(PlanError, match="id 2 belongs to no source"):
        build_expr(ElementMap((6,), "float32", ids(6), sources))


def test_sources_with_common_ids_are_refused() -> None:
    sources = (SourceTensor("a", (4,), "float32", 0), SourceTensor("b", (4,), "float32", 3))
    with pytest.raises(PlanError, match="`a` and `b` have ids in common"):
        build_expr(ElementMap((6,), "float32", ids(6), sources))


def test_ids_of_another_shape_are_refused() -> None:
    with pytest.raises(PlanError, match=r"ids have shape \(4,\), the dest tensor \(2, 2\)"):
        build_expr(ElementMap((2, 2), "float32", ids(4), (SourceTensor("a", (4,), "float32", 0),)))


def test_ten_million_elements_take_seconds_at_most() -> None:
    rows, columns = 2500, 4000
    fused = torch.cat([ids(20, 100, columns), ids(20, 25, columns, offset=2000 * columns)], 1).view(rows, columns)
    map = element_map({"q": (2000, columns), "k": (500, columns)}, fused)
    start = time.perf_counter()
    expr = build_expr(map)
    assert time.perf_counter() - start < 20  # half a second on an idle machine
    assert format_expr(expr).startswith("rearrange(cat(rearrange(q,")
