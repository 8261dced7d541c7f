"""Cutting expressions: the expression of some rows of another one, reading no more of the leaves than those need.

Every rule is an equation; a node without a rule is computed whole and then cut, which is right for any node.
"""

from __future__ import annotations

import math

from automap.apply.views import Leaves
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
    Mean,
    Multiply,
    Norm,
    Pad,
    Permute,
    Pointwise,
    Reshape,
    Slice,
    Source,
    Sqrt,
    Subtract,
    shape_of,
)
from automap.plan.expr import args_of, with_args


def narrowed(expr: Expr, dim: int, start: int, stop: int, leaves: Leaves) -> Expr:
    """The expression of `expr[start:stop]` along dim, with the same dtype.

    Example:
        >>> narrowed(Permute(Fill(1.0, (4, 6)), (1, 0)), 0, 2, 5, Leaves())
        Permute(arg=Fill(value=1.0, shape=(4, 3), dtype='float32'), dims=(1, 0))
    """
    if (start, stop) == (0, shape_of(expr)[dim]):
        return expr
    match expr:
        case Source():
            return leaves.narrow(expr, dim, start, stop)
        case Fill(value, shape, dtype):
            return Fill(value, _resized(shape, dim, stop - start), dtype)
        case Permute(arg, dims):  # permute(x)[a] = permute(x[a permuted back])
            return Permute(narrowed(arg, dims[dim], start, stop, leaves), dims)
        case Concat(args, at) if at != dim:  # cat(x, y)[a] = cat(x[a], y[a])
            return Concat(tuple(narrowed(arg, dim, start, stop, leaves) for arg in args), at)
        case Concat():
            return _narrowed_concat(expr, start, stop, leaves)
        case Cast(arg) | Affine(arg) | Sqrt(arg) | Pointwise(arg):  # f(x)[a] = f(x[a])
            return with_args(expr, (narrowed(arg, dim, start, stop, leaves),))
        case Norm(arg, dims) | Mean(arg, dims) if dim not in dims:  # the same, as other dims are reduced
            return with_args(expr, (narrowed(arg, dim, start, stop, leaves),))
        case Add() | Subtract() | Multiply() | Divide():
            rank = len(shape_of(expr))
            args = tuple(_broadcast(arg, rank, dim, start, stop, leaves) for arg in args_of(expr))
            return _same_size(with_args(expr, args), dim, stop - start)
        case Slice() | Gather() | Pad() | Expand() | Reshape():
            return _narrowed_move(expr, dim, start, stop, leaves)
        case _:
            return _cut(expr, dim, start, stop)


def _narrowed_move(
    expr: Slice | Gather | Pad | Expand | Reshape, dim: int, start: int, stop: int, leaves: Leaves
) -> Expr:
    match expr:
        case Slice():
            return _narrowed_slice(expr, dim, start, stop, leaves)
        case Gather():
            return _narrowed_gather(expr, dim, start, stop, leaves)
        case Pad():
            return _narrowed_pad(expr, dim, start, stop, leaves)
        case Expand(arg, shape):  # expand(x)[a] = expand(x[a]), or expand(x) where this dim is repeated
            return Expand(_broadcast(arg, len(shape), dim, start, stop, leaves), _resized(shape, dim, stop - start))
        case Reshape():
            return _narrowed_reshape(expr, dim, start, stop, leaves)


