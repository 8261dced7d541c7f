"""What is made alike whatever its sizes: tensors that are only renamed, and tensors cut into equal parts.

Without their sizes, blocks of other widths (the stages of a Swin) are made alike, and fold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from automap.plan.expr import Expr, Slice, Source, sources_of
from automap.plan.template import blanked


def sizeless(entries: Mapping[str, Expr], kept: Collection[str]) -> dict[str, Expr]:
    """The entries whose src tensors are only renamed or cut evenly.

    Renamed tensors have no dims; parts are 1 of as many as there are, along the dim that is cut. Src tensors that a
    dest tensor in `kept` reads stay as they are.
    """
    readers: dict[str, list[tuple[str, Expr]]] = {}
    for dest, expr in entries.items():
        for source in sources_of(expr):
            readers.setdefault(source.name, []).append((dest, expr))
    found: dict[str, Expr] = {}
    for members in readers.values():
        if not any(dest in kept for dest, _ in members):
            found |= _renamed(members) or _evenly_cut(members)
    return {dest: found[dest] for dest in entries if dest in found}


def _renamed(members: Sequence[tuple[str, Expr]]) -> dict[str, Expr]:
    match members:
        case [(dest, Source(name))]:
            return {dest: Source(name, ())}
        case _:
            return {}


def _evenly_cut(members: Sequence[tuple[str, Expr]]) -> dict[str, Expr]:
    """Dest tensors that are all equal parts of one src tensor, each once; else nothing, as where numbers count them."""
    count = len({blanked(dest) for dest, _ in members})
    parts = [(dest, *bounds) for dest, expr in members if (bounds := _bounds(expr)) is not None]
    if count < 2 or len(members) > count or len(parts) < count or len({source for _, source, *_ in parts}) > 1:
        return {}
    _, source, dim, _, size = parts[0]
    wanted = [(dim, size * number, size) for number in range(count)]
    if sorted(part[2:] for part in parts) != wanted or size * count != source.shape[dim]:
        return {}
    whole, ones = Source(source.name, (1,) * dim + (count,)), (1,) * (dim + 1)
    starts = {dest: (0,) * dim + (start // size,) for dest, _, _, start, _ in parts}
    return {dest: Slice(whole, at, (*ones[:-1], at[-1] + 1), ones) for dest, at in starts.items()}


def _bounds(expr: Expr) -> tuple[Source, int, int, int] | None:
    """The src tensor that `expr` is a run of, the one dim that it is cut along, its start there and its size."""
    if not isinstance(expr, Slice) or not isinstance(expr.arg, Source) or set(expr.step) != {1}:
        return None
    sizes = enumerate(zip(expr.start, expr.stop, expr.arg.shape, strict=True))
    cut = [(dim, start, stop - start) for dim, (start, stop, size) in sizes if (start, stop) != (0, size)]
    return (expr.arg, *cut[0]) if len(cut) == 1 else None
