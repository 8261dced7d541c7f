from __future__ import annotations

import contextlib
import doctest
import importlib
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_strategies import close_numbers, exprs, random_state, same

from automap.errors import PlanError
from automap.plan import (
    Add,
    Affine,
    Cast,
    Concat,
    Expr,
    Fill,
    Gather,
    Multiply,
    Permute,
    Reshape,
    Slice,
    Source,
    dtype_of,
    evaluate,
    format_expr,
    from_json,
    is_computed,
    shape_of,
    simplify,
    sources_of,
    to_json,
)

W = Source("w", (4, 6))
V = Source("v", (4, 6))
BIAS = Source("b", (6,))


@given(exprs())
@settings(max_examples=150, deadline=None)
def test_shape_and_dtype_agree_with_evaluate(expr: Expr) -> None:
    value = evaluate(expr, random_state(sources_of(expr)))
    assert tuple(value.shape) == shape_of(expr)
    assert str(value.dtype) == f"torch.{dtype_of(expr)}"


@given(exprs(max_steps=7))
@settings(max_examples=250, deadline=None)
def test_simplify_keeps_every_moved_bit_and_every_number_and_is_idempotent(expr: Expr) -> None:
    state = random_state(sources_of(expr))
    shorter = simplify(expr)
    equal = close_numbers if is_computed(expr) else same
    assert equal(evaluate(shorter, state), evaluate(expr, state))
    assert simplify(shorter) == shorter


@given(exprs())
@settings(max_examples=100, deadline=None)
def test_json_round_trip(expr: Expr) -> None:
    assert from_json(json.loads(json.dumps(to_json(expr), allow_nan=False))) == expr


@given(exprs())
@settings(max_examples=100, deadline=None)
def test_every_expression_has_one_line_of_text(expr: Expr) -> None:
    text = format_expr(expr)
    assert text
    assert "\n" not in text


