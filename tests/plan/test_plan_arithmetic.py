from __future__ import annotations

import pytest
import torch
from plan_strategies import random_state, same
from torch import Tensor, nn

from automap.errors import PlanError
from automap.plan import (
    Add,
    Affine,
    Cast,
    Concat,
    Divide,
    Expand,
    Expr,
    Fill,
    Gather,
    MatMul,
    MatrixFunction,
    Mean,
    Multiply,
    Norm,
    Pad,
    Permute,
    Plan,
    Pointwise,
    Reshape,
    Slice,
    Source,
    Sqrt,
    Subtract,
    Tril,
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
G = Source("g", (4,))
B = Source("b", (6,))
KERNEL = Source("conv.weight", (8, 3, 5, 5))
CONV_BIAS = Source("conv.bias", (8,))
GAMMA, BETA, MEAN, VAR = (Source(f"bn.{name}", (8,)) for name in ("weight", "bias", "running_mean", "running_var"))
DEVIATION = Sqrt(Affine(VAR, shift=1e-5))


def ones(*shape: int) -> Fill:
    return Fill(1.0, shape)


def value_of(expr: Expr, state: dict[str, Tensor]) -> Tensor:
    """The value of an expression; that JSON and simplify keep it is checked by the way."""
    value = evaluate(expr, state)
    for other in (from_json(to_json(expr)), simplify(expr)):
        assert same(evaluate(other, state), value)
    assert is_computed(expr)
    return value


def double_state(*exprs: Expr) -> dict[str, Tensor]:
    """Random values in float64, none negative where the name says variance."""
    state = random_state({source for expr in exprs for source in sources_of(expr)})
    return {name: (value.abs() if name.endswith("var") else value).double() for name, value in state.items()}


def test_a_batch_norm_folds_into_the_convolution_before_it() -> None:
    weight = Multiply(Reshape(Divide(GAMMA, DEVIATION), (8, 1, 1, 1)), KERNEL)
    bias = Add(BETA, Divide(Multiply(Subtract(CONV_BIAS, MEAN), GAMMA), DEVIATION))
    state = double_state(weight, bias)
    conv, norm = nn.Conv2d(3, 8, 5).double(), nn.BatchNorm2d(8, eps=1e-5).double().eval()
    conv.load_state_dict({"weight": state["conv.weight"], "bias": state["conv.bias"]})
    statistics = {name.removeprefix("bn."): value for name, value in state.items() if name.startswith("bn.")}
    norm.load_state_dict({**statistics, "num_batches_tracked": torch.tensor(1)})
    image = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    folded = nn.functional.conv2d(image, value_of(weight, state), value_of(bias, state))
    assert torch.allclose(folded, norm(conv(image)), rtol=0, atol=1e-12)
    assert format_expr(weight) == "bn.weight / sqrt(bn.running_var + 1e-05) * conv.weight"
    assert format_expr(bias) == ("bn.bias + (conv.bias - bn.running_mean) * bn.weight / sqrt(bn.running_var + 1e-05)")


def test_weight_norm_is_a_product_and_a_norm() -> None:
    g, v = Source("weight_g", (4, 1, 1)), Source("weight_v", (4, 3, 5))
    expr = Divide(Multiply(g, v), Norm(v, (1, 2)))
    state = double_state(expr)
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 5, bias=False).double())
    layer.load_state_dict(
        {
            "parametrizations.weight.original0": state["weight_g"],
            "parametrizations.weight.original1": state["weight_v"],
        }
    )
    assert torch.allclose(value_of(expr, state), layer.weight, rtol=1e-12, atol=0)
    assert format_expr(expr) == "weight_g * weight_v / norm(weight_v, dims=(1, 2))"


