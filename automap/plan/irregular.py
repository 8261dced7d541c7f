"""Ids over one tensor without a regular pattern, as `Gather`: one a dim where dims are independent, else over more.

In: flat positions in a tensor, of any shape. Out: always an expression, exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from automap.plan.expr import Expr, Gather, Permute, Reshape, Shape
from automap.plan.shapes import shape_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Group:
    """Neighbouring dims of the tensor read (`leaf`) that depend on neighbouring dims of the ids (`dest`), only."""

    leaf: range
    dest: range

    def touches(self, other: _Group) -> bool:
        return _overlap(self.leaf, other.leaf) or _overlap(self.dest, other.dest)

    def merged(self, other: _Group) -> _Group:
        return _Group(_hull(self.leaf, other.leaf), _hull(self.dest, other.dest))


def _overlap(a: range, b: range) -> bool:
    return len(a) > 0 and len(b) > 0 and max(a.start, b.start) < min(a.stop, b.stop)


def _hull(a: range, b: range) -> range:
    full = [r for r in (a, b) if len(r)]
    return range(min(r.start for r in full), max(r.stop for r in full)) if full else range(0)


def gathered_expr(leaf: Expr, ids: Tensor) -> Expr:
    """The expression that reads positions `ids` of `leaf`, in their shape."""
    view = _refined(shape_of(leaf), ids)
    coordinates = _coordinates(ids, view)
    groups = _groups(coordinates, ids)
    if not groups:
        view, coordinates, groups = (math.prod(view),), [ids], [_Group(range(1), range(0))]
    expr: Expr = Reshape(leaf, tuple(math.prod(view[dim] for dim in group.leaf) for group in groups))
    for dim, group in enumerate(groups):
        expr = Gather(expr, dim, _indices(group, view, coordinates))
    order = sorted(range(len(groups)), key=lambda group: (groups[group].dest.start, len(groups[group].dest)))
    return _repeated(Permute(expr, tuple(order)), [groups[group].dest for group in order], ids)


def _refined(shape: Shape, ids: Tensor) -> Shape:
    """The shape, its dims cut where the ids of one dim move in units that contain those of another."""
    units = {_unit(_marginal(ids, range(dim, dim + 1))) for dim in range(ids.dim()) if ids.shape[dim] > 1}
    refined: list[int] = []
    end = math.prod(shape)
    for size in shape:
        start = end // size if size else end
        mine = sorted(unit for unit in units if start <= unit < end)
        for unit in reversed(mine[1:]):  # below the smallest there is one position only
            if end % unit == 0 and unit % start == 0:
                refined.append(end // unit)
                end = unit
        refined.append(end // start if start else size)
        end = start
    return tuple(refined)


def _unit(ids: Tensor) -> int:
    """The greatest number that divides all differences."""
    offsets: Tensor = (ids - ids[0]).abs().unique()  # type: ignore[no-untyped-call]
    return math.gcd(*offsets.tolist())


def _marginal(ids: Tensor, dims: range) -> Tensor:
    """The ids along `dims` (flattened), at the start of all others."""
    index = tuple(slice(None) if dim in dims else 0 for dim in range(ids.dim()))
    return ids[index].reshape(-1)


def _coordinates(ids: Tensor, shape: Shape) -> list[Tensor]:
    coordinates = []
    unit = math.prod(shape)
    for size in shape:
        unit //= size
        coordinates.append(ids.div(unit, rounding_mode="floor") % size if size > 1 else ids.new_zeros(ids.shape))
    return coordinates


def _groups(coordinates: list[Tensor], ids: Tensor) -> list[_Group]:
    """Groups that cover every dim of the leaf, in order, and share no dim of the ids."""
    groups: list[_Group] = []
    for dim, coordinate in enumerate(coordinates):
        used = [d for d in range(ids.dim()) if _depends(coordinate, d)]
        group = _Group(range(dim, dim + 1), range(used[0], used[-1] + 1) if used else range(0))
        while (other := next((other for other in groups if other.touches(group)), None)) is not None:
            groups.remove(other)
            group = group.merged(other)
        groups.append(group)
    return sorted(groups, key=lambda group: group.leaf.start)


def _depends(coordinate: Tensor, dim: int) -> bool:
    first = coordinate.narrow(dim, 0, 1)
    return coordinate.shape[dim] > 1 and bool((coordinate != first).any())


def _indices(group: _Group, view: Shape, coordinates: list[Tensor]) -> tuple[int, ...]:
    """The positions along the merged dims of the leaf, for each position along the merged dims of the ids."""
    total = coordinates[0].new_zeros(())
    for dim in group.leaf:
        total = total * view[dim] + _marginal(coordinates[dim], group.dest)
    return tuple(total.reshape(-1).tolist())


def _repeated(expr: Expr, covered: list[range], ids: Tensor) -> Expr:
    """`expr` in the shape of `ids`, repeated along the dims that no group covers."""
    inside = {dim for dims in covered for dim in dims}
    expr = Reshape(expr, tuple(size if dim in inside else 1 for dim, size in enumerate(ids.shape)))
    for dim, size in enumerate(ids.shape):
        if dim not in inside and size > 1:
            expr = Gather(expr, dim, (0,) * size)
    return expr