def _resized(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


def _cut(expr: Expr, dim: int, start: int, stop: int) -> Expr:
    shape = shape_of(expr)
    return Slice(expr, _resized((0,) * len(shape), dim, start), _resized(shape, dim, stop), (1,) * len(shape))


def _broadcast(arg: Expr, rank: int, dim: int, start: int, stop: int, leaves: Leaves) -> Expr:
    """An argument that is broadcast to `rank` dims, cut where it has the dim."""
    shape = shape_of(arg)
    own = dim - (rank - len(shape))
    return arg if own < 0 or shape[own] == 1 else narrowed(arg, own, start, stop, leaves)


def _same_size(expr: Expr, dim: int, size: int) -> Expr:
    """expr, which may have kept one row where none is wanted."""
    return expr if shape_of(expr)[dim] == size else _cut(expr, dim, 0, size)


def _narrowed_concat(expr: Concat, start: int, stop: int, leaves: Leaves) -> Expr:
    """cat(x, y)[a] = cat(x[b], y[c]); arguments out of reach stay as empty ones, as they have a say in the dtype."""
    args, offset = [], 0
    for arg in expr.args:
        size = shape_of(arg)[expr.dim]
        first, last = (min(max(place - offset, 0), size) for place in (start, stop))
        args.append(narrowed(arg, expr.dim, first, last, leaves))
        offset += size
    return Concat(tuple(args), expr.dim)


def _narrowed_slice(expr: Slice, dim: int, start: int, stop: int, leaves: Leaves) -> Expr:
    """x[a][b] = (x[from the first to the last of a[b]])[every step]."""
    step = expr.step[dim]
    first = expr.start[dim] + start * step
    last = first + (stop - start - 1) * step + 1 if stop > start else first
    arg = narrowed(expr.arg, dim, first, last, leaves)
    return Slice(arg, _resized(expr.start, dim, 0), _resized(expr.stop, dim, last - first), expr.step)


def _narrowed_gather(expr: Gather, dim: int, start: int, stop: int, leaves: Leaves) -> Expr:
    """x[i][a] = (x[from the least to the greatest of i[a]])[i[a] - least]."""
    if dim != expr.dim:
        return Gather(narrowed(expr.arg, dim, start, stop, leaves), expr.dim, expr.indices)
    indices = expr.indices[start:stop]
    low, high = (min(indices), max(indices) + 1) if indices else (0, 0)
    arg = narrowed(expr.arg, dim, low, high, leaves)
    return Gather(arg, dim, tuple(index - low for index in indices))


def _narrowed_pad(expr: Pad, dim: int, start: int, stop: int, leaves: Leaves) -> Expr:
    """What lies inside of x is cut from x, the rest stays padding."""
    begin = expr.before[dim]
    end = begin + shape_of(expr.arg)[dim]
    low, high = (min(max(place, start), stop) for place in (begin, end))
    first, last = (min(max(place, begin), end) - begin for place in (start, stop))
    arg = narrowed(expr.arg, dim, first, max(first, last), leaves)
    return Pad(arg, _resized(expr.before, dim, low - start), _resized(expr.after, dim, stop - high))


def _narrowed_reshape(expr: Reshape, dim: int, start: int, stop: int, leaves: Leaves) -> Expr:
    """reshape(x)[a] = reshape(x[the rows of x that hold a])[what of them is a]."""
    shape, inner = expr.shape, math.prod(expr.shape[dim + 1 :])
    own = _same_outer(shape_of(expr.arg), math.prod(shape[:dim]))
    if own is None or 0 in shape:
        return _cut(expr, dim, start, stop)
    own_inner = math.prod(shape_of(expr.arg)[own + 1 :])
    if own_inner % inner == 0:  # a row of x holds `many` of ours
        many = own_inner // inner
        first, last = start // many, -(-stop // many)
        arg = narrowed(expr.arg, own, first, last, leaves)
        found, skip = Reshape(arg, _resized(shape, dim, (last - first) * many)), start - first * many
        if last - first < shape_of(expr.arg)[own] or found.shape[dim] == stop - start:
            return narrowed(found, dim, skip, skip + stop - start, leaves)  # perhaps further in, too
        return _cut(found, dim, skip, skip + stop - start)
    if inner % own_inner == 0:  # one of our rows is `many` of x
        many = inner // own_inner
        arg = narrowed(expr.arg, own, start * many, stop * many, leaves)
        return Reshape(arg, _resized(shape, dim, stop - start))
    return _cut(expr, dim, start, stop)


def _same_outer(shape: tuple[int, ...], outer: int) -> int | None:
    """The dim of shape with `outer` elements in the dims in front of it, and more than one of its own."""
    for dim, size in enumerate(shape):
        if math.prod(shape[:dim]) == outer and size != 1:
            return dim
    return None