def test_a_standardised_weight_is_made_of_means() -> None:
    centred = Subtract(KERNEL, Mean(KERNEL, (1, 2, 3)))
    expr = Divide(centred, Sqrt(Affine(Mean(Multiply(centred, centred), (1, 2, 3)), shift=1e-6)))
    state = double_state(expr)
    flat = state["conv.weight"].reshape(1, 8, -1)
    expected = nn.functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
    assert torch.allclose(value_of(expr, state), expected.reshape(8, 3, 5, 5), rtol=0, atol=1e-12)


def test_a_layer_scale_multiplies_the_rows_of_the_linear_before_it() -> None:
    expr = Multiply(Reshape(G, (4, 1)), W)
    state = double_state(expr)
    assert torch.equal(value_of(expr, state), torch.diag(state["g"]) @ state["w"])
    assert format_expr(expr) == "g * w"


def test_a_norm_shift_goes_through_the_linear_behind_it() -> None:
    expr = Add(G, MatMul(W, B))
    state = double_state(expr)
    assert torch.allclose(value_of(expr, state), state["g"] + state["w"] @ state["b"], rtol=0, atol=1e-14)
    assert format_expr(expr) == "g + w @ b"


def test_an_attention_scale_moves_into_q() -> None:
    qkv = Source("qkv", (12, 6))
    expr = Concat((Affine(Slice(qkv, (0, 0), (4, 6), (1, 1)), 0.125), Slice(qkv, (4, 0), (12, 6), (1, 1))), 0)
    state = random_state([qkv])
    assert same(value_of(expr, state), torch.cat([state["qkv"][:4] / 8, state["qkv"][4:]]))
    assert format_expr(expr) == "cat(0.125 * qkv[0:4], qkv[4:12], dim=0)"


def test_a_kernel_is_padded_with_zeros() -> None:
    kernel = Source("k", (4, 2, 1, 1), "bfloat16")
    expr = Pad(kernel, (0, 0, 1, 0), (0, 0, 1, 3))
    state = {"k": torch.randn(4, 2, 1, 1).bfloat16()}
    assert same(evaluate(expr, state), nn.functional.pad(state["k"], (0, 3, 1, 1)))
    assert format_expr(expr) == "pad(k, 0, 0, 1, 0+3)"


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", "bool", "complex64", "float16"])
def test_padding_and_expanding_move_elements_of_any_dtype_bitwise(dtype: str) -> None:
    source = Source("w", (4, 1), dtype)
    value = (torch.randn(4, 1) * 3).to(getattr(torch, dtype))
    padded = evaluate(Pad(Expand(source, (4, 3)), (1, 0), (0, 2)), {"w": value})
    assert same(padded[1:, :3], value.expand(4, 3))
    assert not padded.to(torch.complex64).any(dim=1)[0]
    assert not is_computed(Pad(source, (1, 0), (0, 2)))


def test_heads_are_repeated_by_expanding_them() -> None:
    kv = Source("k", (6, 5))
    expr = Reshape(Expand(Reshape(kv, (2, 1, 3, 5)), (2, 4, 3, 5)), (24, 5))
    state = random_state([kv])
    heads = state["k"].view(2, 3, 5).repeat_interleave(4, dim=0)
    assert same(evaluate(expr, state), heads.reshape(24, 5))
    assert simplify(Gather(Reshape(kv, (2, 1, 3, 5)), 1, (0, 0, 0, 0))) == Expand(
        Reshape(kv, (2, 1, 3, 5)), (2, 4, 3, 5)
    )