@given(exprs())
@settings(max_examples=50, deadline=None)
def test_a_state_in_another_dtype_keeps_it(expr: Expr) -> None:
    state = {name: value.double() for name, value in random_state(sources_of(expr)).items()}
    if state:
        assert evaluate(expr, state).dtype == torch.float64


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        pytest.param(Slice(W, (0, 0), (5, 6), (1, 1)), r"slice 0:5:1 leaves dim 0 of shape \(4, 6\)", id="slice-out"),
        pytest.param(Slice(W, (0,), (4,), (1,)), "a slice of 1 dims does not fit", id="slice-rank"),
        pytest.param(Slice(W, (0, 0), (4, 6), (0, 1)), "slice 0:4:0", id="slice-step-zero"),
        pytest.param(Concat((), 0), "concat along dim 0 of 0 tensors", id="concat-nothing"),
        pytest.param(Concat((W, BIAS), 0), "which differ elsewhere", id="concat-ranks"),
        pytest.param(Concat((W, V), 2), "concat along dim 2", id="concat-dim"),
        pytest.param(Permute(W, (0, 0)), "not a permutation", id="permute-twice"),
        pytest.param(Reshape(W, (5, 5)), "other number of elements", id="reshape-count"),
        pytest.param(Reshape(W, (-4, -6)), "negative size", id="reshape-negative"),
        pytest.param(Gather(W, 0, (0, 4)), "gather indices leave dim 0", id="gather-out"),
        pytest.param(Gather(W, 2, (0,)), "gather along dim 2", id="gather-dim"),
        pytest.param(Add(W, Source("u", (4, 5))), "do not broadcast", id="add-shapes"),
    ],
)
def test_a_node_that_does_not_fit_is_refused(expr: Expr, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        shape_of(expr)
    with pytest.raises(PlanError, match=message):
        evaluate(expr, random_state([W, V, BIAS]))


def test_a_missing_source_is_named() -> None:
    with pytest.raises(PlanError, match="src has no tensor `w`"):
        evaluate(W, {"v": torch.randn(4, 6)})


def test_a_source_of_another_shape_is_named_with_both_shapes() -> None:
    with pytest.raises(PlanError, match=r"`w` has shape \(6, 4\), the plan was made for \(4, 6\)"):
        evaluate(W, {"w": torch.randn(6, 4)})


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(PlanError, match="`float33` is no dtype"):
        evaluate(Cast(W, "float33"), random_state([W]))


def test_constants_take_the_dtype_of_the_weights_they_join() -> None:
    padded = Concat((Source("b", (2,), "bfloat16"), Fill(0.0, (3,))), 0)
    assert dtype_of(padded) == "bfloat16"
    assert evaluate(padded, {"b": torch.randn(2).bfloat16()}).dtype == torch.bfloat16


def test_a_cast_changes_only_the_dtype_it_was_written_for() -> None:
    expr = Cast(Source("w", (3,), "bfloat16"), "float32")
    assert evaluate(expr, {"w": torch.randn(3).bfloat16()}).dtype == torch.float32
    assert evaluate(expr, {"w": torch.randn(3).double()}).dtype == torch.float64


def test_mixed_weights_promote_as_torch_does() -> None:
    mixed = Concat((Source("a", (2,), "float16"), Source("b", (2,), "bfloat16")), 0)
    assert dtype_of(mixed) == "float32"


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "bool", "uint8", "complex64", "float16"])
def test_elements_of_any_dtype_are_moved_bitwise(dtype: str) -> None:
    source = Source("w", (4, 6), dtype)
    value = (torch.randn(4, 6) * 3).to(getattr(torch, dtype))
    first_two = Slice(source, (0, 0), (4, 2), (1, 1))
    expr = Concat((Permute(Gather(source, 1, (5, 0, 3)), (1, 0)), Permute(first_two, (1, 0))), 0)
    assert same(evaluate(expr, {"w": value}), value[:, [5, 0, 3, 0, 1]].T.contiguous())


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        pytest.param(Slice(W, (0, 0), (4, 6), (1, 1)), W, id="whole-slice"),
        pytest.param(
            Slice(Slice(W, (1, 0), (4, 6), (1, 2)), (1, 1), (3, 3), (1, 1)),
            Slice(W, (2, 2), (4, 6), (1, 2)),
            id="slice-of-slice",
        ),
        pytest.param(Slice(Concat((W, V), 0), (4, 0), (8, 6), (1, 1)), V, id="slice-undoes-concat"),
        pytest.param(
            Concat((Slice(W, (0, 0), (1, 6), (1, 1)), Slice(W, (1, 0), (4, 6), (1, 1))), 0), W, id="concat-undoes-slice"
        ),
        pytest.param(
            Concat((Slice(W, (0, 0), (2, 3), (1, 1)), Slice(W, (2, 3), (4, 6), (1, 1))), 0),
            None,
            id="concat-of-slices-of-other-columns",
        ),
        pytest.param(Concat((Concat((W, V), 1), W), 1), Concat((W, V, W), 1), id="concat-of-concat"),
        pytest.param(Concat((Concat((W, V), 1), Concat((V, W), 1)), 0), None, id="concat-of-concat-along-another-dim"),
        pytest.param(Reshape(Permute(Permute(W, (1, 0)), (1, 0)), (4, 6)), W, id="transposed-twice"),
        pytest.param(Reshape(Reshape(W, (2, 12)), (4, 6)), W, id="reshape-of-reshape"),
        pytest.param(Permute(Reshape(W, (4, 1, 6)), (1, 0, 2)), Reshape(W, (1, 4, 6)), id="permute-of-size-one"),
        pytest.param(Gather(W, 1, (1, 3, 5)), Slice(W, (0, 1), (4, 6), (1, 2)), id="gather-in-steps"),
        pytest.param(Gather(W, 0, (0, 2, 1, 3)), None, id="gather-out-of-order"),
        pytest.param(Gather(Gather(W, 0, (3, 1, 2, 0)), 0, (3, 1, 2, 0)), W, id="gather-undoes-gather"),
        pytest.param(Permute(Fill(2.0, (2, 3)), (1, 0)), Fill(2.0, (3, 2)), id="permuted-constant"),
        pytest.param(Concat((Fill(0.0, (2,)), Fill(-0.0, (3,))), 0), None, id="zeros-of-both-signs"),
        pytest.param(Cast(W, "float32"), W, id="cast-to-own-dtype"),
        pytest.param(Cast(Cast(W, "bfloat16"), "float32"), None, id="cast-that-loses-bits"),
        pytest.param(Affine(W), W, id="affine-identity"),
        pytest.param(Affine(W, shift=1.0), None, id="affine"),
    ],
)
def test_simplify(expr: Expr, expected: Expr | None) -> None:
    assert simplify(expr) == (expr if expected is None else expected)


