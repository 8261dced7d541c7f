"""One src tensor cut into dest tensors: which pieces it is cut into, and what is made of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from automap.export.families import Family, numbered, replaced
from automap.plan.expr import Expr, Slice, Source, sources_of
from automap.plan.shapes import shape_of
from automap.plan.simplify import simplify
from automap.plan.template import blanked, rename_sources

PART = "part"
MIN_COUNTED = 3


@dataclass(frozen=True, slots=True)
class Cut:
    """Dest tensors that are consecutive pieces of `source` along `dim`, `sizes` long.

    `made[k]` is what dest tensor `dests[k]` makes of its piece, which it calls PART.
    """

    source: Source
    dim: int
    sizes: tuple[int, ...]
    dests: tuple[str, ...]
    made: tuple[Expr, ...]

    @property
    def is_even(self) -> bool:
        """Whether all pieces have one size."""
        return len(set(self.sizes)) == 1

    @property
    def is_plain(self) -> bool:
        """Whether the pieces are taken as they are."""
        return all(isinstance(expr, Source) for expr in self.made)


@dataclass(frozen=True, slots=True)
class Count:
    """Dest tensors that are made of equal pieces of `source` along `dim`, all pieces treated alike, `size` long.

    `made` has the dest names, with `{variable}` for the number of the piece, and what each is of the piece, PART.
    """

    source: Source
    dim: int
    size: int
    variable: str
    made: tuple[tuple[str, Expr], ...]


def cut_of(family: Family) -> Cut | None:
    """The cut that a family makes; None where it does anything else."""
    if len(family.sources) != 1 or len(family.entries) < 2:
        return None
    (source,) = family.sources
    pieces = [(dest, *_piece(expr)) for dest, expr in family.entries]
    slices = [piece for _, piece, _ in pieces if piece is not None]
    dims = {dim for piece in slices for dim in _cut_dims(piece)}
    if len(slices) < len(pieces) or len(dims) != 1:
        return None
    (dim,) = dims
    pieces.sort(key=lambda piece: piece[1].start[dim] if piece[1] else 0)
    bounds = [(piece.start[dim], piece.stop[dim]) for _, piece, _ in pieces if piece is not None]
    if [0, *(stop for _, stop in bounds)] != [*(start for start, _ in bounds), source.shape[dim]]:
        return None
    sizes = tuple(stop - start for start, stop in bounds)
    return Cut(source, dim, sizes, tuple(dest for dest, _, _ in pieces), tuple(made for _, _, made in pieces))


def count_of(family: Family) -> Count | None:
    """The count that a family makes, of three pieces or more; None where it does anything else."""
    pieces = [(dest, *_piece(expr)) for dest, expr in family.entries]
    found = [(dest, piece, made) for dest, piece, made in pieces if piece is not None]
    if len(family.sources) != 1 or len(found) < max(len(pieces), MIN_COUNTED):
        return None
    (source,) = family.sources
    for dim, whole in enumerate(source.shape):
        for size in _sizes(found, dim, whole):
            members = [(piece.start[dim] // size, dest, _within(piece, dim, size, made)) for dest, piece, made in found]
            counted = _counted(members, whole // size)
            if counted is not None:
                return Count(source, dim, size, *counted)
    return None


def _sizes(found: Sequence[tuple[str, Slice, Expr]], dim: int, whole: int) -> list[int]:
    """The sizes that equal parts of a tensor may have of which each holds pieces as a whole, smallest first."""
    names = Counter(blanked(dest) for dest, _, _ in found)
    sizes = {whole // count for count in names.values()} | {piece.stop[dim] - piece.start[dim] for _, piece, _ in found}
    return [
        size
        for size in sorted(sizes - {0})
        if whole % size == 0
        and whole // size >= MIN_COUNTED
        and all(piece.start[dim] // size == (piece.stop[dim] - 1) // size for _, piece, _ in found)
    ]


def _counted(members: Iterable[tuple[int, str, Expr]], count: int) -> tuple[str, tuple[tuple[str, Expr], ...]] | None:
    """The variable, and dest names and expressions by it, if all pieces up to `count` are treated alike."""
    kinds: dict[tuple[str, Expr], list[tuple[int, str]]] = {}
    for number, dest, made in members:
        kinds.setdefault((blanked(dest), made), []).append((number, dest))
    made_by: dict[str, Expr] = {}
    variables = set()
    for (_, made), dests in kinds.items():
        many = numbered([Source(dest, ()) for _, dest in sorted(dests)])
        if many is None or [number for number, _ in sorted(dests)] != list(range(count)):
            return None
        (template,) = sources_of(many.template)
        made_by[template.name] = made
        variables.add(many.variable if f"{{{many.variable}}}" in template.name else "")
    (variable, *others) = variables
    return None if others or not variable else (variable, tuple(made_by.items()))


def _within(piece: Slice, dim: int, size: int, made: Expr) -> Expr:
    """What a dest tensor is of the part of `size` along `dim` that its piece lies in."""
    start, stop, whole = list(piece.start), list(piece.stop), list(shape_of(piece.arg))
    first = start[dim] - start[dim] % size
    start[dim], stop[dim], whole[dim] = start[dim] - first, stop[dim] - first, size
    inner = simplify(Slice(Source(PART, tuple(whole)), tuple(start), tuple(stop), piece.step))
    return replaced(made, lambda node: inner if isinstance(node, Source) else None)


def _piece(expr: Expr) -> tuple[Slice | None, Expr]:
    """The one slice of a src tensor in `expr`, and `expr` with PART instead of it."""
    found: list[Slice] = []

    def make(node: Expr) -> Expr | None:
        if not isinstance(node, Slice) or not isinstance(node.arg, Source) or set(node.step) != {1}:
            return None
        found.append(node)
        return Source(PART, shape_of(node), node.arg.dtype)

    made = replaced(rename_sources(expr, lambda name: f"src {name}"), make)
    is_one = len(set(found)) == 1 and all(source.name == PART for source in sources_of(made))
    return (found[0], made) if is_one else (None, made)


def _cut_dims(piece: Slice) -> list[int]:
    """The dims that a slice does not take the whole of."""
    sizes = zip(piece.start, piece.stop, shape_of(piece.arg), strict=True)
    return [dim for dim, (start, stop, size) in enumerate(sizes) if (start, stop) != (0, size)]
