"""What a computed src value is in a plan: the arithmetic of the weight side, op by op, as an expression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from automap.align.table import Source as Src
from automap.canonical.flow import Node, Ref, Role
from automap.canonical.provenance import moved
from automap.canonical.rules.layout import MOVES
from automap.errors import PlanError
from automap.plan import (
    Add,
    Affine,
    Cast,
    Divide,
    ElementMap,
    Expand,
    Expr,
    Fill,
    MatMul,
    Mean,
    Multiply,
    Norm,
    Pad,
    Reshape,
    Slice,
    Source,
    SourceTensor,
    Sqrt,
    build_expr,
    dtype_of,
    shape_of,
)  # fmt: skip


def computed_expr(src: Src, index: int, known: dict[int, Expr] | None = None) -> Expr:
    """Return the expression over src's stored tensors that a weight-side value is.

    Raises:
        PlanError: an op on the way has no counterpart among expressions.
    """
    known = {} if known is None else known
    if index not in known:
        known[index] = _expr(src, index, known)
    return known[index]


def replaced(expr: Expr, values: Mapping[str, Expr]) -> Expr:
    """Return an expression with the sources named in values replaced by what they are."""
    from automap.plan.expr import args_of, with_args

    if isinstance(expr, Source):
        return values.get(expr.name, expr)
    args = args_of(expr)
    return with_args(expr, tuple(replaced(a, values) for a in args)) if args else expr


def _expr(src: Src, index: int, known: dict[int, Expr]) -> Expr:
    node = src.flow[index]
    if node.op == "weight":
        weight = src.flow.weights[index]
        return Source(weight.name, tuple(weight.tensor.shape), str(weight.tensor.dtype).removeprefix("torch."))
    if node.role is Role.CONSTANT:
        return _constant(src, index)
    if node.op in MOVES:
        return _laid_out(src, node, known)
    if node.op not in _FORMULAS:
        raise PlanError(f"`{node.op}` of weights has no counterpart in a plan")
    return _FORMULAS[node.op](node, *(_operand(src, a, known) for a in node.args))


def _operand(src: Src, value: Any, known: dict[int, Expr]) -> Any:
    return computed_expr(src, value.index, known) if isinstance(value, Ref) else value


def _constant(src: Src, index: int) -> Expr:
    value = src.run.value(index)
    if bool((value != value.reshape(-1)[0]).any()):
        raise PlanError("a table of constants stands among the weights")
    return Fill(float(value.reshape(-1)[0]), tuple(value.shape), "float64")


def _laid_out(src: Src, node: Node, known: dict[int, Expr]) -> Expr:
    """A layout op on computed values: its element map over them, each a source of its own."""
    sources, values, ids, start = [], {}, {}, 0
    for i in dict.fromkeys(node.operands):
        if src.flow[i].role is not Role.WEIGHT:
            continue
        expr = computed_expr(src, i, known)
        shape = shape_of(expr)
        found = SourceTensor(f"%{i}", shape, dtype_of(expr), start)
        sources.append(found)
        values[found.name] = expr
        ids[i] = torch.arange(found.offset, found.stop).view(shape)
        start = found.stop
    elements = moved(node, ids, src.run.value).contiguous()
    dtype = dtype_of(next(iter(values.values())))
    return replaced(build_expr(ElementMap(tuple(elements.shape), dtype, elements, tuple(sources))), values)


def _added(node: Node, left: Any, right: Any) -> Expr:
    if isinstance(left, (int, float)):
        left, right = right, left
    return Affine(left, shift=float(right)) if isinstance(right, (int, float)) else Add(left, right)


def _multiplied(node: Node, left: Any, right: Any) -> Expr:
    if isinstance(left, (int, float)):
        left, right = right, left
    return Affine(left, scale=float(right)) if isinstance(right, (int, float)) else Multiply(left, right)


def _divided(node: Node, left: Any, right: Any) -> Expr:
    return Affine(left, scale=1.0 / float(right)) if isinstance(right, (int, float)) else Divide(left, right)


def _reciprocal(node: Node, arg: Expr) -> Expr:
    return Divide(Fill(1.0, (), dtype_of(arg)), arg)


def _norm_except(node: Node, arg: Expr, dim: int) -> Expr:
    rank = len(node.shape)
    return Norm(arg, tuple(d for d in range(rank) if d != dim % rank))


def _vector_norm(node: Node, arg: Expr, order: float = 2, dims: Any = None, keepdim: bool = False) -> Expr:
    if order != 2:
        raise PlanError(f"a norm of order {order} has no counterpart in a plan")
    rank = len(shape_of(arg))
    over = tuple(range(rank)) if dims is None else tuple(d % rank for d in dims)
    return Reshape(Norm(arg, over), node.shape)


def _mean(node: Node, arg: Expr, dims: Any = None, keepdim: bool = False) -> Expr:
    rank = len(shape_of(arg))
    over = tuple(range(rank)) if dims is None else tuple(d % rank for d in dims)
    return Reshape(Mean(arg, over), node.shape)


def _power(node: Node, arg: Expr, exponent: float) -> Expr:
    if exponent == 0.5:
        return Sqrt(arg)
    if exponent != 2:
        raise PlanError(f"a power of {exponent} has no counterpart in a plan")
    return Multiply(arg, arg)


def _dirac(node: Node, out: int, inner: int, rank: int) -> Expr:
    """A one in row i, column i of each group: ones one place further in each row."""
    ones = Pad(Fill(1.0, (inner, 1), "float64"), (0, 0), (0, inner))
    flat = Slice(Reshape(ones, (inner * (inner + 1),)), (0,), (inner * inner,), (1,))
    return Reshape(Expand(Reshape(flat, (1, inner, inner)), (out // inner, inner, inner)), node.shape)


_FORMULAS: Mapping[str, Callable[..., Expr]] = {
    "add": _added,
    "mul": _multiplied,
    "div": _divided,
    "matmul": lambda node, left, right: MatMul(left, right),
    "neg": lambda node, arg: Affine(arg, scale=-1.0),
    "reciprocal": _reciprocal,
    "sqrt": lambda node, arg: Sqrt(arg),
    "square": lambda node, arg: Multiply(arg, arg),
    "rsqrt": lambda node, arg: _reciprocal(node, Sqrt(arg)),
    "norm_except": _norm_except,
    "dirac": _dirac,
    "linalg_vector_norm": _vector_norm,
    "mean": _mean,
    "pow": _power,
    "cast": lambda node, arg, dtype: Cast(arg, str(dtype).removeprefix("torch.")),
}
