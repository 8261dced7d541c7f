"""Element maps in, expressions out: which src element each dest element is, decomposed into slices, concats, reshapes.

Tried in this order, each piece again from the start: one source in one regular pattern; cuts between sources; cuts
where the pattern changes; independent dims, refined into digits; gathers, which fit always. Every step that builds a
leaf checks all ids, so evaluating the expression gives exactly the elements of the map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from automap.errors import PlanError
from automap.plan.expr import Cast, Concat, Expr, Fill, Reshape, Shape, Source
from automap.plan.irregular import gathered_expr
from automap.plan.sequence import even_prefix, factors_of, pieces_of, strided_prefix
from automap.plan.shapes import shape_of
from automap.plan.simplify import simplify
from automap.plan.split import Cuts, cuts_between, cuts_between_patterns, joined_pieces
from automap.plan.strides import digits_of, strided_expr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

MAX_DEPTH = 6


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A src tensor whose elements have the ids `offset` to `offset + numel`, in row-major order."""

    name: str
    shape: Shape
    dtype: str
    offset: int

    @property
    def stop(self) -> int:
        """The first id after the last element."""
        return self.offset + math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class ElementMap:
    """The src element that each element of one dest tensor of `shape` and `dtype` is.

    `source_ids` is int64 of that shape. An id that is not negative belongs to the one of `sources` in whose range it
    lies; -1 is the constant 0, and -2 - j the constant `fills[j]`. Pass only sources that may occur.
    """

    shape: Shape
    dtype: str
    source_ids: Tensor
    sources: tuple[SourceTensor, ...]
    fills: tuple[float, ...] = ()


def build_expr(element_map: ElementMap) -> Expr:
    """The simplest expression found whose elements are those of the map, of its shape and dtype.

    Raises:
        PlanError: ids have another shape than the dest tensor, or belong to no source.

    Example:
        >>> import torch
        >>> qkv = SourceTensor("qkv", (6, 2), "float32", offset=0)
        >>> build_expr(ElementMap((2, 2), "float32", torch.arange(4, 8).view(2, 2), (qkv,)))
        Slice(arg=Source(name='qkv', shape=(6, 2), dtype='float32'), start=(2, 0), stop=(4, 2), step=(1, 1))
    """
    ids = element_map.source_ids
    if tuple(ids.shape) != element_map.shape:
        raise PlanError(f"ids have shape {tuple(ids.shape)}, the dest tensor {element_map.shape}")
    if not ids.numel():
        return Fill(0.0, element_map.shape, element_map.dtype)
    ids = ids.contiguous()
    return simplify(_Builder.of(element_map, ids).built(ids, MAX_DEPTH))


