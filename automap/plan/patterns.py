"""Layouts in the notation of einops: `"(a three b) c -> (three a b) c", a=4, three=3, b=8`.

In: what is only re-laid-out, or repeated along new dims. Out: the pattern, with the sizes that it does not tell itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from automap.plan.expr import Expand, Expr, Fill, Pad, Permute, Reshape, Slice, Source
from automap.plan.layout import Groups, Layout, chain_of, layout_of
from automap.plan.shapes import shape_of

_LETTERS = tuple(letter for letter in "abcdefghijklmnopqrstuvwxyz")
_WORDS = {2: "two", 3: "three"}


def pattern_of(layout: Layout, repeated: int = 0) -> str:
    """The pattern of a layout, with the sizes of the axes that it groups.

    The first `repeated` dims of its base are new: they are on the right side only.
    """
    new, base = layout.base_dims[:repeated], layout.base_dims[repeated:]
    atoms = [atom for dim in (*base, *new) for atom in dim]
    names = dict(zip(atoms, _axis_names([layout.sizes[atom] for atom in atoms]), strict=True))
    grouped = [atom for dim in base if len(dim) > 1 for atom in dim] + [atom for dim in new for atom in dim]
    sizes = "".join(f", {names[atom]}={layout.sizes[atom]}" for atom in grouped)
    return f'"{_side(base, names)} -> {_side(layout.dest_dims, names)}"{sizes}'


def repeat_of(expr: Expr) -> tuple[Expr, str] | None:
    """What `expr` repeats, and the pattern of einops' `repeat` for it; None where it is no chain around one Expand."""
    expand, outer = chain_of(expr)
    if not isinstance(expand, Expand):
        return None
    base, inner = chain_of(expand.arg)
    arg = shape_of(expand.arg)
    wide = (1,) * (len(expand.shape) - len(arg)) + arg
    new = [size if size != was else 1 for size, was in zip(expand.shape, wide, strict=True)]
    counts = tuple(size for size in new if size != 1)
    count = len(counts)
    view: Expr = Source("", (*counts, *shape_of(base)))  # what is repeated first, then the dims of what it repeats
    for link in inner:
        view = _behind(view, link, counts)
    kept = [size for size, more in zip(wide, new, strict=True) if more == 1]
    places = iter(range(count)), iter(range(count, count + len(kept)))
    view = Permute(Reshape(view, (*counts, *kept)), tuple(next(places[more == 1]) for more in new))
    for link in outer:
        view = _behind(view, link, ())
    layout = layout_of(view)
    return (base, pattern_of(layout, count)) if layout is not None else None


def identity_of(expr: Expr) -> int | None:
    """The size of a matrix with ones on its main diagonal and zeros beside it, made of `Pad`; None for others."""
    match expr:
        case Reshape(Slice(Reshape(Pad(Fill(1, (rows, 1)), (0, 0), (0, columns))), (0,), _, (1,)), shape):
            return rows if shape == (rows, rows) and columns == rows else None
        case _:
            return None


def _behind(view: Expr, link: Reshape | Permute, counts: tuple[int, ...]) -> Expr:
    """`view` re-laid-out as by `link`, behind the dims of `counts`."""
    if isinstance(link, Reshape):
        return Reshape(view, (*counts, *link.shape))
    return Permute(view, (*range(len(counts)), *(dim + len(counts) for dim in link.dims)))


def _axis_names(sizes: Sequence[int]) -> list[str]:
    """`two` and `three` for the one axis of that size, letters for the others."""
    letters = iter(_LETTERS)
    names = []
    for atom, size in enumerate(sizes):
        word = _WORDS.get(size) if sizes.count(size) == 1 else None
        names.append(word or next(letters, f"x{atom}"))
    return names


def _side(dims: Groups, names: Mapping[int, str]) -> str:
    texts = [" ".join(names[atom] for atom in dim) or "1" for dim in dims]
    return " ".join(f"({text})" if len(dim) > 1 else text for dim, text in zip(dims, texts, strict=True))
