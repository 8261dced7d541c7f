"""The rules of `simplify` for arithmetic: node in, node with the same value and dtype out, or None where none fits.

As arithmetic is done in float64 without rounding on the way (see evaluate), numbers change in the last bits of float64
at most, besides the sign of a zero, or of a NaN, that is computed. Those in RULES only propose: what keeps shape and
dtype and is simpler by the measure of simplify is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import TypeAlias, assert_never

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
    Mean,
    Move,
    Multiply,
    Norm,
    Permute,
    Pointwise,
    Reshape,
    Shape,
    Source,
    Sqrt,
    Subtract,
    args_of,
    with_args,
)
from automap.plan.layout import Layout, canonical, chain_of, layout_of
from automap.plan.shapes import node_shape, shape_of

Rule: TypeAlias = Callable[[Expr], Expr | None]
Term: TypeAlias = tuple[int, Expr]


def simpler_arithmetic(expr: Arithmetic) -> Expr | None:
    """One rule applied at the top of `expr`, whose arguments are simple, or None where none fits."""
    match expr:
        case Affine():
            return _folded(expr) or _simpler_affine(expr)
        case Add() | Subtract() | Multiply() | Divide():
            return _folded(expr) or _with_number(expr)
        case Sqrt():
            return _folded(expr)
        case Mean():
            return _simpler_mean(expr)
        case _:
            return None


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


def _without_reciprocal(expr: Expr) -> Expr | None:
    """Reciprocals: x * (c / y) = c * (x / y), x / (y / z) = x * z / y."""
    match expr:
        case Multiply(Divide(Fill(value), y), x) | Multiply(x, Divide(Fill(value), y)) if math.isfinite(value):
            return Divide(x, y) if value == 1 else Affine(Divide(x, y), float(value))
        case Divide(x, Divide(y, z)):
            return Divide(Multiply(x, z), y)
        case _:
            return None


def _without_minus(expr: Expr) -> Expr | None:
    """Signs: x + -c * y = x - c * y, x - -c * y = x + c * y, -c * x + y = y - c * x, -(x - y) = y - x."""
    match expr:
        case Add(x, Affine(y, c, 0)) if c < 0:
            return Subtract(x, _scaled(y, -c))
        case Add(Affine(y, c, 0), x) if c < 0:
            return Subtract(x, _scaled(y, -c))
        case Subtract(x, Affine(y, c, 0)) if c < 0:
            return Add(x, _scaled(y, -c))
        case Affine(Subtract(x, y), -1, 0):
            return Subtract(y, x)
        case _:
            return None


def _scaled(expr: Expr, scale: float) -> Expr:
    return expr if scale == 1 else Affine(expr, scale)


def _scale_outside(expr: Expr) -> Expr | None:
    """(c * x) * y = c * (x * y), (c * x) / y = c * (x / y), x / -y = -(x / y), a * (c * x) + b = (a * c) * x + b."""
    match expr:
        case Multiply(Affine(x, c, 0), y) | Multiply(x, Affine(y, c, 0)):
            return Affine(Multiply(x, y), c)
        case Divide(Affine(x, c, 0), y) | Divide(x, Affine(y, -1 as c, 0)):
            return Affine(Divide(x, y), c)
        case Affine(Affine(x, c, 0), a, b) if math.isfinite(a * c) and abs(a * c) > 1e-290:
            return Affine(x, a * c, b)
        case _:
            return None


def _factored(expr: Expr) -> Expr | None:
    """Factors: x * s - y * s = (x - y) * s, x / s - y / s = (x - y) / s, wherever the two are in a sum."""
    if not isinstance(expr, Add | Subtract):
        return None
    terms = _terms(expr, 1)
    for one, two in combinations(range(len(terms)), 2):
        joined = _with_shared_factor(terms[one], terms[two])
        if joined is not None:
            sign, total = _total([*terms[:one], joined, *terms[one + 1 : two], *terms[two + 1 :]])
            return total if sign > 0 else Affine(total, -1.0)
    return None


def _terms(expr: Expr, sign: int) -> list[Term]:
    """What is summed up, each with its sign."""
    match expr:
        case Add(left, right):
            return [*_terms(left, sign), *_terms(right, sign)]
        case Subtract(left, right):
            return [*_terms(left, sign), *_terms(right, -sign)]
        case Affine(arg, -1, 0):
            return _terms(arg, -sign)
        case _:
            return [(sign, expr)]


def _total(terms: Sequence[Term]) -> Term:
    """The terms added up in their order, except that a positive one comes first; with the sign of it all."""
    first = next((place for place, (sign, _) in enumerate(terms) if sign > 0), 0)
    sign, total = terms[first]
    for more, term in (*terms[:first], *terms[first + 1 :]):
        total = Add(total, term) if more == sign else Subtract(total, term)
    return sign, total


def _with_shared_factor(one: Term, two: Term) -> Term | None:
    """The sum of two terms as one product or quotient."""
    for (kind, x, s), (other, y, t) in product(_factors(one[1]), _factors(two[1])):
        if kind is other and s == t:
            sign, joined = _total([(one[0], x), (two[0], y)])
            return sign, kind(joined, s)
    return None


def _factors(expr: Expr) -> Iterator[tuple[type[Multiply | Divide], Expr, Expr]]:
    """Each way to write `expr` as something times, or by, a factor."""
    if isinstance(expr, Multiply | Divide):
        yield type(expr), expr.left, expr.right
    if isinstance(expr, Multiply):
        yield Multiply, expr.right, expr.left


def _layout_outside(expr: Expr) -> Expr | None:
    """f(layout(x)) = layout(f(x)) for one argument."""
    if not isinstance(expr, Affine | Sqrt | Pointwise) or not isinstance(expr.arg, Permute | Reshape | Expand):
        return None
    return replace(expr.arg, arg=replace(expr, arg=expr.arg.arg))


def _common_layout_outside(expr: Expr) -> Expr | None:
    """f(layout(x), layout(y)) = layout(f(x, y)), f(c, layout(x)) = layout(f(c, x)) with one number c."""
    if not isinstance(expr, Elementwise):
        return None
    shape = shape_of(expr)
    layouts = [None if isinstance(arg, Fill) else layout_of(arg) for arg in args_of(expr)]
    found = [layout for layout in layouts if layout is not None]
    keys = {_key(layout) for layout in found}
    fills = [arg for arg in args_of(expr) if isinstance(arg, Fill)]
    if len(keys) != 1 or len(found) + len(fills) < 2 or found[0].shape != shape:
        return None
    bases = [replace(arg, shape=()) if isinstance(arg, Fill) else chain_of(arg)[0] for arg in args_of(expr)]
    return canonical(replace(found[0], base=with_args(expr, tuple(bases))))


def _key(layout: Layout) -> tuple[object, ...]:
    """What two layouts have in common that do the same."""
    return shape_of(layout.base), layout.sizes, layout.base_dims, layout.dest_dims


def _layout_inside(expr: Expr) -> Expr | None:
    """layout(f(x, y)) = f(layout(x), layout(y)), which pays where layouts of x and y are undone by that."""
    if not isinstance(expr, Permute | Reshape):
        return None
    base, links = chain_of(expr)
    if not isinstance(base, Elementwise):
        return None
    whole, args = shape_of(base), list(args_of(base))
    for link in links:
        moved = [_moved(arg, whole, link) for arg in args]
        args = [arg for arg in moved if arg is not None]
        if len(args) < len(moved):
            return None
        whole = node_shape(link, (whole,))
    found = with_args(base, tuple(args))
    return _without_ones(found) or found


def _moved(arg: Expr, whole: Shape, link: Reshape | Permute) -> Expr | None:
    """What broadcasts to shape `whole`, re-laid-out as that is by `link`; None where it cannot be."""
    wide = (1,) * (len(whole) - len(shape_of(arg))) + shape_of(arg)
    view: Expr
    if isinstance(link, Permute):
        view = Permute(Reshape(arg, wide), link.dims)
    else:
        shape = _reshaped(wide, whole, link.shape)
        if shape is None:
            return None
        view = Reshape(arg, shape)
    if isinstance(arg, Fill):
        return replace(arg, shape=shape_of(view))
    layout = layout_of(view)
    return None if layout is None else canonical(layout)


def _reshaped(wide: Shape, whole: Shape, shape: Shape) -> Shape | None:
    """The shape that broadcasts to `shape` as `wide` does to `whole`; None where a dim is only partly repeated."""
    sizes: list[int] = []
    for before, after in _groups(whole, shape):
        if all(wide[dim] == whole[dim] for dim in before):
            sizes += [shape[dim] for dim in after]
        elif all(wide[dim] == 1 for dim in before):
            sizes += [1 for _ in after]
        else:
            return None
    return tuple(sizes)


def _groups(left: Shape, right: Shape) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """The dims of two shapes of as many elements (not 0) that are the same elements, as few as possible at a time."""
    a = b = 0
    while a < len(left) or b < len(right):
        stop_a, stop_b = a, b
        if a < len(left) and left[a] == 1:
            stop_a += 1
        elif b < len(right) and right[b] == 1:
            stop_b += 1
        else:
            stop_a, stop_b = a + 1, b + 1
            while (ours := math.prod(left[a:stop_a])) != (theirs := math.prod(right[b:stop_b])):
                stop_a, stop_b = stop_a + (ours < theirs), stop_b + (ours > theirs)
        yield range(a, stop_a), range(b, stop_b)
        a, b = stop_a, stop_b


def _layout_outside_of_reduction(expr: Expr) -> Expr | None:
    """norm(permute(x)) = permute(norm(x)), norm(x.flatten(1)) = reshape(norm(x)) over all that was flattened."""
    match expr:
        case Norm(Permute(arg, order), dims) | Mean(Permute(arg, order), dims):
            return Permute(replace(expr, arg=arg, dims=tuple(sorted(order[dim] for dim in dims))), order)
        case Norm(Reshape(arg, shape), dims) | Mean(Reshape(arg, shape), dims) if 0 not in shape:
            reduced = _merged(shape_of(arg), shape, dims)
            return None if reduced is None else Reshape(replace(expr, arg=arg, dims=reduced), shape_of(expr))
        case _:
            return None


def _merged(shape: Shape, view: Shape, dims: Sequence[int]) -> tuple[int, ...] | None:
    """The dims of `shape` that `dims` of `view` are merged from, if they are that and nothing else is in them."""
    merged: list[int] = []
    for before, after in _groups(shape, view):
        wide = [dim for dim in after if view[dim] > 1]
        if wide and all(dim in dims for dim in wide):
            merged += [dim for dim in before if shape[dim] > 1]
        elif any(dim in dims for dim in wide):
            return None
    return tuple(merged) if len(merged) > sum(view[dim] > 1 for dim in dims) else None


def _without_expand(expr: Expr) -> Expr | None:
    """expand(x) + y = expand(x + y)."""
    if not isinstance(expr, Elementwise) or not any(isinstance(arg, Expand) for arg in args_of(expr)):
        return None
    shorter = with_args(expr, tuple(arg.arg if isinstance(arg, Expand) else arg for arg in args_of(expr)))
    return shorter if shape_of(shorter) == shape_of(expr) else Expand(shorter, shape_of(expr))


def _without_ones(expr: Expr) -> Expr | None:
    """x[None] + y = x + y, where y has that dim."""
    args = args_of(expr) if isinstance(expr, Elementwise) else ()
    for place, arg in enumerate(args):
        if isinstance(arg, Reshape) and (shape := shape_of(arg.arg)) == arg.shape[-len(shape) :]:
            shorter = with_args(expr, (*args[:place], arg.arg, *args[place + 1 :]))
            if shape_of(shorter) == shape_of(expr):
                return shorter
    return None


RULES: tuple[Rule, ...] = (
    _without_reciprocal,
    _without_minus,
    _scale_outside,
    _factored,
    _without_expand,
    _without_ones,
    _layout_outside,
    _common_layout_outside,
    _layout_outside_of_reduction,
    _layout_inside,
)
