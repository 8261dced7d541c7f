"""Formulas that algebra produces, as people write them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_strategies import random_state

from automap.plan import (
    Add,
    Affine,
    Divide,
    Expand,
    Expr,
    Fill,
    Gather,
    MatMul,
    Mean,
    Multiply,
    Norm,
    Permute,
    Reshape,
    Slice,
    Source,
    Sqrt,
    Subtract,
    dtype_of,
    evaluate,
    format_expr,
    shape_of,
    simplify,
    sources_of,
)
from automap.plan.arithmetic import RULES
from automap.plan.simplify import measure_of

ONE = Fill(1.0, ())
W, V = Source("w", (4, 6)), Source("v", (4, 6))
G, H, B = Source("g", (4,)), Source("h", (4,)), Source("b", (6,))
KERNEL = Source("0.weight", (8, 3, 5, 5))
BIAS = Source("0.bias", (8,))
GAMMA, BETA, MEAN, VAR = (Source(f"1.{name}", (8,)) for name in ("weight", "bias", "running_mean", "running_var"))


def transposed(expr: Expr) -> Expr:
    return Permute(expr, (1, 0))


def image(expr: Expr) -> Expr:
    return Reshape(expr, (8, 1, 1))


FACTOR = Multiply(image(GAMMA), Divide(ONE, Sqrt(Affine(image(VAR), shift=1e-5))))
SHIFT = Reshape(Add(image(BETA), Multiply(Affine(image(MEAN), -1.0), FACTOR)), (8,))
PLAIN = Divide(ONE, Sqrt(Affine(image(VAR), shift=1e-5)))


def assert_close(shorter: Expr, expr: Expr) -> None:
    """Same shape and dtype, the same up to the rounding of float64, and finite in the same places."""
    state = {name: value.double() for name, value in random_state(sources_of(expr)).items()}
    expected, found = evaluate(expr, state), evaluate(shorter, state)
    assert (shape_of(shorter), dtype_of(shorter)) == (shape_of(expr), dtype_of(expr))
    assert found.dtype == expected.dtype
    assert torch.equal(found.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    assert torch.allclose(found[finite].double(), expected[finite].double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        pytest.param(
            Multiply(KERNEL, Reshape(FACTOR, (8, 1, 1, 1))),
            "0.weight * 1.weight / sqrt(1.running_var + 1e-05)",
            id="batch-norm-weight",
        ),
        pytest.param(
            Multiply(Source("0.weight", (8, 8, 8, 8)), Reshape(FACTOR, (8, 1, 1, 1))),
            "0.weight * (1.weight / sqrt(1.running_var + 1e-05))[:, None, None, None]",
            id="batch-norm-weight-where-rows-must-be-told",
        ),
        pytest.param(
            Add(Multiply(BIAS, Reshape(FACTOR, (8,))), SHIFT),
            "(0.bias - 1.running_mean) * 1.weight / sqrt(1.running_var + 1e-05) + 1.bias",
            id="batch-norm-bias",
        ),
        pytest.param(
            SHIFT, "1.bias - 1.running_mean * 1.weight / sqrt(1.running_var + 1e-05)", id="batch-norm-without-conv-bias"
        ),
        pytest.param(
            Reshape(Add(Multiply(image(BIAS), PLAIN), Multiply(Affine(image(MEAN), -1.0), PLAIN)), (8,)),
            "(0.bias - 1.running_mean) / sqrt(1.running_var + 1e-05)",
            id="batch-norm-without-affine",
        ),
        pytest.param(transposed(Affine(transposed(W), 0.714286)), "0.714286 * w", id="scaled-transpose"),
        pytest.param(Divide(ONE, Divide(ONE, Norm(W, (1,)))), "norm(w, dims=(1,))", id="twice-one-by"),
        pytest.param(
            Multiply(W, Multiply(Reshape(G, (4, 1)), Divide(ONE, Norm(W, (1,))))),
            "w * g[:, None] / norm(w, dims=(1,))",
            id="weight-norm",
        ),
        pytest.param(Divide(ONE, Source("s", (3,))), "1 / s", id="one-number-by"),
    ],
)
def test_what_algebra_produces_is_written_as_people_do(expr: Expr, text: str) -> None:
    assert format_expr(simplify(expr)) == text
    assert_close(simplify(expr), expr)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        pytest.param(Multiply(W, Divide(V, B)), "w * v / b", id="product-with-quotient"),
        pytest.param(Multiply(W, MatMul(V, Source("m", (6, 6)))), "w * (v @ m)", id="product-with-matrix-product"),
        pytest.param(
            Multiply(W, Divide(MatMul(V, Source("m", (6, 6))), B)), "w * (v @ m / b)", id="product-that-leads-with-one"
        ),
        pytest.param(Divide(W, Divide(V, B)), "w / (v / b)", id="quotient-by-quotient"),
        pytest.param(Add(W, Subtract(V, B)), "w + v - b", id="sum-with-difference"),
        pytest.param(Add(W, Multiply(V, B)), "w + v * b", id="sum-with-product"),
    ],
)
def test_parentheses_are_left_out_where_they_say_nothing(expr: Expr, text: str) -> None:
    assert format_expr(expr) == text


CASES = [
    pytest.param(Multiply(W, Divide(ONE, B)), Divide(W, B), id="reciprocal-times"),
    pytest.param(Multiply(Divide(ONE, B), W), Divide(W, B), id="times-reciprocal"),
    pytest.param(Multiply(W, Divide(Fill(3.0, ()), B)), Affine(Divide(W, B), 3.0), id="reciprocal-of-a-multiple"),
    pytest.param(Divide(W, Divide(V, B)), Divide(Multiply(W, B), V), id="reciprocal-of-a-quotient"),
    pytest.param(Multiply(G, Divide(Fill(1.0, (5, 1)), H)), None, id="reciprocal-near-miss-that-repeats"),
    pytest.param(Multiply(W, Divide(V, B)), None, id="reciprocal-negative"),
    pytest.param(Add(W, Affine(B, -1.0)), Subtract(W, B), id="minus"),
    pytest.param(Add(Affine(B, -2.0), Affine(W, 3.0)), Subtract(Affine(W, 3.0), Affine(B, 2.0)), id="minus-first"),
    pytest.param(Subtract(W, Affine(B, -2.0)), Add(W, Affine(B, 2.0)), id="minus-minus"),
    pytest.param(Affine(Affine(W, -1.0), -1.0), W, id="minus-of-minus"),
    pytest.param(Affine(Subtract(W, B), -1.0), Subtract(B, W), id="minus-of-a-difference"),
    pytest.param(Add(W, Affine(B, -1.0, 2.0)), None, id="minus-near-miss-with-a-shift"),
    pytest.param(Add(W, Affine(B, 2.0)), None, id="minus-negative"),
    pytest.param(Multiply(Affine(W, 2.0), Affine(B, 3.0)), Affine(Multiply(W, B), 6.0), id="scale-of-both-factors"),
    pytest.param(Divide(Affine(W, 2.0), B), Affine(Divide(W, B), 2.0), id="scale-of-what-is-divided"),
    pytest.param(Divide(W, Affine(B, -1.0)), Affine(Divide(W, B), -1.0), id="scale-of-the-divisor"),
    pytest.param(Affine(Affine(W, 2.0), 3.0, 1.0), Affine(W, 6.0, 1.0), id="scale-of-scale"),
    pytest.param(Affine(Affine(W, 1e-200), 1e-200), None, id="scale-near-miss-that-vanishes"),
    pytest.param(Multiply(Affine(W, 2.0, 1.0), B), None, id="scale-near-miss-with-a-shift"),
    pytest.param(Divide(W, Affine(B, 3.0)), None, id="scale-near-miss-that-would-round"),
    pytest.param(Multiply(W, B), None, id="scale-negative"),
    pytest.param(Add(Multiply(W, B), Multiply(V, B)), Multiply(Add(W, V), B), id="factor"),
    pytest.param(Subtract(Multiply(W, B), Multiply(B, V)), Multiply(Subtract(W, V), B), id="factor-on-either-side"),
    pytest.param(
        Subtract(Subtract(Affine(V, 2.0), Multiply(W, B)), Multiply(V, B)),
        Subtract(Affine(V, 2.0), Multiply(Add(W, V), B)),
        id="factor-of-what-is-taken-away",
    ),
    pytest.param(Subtract(Divide(W, B), Divide(V, B)), Divide(Subtract(W, V), B), id="factor-as-divisor"),
    pytest.param(Subtract(Divide(B, W), Divide(B, V)), None, id="factor-near-miss-in-what-is-divided"),
    pytest.param(Subtract(Multiply(W, B), Divide(V, B)), None, id="factor-near-miss-times-and-by"),
    pytest.param(Add(Multiply(W, V), B), None, id="factor-negative"),
    pytest.param(Sqrt(transposed(W)), transposed(Sqrt(W)), id="layout-of-one"),
    pytest.param(Affine(Expand(G, (3, 4)), 2.0), Expand(Affine(G, 2.0), (3, 4)), id="layout-of-a-repeated-one"),
    pytest.param(Sqrt(Slice(W, (0, 0), (2, 6), (1, 1))), None, id="layout-near-miss-that-computes-more"),
    pytest.param(Sqrt(W), None, id="layout-negative"),
    pytest.param(Multiply(transposed(W), transposed(V)), transposed(Multiply(W, V)), id="common-layout"),
    pytest.param(Divide(Fill(2.0, (4,)), transposed(W)), transposed(Divide(Fill(2.0, ()), W)), id="common-with-number"),
    pytest.param(Add(transposed(W), Reshape(V, (6, 4))), None, id="common-layout-near-miss-another"),
    pytest.param(Divide(Fill(2.0, (3, 6, 4)), transposed(W)), None, id="common-layout-near-miss-that-repeats"),
    pytest.param(
        Multiply(Slice(W, (0, 0), (2, 6), (1, 1)), Slice(V, (0, 0), (2, 6), (1, 1))), None, id="common-layout-negative"
    ),
    pytest.param(
        transposed(Multiply(transposed(W), G)), Multiply(W, Reshape(G, (4, 1))), id="layout-undone-with-a-row"
    ),
    pytest.param(
        Reshape(Multiply(Reshape(KERNEL, (8, 75)), Reshape(GAMMA, (8, 1))), (8, 3, 5, 5)),
        Multiply(KERNEL, Reshape(GAMMA, (8, 1, 1, 1))),
        id="layout-undone-that-merges",
    ),
    pytest.param(
        Reshape(Multiply(Reshape(W, (2, 2, 6)), Reshape(G, (2, 2, 1))), (4, 6)),
        Multiply(W, Reshape(G, (4, 1))),
        id="layout-undone-that-splits",
    ),
    pytest.param(
        Reshape(Multiply(Reshape(W, (2, 2, 6)), Source("t", (2, 1, 1))), (4, 6)),
        None,
        id="layout-undone-near-miss-partly-repeated",
    ),
    pytest.param(transposed(Multiply(W, B)), None, id="layout-undone-near-miss-longer"),
    pytest.param(transposed(Multiply(W, V)), None, id="layout-undone-negative"),
    pytest.param(Norm(transposed(W), (0,)), Reshape(Norm(W, (1,)), (1, 4)), id="reduced-layout"),
    pytest.param(
        Norm(Reshape(KERNEL, (8, 75)), (1,)), Reshape(Norm(KERNEL, (1, 2, 3)), (8, 1)), id="reduced-layout-that-merges"
    ),
    pytest.param(Norm(Reshape(W, (2, 12)), (1,)), None, id="reduced-layout-near-miss-part-of-a-dim"),
    pytest.param(Mean(Reshape(W, (4, 2, 3)), (2,)), None, id="reduced-layout-near-miss-that-splits"),
    pytest.param(Norm(Gather(W, 1, (3, 1, 2)), (1,)), None, id="reduced-layout-negative"),
    pytest.param(Multiply(Expand(G, (5, 4)), H), Expand(Multiply(G, H), (5, 4)), id="expand"),
    pytest.param(Multiply(Expand(B, (4, 6)), W), Multiply(B, W), id="expand-that-says-nothing"),
    pytest.param(Multiply(B, W), None, id="expand-negative"),
    pytest.param(Multiply(Reshape(B, (1, 6)), W), Multiply(B, W), id="ones"),
    pytest.param(Multiply(Reshape(B, (1, 6)), Source("r", (6,))), None, id="ones-near-miss-that-count"),
    pytest.param(Multiply(Reshape(G, (4, 1)), W), None, id="ones-negative"),
]


@pytest.mark.parametrize(("expr", "expected"), CASES)
def test_a_rule_fits_or_leaves_alone(expr: Expr, expected: Expr | None) -> None:
    assert simplify(expr) == (expr if expected is None else expected)
    assert_close(simplify(expr), expr)


def test_integers_are_left_alone() -> None:
    whole = Source("n", (4,), "int64")
    expr = Divide(Source("m", (4,), "int64"), Divide(Source("k", (4,), "int64"), whole))
    assert simplify(expr) == expr


def test_constants_that_vanish_leave_the_dtype_of_weights() -> None:
    half = Source("w", (4, 6), "bfloat16")
    expr = Multiply(half, Divide(Fill(1.0, (), "float64"), Source("b", (6,), "bfloat16")))
    assert simplify(expr) == Divide(half, Source("b", (6,), "bfloat16"))
    assert dtype_of(simplify(expr)) == "bfloat16"


Formulas = st.SearchStrategy[Expr]


def leaves_of(shape: tuple[int, ...]) -> Formulas:
    """Src tensors that broadcast to `shape`, whole or in another layout."""
    wide = st.sampled_from("abc").map(lambda name: Source(f"{name}{shape}", shape))
    row = st.sampled_from("de").map(lambda name: Source(f"{name}{shape[-1:]}", shape[-1:]))
    column = st.sampled_from("gh").map(
        lambda name: Reshape(Source(f"{name}{shape[:1]}", shape[:1]), (shape[0], *(1,) * (len(shape) - 1)))
    )
    return st.one_of(wide, row, column)


def products_of(shape: tuple[int, ...], depth: int) -> Formulas:
    """Products and quotients, which lose no digits, so that they can be divided by."""
    if not depth:
        return leaves_of(shape)
    one, less = st.sampled_from([1.0, 3.0]).map(lambda value: Fill(value, ())), products_of(shape, depth - 1)
    scales = st.sampled_from([-1.0, 2.0, -0.7])
    return st.one_of(
        leaves_of(shape),
        laid_out(shape, lambda inner: products_of(inner, depth - 1)),
        st.builds(Affine, less, scales),
        st.builds(Multiply, less, less),
        st.builds(Divide, less | one, less),
    )


def sums_of(shape: tuple[int, ...], depth: int) -> Formulas:
    """Sums of products, some times and by a product."""
    products = products_of(shape, 3)
    if not depth:
        return products
    less = sums_of(shape, depth - 1)
    return st.one_of(
        products,
        laid_out(shape, lambda inner: sums_of(inner, depth - 1)),
        st.builds(Affine, less, st.sampled_from([-1.0, 2.0]), st.sampled_from([0.0, 1.5])),
        st.builds(Add, less, less),
        st.builds(Subtract, less, less),
        st.builds(lambda x, y, s: Add(Multiply(x, s), Multiply(s, y)), less, less, products),
        st.builds(lambda x, y, s: Subtract(Divide(x, s), Divide(y, s)), less, less, products),
    )


def laid_out(shape: tuple[int, ...], inner: Callable[[tuple[int, ...]], Formulas]) -> Formulas:
    """What `inner` gives for other shapes, as `shape`."""

    def whole(expr: Expr, wide: tuple[int, ...]) -> Expr:
        return expr if shape_of(expr) == wide else Expand(expr, wide)

    flipped = inner(shape[::-1]).map(lambda x: Permute(whole(x, shape[::-1]), tuple(range(len(shape)))[::-1]))
    views = [(4, 6), (4, 2, 3), (2, 2, 6), (24, 1)]
    reshaped = st.sampled_from(views).flatmap(lambda view: inner(view).map(lambda x: Reshape(whole(x, view), shape)))
    return flipped | reshaped


@given(sums_of((4, 6), 3))
@settings(max_examples=300, deadline=None)
def test_formulas_keep_their_value_up_to_rounding(expr: Expr) -> None:
    shorter = simplify(expr)
    assert_close(shorter, expr)
    assert simplify(shorter) == shorter


@given(sums_of((4, 6), 2))
@settings(max_examples=100, deadline=None)
def test_every_rule_that_is_taken_lets_the_measure_fall(expr: Expr) -> None:
    assert measure_of(simplify(expr)) <= measure_of(expr)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.strip("_"))
def test_no_rule_is_out_of_use(rule: Callable[[Expr], Expr | None]) -> None:
    proposed = [rule(expr) for case in CASES for expr in (case.values[0],) if isinstance(expr, Expr)]
    assert any(found is not None for found in proposed)
