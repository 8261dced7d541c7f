"""Expressions in a notation for people: `blocks.0.attn.qkv.weight[0:768]`, `cat(q, k, v, dim=0)`, einops patterns.

What is written is short, not always complete: long index lists are cut. The complete form is JSON (see codec).
"""

from __future__ import annotations

from typing import assert_never

from automap.plan.expr import (
    Add,
    Affine,
    Binary,
    Cast,
    Concat,
    Divide,
    Elementwise,
    Expand,
    Expr,
    Fill,
    Gather,
    MatMul,
    MatrixFunction,
    Mean,
    Move,
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
from automap.plan.layout import chain_of, layout_of
from automap.plan.patterns import identity_of, pattern_of, repeat_of
from automap.plan.shapes import shape_of
from automap.plan.simplify import unstacked
from automap.plan.template import numbered_args

MAX_INDICES = 8


def format_expr(expr: Expr) -> str:
    """The expression as one line of text.

    Example:
        >>> qkv = Source("qkv", (48, 5))
        >>> format_expr(Reshape(Permute(Reshape(qkv, (4, 3, 4, 5)), (1, 0, 2, 3)), (48, 5)))
        'rearrange(qkv, "(a three b) c -> (three a b) c", a=4, three=3, b=4)'
    """
    match expr:
        case Source(name):
            return name
        case Fill():
            return _fill_text(expr)
        case Slice() | Concat() | Permute() | Reshape() | Gather() | Pad() | Expand():
            return _moved_text(expr)
        case Cast(arg, dtype):
            return f"{_operand_text(arg)}.to({dtype})"
        case Affine():
            return _affine_text(expr)
        case Add() | Subtract() | Multiply() | Divide() | MatMul():
            return _binary_text(expr)
        case Sqrt(arg):
            return f"sqrt({format_expr(arg)})"
        case Pointwise(arg, function) | MatrixFunction(arg, function):
            return f"{function}({format_expr(arg)})"
        case Tril(arg, diagonal):
            return f"tril({format_expr(arg)}{f', {diagonal}' if diagonal else ''})"
        case Norm(arg, dims) | Mean(arg, dims):
            return f"{type(expr).__name__.lower()}({format_expr(arg)}, dims=({_tuple_text(dims)}))"
        case _:
            assert_never(expr)


def _moved_text(expr: Move) -> str:
    match expr:
        case Slice():
            return _slice_text(expr)
        case Concat():
            return _concat_text(expr)
        case Reshape() if (size := identity_of(expr)) is not None:
            return f"eye({size})"
        case Permute() | Reshape():
            return _chain_text(expr)
        case Gather(arg, dim, indices):
            return f"take({format_expr(arg)}, {_indices_text(indices)}, dim={dim})"
        case Pad(arg, before, after):
            return f"pad({format_expr(arg)}, {_padding_text(before, after)})"
        case Expand(arg, shape) if (repeat := repeat_of(expr)) is not None:
            return f"repeat({format_expr(repeat[0])}, {repeat[1]})"
        case Expand(arg, shape):
            return f"expand({format_expr(arg)}, ({_tuple_text(shape)}))"
        case _:
            assert_never(expr)


_SUM, _PRODUCT, _ATOM = range(3)
_SIGNS = {Add: "+", Subtract: "-", Multiply: "*", Divide: "/", MatMul: "@"}


def _strength(expr: Expr) -> int:
    """How closely the text of an expression holds together."""
    match expr:
        case Add() | Subtract():
            return _SUM
        case Affine(_, scale, shift):
            return _SUM if shift else _ATOM if scale == 1 else _PRODUCT
        case Multiply() | Divide() | MatMul():
            return _PRODUCT
        case _:
            return _ATOM


def _operand_text(expr: Expr, strength: int = _ATOM) -> str:
    """The text of an expression that something is applied to, in parentheses where it is weaker than `strength`."""
    text = format_expr(expr)
    return f"({text})" if _strength(expr) < strength else text


def _binary_text(expr: Binary) -> str:
    """The operation with its sign; what is on the right is in parentheses unless it is stronger."""
    strength = _strength(expr)
    left, right = expr.left, expr.right
    if isinstance(expr, MatMul):
        return f"{_operand_text(left, strength)} @ {_operand_text(right, strength + 1)}"
    left_text = _aligned_text(left, shape_of(right), strength)
    right_text = _aligned_text(right, shape_of(left), strength + (not _is_chained(expr)))
    return f"{left_text} {_SIGNS[type(expr)]} {right_text}"


def _is_chained(expr: Elementwise) -> bool:
    """Whether parentheses on the right are all the same: a * (b / c) = a * b / c, a + (b - c) = a + b - c."""
    right = _unshaped(expr.right)
    match expr:
        case Add():
            return isinstance(right, Add | Subtract)
        case Multiply():
            return isinstance(right, Multiply | Divide) and not isinstance(_first_factor(right), MatMul)
        case _:
            return False


def _first_factor(expr: Expr) -> Expr:
    while isinstance(expr, Multiply | Divide):
        expr = _unshaped(expr.left)
    return expr


def _unshaped(expr: Expr) -> Expr:
    return expr.arg if isinstance(expr, Reshape) else expr


def _aligned_text(expr: Expr, other: Shape, strength: int) -> str:
    """The text of an operand without the reshape that only makes it broadcast, or with that as `[:, None]`."""
    if isinstance(expr, Fill) and expr.shape == ():
        return f"{expr.value:g}"
    if not isinstance(expr, Reshape):
        return _operand_text(expr, strength)
    shape = shape_of(expr.arg)
    places = _places(shape, expr.shape)
    if places is None:
        return _operand_text(expr, strength)
    if places == tuple(range(len(shape))) and not _broadcasts(shape, other):
        return _operand_text(expr.arg, strength)
    marks = ", ".join(":" if dim in places else "None" for dim in range(len(expr.shape)))
    return f"{_operand_text(expr.arg)}[{marks}]"


def _places(shape: Shape, wider: Shape) -> tuple[int, ...] | None:
    """Which dims of `wider` are those of `shape`, if all others have size 1."""
    places: list[int] = []
    for dim, size in enumerate(wider):
        if len(places) < len(shape) and size == shape[len(places)]:
            places.append(dim)
        elif size != 1:
            return None
    return tuple(places) if len(places) == len(shape) and shape else None


def _broadcasts(left: Shape, right: Shape) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(left), reversed(right), strict=False))