@pytest.mark.parametrize("name", ["expr", "evaluate", "simplify", "notation", "codec", "build", "template", "plan"])
def test_examples_in_docstrings_are_right(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"automap.plan.{name}"))
    assert result.attempted
    assert not result.failed


def test_constants_are_equal_where_their_bits_are() -> None:
    nan, other_nan = Fill(float("nan"), (2,)), Fill(float("-nan"), (2,))
    assert nan == other_nan
    assert same(evaluate(nan, {}), evaluate(other_nan, {}))
    assert hash(nan) == hash(other_nan)
    assert Fill(0.0, (2,)) != Fill(-0.0, (2,))
    assert Fill(0.0, (2,)) != Fill(0.0, (2,), "bfloat16")


def test_importing_plans_does_not_import_torch() -> None:
    code = "import automap.plan, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        pytest.param(Slice(W, (1, 0), (3, 6), (1, 1)), "w[1:3]", id="rows"),
        pytest.param(Slice(W, (0, 1), (4, 6), (1, 2)), "w[:, 1:6:2]", id="columns-in-steps"),
        pytest.param(Permute(W, (1, 0)), "w.T", id="transpose"),
        pytest.param(Concat((W, Permute(V, (1, 0))), 0), "cat(w, v.T, dim=0)", id="concat"),
        pytest.param(
            Reshape(Permute(Reshape(Source("x", (30, 5)), (3, 2, 5, 5)), (1, 0, 2, 3)), (30, 5)),
            'rearrange(x, "(three two a) b -> (two three a) b", three=3, two=2, a=5)',
            id="pattern",
        ),
        pytest.param(Reshape(Source("k", (8, 4, 1, 1)), (8, 4)), 'rearrange(k, "a b 1 1 -> a b")', id="conv-to-linear"),
        pytest.param(
            Reshape(Permute(Source("k", (8, 4, 3, 3)), (0, 2, 3, 1)), (8, 36)),
            'rearrange(k, "a b c d -> a (c d b)")',
            id="equal-sizes-have-letters",
        ),
        pytest.param(
            Reshape(Source("k", (6, 4)), (2, 12)),
            'rearrange(k, "(two three) a -> two (three a)", two=2, three=3)',
            id="reshape-across-dims",
        ),
        pytest.param(Reshape(Source("k", (6, 35)), (10, 21)), "k.reshape(10, 21)", id="no-common-factors"),
        pytest.param(Gather(W, 0, (3, 0, 1)), "take(w, [3, 0, 1], dim=0)", id="gather"),
        pytest.param(
            Gather(Source("t", (99,)), 0, tuple(range(98, -1, -1))),
            "take(t, [98, 97, 96, 95, 94, 93, 92, 91, ... 91 more], dim=0)",
            id="long-gather",
        ),
        pytest.param(Fill(0.0, (3, 2)), "zeros(3, 2)", id="zeros"),
        pytest.param(Fill(1.0, (3,)), "ones(3)", id="ones"),
        pytest.param(Fill(0.5, (3, 2)), "full((3, 2), 0.5)", id="fill"),
        pytest.param(Cast(Affine(W, shift=1.0), "bfloat16"), "(w + 1).to(bfloat16)", id="cast-of-affine"),
        pytest.param(Affine(W, 2.0, -0.5), "2 * w - 0.5", id="affine"),
        pytest.param(Multiply(Add(W, V), BIAS), "(w + v) * b", id="arithmetic"),
        pytest.param(
            Concat(tuple(Reshape(Permute(Source(f"e.{n}.w", (4, 6)), (1, 0)), (1, 6, 4)) for n in range(8)), 0),
            "stack(e.{e}.w.T for e in 0..7, dim=0)",
            id="experts",
        ),
        pytest.param(
            Concat(tuple(Source(f"e.{n}.w", (4, 6)) for n in (0, 1, 3)), 1),
            "cat(e.0.w, e.1.w, e.3.w, dim=1)",
            id="experts-with-a-gap",
        ),
    ],
)
def test_notation(expr: Expr, text: str) -> None:
    assert format_expr(expr) == text


