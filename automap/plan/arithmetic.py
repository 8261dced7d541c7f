"""The rules of `simplify` for arithmetic: node in, node with the same value and dtype out, or None where none fits.

As arithmetic is done in float64 without rounding on the way (see evaluate), every rule is exact there; only the sign
of a zero, or of a NaN, that is computed may change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import assert_never

from automap.plan.dtypes import dtype_of, is_float
from automap.plan.expr import (
    Add,
    Affine,
    Arithmetic,
    Divide,
    Elementwise,
    Expand,
    Expr,
    Fill,
    MatMul,
    Mean,
    Move,
    Multiply,
    Norm,
    Source,
    Sqrt,
    Subtract,
    args_of,
    with_args,
)
from automap.plan.shapes import shape_of


def simpler_arithmetic(expr: Arithmetic) -> Expr | None:
    """One rule applied at the top of `expr`, whose arguments are simple, or None where none fits."""
    match expr:
        case Affine():
            return _folded(expr) or _simpler_affine(expr)
        case Add() | Subtract() | Multiply() | Divide():
            return _folded(expr) or _with_number(expr) or _without_expand(expr)
        case Sqrt():
            return _folded(expr)
        case Mean():
            return _simpler_mean(expr)
        case Norm() | MatMul():
            return None
        case _:
            assert_never(expr)


def _folded(expr: Affine | Elementwise | Sqrt) -> Fill | None:
    """f(fill, fill) = fill."""
    args = [arg for arg in args_of(expr) if isinstance(arg, Fill) and is_float(arg.dtype)]
    if len(args) < len(args_of(expr)):
        return None
    try:
        value = _number(expr, [float(arg.value) for arg in args])
    except (ZeroDivisionError, ValueError):
        return None
    return Fill(value, shape_of(expr), dtype_of(expr))


def _number(expr: Affine | Elementwise | Sqrt, values: list[float]) -> float:
    """What a node computes from numbers."""
    match expr:
        case Affine(_, scale, shift):
            scaled = values[0] * scale if scale != 1 else values[0]
            return scaled + shift if shift != 0 else scaled
        case Sqrt():
            return math.sqrt(values[0])
        case Add():
            return values[0] + values[1]
        case Subtract():
            return values[0] - values[1]
        case Multiply():
            return values[0] * values[1]
        case Divide():
            return values[0] / values[1]
        case _:
            assert_never(expr)


def _simpler_affine(expr: Affine) -> Expr | None:
    match expr:
        case Affine(arg, 1, 0):
            return arg if _is_rounded_once(arg) else None  # 1 * x + 0 = x
        case Affine(Affine(arg, scale, 0), 1, shift):
            return Affine(arg, scale, shift)  # 1 * (a * x + 0) + b = a * x + b
        case _:
            return None


def _with_number(expr: Elementwise) -> Expr | None:
    """The operation with one number as what it is, an Affine; 0 and 1 then vanish."""
    found = _affine_with(expr, expr.left, expr.right)
    if found is None and isinstance(expr, Add | Multiply):
        found = _affine_with(expr, expr.right, expr.left)
    if found is None and isinstance(expr, Subtract):
        found = _affine_with(Add(expr.left, expr.right), Affine(expr.right, -1.0), expr.left)
    if found is None:
        return None
    shorter = replace(found, arg=Expand(found.arg, shape_of(expr)))
    return shorter if dtype_of(shorter) == dtype_of(expr) else None


def _affine_with(expr: Elementwise, arg: Expr, number: Expr) -> Affine | None:
    """What `expr` does to `arg` if its other argument is one finite number."""
    if not (isinstance(number, Fill) and is_float(number.dtype) and math.isfinite(number.value)):
        return None
    value = float(number.value)
    match expr:
        case Add():
            return Affine(arg, shift=value)  # x + c
        case Subtract():
            return Affine(arg, shift=-value)  # x - c = x + -c
        case Multiply():
            return Affine(arg, scale=value)  # x * c
        case Divide():
            return Affine(arg) if value == 1 else None  # x / 1 = x; x * (1 / c) would round
        case _:
            assert_never(expr)


def _without_expand(expr: Elementwise) -> Expr | None:
    """expand(x) + y = x + y, where x and y broadcast to the same shape anyway."""
    for place, arg in enumerate(args_of(expr)):
        if isinstance(arg, Expand):
            args = [*args_of(expr)]
            args[place] = arg.arg
            shorter = with_args(expr, tuple(args))
            if shape_of(shorter) == shape_of(expr):
                return shorter
    return None


def _simpler_mean(expr: Mean) -> Expr | None:
    shape = shape_of(expr.arg)
    dims = tuple(dim for dim in expr.dims if shape[dim] != 1)  # the mean of one is itself
    return replace(expr, dims=dims) if dims else expr.arg if _is_rounded_once(expr.arg) else None


def _is_rounded_once(expr: Expr) -> bool:
    """Whether it is all the same to round the value of `expr` or its parts: not for cat(x.to(bfloat16), y)."""
    dtype = dtype_of(expr)
    return all(isinstance(part, Source) or dtype_of(part) == dtype for part in _parts(expr))


def _parts(expr: Expr) -> Iterator[Expr]:
    """What is moved to make up `expr`."""
    if isinstance(expr, Move):
        for arg in args_of(expr):
            yield from _parts(arg)
    else:
        yield expr