def _slice_text(expr: Slice) -> str:
    entries = []
    for start, stop, step, size in zip(expr.start, expr.stop, expr.step, shape_of(expr.arg), strict=True):
        whole = (start, stop, step) == (0, size, 1)
        entries.append(":" if whole else f"{start}:{stop}{f':{step}' if step > 1 else ''}")
    while len(entries) > 1 and entries[-1] == ":":
        entries.pop()
    return f"{_operand_text(expr.arg)}[{', '.join(entries)}]"


def _shape_text(shape: Shape) -> str:
    return ", ".join(map(str, shape))


def _tuple_text(sizes: tuple[int, ...]) -> str:
    return f"{sizes[0]}," if len(sizes) == 1 else _shape_text(sizes)


def _padding_text(before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """One entry for each dim: `1` on both sides, or `0+1` where they differ."""
    pairs = zip(before, after, strict=True)
    return ", ".join(str(front) if front == back else f"{front}+{back}" for front, back in pairs)


def _fill_text(expr: Fill) -> str:
    if expr.value in (0, 1):
        return f"{'ones' if expr.value else 'zeros'}({_shape_text(expr.shape)})"
    return f"full(({_shape_text(expr.shape)}), {expr.value:g})"


def _affine_text(expr: Affine) -> str:
    if expr.scale == -1:
        text = _operand_text(expr.arg, _PRODUCT)
        return f"{expr.shift:g} - {text}" if expr.shift else f"-{text}"
    text = _operand_text(expr.arg, _SUM if expr.scale == 1 else _PRODUCT)
    if expr.scale != 1:
        text = f"{expr.scale:g} * {text}"
    return f"{text} {'-' if expr.shift < 0 else '+'} {abs(expr.shift):g}" if expr.shift else text


def _indices_text(indices: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, indices[:MAX_INDICES]))
    more = len(indices) - MAX_INDICES
    return f"[{shown}, ... {more} more]" if more > 0 else f"[{shown}]"


def _concat_text(expr: Concat) -> str:
    """`cat(...)` or `stack(...)`; equal arguments with numbered names are written once."""
    plain = [unstacked(arg, expr.dim) for arg in expr.args]
    word = "cat" if None in plain else "stack"
    args = expr.args if word == "cat" else tuple(arg for arg in plain if arg is not None)
    folded = numbered_args(args, shortest=3)
    if folded is None:
        return f"{word}({', '.join(map(format_expr, args))}, dim={expr.dim})"
    template, name = folded
    return f"{word}({format_expr(template)} for {name} in 0..{len(args) - 1}, dim={expr.dim})"


def _chain_text(expr: Permute | Reshape) -> str:
    base, links = chain_of(expr)
    repeat = repeat_of(expr)
    if repeat is not None:
        return f"repeat({format_expr(repeat[0])}, {repeat[1]})"
    if isinstance(expr, Permute) and len(links) == 1 and expr.dims == (1, 0):
        return f"{_operand_text(base)}.T"
    layout = layout_of(expr)
    if layout is not None and (layout.sizes or args_of(base)):
        return f"rearrange({format_expr(base)}, {pattern_of(layout)})"
    text = _operand_text(base)
    for link in links:
        text += (
            f".permute({_shape_text(link.dims)})"
            if isinstance(link, Permute)
            else f".reshape({_shape_text(link.shape)})"
        )
    return text