@dataclass(frozen=True, slots=True, eq=False)
class _Builder:
    """The sources that occur, in the order of their ids, and what else every piece needs."""

    sources: tuple[SourceTensor, ...]
    starts: Tensor
    dtype: str
    fills: tuple[float, ...]

    @classmethod
    def of(cls, element_map: ElementMap, ids: Tensor) -> _Builder:
        low, high = int(ids.min()), int(ids.max())
        sources = [s for s in element_map.sources if s.offset <= high and s.stop > max(low, 0)]
        sources = sorted((s for s in sources if s.stop > s.offset), key=lambda source: source.offset)
        starts = ids.new_tensor([source.offset for source in sources])
        if low < -1 - len(element_map.fills):
            raise PlanError(f"id {low} names a constant that the map does not have")
        builder = cls(tuple(sources), starts, element_map.dtype, element_map.fills)
        if len(sources) != 1 or low < sources[0].offset or high >= sources[0].stop:
            builder._check(ids)
        return builder

    def _check(self, ids: Tensor) -> None:
        """Refuses ids outside all sources, and sources that share ids."""
        for source, following in zip(self.sources, self.sources[1:], strict=False):
            if following.offset < source.stop:
                raise PlanError(f"`{source.name}` and `{following.name}` have ids in common")
        owners = self._owners(ids)
        stops = ids.new_tensor([source.stop for source in self.sources] or [0])
        outside = (ids >= 0) & ((owners < 0) | (ids >= stops[owners.clamp(min=0)]))
        if bool(outside.any()):
            raise PlanError(f"id {int(ids[outside][0])} belongs to no source")

    def _owners(self, ids: Tensor) -> Tensor:
        """For each id the number of its source; constants keep their negative ids."""
        import torch

        if len(self.sources) == 1 and bool((ids >= self.sources[0].offset).all()):
            return torch.zeros((1,) * ids.dim(), dtype=torch.int64).expand(ids.shape)
        owners = torch.bucketize(ids, self.starts, right=True) - 1
        return torch.where(ids < 0, ids, owners)

    def built(self, ids: Tensor, depth: int) -> Expr:
        """The expression of any piece."""
        low, high = int(ids.min()), int(ids.max())
        if low == high and low < 0:
            return self._fill(low, tuple(ids.shape))
        first, last = (int(self._owners(ids.new_tensor([end]))) for end in (low, high))
        if first == last and low >= 0:
            source = self.sources[first]
            leaf = Source(source.name, source.shape, source.dtype)
            return self._cast(self._over_one(leaf, ids - source.offset, depth), source.dtype)
        labels = self._owners(ids)
        cuts = cuts_between(labels, max(8, 4 * len(self.sources) + 4)) if depth else None
        if cuts is not None:
            return joined_pieces(ids, cuts, lambda piece: self.built(piece, depth - 1))
        return self._over_all(ids, labels)

    def _fill(self, label: int, shape: Shape) -> Fill:
        return Fill(self.fills[-2 - label] if label < -1 else 0.0, shape, self.dtype)

    def _cast(self, expr: Expr, dtype: str) -> Expr:
        return expr if dtype == self.dtype else Cast(expr, self.dtype)

    def _over_all(self, ids: Tensor, labels: Tensor) -> Expr:
        """Sources and constants that alternate without order: all of them flat, one after the other, gathered."""
        parts: list[Expr] = []
        positions = ids.clone()
        offset = 0
        for label in labels.unique().tolist():  # type: ignore[no-untyped-call]
            mine = labels == label
            if label < 0:
                parts.append(self._fill(label, (1,)))
                positions[mine] = offset
            else:
                source = self.sources[label]
                flat = Reshape(Source(source.name, source.shape, source.dtype), (source.stop - source.offset,))
                parts.append(self._cast(flat, source.dtype))
                positions[mine] += offset - source.offset
            offset += shape_of(parts[-1])[0]
        return gathered_expr(Concat(tuple(parts), 0), positions)

    def _over_one(self, leaf: Expr, ids: Tensor, depth: int) -> Expr:
        """The expression of ids that are positions in one leaf."""
        found = digits_of(ids.reshape(-1))
        regular = strided_expr(leaf, *found, tuple(ids.shape)) if found is not None else None
        if regular is not None and found is not None and all(digit.stride >= 0 for digit in found[1]):
            return regular
        cuts = (cuts_between_patterns(ids, 64) if regular is None else None) or _cuts_between_runs(ids)
        if cuts is not None and depth:
            return joined_pieces(ids, cuts, lambda piece: self._over_one(leaf, piece, depth - 1))
        if regular is not None:
            return regular
        view = _refined(ids)
        cuts = _cuts_between_segments(view) if depth else None
        if cuts is not None:
            pieces = joined_pieces(view, cuts, lambda piece: self._over_one(leaf, piece, depth - 1))
            return Reshape(pieces, tuple(ids.shape))
        return Reshape(gathered_expr(leaf, view), tuple(ids.shape))


def _axis(ids: Tensor, dim: int) -> Tensor:
    """The ids along one dim, at the start of all others."""
    return ids[tuple(slice(None) if d == dim else 0 for d in range(ids.dim()))].contiguous()


def _cuts_between_runs(ids: Tensor) -> Cuts | None:
    """Cuts of the first irregular dim into evenly spaced runs, of at least eight on average."""
    for dim, axis in _irregular_axes(ids):
        lengths = pieces_of(axis, min(8, len(axis) // 8), even_prefix)
        if lengths is not None:
            return _cuts(dim, lengths)
    return None


def _cuts_between_segments(ids: Tensor) -> Cuts | None:
    """Cuts of the first irregular dim into regular pieces of at least four: two, or more that have eight on average."""
    for dim, axis in _irregular_axes(ids):
        lengths = pieces_of(axis, min(64, max(2, len(axis) // 8)), strided_prefix)
        if lengths is not None and min(lengths) >= 4:
            return _cuts(dim, lengths)
    return None


def _cuts(dim: int, lengths: list[int]) -> Cuts | None:
    starts = tuple(sum(lengths[:piece]) for piece in range(len(lengths)))
    return Cuts(dim, sum(lengths), starts) if len(starts) > 1 else None


def _irregular_axes(ids: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The dims whose ids, at the start of all other dims, are not regular or go backwards."""
    for dim in range(ids.dim()):
        axis = _axis(ids, dim)
        if not _is_forward(axis):
            yield dim, axis


def _is_forward(axis: Tensor) -> bool:
    """Whether 1-D ids are regular without backward steps."""
    found = digits_of(axis)
    return found is not None and all(digit.stride >= 0 for digit in found[1])


def _refined(ids: Tensor) -> Tensor:
    """The ids in a shape where each dim is as small as it can be."""
    return ids.reshape([size for dim in range(ids.dim()) for size in factors_of(_axis(ids, dim)) or (1,)])