@pytest.mark.parametrize(
    ("left", "right"),
    [((3,), (3,)), ((3,), (3, 2)), ((4, 3), (3,)), ((4, 3), (3, 2)), ((5, 4, 3), (3,)), ((3,), (5, 3, 2)),
     ((5, 4, 3), (3, 2)), ((2, 1, 4, 3), (5, 3, 2))],
)  # fmt: skip
def test_matrix_products_have_the_shape_that_torch_gives_them(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    expr = MatMul(Source("l", left), Source("r", right))
    state = double_state(expr)
    assert torch.equal(evaluate(expr, state), state["l"] @ state["r"])
    assert shape_of(expr) == tuple((state["l"] @ state["r"]).shape)


def test_arithmetic_is_done_in_float64_and_rounded_once() -> None:
    w, g, b = Source("w", (4, 6), "bfloat16"), Source("g", (4,), "bfloat16"), Source("b", (4,))
    expr = Multiply(Reshape(Divide(g, Sqrt(Affine(Cast(b, "bfloat16"), shift=1e-5))), (4, 1)), w)
    state = {"w": torch.randn(4, 6).bfloat16(), "g": torch.randn(4).bfloat16(), "b": torch.rand(4)}
    factor = state["g"].double() / (state["b"].double() + 1e-5).sqrt()
    assert dtype_of(expr) == "bfloat16"
    assert same(value_of(expr, state), (factor[:, None] * state["w"].double()).bfloat16())


def test_a_constant_in_arithmetic_is_not_rounded_first() -> None:
    state = {"w": torch.randn(4, 6).bfloat16()}
    expr = Multiply(Source("w", (4, 6), "bfloat16"), Fill(1 / 3, (6,), "bfloat16"))
    assert same(value_of(expr, state), (state["w"].double() / 3).bfloat16())


def test_a_cast_of_a_result_is_a_second_rounding() -> None:
    w = Source("w", (64, 64), "bfloat16")
    state = {"w": torch.randn(64, 64).bfloat16()}
    cast = evaluate(Cast(Affine(w, 1 / 3), "float32"), state)
    assert same(cast, evaluate(Affine(w, 1 / 3), state).float())
    assert not same(cast, evaluate(Affine(Cast(w, "float32"), 1 / 3), state))


@pytest.mark.parametrize("dtype", ["float64", "complex128", "complex64"])
def test_wide_and_complex_states_keep_their_dtype(dtype: str) -> None:
    values = [torch.randn(4, 6, dtype=getattr(torch, dtype)) for _ in range(2)]
    value = evaluate(Divide(W, V), {"w": values[0], "v": values[1]})
    assert str(value.dtype) == f"torch.{dtype}"
    wide = torch.complex128 if dtype.startswith("complex") else torch.float64
    assert torch.equal(value, (values[0].to(wide) / values[1].to(wide)).to(value.dtype))


def test_a_cast_to_integers_counts_even_inside_of_arithmetic() -> None:
    value = evaluate(Affine(Cast(W, "int64"), 0.5), {"w": torch.full((4, 6), 7.9)})
    assert same(value, torch.full((4, 6), 3))


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        pytest.param(Multiply(W, ones(4, 6)), W, id="times-one"),
        pytest.param(Multiply(ones(1), W), W, id="one-times"),
        pytest.param(Multiply(G, ones(3, 4)), Expand(G, (3, 4)), id="one-that-broadcasts"),
        pytest.param(Add(W, Fill(0.0, (6,))), W, id="plus-zero"),
        pytest.param(Subtract(W, Fill(0.0, (6,))), W, id="minus-zero"),
        pytest.param(Divide(W, ones(6)), W, id="divided-by-one"),
        pytest.param(Divide(W, Fill(3.0, (6,))), None, id="divided-by-three-would-round"),
        pytest.param(Add(W, Fill(2.0, (6,))), Affine(W, shift=2.0), id="plus-number"),
        pytest.param(Subtract(Fill(2.0, (6,)), W), Affine(W, -1.0, 2.0), id="number-minus"),
        pytest.param(Multiply(W, Fill(2.0, (1,))), Affine(W, 2.0), id="times-number"),
        pytest.param(Multiply(W, Fill(float("inf"), (1,))), None, id="times-infinity"),
        pytest.param(Affine(Affine(W, 2.0), 1.0, 3.0), Affine(W, 2.0, 3.0), id="scale-then-shift"),
        pytest.param(Affine(Affine(W, 2.0, 1.0), 3.0), None, id="shift-then-scale-would-round"),
        pytest.param(Affine(Concat((Cast(B, "bfloat16"), B), 0)), None, id="identity-that-rounds-later"),
        pytest.param(Affine(Concat((B, B), 0)), Concat((B, B), 0), id="identity-of-what-is-moved"),
        pytest.param(Affine(Affine(B, 2.0)), Affine(B, 2.0), id="identity-of-what-is-computed"),
        pytest.param(Sqrt(Affine(Fill(3.0, (4,)), shift=1.0)), Fill(2.0, (4,)), id="constants"),
        pytest.param(Divide(Fill(1.0, (4,)), Fill(0.0, (2, 1))), None, id="constant-that-is-no-number"),
        pytest.param(Sqrt(Fill(-1.0, (4,))), None, id="root-of-a-negative-constant"),
        pytest.param(Add(Fill(1.0, (4,)), Fill(0.5, (2, 1))), Fill(1.5, (2, 4)), id="constants-broadcast"),
        pytest.param(Add(W, Fill(1.0, (1,), "int64")), None, id="integer-constants-are-left-alone"),
        pytest.param(Add(Expand(B, (4, 6)), W), Add(B, W), id="expanded-for-a-sum"),
        pytest.param(Mean(Reshape(W, (4, 1, 6)), (1,)), Reshape(W, (4, 1, 6)), id="mean-of-one"),
        pytest.param(Mean(Reshape(W, (4, 1, 6)), (1, 2)), Mean(Reshape(W, (4, 1, 6)), (2,)), id="mean-of-one-and-more"),
        pytest.param(Norm(Reshape(W, (4, 1, 6)), (1,)), None, id="norm-of-one-loses-the-sign"),
        pytest.param(Pad(W, (0, 0), (0, 0)), W, id="pad-by-nothing"),
        pytest.param(Pad(Pad(W, (1, 0), (0, 2)), (0, 3), (4, 0)), Pad(W, (1, 3), (4, 2)), id="pad-of-pad"),
        pytest.param(Pad(Fill(0.0, (2,)), (1,), (0,)), Fill(0.0, (3,)), id="padded-zeros"),
        pytest.param(Pad(Fill(-0.0, (2,)), (1,), (0,)), None, id="padded-negative-zeros"),
        pytest.param(Slice(Pad(W, (1, 0), (1, 0)), (1, 0), (5, 6), (1, 1)), W, id="slice-undoes-pad"),
        pytest.param(Slice(Pad(W, (1, 0), (1, 0)), (0, 0), (4, 6), (1, 1)), None, id="slice-with-zeros"),
        pytest.param(Expand(Expand(G, (3, 4)), (2, 3, 4)), Expand(G, (2, 3, 4)), id="expand-of-expand"),
        pytest.param(Expand(Fill(2.0, (1,)), (3, 4)), Fill(2.0, (3, 4)), id="expanded-constant"),
        pytest.param(Cast(Affine(Source("n", (2,), "int64"), 0.5), "int64"), None, id="cast-that-truncates"),
    ],
)
def test_simplify(expr: Expr, expected: Expr | None) -> None:
    assert simplify(expr) == (expr if expected is None else expected)


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        pytest.param(Pad(W, (1,), (1,)), r"padding \(1,\) and \(1,\) does not fit shape \(4, 6\)", id="pad-rank"),
        pytest.param(Pad(W, (-1, 0), (0, 0)), "does not fit shape", id="pad-negative"),
        pytest.param(Expand(W, (6,)), r"shape \(4, 6\) cannot be expanded to \(6,\)", id="expand-fewer-dims"),
        pytest.param(Expand(W, (8, 6)), "cannot be expanded", id="expand-other-size"),
        pytest.param(Norm(W, ()), r"dims \(\) are not some dims of shape \(4, 6\)", id="norm-of-no-dims"),
        pytest.param(Mean(W, (0, 0)), "are not some dims", id="mean-of-a-dim-twice"),
        pytest.param(Mean(W, (2,)), "are not some dims", id="mean-of-a-missing-dim"),
        pytest.param(Divide(W, G), "do not broadcast", id="divide-shapes"),
        pytest.param(MatMul(W, V), "cannot be multiplied as matrices", id="matmul-sizes"),
        pytest.param(MatMul(W, Fill(1.0, ())), "cannot be multiplied as matrices", id="matmul-scalar"),
    ],
)
def test_a_node_that_does_not_fit_is_refused(expr: Expr, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        evaluate(expr, random_state([W, V, G]))


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        pytest.param(Multiply(Reshape(B, (6, 1)), Source("s", (6, 6))), "b[:, None] * s", id="rows-of-a-square"),
        pytest.param(Multiply(B, Source("s", (6, 6))), "b * s", id="columns-of-a-square"),
        pytest.param(Add(Reshape(W, (4, 1, 6)), Source("t", (3, 6))), "w[:, None, :] + t", id="between"),
        pytest.param(Subtract(W, Subtract(V, B)), "w - (v - b)", id="right-of-minus"),
        pytest.param(Subtract(Subtract(W, V), B), "w - v - b", id="left-of-minus"),
        pytest.param(Divide(W, Multiply(V, B)), "w / (v * b)", id="divided-by-product"),
        pytest.param(Multiply(Affine(W, 2.0), B), "2 * w * b", id="number-times-product"),
        pytest.param(Multiply(Affine(W, 2.0, 1.0), B), "(2 * w + 1) * b", id="affine-times"),
        pytest.param(Affine(Multiply(W, B), shift=-0.5), "w * b - 0.5", id="product-minus-number"),
        pytest.param(Affine(W, -1.0, 1.0), "1 - w", id="number-minus"),
        pytest.param(Affine(Add(W, B), -1.0), "-(w + b)", id="negated-sum"),
        pytest.param(MatMul(Add(W, B), Source("m", (6, 2))), "(w + b) @ m", id="matrix-product"),
        pytest.param(Mean(Add(W, B), (0,)), "mean(w + b, dims=(0,))", id="mean"),
        pytest.param(Slice(Add(W, B), (1, 0), (2, 6), (1, 1)), "(w + b)[1:2]", id="rows-of-a-sum"),
        pytest.param(Expand(G, (5, 4)), 'repeat(g, "a -> b a", b=5)', id="repeat-all"),
        pytest.param(
            Reshape(Expand(Reshape(Source("k", (6, 5)), (2, 1, 3, 5)), (2, 4, 3, 5)), (24, 5)),
            'repeat(k, "(two three) a -> (two b three) a", two=2, three=3, b=4)',
            id="repeat-heads",
        ),
        pytest.param(
            Permute(Expand(Permute(Source("k", (1, 5)), (1, 0)), (5, 4)), (1, 0)),
            'repeat(k, "1 a -> b a", b=4)',
            id="repeat-a-dim-of-one",
        ),
        pytest.param(Expand(Source("e", (0, 1)), (0, 3)), "expand(e, (0, 3))", id="expand-nothing"),
        pytest.param(Affine(Pointwise(W, "exp"), -1.0), "-exp(w)", id="function"),
        pytest.param(MatrixFunction(Source("s", (6, 6)), "inverse"), "inverse(s)", id="inverse"),
        pytest.param(Subtract(W, Tril(W, -1)), "w - tril(w, -1)", id="triangle"),
    ],
)
def test_notation(expr: Expr, text: str) -> None:
    assert format_expr(expr) == text


