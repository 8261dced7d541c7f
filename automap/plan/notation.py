"""Expressions in a notation for people: `blocks.0.attn.qkv.weight[0:768]`, `cat(q, k, v, dim=0)`, einops patterns.

What is written is short, not always complete: long index lists are cut. The complete form is JSON (see codec).
"""

from __future__ import annotations

from itertools import pairwise
from typing import assert_never

from automap.plan.expr import (
    Add,
    Affine,
    Cast,
    Concat,
    Expr,
    Fill,
    Gather,
    Multiply,
    Permute,
    Reshape,
    Shape,
    Slice,
    Source,
    args_of,
    shape_of,
    walk_sources,
)
from automap.plan.layout import Groups, Layout, chain_of, layout_of
from automap.plan.simplify import simplify
from automap.plan.template import Form, blanked, numbers_of, rename_sources, template_from

MAX_INDICES = 8
_LETTERS = tuple(letter for letter in "abcdefghijklmnopqrstuvwxyz")
_WORDS = {2: "two", 3: "three"}


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
        case Slice():
            return _slice_text(expr)
        case Concat():
            return _concat_text(expr)
        case Permute() | Reshape():
            return _chain_text(expr)
        case Gather(arg, dim, indices):
            return f"take({format_expr(arg)}, {_indices_text(indices)}, dim={dim})"
        case Fill():
            return _fill_text(expr)
        case Cast(arg, dtype):
            return f"{_operand_text(arg)}.to({dtype})"
        case Affine():
            return _affine_text(expr)
        case Add(left, right):
            return f"{_operand_text(left)} + {_operand_text(right)}"
        case Multiply(left, right):
            return f"{_operand_text(left)} * {_operand_text(right)}"
        case _:
            assert_never(expr)


def _operand_text(expr: Expr) -> str:
    """The text of an expression that something is applied to, in parentheses where it has to be."""
    text = format_expr(expr)
    return f"({text})" if isinstance(expr, Affine | Add | Multiply) else text


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


def _fill_text(expr: Fill) -> str:
    if expr.value in (0, 1):
        return f"{'ones' if expr.value else 'zeros'}({_shape_text(expr.shape)})"
    return f"full(({_shape_text(expr.shape)}), {expr.value:g})"


def _affine_text(expr: Affine) -> str:
    text = _operand_text(expr.arg)
    if expr.scale != 1:
        text = f"{expr.scale:g} * {text}"
    return f"{text} {'-' if expr.shift < 0 else '+'} {abs(expr.shift):g}" if expr.shift else text


def _indices_text(indices: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, indices[:MAX_INDICES]))
    more = len(indices) - MAX_INDICES
    return f"[{shown}, ... {more} more]" if more > 0 else f"[{shown}]"


def _concat_text(expr: Concat) -> str:
    """`cat(...)` or `stack(...)`; equal arguments with numbered names are written once."""
    unstacked = [_unstacked(arg, expr.dim) for arg in expr.args]
    word = "cat" if None in unstacked else "stack"
    args = expr.args if word == "cat" else tuple(arg for arg in unstacked if arg is not None)
    folded = _numbered_args(args)
    if folded is None:
        return f"{word}({', '.join(map(format_expr, args))}, dim={expr.dim})"
    template, name = folded
    return f"{word}({format_expr(template)} for {name} in 0..{len(args) - 1}, dim={expr.dim})"


def _unstacked(arg: Expr, dim: int) -> Expr | None:
    """The expression that `arg` only adds dim `dim` to, if it does."""
    shape = shape_of(arg)
    if not isinstance(arg, Permute | Reshape) or shape[dim] != 1:
        return None
    return simplify(Reshape(arg, (*shape[:dim], *shape[dim + 1 :])))


def _numbered_args(args: tuple[Expr, ...]) -> tuple[Expr, str] | None:
    """One argument that stands for all (three or more), with the variable that counts them."""
    names = [[numbers_of(source.name) for source in walk_sources(arg)] for arg in args]
    numbers = [[number for _, found in sources for number in found] for sources in names]
    blanks = {rename_sources(arg, blanked) for arg in args}
    if len(args) < 3 or len(blanks) > 1 or not numbers[0]:
        return None
    deltas = [b - a for a, b in zip(numbers[0], numbers[1], strict=True)]
    steady = all([b - a for a, b in zip(one, two, strict=True)] == deltas for one, two in pairwise(numbers))
    if not steady or min(deltas) < 0 or not any(deltas):
        return None
    variable = _unused_variable(args[0])
    forms = iter([Form(first, ((variable, d),) if d else ()) for first, d in zip(numbers[0], deltas, strict=True)])

    def named(name: str) -> str:
        texts, found = numbers_of(name)
        return template_from(texts, tuple(next(forms) for _ in found))

    return rename_sources(args[0], named), variable


def _unused_variable(expr: Expr) -> str:
    used = "".join(source.name for source in walk_sources(expr))
    return next((name for name in "eghmn" if f"{{{name}" not in used), "n")


def _chain_text(expr: Permute | Reshape) -> str:
    base, links = chain_of(expr)
    text = _operand_text(base)
    if isinstance(expr, Permute) and len(links) == 1 and expr.dims == (1, 0):
        return f"{text}.T"
    layout = layout_of(expr)
    if layout is not None and (layout.sizes or args_of(base)):
        return f"rearrange({text}, {_pattern(layout)})"
    for link in links:
        text += (
            f".permute({_shape_text(link.dims)})"
            if isinstance(link, Permute)
            else f".reshape({_shape_text(link.shape)})"
        )
    return text


def _pattern(layout: Layout) -> str:
    """An einops pattern with the sizes of the axes that it groups."""
    names = _axis_names(layout.sizes)
    left, right = _side(layout.base_dims, names), _side(layout.dest_dims, names)
    grouped = {atom for dim in layout.base_dims if len(dim) > 1 for atom in dim}
    sizes = "".join(f", {names[atom]}={layout.sizes[atom]}" for atom in sorted(grouped))
    return f'"{left} -> {right}"{sizes}'


def _axis_names(sizes: tuple[int, ...]) -> list[str]:
    """`two` and `three` for the one axis of that size, letters for the others."""
    letters = iter(_LETTERS)
    names = []
    for atom, size in enumerate(sizes):
        word = _WORDS.get(size) if sizes.count(size) == 1 else None
        names.append(word or next(letters, f"x{atom}"))
    return names


def _side(dims: Groups, names: list[str]) -> str:
    texts = [" ".join(names[atom] for atom in dim) or "1" for dim in dims]
    return " ".join(f"({text})" if len(dim) > 1 else text for dim, text in zip(dims, texts, strict=True))
