"""Expression in, shorter expression with the same value out: bitwise where elements are moved only.

Where there is arithmetic, the last bits of its float64 and the sign of zeros and NaNs that it computes may change.
Rules are applied from the leaves up, each node until none fits. Every rule is an equation, given in its comment.
Those of arithmetic come to an end because a measure falls; those of moves keep it, or let it fall, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias, assert_never

from automap.plan.arithmetic import RULES, simpler_arithmetic
from automap.plan.dtypes import dtype_of, is_float
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
    is_computed,
    with_args,
)
from automap.plan.layout import canonical, layout_of
from automap.plan.shapes import shape_of

Measure: TypeAlias = tuple[int, int, int, int]


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
        case Slice() | Permute() | Reshape() | Gather() | Expand() if isinstance(expr.arg, Fill):
            return Fill(expr.arg.value, shape_of(expr), expr.arg.dtype)  # moved constants are constants
        case Slice():
            return _simpler_slice(expr)
        case Concat():
            return _simpler_concat(expr)
        case Permute() | Reshape():
            return _changed(expr, _simpler_chain(expr)) or _by_rules(expr)
        case Gather():
            return _simpler_gather(expr)
        case Pad():
            return _simpler_pad(expr)
        case Expand():
            return _simpler_expand(expr)
        case Cast(arg, dtype):
            keeps = dtype_of(arg) == dtype and (is_float(dtype) or not is_computed(arg))
            return arg if keeps else None  # cast(x, dtype of x) = x
        case Affine() | Add() | Subtract() | Multiply() | Divide() | MatMul() | Sqrt() | Norm() | Mean():
            return _changed(expr, simpler_arithmetic(expr)) or _by_rules(expr)
        case Pointwise() | MatrixFunction() | Tril():
            return _changed(expr, simpler_arithmetic(expr)) or _by_rules(expr)
        case Source() | Fill():
            return None
        case _:
            assert_never(expr)


def _by_rules(expr: Expr) -> Expr | None:
    """What the first of RULES that makes `expr` simpler makes of it, or None where none does."""
    if not is_float(dtype_of(expr)):
        return None
    for rule in RULES:
        found = rule(expr)
        if found is not None and _is_simpler(found, expr):
            return found
    return None


def _is_simpler(found: Expr, expr: Expr) -> bool:
    fits = shape_of(found) == shape_of(expr) and dtype_of(found) == dtype_of(expr)
    return fits and measure_of(found) < measure_of(expr)


def measure_of(expr: Expr) -> Measure:
    """What falls with every rule: arithmetic, layouts, products of scaled factors, and arithmetic of layouts."""
    first, second, third, fourth = zip(*_costs(expr, 0, 0), strict=True)
    return sum(first), sum(second), sum(third), sum(fourth)


def _costs(expr: Expr, above: int, products: int) -> Iterator[Measure]:
    """What each node adds to the measure below so much arithmetic, and so many products and quotients."""
    layout = isinstance(expr, Permute | Reshape | Expand)
    scales = isinstance(expr, Affine) and expr.shift == 0
    yield _weight(expr), int(layout), products * scales, above * layout
    above += isinstance(expr, Arithmetic)
    products += isinstance(expr, Multiply | Divide)
    for arg in args_of(expr):
        yield from _costs(arg, above, products)


def _weight(expr: Expr) -> int:
    match expr:
        case Affine(_, scale):
            return 3 if scale < 0 else 2
        case Divide():
            return 3
        case _:
            return 2 if isinstance(expr, Arithmetic | Fill) else 0


def _changed(expr: Expr, found: Expr | None) -> Expr | None:
    return None if found == expr else found


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
        case Pad(arg, before) if _is_inside(ranges, before, shape_of(arg)):  # pad(x)[a] = x[a]
            return slice_of(arg, [range(r.start - b, r.stop - b, r.step) for r, b in zip(ranges, before, strict=True)])
        case _:
            return slice_of(expr.arg, ranges)


def _is_inside(ranges: tuple[range, ...], before: tuple[int, ...], shape: Shape) -> bool:
    """Whether slices of a padded tensor reach none of the zeros."""
    return all(
        len(r) and start <= r[0] and r[-1] < start + size for r, start, size in zip(ranges, before, shape, strict=True)
    )


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
    if len(indices) > 1 and len(set(indices)) == 1:  # x[i, i, i] = expand(x[i])
        one = slice_of(
            expr.arg, [range(indices[0], indices[0] + 1) if d == expr.dim else range(n) for d, n in enumerate(shape)]
        )
        return Expand(one, shape_of(expr))
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if step < 1 or indices[-1] - indices[0] != (len(indices) - 1) * step:
        return None
    run = range(indices[0], indices[-1] + 1, step)
    if indices != tuple(run):
        return None
    return slice_of(expr.arg, [run if dim == expr.dim else range(size) for dim, size in enumerate(shape)])


def _simpler_pad(expr: Pad) -> Expr | None:
    match expr:
        case Pad(arg, before, after) if not any((*before, *after)):  # pad(x, 0) = x
            return arg
        case Pad(Fill(value, _, dtype)) if value == 0 and math.copysign(1, value) > 0:  # pad(zeros) = zeros
            return Fill(value, shape_of(expr), dtype)
        case Pad(Pad(arg, before, after)):  # pad(pad(x, a), b) = pad(x, a + b)
            return Pad(arg, _sums(before, expr.before), _sums(after, expr.after))
        case _:
            return None


def _sums(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def _simpler_expand(expr: Expand) -> Expr | None:
    if shape_of(expr.arg) == expr.shape:  # expand(x, shape of x) = x
        return expr.arg
    return Expand(expr.arg.arg, expr.shape) if isinstance(expr.arg, Expand) else None  # expand(expand(x)) = expand(x)


def unstacked(arg: Expr, dim: int) -> Expr | None:
    """The expression that `arg` only adds dim `dim` to, if it does."""
    shape = shape_of(arg)
    if not isinstance(arg, Permute | Reshape) or shape[dim] != 1:
        return None
    return simplify(Reshape(arg, (*shape[:dim], *shape[dim + 1 :])))
