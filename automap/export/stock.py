"""Families that transformers' own conversion operations cover, as entries: chunks, stacks, transposes."""

from __future__ import annotations

from automap.export.entries import STAR, Entry
from automap.export.families import Family, numbered
from automap.export.parts import cut_of
from automap.plan.expr import Concat, Expr, Permute, Source
from automap.plan.shapes import shape_of
from automap.plan.simplify import unstacked


def stock_entry(family: Family) -> Entry | None:
    """The entry that makes what a family is with operations of transformers; None where there are none for it."""
    if family.renamed:
        source, dest = family.renamed
        return Entry((source,), (dest,), (), family.indices)
    cut = cut_of(family)
    if cut is not None and cut.is_plain:
        operation = f"Chunk(dim={cut.dim})" if cut.is_even else f"Split(dim={cut.dim})"
        return Entry((cut.source.name,), cut.dests, (operation,), family.indices)
    if len(family.entries) > 1:
        return None
    dest, expr = family.entries[0]
    found = _swapped(expr) or _stacked(expr) or _joined(expr)
    return None if found is None else Entry(found[0], (dest,), found[1], family.indices)


def _swapped(expr: Expr) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """A src tensor with two dims exchanged."""
    match expr:
        case Permute(Source(name), dims) if len(moved := _moved(dims)) == 2:
            return (name,), (f"Transpose(dim0={moved[0]}, dim1={moved[1]})",)
        case _:
            return None


def _moved(dims: tuple[int, ...]) -> list[int]:
    return [dim for dim, other in enumerate(dims) if dim != other]


def _stacked(expr: Expr) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Numbered src tensors, stacked; all of them transposed before, or none."""
    if not isinstance(expr, Concat):
        return None
    args = [unstacked(arg, expr.dim) for arg in expr.args]
    many = numbered([arg for arg in args if arg is not None]) if None not in args else None
    if many is None:
        return None
    swapped = _swapped(many.template)
    element = many.template.arg if swapped and isinstance(many.template, Permute) else many.template
    star = starred(element.name, many.variable) if isinstance(element, Source) else None
    if star is None:
        return None
    merge = f"MergeModulelist(dim={expr.dim})"
    if not isinstance(many.template, Permute):
        return (star,), (merge,)
    dims = [dim + (dim >= expr.dim) for dim in _moved(many.template.dims)]
    return (star,), (merge, f"Transpose(dim0={dims[0]}, dim1={dims[1]})")


def starred(name: str, variable: str) -> str | None:
    """The name with STAR for the number, if that counts from 0 and is all there is between two dots."""
    parts = name.split(".")
    places = [place for place, part in enumerate(parts) if f"{{{variable}" in part]
    if len(places) != 1 or parts[places[0]] != f"{{{variable}}}" or places[0] == len(parts) - 1:
        return None
    parts[places[0]] = STAR
    return ".".join(parts)


def _joined(expr: Expr) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Src tensors of one size one after the other, or stacks of them."""
    if not isinstance(expr, Concat) or len({shape_of(arg)[expr.dim] for arg in expr.args}) > 1:
        return None
    join = f"Concatenate(dim={expr.dim})"
    names = [arg.name for arg in expr.args if isinstance(arg, Source)]
    if len(set(names)) == len(expr.args):
        return tuple(names), (join,)
    stacks = [_stacked(arg) for arg in expr.args]
    found = [stack for stack in stacks if stack is not None and len(stack[1]) == 1]
    stars = tuple(dict.fromkeys(name for names, _ in found for name in names))
    if len(stars) < len(expr.args) or len({operations for _, operations in found}) > 1:
        return None
    return stars, (*found[0][1], join)
