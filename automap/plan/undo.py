"""Arithmetic undone: one equation `node == value` in, an equation for one of the node's arguments out.

What has no inverse is refused, with the choice that is left open.
"""

from __future__ import annotations

import math
from typing import assert_never

from automap.errors import PlanError
from automap.plan.evaluate import evaluate
from automap.plan.expr import (
    Add,
    Affine,
    Arithmetic,
    Divide,
    Elementwise,
    Expr,
    MatMul,
    MatrixFunction,
    Mean,
    Multiply,
    Norm,
    Pointwise,
    Sqrt,
    Subtract,
    Tril,
    sources_of,
)
from automap.plan.shapes import shape_of

_OPPOSITES = {"exp": "log", "expm1": "log1p", "sigmoid": "logit", "tanh": "atanh"}
_OPPOSITES |= {opposite: function for function, opposite in _OPPOSITES.items()}
_RESULTS = {
    Add: "the sum",
    Subtract: "the difference",
    Multiply: "the product",
    Divide: "the quotient",
    MatMul: "the matrix product",
}


def undone(expr: Arithmetic, value: Expr) -> tuple[Expr, Expr]:
    """An argument of `expr`, and what it is where `expr == value`.

    Raises:
        PlanError: more than one choice of arguments would do.
    """
    match expr:
        case Affine(arg, scale, shift):
            if scale == 0 or not math.isfinite(scale) or not math.isfinite(shift):
                raise PlanError(f"{names_of(arg)} * {scale} + {shift} cannot be undone")
            return arg, Affine(Affine(value, shift=-shift), scale=1 / scale)
        case Sqrt(arg):
            return arg, Multiply(value, value)
        case Pointwise(arg, function) if function in _OPPOSITES:
            return arg, Pointwise(value, _OPPOSITES[function])
        case MatrixFunction(arg, "inverse"):
            return arg, MatrixFunction(value, "inverse")
        case Pointwise(arg, function) | MatrixFunction(arg, function):
            raise PlanError(f"{function} of {names_of(arg)} is not undone: other values have the same")
        case Tril(arg):
            raise PlanError(f"only the lower triangle of {names_of(arg)} is left of it")
        case Norm(arg) | Mean(arg):
            raise PlanError(f"only the {type(expr).__name__.lower()} of {names_of(arg)} is left of it")
        case MatMul():
            raise PlanError(_choice(expr))
        case Add() | Subtract() | Multiply() | Divide():
            return _undone_with_constant(expr, value)
        case _:
            assert_never(expr)


def _undone_with_constant(expr: Elementwise, value: Expr) -> tuple[Expr, Expr]:
    """Where one argument is made of constants alone, the other one."""
    if sources_of(expr.left) and sources_of(expr.right):
        raise PlanError(_choice(expr))
    arg, constant = (expr.left, expr.right) if sources_of(expr.left) else (expr.right, expr.left)
    if shape_of(arg) != shape_of(expr):
        raise PlanError(f"{names_of(arg)} is repeated: any one of its copies would do")
    if not _is_harmless(expr, constant):
        raise PlanError(f"{names_of(arg)} is lost where a constant is 0 or not finite")
    match expr:
        case Add():
            return arg, Subtract(value, constant)
        case Subtract(left):
            return arg, Add(value, constant) if left is arg else Subtract(constant, value)
        case Multiply():
            return arg, Divide(value, constant)
        case Divide(left):
            return arg, Multiply(value, constant) if left is arg else Divide(constant, value)
        case _:
            assert_never(expr)


def _is_harmless(expr: Elementwise, constant: Expr) -> bool:
    """Whether no element of a constant swallows what it is combined with."""
    numbers = evaluate(constant, {})
    return bool(numbers.isfinite().all()) and (isinstance(expr, Add | Subtract) or bool((numbers != 0).all()))


def _choice(expr: Elementwise | MatMul) -> str:
    """What is open about an operation of two tensors."""
    left, right = set(sources_of(expr.left)), set(sources_of(expr.right))
    if left & right or not left or not right:
        return f"{_RESULTS[type(expr)]} of {names_of(expr)} with itself or constants is not undone"
    return f"it is {_RESULTS[type(expr)]} of {names_of(expr.left)} and {names_of(expr.right)}: any split would do"


def names_of(expr: Expr) -> str:
    """The src tensors in `expr`, for messages."""
    return " and ".join(f"`{source.name}`" for source in sources_of(expr))
