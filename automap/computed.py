"""What a computed src value is in a plan: the arithmetic of the weight side, op by op, as an expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from automap.align.table import Source as Src
from automap.canonical.flow import Node, Ref, Role
from automap.canonical.provenance import moved
from automap.canonical.rules.layout import MOVES
from automap.errors import PlanError
from automap.formulas import FORMULAS, PARTS, eye
from automap.plan import ElementMap, Expr, Fill, Source, SourceTensor, build_expr, dtype_of, shape_of

#: tables with more different numbers are not written into a plan
_MOST_NUMBERS = 64


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
    if node.op == "part":
        return _part(src, node, known)
    if node.op in MOVES:
        return _laid_out(src, node, known)
    if node.op not in FORMULAS:
        raise PlanError(f"`{node.op}` of weights has no counterpart in a plan")
    return FORMULAS[node.op](node, *(_operand(src, a, known) for a in node.args))


def _part(src: Src, node: Node, known: dict[int, Expr]) -> Expr:
    """One of the several values of an op."""
    whole, place = src.flow[node.args[0].index], node.args[1]
    if (whole.op, place) not in PARTS:
        raise PlanError(f"`{whole.op}` of weights has no counterpart in a plan")
    formula = PARTS[whole.op, place]
    return formula(replace(whole, shape=node.shape), *(_operand(src, a, known) for a in whole.args))


def _operand(src: Src, value: Any, known: dict[int, Expr]) -> Any:
    return computed_expr(src, value.index, known) if isinstance(value, Ref) else value


def _constant(src: Src, index: int) -> Expr:
    value = src.run.value(index)
    numbers, which = torch.unique(value, return_inverse=True)
    if len(numbers) == 1:
        return Fill(float(numbers), tuple(value.shape), "float64")
    if value.dim() == 2 and torch.equal(value, torch.eye(*value.shape, dtype=value.dtype)):
        return eye(*value.shape)
    if len(numbers) > _MOST_NUMBERS:
        raise PlanError("a table of constants stands among the weights")
    return build_expr(ElementMap(tuple(value.shape), "float64", -2 - which, (), tuple(numbers.double().tolist())))


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
