"""What the python and the timm export have in common: a plan as the body of a function from `src` to `dest`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeAlias, TypeVar

from automap.export.code import Writer
from automap.export.families import Family
from automap.export.names import common_prefix, holes, span, string, unique, variable
from automap.export.needs import Needs
from automap.export.parts import PART, Count, Cut, count_of, cut_of
from automap.export.spelling import sizes_text
from automap.export.text import INDENT, Chain, Code, Group, Lookup, laid_out
from automap.plan.fold import Index

MAX_TARGETS = 4
Indices: TypeAlias = tuple[Index, ...]
T = TypeVar("T")


def renaming_lines(families: Sequence[Family]) -> list[str]:
    """The function `renamed`, which gives the names of what is only renamed; nothing where there is none."""
    pairs = [(family.indices, *family.renamed) for family in families if family.renamed]
    if not pairs:
        return []
    lines = ["def renamed() -> list[tuple[str, str]]:", '    """Names in src and in dest of what is only renamed."""']
    is_begun = False
    for indices, members in by_indices(pairs, lambda pair: pair[0]):
        if indices and not is_begun:
            lines.append("    names = []")
        lines += loop_lines(indices, INDENT)
        lines += _pair_lines([(name, dest) for _, name, dest in members], INDENT * (1 + len(indices)))
        is_begun = True
    return [*lines, "    return names"]


def _pair_lines(pairs: Sequence[tuple[str, str]], indent: int) -> list[str]:
    """Statements that add pairs of names: without what all begin with, where that takes the numbers along."""
    src, dest = (common_prefix([pair[side] for pair in pairs]) for side in (0, 1))
    ends = [(name.removeprefix(src), other.removeprefix(dest)) for name, other in pairs]
    margin = " " * indent
    if len(pairs) == 1 or not holes(src + dest) or any(holes(name + other) for name, other in ends):
        items = [Group("(", (string(name), string(other)), ")") for name, other in pairs]
        word = "+=" if indent > INDENT else "="
        return [f"{margin}names {word} [", *item_lines(items, indent), f"{margin}]"]
    items = [Group("(", (string(name), string(other)), ")") for name, other in ends]
    whole = Group("(", (string(f"{src}{{old}}"), string(f"{dest}{{new}}")), ")")
    append = laid_out(Group("names.append(", (whole,), ")"), indent + INDENT)
    return [f"{margin}for old, new in (", *item_lines(items, indent), f"{margin}):", *append]


def item_lines(items: Sequence[Code], indent: int) -> list[str]:
    """One item a line, however short."""
    return [line for item in items for line in laid_out(item, indent + INDENT, after=",")]


def conversion_lines(families: Sequence[Family], needs: Needs) -> list[str]:
    """The statements that put everything else into `dest`."""
    others = [family for family in families if not family.renamed]
    lines = []
    for indices, members in by_indices(others, lambda family: family.indices):
        lines += loop_lines(indices, INDENT)
        for family in members:
            lines += _family_lines(family, needs, INDENT * (1 + len(indices)))
    return lines


def loop_lines(indices: Indices, indent: int) -> list[str]:
    """The headers of the loops over all values of the indices, the first outermost."""
    return [
        f"{' ' * (indent + INDENT * depth)}for {index.name} in {span(index)}:" for depth, index in enumerate(indices)
    ]


def by_indices(items: Sequence[T], key: Callable[[T], Indices]) -> list[tuple[Indices, list[T]]]:
    """Items with the same indices together; those without any first, the others as they first occur."""
    order = list(dict.fromkeys([(), *(key(item) for item in items)]))
    ranked = sorted(items, key=lambda item: order.index(key(item)))
    return [(indices, list(members)) for indices, members in groupby(ranked, key)]


def _family_lines(family: Family, needs: Needs, indent: int) -> list[str]:
    writer = Writer(needs, _src, indent)
    count = count_of(family)
    if count is not None:
        return _count_lines(count, writer, needs, indent)
    cut = cut_of(family)
    if cut is not None:
        return _cut_lines(cut, writer, needs, indent)
    for dest, expr in family.entries:
        writer.assign(_dest(dest), writer.value(expr), variable(dest))
    return writer.lines


def _src(name: str) -> Lookup:
    return Lookup("src", string(name))


def _dest(name: str) -> Lookup:
    return Lookup("dest", string(name))


def _cut_lines(cut: Cut, writer: Writer, needs: Needs, indent: int) -> list[str]:
    """`q, k, v = src["qkv"].chunk(3)`, then what is made of each piece."""
    pieces = Chain(_src(cut.source.name), cut_text(cut.dim, cut.sizes))
    if len(cut.dests) > MAX_TARGETS:
        parts = writer.bind(pieces, "parts")
        names = tuple(f"{parts}[{number}]" for number in range(len(cut.dests)))
    else:
        names = unique(map(variable, cut.dests), [variable(cut.source.name)])
        writer.assign(", ".join(names), pieces, variable(cut.source.name))
    for dest, expr, name in zip(cut.dests, cut.made, names, strict=True):
        inner = Writer(needs, {PART: name}.__getitem__, indent, taken=names, counts=False)
        inner.assign(_dest(dest), inner.value(expr), variable(dest))
        writer.lines += inner.lines
    return writer.lines


def _count_lines(count: Count, writer: Writer, needs: Needs, indent: int) -> list[str]:
    """One loop over the pieces of a tensor, for dest tensors whose names count them."""
    source = writer.source(count.source.name)
    sizes = (count.size,) * (count.source.shape[count.dim] // count.size)
    inner = Writer(needs, {PART: PART}.__getitem__, indent + INDENT, taken=[PART], counts=False)
    for dest, expr in count.made:
        inner.assign(_dest(dest), inner.value(expr), variable(dest))
    pieces = f"{source}{cut_text(count.dim, sizes)}"
    return [*writer.lines, f"{' ' * indent}for {count.variable}, {PART} in enumerate({pieces}):", *inner.lines]


def cut_text(dim: int, sizes: Sequence[int]) -> str:
    """`.chunk(3)` or `.split([32, 16, 16])`, with the dim where it is not the first."""
    along = f", dim={dim}" if dim else ""
    is_even = len(set(sizes)) == 1
    return f".chunk({len(sizes)}{along})" if is_even else f".split([{sizes_text(sizes)}]{along})"
