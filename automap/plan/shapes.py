"""Expression in, the shape it evaluates to out; a node that does not fit its arguments is refused."""

from __future__ import annotations

import math
from typing import assert_never

from automap.errors import PlanError
from automap.plan.expr import (
    Add,
    Affine,
    Arithmetic,
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
    Pointwise,
    Reshape,
    Shape,
    Slice,
    Source,
    Sqrt,
    Subtract,
    Tril,
    args_of,
)


def shape_of(expr: Expr) -> Shape:
    """The shape that `expr` evaluates to.

    Raises:
        PlanError: a node does not fit its arguments (out of range, not a permutation, other number of elements).

    Example:
        >>> shape_of(Slice(Source("qkv", (2304, 768)), (0, 0), (768, 768), (1, 1)))
        (768, 768)
    """
    return node_shape(expr, tuple(shape_of(arg) for arg in args_of(expr)))


def node_shape(expr: Expr, shapes: tuple[Shape, ...]) -> Shape:
    """The shape of one node given its arguments' shapes.

    Raises:
        PlanError: the node does not fit its arguments.
    """
    match expr:
        case Source(shape=shape) | Fill(shape=shape):
            return _checked_shape(shape)
        case Slice():
            return _slice_shape(expr, shapes[0])
        case Concat(dim=dim):
            return _concat_shape(shapes, dim)
        case Permute(dims=dims):
            return _permute_shape(dims, shapes[0])
        case Reshape(shape=shape):
            return _reshape_shape(shape, shapes[0])
        case Gather():
            return _gather_shape(expr, shapes[0])
        case Pad():
            return _pad_shape(expr, shapes[0])
        case Expand(shape=shape):
            return _expand_shape(shape, shapes[0])
        case Cast():
            return shapes[0]
        case _:
            return _computed_shape(expr, shapes)


def _computed_shape(expr: Arithmetic, shapes: tuple[Shape, ...]) -> Shape:
    match expr:
        case Affine() | Sqrt() | Pointwise():
            return shapes[0]
        case MatrixFunction() | Tril():
            return _matrix_shape(expr, shapes[0])
        case Norm(dims=dims) | Mean(dims=dims):
            return _reduced_shape(dims, shapes[0])
        case Add() | Subtract() | Multiply() | Divide():
            return _broadcast_shape(*shapes)
        case MatMul():
            return _matmul_shape(*shapes)
        case _:
            assert_never(expr)


def _matrix_shape(expr: MatrixFunction | Tril, shape: Shape) -> Shape:
    if len(shape) < 2 or (isinstance(expr, MatrixFunction) and shape[-1] != shape[-2]):
        kind = f"{expr.function} of square matrices" if isinstance(expr, MatrixFunction) else "tril of matrices"
        raise PlanError(f"{kind} does not fit shape {shape}")
    return shape


def _checked_shape(shape: Shape) -> Shape:
    if any(size < 0 for size in shape):
        raise PlanError(f"shape {shape} has a negative size")
    return shape


def _slice_shape(expr: Slice, shape: Shape) -> Shape:
    if not len(expr.start) == len(expr.stop) == len(expr.step) == len(shape):
        raise PlanError(f"a slice of {len(expr.start)} dims does not fit shape {shape}")
    sizes = []
    for dim, (start, stop, step, size) in enumerate(zip(expr.start, expr.stop, expr.step, shape, strict=True)):
        if not (0 <= start <= stop <= size and step >= 1):
            raise PlanError(f"slice {start}:{stop}:{step} leaves dim {dim} of shape {shape}")
        sizes.append(len(range(start, stop, step)))
    return tuple(sizes)


def _concat_shape(shapes: tuple[Shape, ...], dim: int) -> Shape:
    if not shapes or not 0 <= dim < len(shapes[0]):
        raise PlanError(f"concat along dim {dim} of {len(shapes)} tensors{f' of shape {shapes[0]}' if shapes else ''}")
    first = shapes[0]
    for shape in shapes:
        if len(shape) != len(first) or shape[:dim] + shape[dim + 1 :] != first[:dim] + first[dim + 1 :]:
            raise PlanError(f"concat along dim {dim} of shapes {first} and {shape}, which differ elsewhere")
    return (*first[:dim], sum(shape[dim] for shape in shapes), *first[dim + 1 :])


def _permute_shape(dims: tuple[int, ...], shape: Shape) -> Shape:
    if sorted(dims) != list(range(len(shape))):
        raise PlanError(f"dims {dims} are not a permutation of the dims of shape {shape}")
    return tuple(shape[dim] for dim in dims)


def _reshape_shape(shape: Shape, arg_shape: Shape) -> Shape:
    if math.prod(_checked_shape(shape)) != math.prod(arg_shape):
        raise PlanError(f"shape {arg_shape} cannot be reshaped to {shape}: other number of elements")
    return shape


def _gather_shape(expr: Gather, shape: Shape) -> Shape:
    if not 0 <= expr.dim < len(shape):
        raise PlanError(f"gather along dim {expr.dim} of shape {shape}")
    if expr.indices and not (min(expr.indices) >= 0 and max(expr.indices) < shape[expr.dim]):
        raise PlanError(f"gather indices leave dim {expr.dim} of shape {shape}")
    return (*shape[: expr.dim], len(expr.indices), *shape[expr.dim + 1 :])


def _pad_shape(expr: Pad, shape: Shape) -> Shape:
    if not len(expr.before) == len(expr.after) == len(shape) or min((*expr.before, *expr.after), default=0) < 0:
        raise PlanError(f"padding {expr.before} and {expr.after} does not fit shape {shape}")
    return tuple(map(sum, zip(expr.before, shape, expr.after, strict=True)))


def _expand_shape(shape: Shape, arg_shape: Shape) -> Shape:
    tail = _checked_shape(shape)[len(shape) - len(arg_shape) :]
    fits = len(arg_shape) <= len(shape) and all(a in (1, b) for a, b in zip(arg_shape, tail, strict=True))
    if not fits:
        raise PlanError(f"shape {arg_shape} cannot be expanded to {shape}")
    return shape


def _reduced_shape(dims: tuple[int, ...], shape: Shape) -> Shape:
    if not dims or len(set(dims)) < len(dims) or not all(0 <= dim < len(shape) for dim in dims):
        raise PlanError(f"dims {dims} are not some dims of shape {shape}")
    return tuple(1 if dim in dims else size for dim, size in enumerate(shape))


def _broadcast_shape(left: Shape, right: Shape) -> Shape:
    rank = max(len(left), len(right))
    sizes = []
    for a, b in zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True):
        if a != b and 1 not in (a, b):
            raise PlanError(f"shapes {left} and {right} do not broadcast")
        sizes.append(b if a == 1 else a)
    return tuple(sizes)


def _matmul_shape(left: Shape, right: Shape) -> Shape:
    """As torch has it: a vector on the left is a row, one on the right a column, and neither is in the result."""
    if not left or not right or left[-1] != right[-2:][0]:
        raise PlanError(f"shapes {left} and {right} cannot be multiplied as matrices")
    return (*_broadcast_shape(left[:-2], right[:-2]), *left[-2:-1], *right[-1:][: len(right) - 1])