NOT_ZERO = Concat((Fill(0.5, (2,)), Fill(4.0, (4,))), 0)


@pytest.mark.parametrize(
    ("expr", "inverse"),
    [
        pytest.param(Affine(W, -1.0, 1.0), "-(x - 1)", id="affine"),
        pytest.param(Multiply(W, Fill(3.0, (6,))), "x / full((6), 3)", id="times-number"),
        pytest.param(Multiply(NOT_ZERO, W), "x / cat(full((2), 0.5), full((4), 4), dim=0)", id="times-constants"),
        pytest.param(Divide(W, NOT_ZERO), "x * cat(full((2), 0.5), full((4), 4), dim=0)", id="divided"),
        pytest.param(Divide(NOT_ZERO, W), "cat(full((2), 0.5), full((4), 4), dim=0) / x", id="divisor"),
        pytest.param(Add(W, NOT_ZERO), "x - cat(full((2), 0.5), full((4), 4), dim=0)", id="plus"),
        pytest.param(Subtract(NOT_ZERO, W), "cat(full((2), 0.5), full((4), 4), dim=0) - x", id="subtrahend"),
        pytest.param(Subtract(W, NOT_ZERO), "x + cat(full((2), 0.5), full((4), 4), dim=0)", id="minuend"),
        pytest.param(Sqrt(Affine(W, shift=0.5)), "x * x - 0.5", id="root"),
        pytest.param(Pointwise(W, "exp"), "log(x)", id="exponential"),
        pytest.param(Pointwise(W, "log"), "exp(x)", id="logarithm"),
        pytest.param(Affine(Pointwise(Affine(W, 0.25), "sigmoid"), 2.0), "4 * logit(0.5 * x)", id="sigmoid"),
        pytest.param(Pad(W, (1, 0), (0, 2)), "x[1:5, 0:6]", id="padded"),
        pytest.param(Expand(W, (1, 4, 6)), 'rearrange(x, "1 a b -> a b")', id="expanded-by-dims-of-one"),
    ],
)
def test_inverse(expr: Expr, inverse: str) -> None:
    plan = Plan({"x": expr})
    state = {"w": torch.rand(4, 6) + 0.5}
    back = plan.invert()
    assert torch.allclose(back.apply(plan.apply(state))["w"], state["w"], rtol=1e-5, atol=0)
    assert format_expr(back.entries["w"]) == inverse


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        pytest.param(Multiply(W, Reshape(G, (4, 1))), "it is the product of `w` and `g`: any split would do", id="two"),
        pytest.param(Add(W, V), "it is the sum of `w` and `v`: any split would do", id="sum"),
        pytest.param(
            Divide(Multiply(Reshape(G, (4, 1)), W), Norm(W, (1,))),
            "the quotient of `g` and `w` with itself or constants is not undone",
            id="weight-norm",
        ),
        pytest.param(MatMul(W, B), "it is the matrix product of `w` and `b`: any split would do", id="matmul"),
        pytest.param(Norm(W, (0,)), "only the norm of `w` is left of it", id="norm"),
        pytest.param(Tril(W), "only the lower triangle of `w` is left of it", id="triangle"),
        pytest.param(Pointwise(W, "sin"), "sin of `w` is not undone: other values have the same", id="sine"),
        pytest.param(Mean(W, (0,)), "only the mean of `w` is left of it", id="mean"),
        pytest.param(Expand(G, (3, 4)), "`g` is repeated: any one of its copies would do", id="expand"),
        pytest.param(Multiply(B, ones(4, 6)), "`b` is repeated", id="times-ones-that-broadcast"),
        pytest.param(Multiply(W, Concat((ones(3), Fill(0.0, (3,))), 0)), "`w` is lost where a", id="zero"),
    ],
)
def test_what_leaves_a_choice_is_not_inverted(expr: Expr, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan({"x": expr}).invert()


def test_applied_tensors_share_no_memory_with_src() -> None:
    wide = {"w": torch.randn(4, 6, dtype=torch.float64), "g": torch.randn(4)}
    plan = Plan({"a": Affine(W), "b": Expand(G, (1, 4)), "c": Expand(G, (2, 4)), "d": Pad(G, (0,), (0,))})
    values = [*wide.values(), *plan.apply(wide).values()]
    assert len({value.untyped_storage().data_ptr() for value in values}) == len(values)
    assert all(value.is_contiguous() for value in values)