def nested(depth: int) -> dict[str, Any]:
    data: dict[str, Any] = to_json(W)
    for _ in range(depth):
        data = {"op": "permute", "arg": data, "dims": [1, 0]}
    return data


SOURCE = {"op": "source", "name": "w", "shape": [4, 6], "dtype": "float32"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param([], "^expr is a list, not an object", id="no-object"),
        pytest.param({}, "^expr has no field `op`", id="no-op"),
        pytest.param({"op": "exec"}, r"^expr\.op is `exec`, which is no kind of expression", id="unknown-op"),
        pytest.param({**SOURCE, "shap": [1]}, "^expr has unknown fields: `shap`", id="unknown-field"),
        pytest.param({"op": "source", "name": "w", "shape": [4]}, "^expr has no field `dtype`", id="missing-field"),
        pytest.param({**SOURCE, "dtype": "float33"}, r"^expr\.dtype is `float33`", id="unknown-dtype"),
        pytest.param({**SOURCE, "dtype": "nn"}, r"^expr\.dtype is `nn`", id="torch-attribute-that-is-no-dtype"),
        pytest.param({**SOURCE, "name": 3}, r"^expr\.name is a number, not a string", id="name-no-string"),
        pytest.param({**SOURCE, "shape": [True]}, r"^expr\.shape\[0\] is a boolean", id="boolean-size"),
        pytest.param({**SOURCE, "shape": [4, 6.0]}, r"^expr\.shape\[1\] is a number, not an integer", id="float-size"),
        pytest.param({**SOURCE, "shape": [4, -6]}, r"^expr\.shape\[1\] is not between 0 and", id="negative-size"),
        pytest.param({**SOURCE, "shape": [2**30, 2**30]}, "^expr has shape .* more than", id="too-large"),
        pytest.param({**SOURCE, "shape": [1] * 65}, "^expr has shape .* more than 64 dims", id="too-many-dims"),
        pytest.param({"op": "permute", "arg": SOURCE, "dims": [0]}, "^expr: dims .* not a permutation", id="misfit"),
        pytest.param(
            {"op": "concat", "dim": 0, "args": [SOURCE, {"op": "cast", "arg": None, "dtype": "float32"}]},
            r"^expr\.args\[1\]\.arg is null, not an object",
            id="place-of-an-inner-node",
        ),
        pytest.param(
            {"op": "fill", "value": "1", "shape": [2], "dtype": "float32"}, r"^expr\.value is a string", id="text-value"
        ),
        pytest.param(nested(64), r"\.arg is nested more than 64 deep", id="too-deep"),
    ],
)
def test_what_is_not_an_expression_is_refused_with_its_place(data: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        from_json(data)


def test_the_deepest_expression_that_can_be_read_can_be_written() -> None:
    expr = from_json(nested(63))
    assert from_json(to_json(expr)) == expr
    with pytest.raises(PlanError, match="nested 65 deep"):
        to_json(Permute(expr, (1, 0)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(st.data(), exprs())
@settings(max_examples=150, deadline=None)
def test_damaged_json_is_refused_or_still_an_expression(data: st.DataObject, expr: Expr) -> None:
    encoded: dict[str, Any] = to_json(expr)
    node = encoded
    while isinstance(node.get("arg"), dict) and data.draw(st.booleans()):
        node = node["arg"]
    node[data.draw(st.sampled_from([*node, "more"]))] = data.draw(json_values)
    with contextlib.suppress(PlanError):
        shape_of(from_json(encoded))
