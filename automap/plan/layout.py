"""Chains of Reshape and Permute over one expression, as the atoms that they move.

In: a chain. Out: its sizes cut into the coarsest common factors (atoms) of every shape on the way, and the order in
which they arrive. Two chains are the same layout exactly where their atoms are; patterns are written from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from automap.plan.expr import Expr, Permute, Reshape, Shape
from automap.plan.shapes import shape_of

Groups: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """`base` re-laid-out: atoms have `sizes`, numbered in base's row-major order.

    `base_dims` and `dest_dims` list the atoms that each dim consists of; a dim of size 1 has none.
    """

    base: Expr
    sizes: tuple[int, ...]
    base_dims: Groups
    dest_dims: Groups

    @property
    def order(self) -> tuple[int, ...]:
        """The atoms in the order of the result."""
        return tuple(atom for dim in self.dest_dims for atom in dim)

    @property
    def shape(self) -> Shape:
        """The shape of the result."""
        return tuple(_product(self.sizes, dim) for dim in self.dest_dims)


class _Atoms:
    """Sizes that are split while a chain is followed; ids stay valid, a split one stands for its two halves."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.halves: dict[int, tuple[int, int]] = {}

    def add(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def split(self, atom: int, outer: int) -> tuple[int, int]:
        self.halves[atom] = self.add(outer), self.add(self.sizes[atom] // outer)
        return self.halves[atom]

    def whole(self, atom: int) -> list[int]:
        if atom not in self.halves:
            return [atom]
        return [part for half in self.halves[atom] for part in self.whole(half)]


def chain_of(expr: Expr) -> tuple[Expr, list[Reshape | Permute]]:
    """What a chain of Reshape and Permute starts from, and its links from the inside out."""
    links: list[Reshape | Permute] = []
    while isinstance(expr, Reshape | Permute):
        links.append(expr)
        expr = expr.arg
    return expr, links[::-1]


def layout_of(expr: Expr) -> Layout | None:
    """The layout of the chain that ends in `expr`; None where shapes have no common factors (or no elements)."""
    base, links = chain_of(expr)
    shape = shape_of(base)
    if 0 in shape:
        return None
    atoms = _Atoms()
    base_dims = [[atoms.add(size)] if size > 1 else [] for size in shape]
    dims = base_dims
    for link in links:
        if isinstance(link, Permute):
            dims = [dims[dim] for dim in link.dims]
        else:
            regrouped = _regroup(
                atoms, [part for dim in dims for atom in dim for part in atoms.whole(atom)], link.shape
            )
            if regrouped is None:
                return None
            dims = regrouped
    return _numbered(base, atoms, base_dims, dims)


def _regroup(atoms: _Atoms, flat: list[int], shape: Shape) -> list[list[int]] | None:
    """The atoms in the dims of `shape`, split where a dim ends within one."""
    queue = flat[::-1]
    dims: list[list[int]] = []
    for size in shape:
        dim: list[int] = []
        while size > 1:
            atom = queue.pop()
            if atoms.sizes[atom] > size:
                if atoms.sizes[atom] % size:
                    return None
                atom, rest = atoms.split(atom, size)
                queue.append(rest)
            if size % atoms.sizes[atom]:
                return None
            dim.append(atom)
            size //= atoms.sizes[atom]
        dims.append(dim)
    return dims


def _numbered(base: Expr, atoms: _Atoms, base_dims: list[list[int]], dims: list[list[int]]) -> Layout:
    """The layout with atoms numbered anew, those that stay together in both dims joined."""
    left = [[part for atom in dim for part in atoms.whole(atom)] for dim in base_dims]
    right = [[part for atom in dim for part in atoms.whole(atom)] for dim in dims]
    follows = {(a, b) for dim in right for a, b in pairwise(dim)}
    sizes: list[int] = []
    number: dict[int, int] = {}
    for dim in left:
        for previous, atom in zip([None, *dim], dim, strict=False):
            if previous is not None and (previous, atom) in follows:
                sizes[-1] *= atoms.sizes[atom]
            else:
                sizes.append(atoms.sizes[atom])
            number[atom] = len(sizes) - 1
    return Layout(base, tuple(sizes), _renumbered(left, number), _renumbered(right, number))


def _renumbered(dims: list[list[int]], number: dict[int, int]) -> Groups:
    return tuple(tuple(dict.fromkeys(number[atom] for atom in dim)) for dim in dims)


def canonical(layout: Layout) -> Expr:
    """The shortest chain with this layout: nothing, a reshape, a permute, or both with as few dims as possible."""
    base, shape = layout.base, layout.shape
    if layout.order == tuple(range(len(layout.sizes))):
        return base if shape == shape_of(base) else Reshape(base, shape)
    if (dims := _matching_dims(layout.base_dims, layout.dest_dims)) is not None:
        return Permute(base, dims)
    if (dims := _dims_in_order(layout.base_dims, layout.order)) is not None:
        return Reshape(Permute(base, dims), shape)
    if (dims := _dims_in_order(layout.dest_dims, tuple(range(len(layout.sizes))))) is not None:
        inverse = tuple(sorted(range(len(dims)), key=dims.__getitem__))
        return Permute(Reshape(base, tuple(shape[dim] for dim in dims)), inverse)
    return _merged_chain(layout)


def _matching_dims(base_dims: Groups, dest_dims: Groups) -> tuple[int, ...] | None:
    """The permutation of base's dims that gives dest's, if one does."""
    if sorted(base_dims) != sorted(dest_dims):
        return None
    places: dict[tuple[int, ...], list[int]] = {}
    for place, dim in reversed(list(enumerate(base_dims))):
        places.setdefault(dim, []).append(place)
    return tuple(places[dim].pop() for dim in dest_dims)


def _dims_in_order(dims: Groups, order: tuple[int, ...]) -> tuple[int, ...] | None:
    """The permutation of whole dims that brings their atoms into `order`, if one does; sizes 1 come first."""
    rank = {atom: place for place, atom in enumerate(order)}
    places = tuple(sorted(range(len(dims)), key=lambda dim: rank[dims[dim][0]] if dims[dim] else -1))
    return places if tuple(atom for dim in places for atom in dims[dim]) == order else None


def _merged_chain(layout: Layout) -> Expr:
    """Reshape, permute, reshape, over runs of atoms that travel together."""
    runs: list[list[int]] = []
    for atom in layout.order:
        if runs and runs[-1][-1] + 1 == atom:
            runs[-1].append(atom)
        else:
            runs.append([atom])
    inner = sorted(range(len(runs)), key=runs.__getitem__)
    view = tuple(_product(layout.sizes, tuple(runs[run])) for run in inner)
    dims = tuple(inner.index(run) for run in range(len(runs)))
    permuted = Permute(Reshape(layout.base, view), dims)
    return permuted if shape_of(permuted) == layout.shape else Reshape(permuted, layout.shape)


def _product(sizes: tuple[int, ...], atoms: tuple[int, ...]) -> int:
    product = 1
    for atom in atoms:
        product *= sizes[atom]
    return product
