"""Writes what was found on narrow twins for the sizes of the models themselves.

An expression is built anew from its leaves, whose dims are known in digits: what a reshape splits or joins and a slice
cuts are digits, and each has a size in the twin and one in the model. Where a cut would go through the digit that was
narrowed, the full size of the pieces does not follow, and nothing is made up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from automap.plan import Expr, Plan
from automap.plan.expr import (
    Add,
    Affine,
    Cast,
    Concat,
    Divide,
    Expand,
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
    with_args,
)
from automap.twin.dims import Digits
from automap.twin.pair import Twins

#: sizes in the twin and in the model, of one digit; a dim is several, row-major, those of size one left out
Digit: TypeAlias = tuple[int, int]
Dim: TypeAlias = tuple[Digit, ...]


class NotEnlarged(Exception):
    """What was found on the twins does not say what it is at full size; the text says where."""


@dataclass(frozen=True, slots=True)
class _Made:
    expr: Expr
    dims: tuple[Dim, ...]


def enlarged(expr: Expr, src: Mapping[str, tuple[Digits, ...]], dest: tuple[Digits, ...]) -> Expr:
    """Return a twin's expression for the sizes of the model.

    Args:
        expr: what one tensor of dest's twin is made of.
        src: the dims of src's tensors, by name; tensors that are not there were not narrowed.
        dest: the dims of the tensor of dest.

    Raises:
        NotEnlarged: a size does not follow.
    """
    dims = tuple(_dim(found) for found in dest)
    made = _enlarged(expr, src, dims)
    if _shape(made.dims) != _shape(dims):
        raise NotEnlarged(f"{_shape(made.dims)} elements, where the model has {_shape(dims)}")
    return made.expr


def enlarged_plan(plan: Plan, twins: Twins) -> Plan:
    """Return a plan found on twins for the models themselves.

    Raises:
        NotEnlarged: the size of something does not follow.
    """
    made: dict[tuple[Expr, tuple[Digits, ...]], Expr] = {}
    entries: dict[str, Expr] = {}
    for name, expr in plan.entries.items():
        dims = twins.dest_dims.get(name)
        if dims is None:  # it does not run, and was not narrowed
            entries[name] = expr
            continue
        key = (expr, dims)
        made[key] = entries[name] = made[key] if key in made else enlarged(expr, twins.src_dims, dims)
    return replace(plan, entries=entries)


def _dim(found: Digits) -> Dim:
    digits = ((found.outer, found.outer), (found.narrow, found.wide), (found.inner, found.inner))
    return tuple(digit for digit in digits if digit != (1, 1))


def _shape(dims: tuple[Dim, ...]) -> Shape:
    return tuple(math.prod(size for _, size in dim) for dim in dims)


def _enlarged(expr: Expr, src: Mapping[str, tuple[Digits, ...]], dest: tuple[Dim, ...] | None) -> _Made:
    """A node at full size; dest are the dims of the whole expression where they are those of this node."""
    if isinstance(expr, Cast | Affine):
        return _along(expr, _enlarged(expr.arg, src, dest))
    args = tuple(_enlarged(arg, src, None) for arg in args_of(expr))
    match expr:
        case Source():
            dims = tuple(_dim(d) for d in src[expr.name]) if expr.name in src else _plain(expr.shape)
            return _Made(replace(expr, shape=_shape(dims)), dims)
        case Fill():
            if dest is None or tuple(math.prod(n for n, _ in dim) for dim in dest) != expr.shape:
                raise NotEnlarged("a constant in the midst of others")
            return _Made(replace(expr, shape=_shape(dest)), dest)
        case Sqrt():
            return _along(expr, args[0])
        case Reshape():
            dims = _regrouped([digit for dim in args[0].dims for digit in dim], expr.shape)
            return _Made(Reshape(args[0].expr, _shape(dims)), dims)
        case Permute():
            return _Made(Permute(args[0].expr, expr.dims), tuple(args[0].dims[d] for d in expr.dims))
        case Slice():
            return _sliced(expr, args[0])
        case Concat():
            return _joined(args, expr.dim)
        case Gather():
            return _gathered(expr, args[0])
        case Pad():
            return _padded(expr, args[0])
        case Expand():
            return _spread(expr, args[0], dest)
        case Add() | Subtract() | Multiply() | Divide():
            return _Made(with_args(expr, tuple(a.expr for a in args)), _broadcast(args[0].dims, args[1].dims))
        case MatMul():
            return _multiplied(*args)
        case Norm() | Mean():
            gone = {d % len(args[0].dims) for d in expr.dims}
            dims = tuple(() if d in gone else dim for d, dim in enumerate(args[0].dims))
            return _Made(replace(expr, arg=args[0].expr), dims)
        case Pointwise() | MatrixFunction() | Tril():
            raise NotEnlarged("a function of a weight, of which fewer elements say too little")
        case _:
            assert_never(expr)


def _along(expr: Expr, made: _Made) -> _Made:
    """A node that keeps the dims of its argument."""
    return _Made(with_args(expr, (made.expr,)), made.dims)


def _gathered(expr: Gather, made: _Made) -> _Made:
    if any(small != big for small, big in made.dims[expr.dim]):
        raise NotEnlarged("single rows of a narrowed dim")
    rows = ((len(expr.indices), len(expr.indices)),)
    return _Made(replace(expr, arg=made.expr), (*made.dims[: expr.dim], rows, *made.dims[expr.dim + 1 :]))


def _multiplied(left: _Made, right: _Made) -> _Made:
    if len(left.dims) != 2 or len(right.dims) != 2 or left.dims[1] != right.dims[0]:
        raise NotEnlarged("a product whose inner dims are made up differently")
    return _Made(MatMul(left.expr, right.expr), (left.dims[0], right.dims[1]))


def _plain(shape: Shape) -> tuple[Dim, ...]:
    return tuple(((n, n),) if n != 1 else () for n in shape)


def _regrouped(digits: list[Digit], shape: Shape) -> tuple[Dim, ...]:
    """Digits in row-major order as dims of the sizes that a twin's reshape has."""
    left, dims = list(reversed(digits)), []
    for size in shape:
        dim: list[Digit] = []
        rest = size
        while rest > 1:
            if not left:
                raise NotEnlarged("a reshape that runs out of elements")
            small, big = left.pop()
            if rest % small:
                if small != big or small % rest:
                    raise NotEnlarged("a reshape through a narrowed dim")
                left.append((small // rest, big // rest))
                small = big = rest
            dim.append((small, big))
            rest //= small
        dims.append(tuple(dim))
    if left:
        raise NotEnlarged("a reshape that leaves elements over")
    return tuple(dims)


def _sliced(expr: Slice, made: _Made) -> _Made:
    cuts = [_cut(dim, *bounds) for dim, *bounds in zip(made.dims, expr.start, expr.stop, expr.step, strict=True)]
    starts, stops, steps, dims = zip(*cuts, strict=True)
    return _Made(Slice(made.expr, starts, stops, steps), dims)


def _cut(dim: Dim, start: int, stop: int, step: int) -> tuple[int, int, int, Dim]:
    """A slice of one dim at full size, and the digits of what is left."""
    small, big = (math.prod(sizes) for sizes in zip(*dim, strict=True)) if dim else (1, 1)
    if (start, stop, step) == (0, small, 1):
        return 0, big, 1, dim
    if all(a == b for a, b in dim):
        count = len(range(start, stop, step))
        return start, stop, step, ((count, count),) if count > 1 else ()
    if step > 1:
        return _strided(dim, start, stop, step, small)
    for place in range(len(dim)):  # the outer digits are counted, the inner ones go along whole
        head, tail = dim[:place], dim[place:]
        inner, wide = (math.prod(sizes) for sizes in zip(*tail, strict=True))
        is_plain = all(a == b for a, b in head)
        if is_plain and not start % inner and not stop % inner:
            count = (stop - start) // inner
            return start // inner * wide, stop // inner * wide, 1, (*(((count, count),) if count > 1 else ()), *tail)
    head, (count, full) = dim[:-1], dim[-1]
    if count == full and start // count == (stop - 1) // count and not any(a != b for a, b in head):
        return start, stop, step, ((stop - start, stop - start),)
    raise NotEnlarged("a slice through a narrowed dim")


def _strided(dim: Dim, start: int, stop: int, step: int, small: int) -> tuple[int, int, int, Dim]:
    """Every step-th element: one value of the innermost digits."""
    head, inner = list(dim), 1
    while head and inner < step and head[-1][0] == head[-1][1]:
        inner *= head.pop()[0]
    if inner != step or start >= step or stop <= small - step:
        raise NotEnlarged("every so many-th element of a narrowed dim")
    big = math.prod(size for _, size in dim)
    return start, big - (small - stop), step, tuple(head)


def _joined(parts: Sequence[_Made], dim: int) -> _Made:
    """Parts one after the other: alike but for how often what they have in common is repeated."""
    heads = [_head(part.dims[dim]) for part in parts]
    tails = [part.dims[dim][1:] if head > 1 else part.dims[dim] for head, part in zip(heads, parts, strict=True)]
    first = parts[0]
    others = [(*part.dims[:dim], *part.dims[dim + 1 :]) for part in parts]
    if any(tail != tails[0] for tail in tails) or any(_shape(o) != _shape(others[0]) for o in others):
        raise NotEnlarged("parts joined that are made up differently")
    joined = ((sum(heads), sum(heads)), *tails[0])
    dims = (*first.dims[:dim], joined, *first.dims[dim + 1 :])
    return _Made(Concat(tuple(part.expr for part in parts), dim), dims)


def _head(dim: Dim) -> int:
    """How often a dim repeats what comes behind its first digit: that digit, if it was not narrowed."""
    return dim[0][0] if dim and dim[0][0] == dim[0][1] else 1


def _padded(expr: Pad, made: _Made) -> _Made:
    dims: list[Dim] = []
    for dim, before, after in zip(made.dims, expr.before, expr.after, strict=True):
        if before or after:
            if any(a != b for a, b in dim):
                raise NotEnlarged("zeros beside a narrowed dim")
            size = math.prod(a for a, _ in dim) + before + after
            dim = ((size, size),)
        dims.append(dim)
    return _Made(replace(expr, arg=made.expr), tuple(dims))


def _spread(expr: Expand, made: _Made, dest: tuple[Dim, ...] | None) -> _Made:
    new = (None,) * (len(expr.shape) - len(made.dims))
    dims: list[Dim] = []
    for place, (size, dim) in enumerate(zip(expr.shape, (*new, *made.dims), strict=True)):
        if dim is not None and math.prod(a for a, _ in dim) == size:
            dims.append(dim)
        elif dest is not None:
            dims.append(dest[place])
        else:
            raise NotEnlarged("a repetition in the midst of others")
    return _Made(Expand(made.expr, _shape(tuple(dims))), tuple(dims))


def _broadcast(left: tuple[Dim, ...], right: tuple[Dim, ...]) -> tuple[Dim, ...]:
    count = max(len(left), len(right))
    left, right = ((),) * (count - len(left)) + left, ((),) * (count - len(right)) + right
    if any(a and b and _shape((a,)) != _shape((b,)) for a, b in zip(left, right, strict=True)):
        raise NotEnlarged("values that meet are made up differently")
    return tuple(a or b for a, b in zip(left, right, strict=True))
