"""What an op on weights is as an expression over what its arguments are: one formula for each kind of op.

A formula takes the flow node and its arguments, references replaced by expressions. Ops that give several values have
one formula for each value that is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from automap.canonical.flow import Node
from automap.errors import PlanError
from automap.plan import (
    Add,
    Affine,
    Cast,
    Divide,
    Expand,
    Expr,
    Fill,
    MatMul,
    MatrixFunction,
    Mean,
    Multiply,
    Norm,
    Pad,
    Permute,
    Pointwise,
    Reshape,
    Slice,
    Sqrt,
    Subtract,
    Tril,
    dtype_of,
    shape_of,
)

Formula = Callable[..., Expr]


def eye(rows: int, columns: int) -> Expr:
    """Return the matrix with ones on its main diagonal and zeros beside it.

    Example:
        >>> from automap.plan.evaluate import evaluate
        >>> evaluate(eye(3, 2), {}).tolist()
        [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    size = min(rows, columns)
    ones = Pad(Fill(1.0, (size, 1), "float64"), (0, 0), (0, size))  # ones one place further in each row
    square = Reshape(Slice(Reshape(ones, (size * (size + 1),)), (0,), (size * size,), (1,)), (size, size))
    return square if rows == columns else Pad(square, (0, 0), (rows - size, columns - size))


def _added(node: Node, left: Any, right: Any) -> Expr:
    if isinstance(left, (int, float)):
        left, right = right, left
    return Affine(left, shift=float(right)) if isinstance(right, (int, float)) else Add(left, right)


def _multiplied(node: Node, left: Any, right: Any) -> Expr:
    if isinstance(left, (int, float)):
        left, right = right, left
    return Affine(left, scale=float(right)) if isinstance(right, (int, float)) else Multiply(left, right)


def _divided(node: Node, left: Any, right: Any, rounding_mode: Any = None) -> Expr:
    if isinstance(left, (int, float)):
        return Affine(_reciprocal(node, right), scale=float(left))
    return Affine(left, scale=1.0 / float(right)) if isinstance(right, (int, float)) else Divide(left, right)


def _reciprocal(node: Node, arg: Expr) -> Expr:
    return Divide(Fill(1.0, (), dtype_of(arg)), arg)


def _over(arg: Expr, dims: Any) -> tuple[int, ...]:
    """The dims that are meant, counted from the front; all of them for none."""
    rank = len(shape_of(arg))
    listed = (dims,) if isinstance(dims, int) else dims
    return tuple(range(rank)) if not listed and listed != 0 else tuple(d % rank for d in listed)


def _norm_except(node: Node, arg: Expr, dim: int) -> Expr:
    rank = len(node.shape)
    return Norm(arg, tuple(d for d in range(rank) if d != dim % rank))


def _vector_norm(node: Node, arg: Expr, order: float = 2, dims: Any = None, keepdim: bool = False) -> Expr:
    if order == 1:
        return _sum(node, Pointwise(arg, "abs"), dims)
    if order != 2:
        raise PlanError(f"a norm of order {order} has no counterpart in a plan")
    return Reshape(Norm(arg, _over(arg, dims)), node.shape)


def _mean(node: Node, arg: Expr, dims: Any = None, *options: Any) -> Expr:
    return Reshape(Mean(arg, _over(arg, dims)), node.shape)


def _sum(node: Node, arg: Expr, dims: Any = None, *options: Any) -> Expr:
    return Reshape(_total(arg, _over(arg, dims)), node.shape)


def _total(arg: Expr, over: tuple[int, ...]) -> Expr:
    return Affine(Mean(arg, over), float(math.prod(shape_of(arg)[d] for d in over)))


def _centred(arg: Expr, over: tuple[int, ...]) -> Expr:
    return Subtract(arg, Mean(arg, over))


def _squared(arg: Expr) -> Expr:
    return Multiply(arg, arg)


def _variance(node: Node, arg: Expr, dims: Any = None, *_: Any) -> Expr:
    over, correction = _over(arg, dims), float(node.kwargs.get("correction", 1))
    count = math.prod(shape_of(arg)[d] for d in over)
    if count <= correction:
        raise PlanError(f"a variance of {count} numbers has no counterpart in a plan")
    return Reshape(Affine(Mean(_squared(_centred(arg, over)), over), count / (count - correction)), node.shape)


def _batch_normalised(node: Node, arg: Expr, eps: float) -> Expr:
    over = tuple(d for d in range(len(node.shape)) if d != 1)
    centred = _centred(arg, over)
    return Divide(centred, Sqrt(Affine(Mean(_squared(centred), over), shift=eps)))


def _layer_normalised(node: Node, arg: Expr, shape: Any, eps: float) -> Expr:
    over = tuple(range(len(node.shape) - len(shape), len(node.shape)))
    centred = _centred(arg, over)
    return Divide(centred, Sqrt(Affine(Mean(_squared(centred), over), shift=eps)))


def _power(node: Node, arg: Any, exponent: Any) -> Expr:
    """Whole powers, and half ones, as products, quotients and roots; c ** x as an exponential."""
    if isinstance(arg, (int, float)) and arg > 0 and not isinstance(exponent, (int, float)):
        return Pointwise(Affine(exponent, math.log(arg)), "exp")
    if not isinstance(exponent, (int, float)) or exponent == 0 or exponent * 2 % 1 or abs(exponent) > 8:
        raise PlanError(f"a power of {exponent} has no counterpart in a plan")
    base = arg if exponent % 1 == 0 else Sqrt(arg)
    steps = int(abs(exponent) if exponent % 1 == 0 else abs(exponent) * 2)
    found = base
    for _ in range(steps - 1):
        found = Multiply(found, base)
    return found if exponent > 0 else _reciprocal(node, found)


def _dirac(node: Node, out: int, inner: int, rank: int) -> Expr:
    """A one in row i, column i of each group."""
    return Reshape(Expand(Reshape(eye(inner, inner), (1, inner, inner)), (out // inner, inner, inner)), node.shape)


def _softmax(node: Node, arg: Expr, dim: int, *_: Any) -> Expr:
    """As it is written: for weights on which it does not overflow."""
    powers = Pointwise(arg, "exp")
    return Divide(powers, _total(powers, _over(arg, (dim,))))


def _softplus(node: Node, arg: Expr, beta: float = 1, threshold: float = 20) -> Expr:
    return Affine(Pointwise(Pointwise(Affine(arg, float(beta)), "exp"), "log1p"), 1 / float(beta))


def _silu(node: Node, arg: Expr) -> Expr:
    return Multiply(arg, Pointwise(arg, "sigmoid"))


def _at_least(node: Node, arg: Expr, low: Any = None, high: Any = None) -> Expr:
    """Bounds by what is left of a positive part."""
    if low is not None:
        arg = Affine(Pointwise(Affine(arg, shift=-float(low)), "relu"), shift=float(low))
    if high is not None:
        arg = Affine(Pointwise(Affine(arg, -1.0, float(high)), "relu"), -1.0, float(high))
    return arg


def _triu(node: Node, arg: Expr, diagonal: int = 0) -> Expr:
    return Subtract(arg, Tril(arg, diagonal - 1))


def _cumulated(node: Node, arg: Expr, dim: int, *_: Any) -> Expr:
    if dim % len(node.shape):
        raise PlanError("a running sum along any dim but the first has no counterpart in a plan")
    rows = node.shape[0]
    flat = Reshape(arg, (rows, math.prod(node.shape[1:])))
    return Reshape(MatMul(Tril(Fill(1.0, (rows, rows), "float64")), flat), node.shape)


def _solved(node: Node, matrix: Expr, right: Expr, left: bool = True, *_: Any) -> Expr:
    """`inverse(A) @ B`, or `B @ inverse(A)`; vectors as one column."""
    inverse = MatrixFunction(matrix, "inverse")
    return MatMul(inverse, right) if node.kwargs.get("left", left) else MatMul(right, inverse)


def _reflected(node: Node, below: Expr, taus: Expr) -> Expr:
    """A product of reflections in its closed form `(1 - V T V') [:, :n]`, `1 / T = triu(V'V, 1) + diag(1 / tau)`."""
    rows, columns = node.shape
    vectors = Add(Tril(below, -1), eye(rows, columns))
    turned = Permute(vectors, (1, 0))
    among = MatMul(turned, vectors)
    diagonal = Divide(eye(columns, columns), Reshape(taus, (1, columns)))
    inverse = Add(Subtract(among, Tril(among, 0)), diagonal)
    first = Slice(turned, (0, 0), (columns, columns), (1, 1))
    passed = MatMul(MatMul(vectors, MatrixFunction(inverse, "inverse")), first)
    return Subtract(eye(rows, columns), passed)


def _dotted(node: Node, left: Expr, right: Expr) -> Expr:
    return MatMul(left, right)


def _cast(node: Node, arg: Expr, dtype: Any) -> Expr:
    """Whole numbers as the floating-point ones that they are, which a state in another dtype has as well."""
    if dtype.is_floating_point or dtype.is_complex:
        return Cast(arg, str(dtype).removeprefix("torch."))
    if str(dtype) in ("torch.int64", "torch.int32"):
        return Pointwise(arg, "trunc")
    raise PlanError(f"a cast to {dtype} has no counterpart in a plan")


def _pointwise(function: str) -> Formula:
    return lambda node, arg, *_: Pointwise(arg, function)


_NAMED = ("abs", "atanh", "cos", "exp", "expm1", "log", "log1p", "logit", "relu", "sigmoid", "sin", "tanh", "trunc")

FORMULAS: Mapping[str, Formula] = {
    **{name: _pointwise(name) for name in _NAMED},
    "add": _added,
    "mul": _multiplied,
    "div": _divided,
    "matmul": _dotted,
    "dot": _dotted,
    "vdot": _dotted,
    "neg": lambda node, arg: Affine(arg, scale=-1.0),
    "sgn": _pointwise("sign"),
    "sign": _pointwise("sign"),
    "reciprocal": _reciprocal,
    "sqrt": lambda node, arg: Sqrt(arg),
    "square": lambda node, arg: _squared(arg),
    "rsqrt": lambda node, arg: _reciprocal(node, Sqrt(arg)),
    "norm_except": _norm_except,
    "dirac": _dirac,
    "linalg_vector_norm": _vector_norm,
    "norm": _vector_norm,
    "frobenius_norm": lambda node, arg, dims=None, *_: _vector_norm(node, arg, 2, dims),
    "mean": _mean,
    "sum": _sum,
    "var": _variance,
    "std": lambda node, *args: Sqrt(_variance(node, *args)),
    "batch_norm": _batch_normalised,
    "layer_norm": _layer_normalised,
    "pow": _power,
    "_softmax": _softmax,
    "softmax": _softmax,
    "softplus": _softplus,
    "silu": _silu,
    "clamp": _at_least,
    "clamp_min": _at_least,
    "clamp_max": lambda node, arg, high: _at_least(node, arg, None, high),
    "tril": lambda node, arg, diagonal=0: Tril(arg, diagonal),
    "triu": _triu,
    "cumsum": _cumulated,
    "inverse": lambda node, arg: MatrixFunction(arg, "inverse"),
    "linalg_matrix_exp": lambda node, arg: MatrixFunction(arg, "matrix_exp"),
    "linalg_householder_product": _reflected,
    "cast": _cast,
}

#: ops that give several values: the formulas of those that are known, by their place
PARTS: Mapping[tuple[str, int], Formula] = {
    ("_linalg_solve_ex", 0): _solved,
    ("linalg_inv_ex", 0): lambda node, arg, *_: MatrixFunction(arg, "inverse"),
    ("var_mean", 0): _variance,
    ("var_mean", 1): _mean,
    ("std_mean", 0): lambda node, *args: Sqrt(_variance(node, *args)),
    ("std_mean", 1): _mean,
}
