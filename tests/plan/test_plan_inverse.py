from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_strategies import permutes, random_state, reshapes, same

from automap.errors import PlanError
from automap.plan import (
    Add,
    Affine,
    Cast,
    Concat,
    Expr,
    Fill,
    Gather,
    Permute,
    Plan,
    Reshape,
    Shape,
    Slice,
    Source,
    format_expr,
    shape_of,
    simplify,
)

W = Source("w", (12, 5))


def rows(start: int, stop: int, arg: Expr = W) -> Expr:
    shape = shape_of(arg)
    return Slice(arg, (start, *(0,) * (len(shape) - 1)), (stop, *shape[1:]), (1,) * len(shape))


def inverted(entries: dict[str, Expr]) -> dict[str, str]:
    """The inverse as text; that it undoes the plan is checked by the way."""
    plan = Plan(entries, src="a", dest="b")
    inverse = plan.invert()
    assert (inverse.src, inverse.dest) == ("b", "a")
    state = random_state(plan.sources)
    back = inverse.apply(plan.apply(state))
    assert back.keys() == state.keys()
    assert all(same(back[name], state[name]) for name in state)
    return {name: format_expr(expr) for name, expr in inverse.entries.items()}


@st.composite
def one_to_one(draw: st.DrawFn) -> dict[str, Expr]:
    """Plans that fuse, move and split src tensors without losing or repeating any element."""
    shape: Shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    pieces: list[Expr] = [Source(f"w{n}", shape) for n in range(draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["move", "gather", "join", "split"]))
        piece = pieces.pop(draw(st.integers(0, len(pieces) - 1)))
        dim = draw(st.integers(0, len(shape_of(piece)) - 1))
        size = shape_of(piece)[dim]
        if kind == "move":
            pieces.append(draw(permutes(draw(reshapes(piece)))))
        elif kind == "gather":
            pieces.append(Gather(piece, dim, tuple(draw(st.permutations(range(size))))))
        elif kind == "join":
            same_shape = [other for other in pieces if shape_of(other) == shape_of(piece)]
            pieces = [other for other in pieces if shape_of(other) != shape_of(piece)]
            pieces.append(Concat((piece, *same_shape), dim))
        else:
            chosen = draw(st.lists(st.booleans(), min_size=size, max_size=size))
            parts = [tuple(n for n in range(size) if chosen[n] == side) for side in (True, False)]
            pieces += [Gather(piece, dim, part) for part in parts if part]
    return {f"dest.{n}": simplify(piece) for n, piece in enumerate(pieces)}


@given(one_to_one())
@settings(max_examples=200, deadline=None)
def test_apply_then_apply_the_inverse_is_identity(entries: dict[str, Expr]) -> None:
    inverted(entries)


@given(one_to_one())
@settings(max_examples=60, deadline=None)
def test_the_inverse_of_the_inverse_does_what_the_plan_does(entries: dict[str, Expr]) -> None:
    plan = Plan(entries)
    state = random_state(plan.sources)
    twice = plan.invert().invert().apply(state)
    assert all(same(value, twice[name]) for name, value in plan.apply(state).items())


