"""Expression in, shorter expression with bitwise the same value out.

Rules are applied from the leaves up, each node until none fits. Every rule is an equation, given in its comment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from automap.plan.expr import (
    Affine,
    Cast,
    Concat,
    Expr,
    Fill,
    Gather,
    Permute,
    Reshape,
    Slice,
    args_of,
    dtype_of,
    shape_of,
    with_args,
)
from automap.plan.layout import canonical, layout_of


def simplify(expr: Expr) -> Expr:
    """An expression with the same value and as few nodes as the rules below reach.

    Raises:
        PlanError: the expression does not fit together.

    Example:
        >>> from automap.plan.expr import Source
        >>> simplify(Permute(Permute(Source("w", (2, 3)), (1, 0)), (1, 0)))
        Source(name='w', shape=(2, 3), dtype='float32')
    """
    expr = with_args(expr, tuple(simplify(arg) for arg in args_of(expr)))
    shorter = _step(expr)
    return expr if shorter is None or shorter == expr else simplify(shorter)


def _step(expr: Expr) -> Expr | None:
    """One rule applied at the top of `expr`, or None where none fits."""
    match expr:
        case Slice() | Permute() | Reshape() | Gather() if isinstance(expr.arg, Fill):
            return Fill(expr.arg.value, shape_of(expr), expr.arg.dtype)  # moved constants are constants
        case Slice():
            return _simpler_slice(expr)
        case Concat():
            return _simpler_concat(expr)
        case Permute() | Reshape():
            return _simpler_chain(expr)
        case Gather():
            return _simpler_gather(expr)
        case Cast(arg, dtype) if dtype_of(arg) == dtype:
            return arg  # cast(x, dtype of x) = x
        case Affine(arg, scale, shift) if scale == 1 and shift == 0:
            return arg  # 1 * x + 0 = x
        case _:
            return None


def _simpler_chain(expr: Permute | Reshape) -> Expr | None:
    layout = layout_of(expr)
    if layout is not None:
        return canonical(layout)
    if isinstance(expr, Reshape):
        if isinstance(expr.arg, Reshape):
            return Reshape(expr.arg.arg, expr.shape)  # reshape(reshape(x)) = reshape(x)
        return expr.arg if shape_of(expr.arg) == expr.shape else None
    return expr.arg if expr.dims == tuple(range(len(expr.dims))) else None


def slice_of(arg: Expr, ranges: Sequence[range]) -> Slice:
    """A Slice that takes `ranges` of the dims of arg, in its normal spelling (`stop` as far as a whole step goes)."""
    stops = tuple(
        min(size, r.start + len(r) * r.step) if len(r) else r.start
        for r, size in zip(ranges, shape_of(arg), strict=True)
    )
    steps = tuple(r.step if len(r) > 1 else 1 for r in ranges)
    stops = tuple(r.start + 1 if len(r) == 1 else stop for r, stop in zip(ranges, stops, strict=True))
    return Slice(arg, tuple(r.start for r in ranges), stops, steps)


def ranges_of(expr: Slice) -> tuple[range, ...]:
    """The positions that a Slice takes of each dim of its argument."""
    return tuple(map(range, expr.start, expr.stop, expr.step))


def _simpler_slice(expr: Slice) -> Expr | None:
    ranges = ranges_of(expr)
    if shape_of(expr) == shape_of(expr.arg):
        return expr.arg  # x[:] = x
    match expr.arg:
        case Slice(arg) as inner:  # x[a][b] = x[a[b]]
            return slice_of(arg, [a[b.start : b.stop : b.step] for a, b in zip(ranges_of(inner), ranges, strict=True)])
        case Permute(arg, dims):  # permute(x)[a] = permute(x[a permuted back])
            return Permute(slice_of(arg, [ranges[dims.index(dim)] for dim in range(len(dims))]), dims)
        case Concat(dim=dim) if ranges[dim].step == 1 and len(ranges[dim]):
            shorter = _slice_of_concat(expr.arg, ranges)
            return shorter if dtype_of(shorter) == dtype_of(expr) else slice_of(expr.arg, ranges)
        case _:
            return slice_of(expr.arg, ranges)


def _slice_of_concat(concat: Concat, ranges: tuple[range, ...]) -> Expr:
    """cat(x, y)[a] = cat(x[a], y[a]), leaving out what a does not reach."""
    wanted, parts, offset = ranges[concat.dim], [], 0
    for arg in concat.args:
        size = shape_of(arg)[concat.dim]
        inner = range(max(wanted.start - offset, 0), min(wanted.stop - offset, size))
        if len(inner):
            parts.append(slice_of(arg, [*ranges[: concat.dim], inner, *ranges[concat.dim + 1 :]]))
        offset += size
    return Concat(tuple(parts), concat.dim)


def _simpler_concat(expr: Concat) -> Expr | None:
    args: list[Expr] = []
    for arg in expr.args:
        nested = isinstance(arg, Concat) and arg.dim == expr.dim and dtype_of(arg) == dtype_of(expr)
        for part in args_of(arg) if nested else (arg,):  # cat(cat(x, y), z) = cat(x, y, z)
            joined = _joined(args[-1], part, expr.dim) if args else None
            args[-1:] = [joined] if joined is not None else [*args[-1:], part]
    kept = [arg for arg in args if shape_of(arg)[expr.dim]] or args[:1]  # cat(x, empty) = x
    if dtype_of(replace(expr, args=tuple(kept))) != dtype_of(expr):
        kept = args
    return kept[0] if len(kept) == 1 else replace(expr, args=tuple(kept))


def _joined(left: Expr, right: Expr, dim: int) -> Expr | None:
    """cat(x[a:b], x[b:c]) = x[a:c], cat(fill, fill) = fill; None where neither fits."""
    match left, right:
        case Fill(value, shape, dtype), Fill(_, more) if left == replace(right, shape=shape):
            return Fill(value, (*shape[:dim], shape[dim] + more[dim], *shape[dim + 1 :]), dtype)
        case Slice(x), Slice(y) if x == y:
            return _joined_slices(left, right, dim)
        case _:
            return None


def _joined_slices(left: Slice, right: Slice, dim: int) -> Expr | None:
    ours, theirs = list(ranges_of(left)), list(ranges_of(right))
    a, b = ours.pop(dim), theirs.pop(dim)
    if ours != theirs or not len(a) or not len(b):
        return None
    step = a.step if len(a) > 1 else b.step if len(b) > 1 else b.start - a.start
    both = range(a.start, a.start + (len(a) + len(b)) * step, step) if step > 0 else range(0)
    if list(both[: len(a)]) != list(a) or list(both[len(a) :]) != list(b):
        return None
    ours.insert(dim, both)
    return slice_of(left.arg, ours)


def _simpler_gather(expr: Gather) -> Expr | None:
    shape, indices = shape_of(expr.arg), expr.indices
    if isinstance(expr.arg, Gather) and expr.arg.dim == expr.dim:  # x[i][j] = x[i[j]]
        return Gather(expr.arg.arg, expr.dim, tuple(expr.arg.indices[index] for index in indices))
    if not indices:
        return None
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if step < 1 or indices[-1] - indices[0] != (len(indices) - 1) * step:
        return None
    run = range(indices[0], indices[-1] + 1, step)
    if indices != tuple(run):
        return None
    return slice_of(expr.arg, [run if dim == expr.dim else range(size) for dim, size in enumerate(shape)])