INTERLEAVED = Reshape(Source("w", (24, 5)), (4, 6, 5))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param({"a": W}, {"w": "a"}, id="rename"),
        pytest.param({"a": Permute(W, (1, 0))}, {"w": "a.T"}, id="transpose"),
        pytest.param(
            {"q": rows(0, 4), "k": rows(4, 8), "v": rows(8, 12)}, {"w": "cat(q, k, v, dim=0)"}, id="split-to-fused"
        ),
        pytest.param({"b": rows(5, 12), "a": rows(0, 5)}, {"w": "cat(a, b, dim=0)"}, id="parts-in-another-order"),
        pytest.param(
            {"x": Concat((Source("q", (4, 5)), Source("k", (3, 5))), 0)},
            {"q": "x[0:4]", "k": "x[4:7]"},
            id="fused-to-split",
        ),
        pytest.param(
            {"x": Concat((Source("q", (4,)), Fill(0.0, (4,)), Source("v", (4,))), 0)},
            {"q": "x[0:4]", "v": "x[8:12]"},
            id="constants-are-dropped",
        ),
        pytest.param(
            {
                name: Reshape(Slice(INTERLEAVED, (0, 2 * n, 0), (4, 2 * n + 2, 5), (1, 1, 1)), (8, 5))
                for n, name in enumerate("qkv")
            },
            {
                "w": 'rearrange(cat(rearrange(q, "(a two) b -> a two b", a=4, two=2), '
                'rearrange(k, "(a two) b -> a two b", a=4, two=2), rearrange(v, "(a two) b -> a two b", a=4, two=2), '
                'dim=1), "a b c -> (a b) c")'
            },
            id="interleaved-per-head",
        ),
        pytest.param(
            {"a": Gather(W, 0, (3, 1, 0, 2, *range(4, 12)))},
            {"w": "take(a, [2, 1, 3, 0, 4, 5, 6, 7, ... 4 more], dim=0)"},
            id="rows-in-any-order",
        ),
        pytest.param(
            {
                "even": Slice(W, (0, 0), (12, 5), (2, 1)),
                "first": rows(0, 6, Slice(W, (1, 0), (12, 5), (2, 1))),
            },
            {"w": "take(cat(even, first, dim=0), [0, 6, 1, 7, 2, 8, 3, 9, ... 4 more], dim=0)"},
            id="even-and-odd-rows",
        ),
        pytest.param(
            {"a": rows(0, 4), "b": Reshape(rows(2, 6, Reshape(W, (6, 10))), (40,))},
            {"w": 'cat(a, rearrange(b, "(a b) -> a b", a=8, b=5), dim=0)'},
            id="parts-that-meet-in-no-view-are-followed",
        ),
        pytest.param({"a": Cast(Source("w", (3,), "bfloat16"), "float32")}, {"w": "a.to(bfloat16)"}, id="wider-dtype"),
        pytest.param({"a": Source("w", (0, 3)), "b": Source("v", (3,))}, {"w": "zeros(0, 3)", "v": "b"}, id="empty"),
    ],
)
def test_inverse(entries: dict[str, Expr], expected: dict[str, str]) -> None:
    assert inverted(entries) == expected


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        pytest.param({"a": W, "b": W}, r"`w` is used twice \(all\), by `a`, `b`", id="tied"),
        pytest.param(
            {"a": W, "b": rows(0, 1)}, r"`w` is used twice \(5 of 60 elements\), by `a`, `b`", id="part-of-it-twice"
        ),
        pytest.param(
            {"a": rows(0, 7), "b": rows(8, 12)}, r"`w` is only partly used, 5 of 60 elements are in no", id="a-gap"
        ),
        pytest.param({"a": Gather(W, 0, (0, 1, 1))}, "`a` cannot be inverted: `w` is used twice", id="repeated-rows"),
        pytest.param({"a": Concat((W, W), 1)}, "`w` is used twice", id="twice-in-one-tensor"),
        pytest.param(
            {"a": Cast(W, "bfloat16")}, "bits of `w` are lost in the cast from float32 to bfloat16", id="narrower-dtype"
        ),
        pytest.param(
            {"a": Slice(W, (0, 0), (8, 5), (1, 1)), "b": Slice(W, (4, 0), (8, 5), (1, 1))},
            "`w` is used twice",
            id="overlap",
        ),
        pytest.param({"a": Add(W, Source("v", (5,)))}, "it is the sum of `w` and `v`: any split would do", id="sum"),
        pytest.param({"a": Affine(W, scale=0.0)}, "cannot be undone", id="times-zero"),
        pytest.param(
            {"a": Affine(W, shift=1.0), "b": rows(0, 1)},
            "changed and its parts do not meet",
            id="changed-and-overlapping",
        ),
    ],
)
def test_what_is_not_one_to_one_is_refused_with_the_reason(entries: dict[str, Expr], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan(entries).invert()


def test_a_shift_is_undone_up_to_rounding() -> None:
    plan = Plan({"a": Affine(W, scale=2.0, shift=1.0)})
    state = random_state([W])
    assert torch.allclose(plan.invert().apply(plan.apply(state))["w"], state["w"], rtol=0, atol=1e-6)
