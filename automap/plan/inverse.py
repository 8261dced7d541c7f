"""Entries of a plan in, entries of the plan back out: each src tensor as an expression over the dest tensors.

Every entry is an equation `dest = expr`. It is solved from the outside in: the layout is undone on the dest side until
what is left is a src tensor, or a part of one; parts are put together again. Where parts do not meet in one view of the
tensor, its elements are followed one by one (up to MAX_ELEMENTS), which also tells why a map is not one-to-one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, assert_never

from automap.errors import PlanError
from automap.plan.build import ElementMap, SourceTensor, build_expr
from automap.plan.dtypes import dtype_of
from automap.plan.evaluate import evaluate
from automap.plan.expr import (
    Add,
    Affine,
    Arithmetic,
    Cast,
    Concat,
    Divide,
    Expand,
    Expr,
    Fill,
    Gather,
    MatMul,
    MatrixFunction,
    Mean,
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
    depth_of,
    sources_of,
    with_args,
)
from automap.plan.shapes import shape_of
from automap.plan.simplify import ranges_of, simplify, slice_of
from automap.plan.undo import names_of, undone

if TYPE_CHECKING:
    from torch import Tensor

MAX_ELEMENTS = 2**28

Positions: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """`value` is the part of some expression at `positions` of each dim."""

    positions: tuple[Positions, ...]
    value: Expr

    def at(self, dim: int, positions: Positions) -> _Part:
        """The same value at other positions of one dim."""
        return _Part((*self.positions[:dim], positions, *self.positions[dim + 1 :]), self.value)


_Parts: TypeAlias = dict[Expr, list[_Part]]


def inverted_entries(entries: Mapping[str, Expr]) -> dict[str, Expr]:
    """Every src tensor that `entries` read, as an expression over the dest tensors.

    Raises:
        PlanError: part of a src tensor is used twice or not at all, bits are lost by a cast, or arithmetic of several
            tensors leaves a choice.
    """
    parts: _Parts = {}
    for name, expr in entries.items():
        try:
            _solve(expr, Source(name, shape_of(expr), dtype_of(expr)), parts)
        except PlanError as error:
            raise PlanError(f"`{name}` cannot be inverted: {error}") from error
    while inner := [expr for expr in parts if not isinstance(expr, Source)]:
        deepest = max(inner, key=depth_of)
        value = _assembled(shape_of(deepest), parts.pop(deepest))
        if value is not None:
            _solve_layout(deepest, value, parts)
    sources = dict.fromkeys(source for expr in entries.values() for source in sources_of(expr))
    return {source.name: _inverse_of(source, parts.get(source, []), entries) for source in sources}


def _solve(expr: Expr, value: Expr, parts: _Parts) -> None:
    """Adds to `parts` what `expr == value` says about the sources in `expr`."""
    match expr:
        case Source():
            _add_part(expr, tuple(map(range, expr.shape)), value, parts)
        case Fill():
            pass
        case Slice(arg):
            _add_part(arg, ranges_of(expr), value, parts)
        case Gather(arg, dim, indices):
            if len(set(indices)) < len(indices):
                raise PlanError(f"{names_of(arg)} is used twice: some of its elements are repeated")
            everything: list[Iterable[int]] = [range(size) for size in shape_of(arg)]
            _add_part(arg, (*everything[:dim], indices, *everything[dim + 1 :]), value, parts)
        case Concat(args, dim):
            for arg, ranges in zip(args, _places(args, dim), strict=True):
                _solve(arg, slice_of(value, ranges), parts)
        case Pad(arg, before):
            ranges = [range(start, start + size) for start, size in zip(before, shape_of(arg), strict=True)]
            _solve(arg, slice_of(value, ranges), parts)
        case Permute() | Reshape() | Cast() | Expand():
            _solve_layout(expr, value, parts)
        case Affine() | Add() | Subtract() | Multiply() | Divide() | MatMul() | Sqrt() | Norm() | Mean():
            _solve(*undone(expr, value), parts)
        case Pointwise() | MatrixFunction() | Tril():
            _solve(*undone(expr, value), parts)
        case _:
            assert_never(expr)


def _places(args: tuple[Expr, ...], dim: int) -> Iterator[list[range]]:
    """The positions of each argument in what they are together, joined along `dim`."""
    start = 0
    for arg in args:
        stop = start + shape_of(arg)[dim]
        yield [range(start, stop) if d == dim else range(size) for d, size in enumerate(shape_of(arg))]
        start = stop


def _solve_layout(expr: Expr, value: Expr, parts: _Parts) -> None:
    """The nodes with one argument that keep every element."""
    match expr:
        case Permute(arg, dims):
            _solve(arg, Permute(value, tuple(dims.index(dim) for dim in range(len(dims)))), parts)
        case Reshape(arg):
            _solve(arg, Reshape(value, shape_of(arg)), parts)
        case Cast(arg, dtype):
            if not _is_lossless(dtype_of(arg), dtype):
                raise PlanError(f"bits of {names_of(arg)} are lost in the cast from {dtype_of(arg)} to {dtype}")
            _solve(arg, Cast(value, dtype_of(arg)), parts)
        case Expand(arg):
            if math.prod(shape_of(arg)) != math.prod(expr.shape):
                raise PlanError(f"{names_of(arg)} is repeated: any one of its copies would do")
            _solve(arg, Reshape(value, shape_of(arg)), parts)
        case _:
            _solve(expr, value, parts)


def _add_part(expr: Expr, positions: tuple[Iterable[int], ...], value: Expr, parts: _Parts) -> None:
    part = _Part(tuple(tuple(dim) for dim in positions), value)
    parts.setdefault(expr, []).append(part)


def _is_lossless(dtype: str, other: str) -> bool:
    """Whether every value of `dtype` is one of `other`: the two promote to `other`, and both are floats."""
    import torch

    a, b = getattr(torch, dtype), getattr(torch, other)
    return bool(a.is_floating_point and b.is_floating_point and torch.promote_types(a, b) == b)


def _assembled(shape: Shape, parts: list[_Part]) -> Expr | None:
    """The whole of a tensor of `shape`, or None where `parts` overlap, leave gaps or do not meet in straight cuts."""
    if len(parts) == 1:
        return _in_order(shape, parts[0])
    for dim, size in enumerate(shape):
        groups: dict[Positions, list[_Part]] = {}
        for part in parts:
            groups.setdefault(part.positions[dim], []).append(part)
        taken = [position for positions in groups for position in positions]
        if len(groups) > 1 and len(taken) == size == len(set(taken)):
            return _joined(shape, dim, groups)
    return None


def _joined(shape: Shape, dim: int, groups: Mapping[Positions, list[_Part]]) -> Expr | None:
    """Groups of parts that cover disjoint positions of `dim`, one after the other."""
    values: list[Expr] = []
    order = sorted(groups)
    for positions in order:
        size = len(positions)
        inner = [
            _Part((*p.positions[:dim], tuple(range(size)), *p.positions[dim + 1 :]), p.value) for p in groups[positions]
        ]
        value = _assembled((*shape[:dim], size, *shape[dim + 1 :]), inner)
        if value is None:
            return None
        values.append(value)
    whole = _Part(tuple(map(tuple, map(range, shape))), Concat(tuple(values), dim))
    taken = tuple(position for positions in order for position in positions)
    return _in_order(shape, whole.at(dim, taken))


def _in_order(shape: Shape, part: _Part) -> Expr | None:
    """A part that is the whole, its positions brought in order; None where it is not the whole."""
    value = part.value
    for dim, (positions, size) in enumerate(zip(part.positions, shape, strict=True)):
        if len(positions) != size:
            return None
        if positions != tuple(range(size)):
            value = Gather(value, dim, tuple(sorted(range(size), key=positions.__getitem__)))
    return value


def _inverse_of(source: Source, parts: list[_Part], entries: Mapping[str, Expr]) -> Expr:
    """The expression for one src tensor."""
    if math.prod(source.shape) == 0:
        return Fill(0.0, source.shape, source.dtype)
    value = _assembled(source.shape, parts) if parts else None
    if value is None:
        readers = {name: expr for name, expr in entries.items() if source in sources_of(expr)}
        value = _followed(source, readers)
    shorter = simplify(value)
    return shorter if dtype_of(shorter) == source.dtype else simplify(Cast(shorter, source.dtype))


def _followed(source: Source, readers: Mapping[str, Expr]) -> Expr:
    """The expression found by sending element numbers of `source` through all that reads it.

    Raises:
        PlanError: the map is not one-to-one, with the reason, or too large to follow.
    """
    import torch

    size = math.prod(source.shape)
    if max(size, *(math.prod(shape_of(expr)) for expr in readers.values())) > MAX_ELEMENTS:
        raise PlanError(f"`{source.name}` cannot be inverted: its parts do not meet in one view of its shape")
    inverse = torch.full((size,), -1, dtype=torch.int64)
    uses = torch.zeros(size, dtype=torch.int64)
    dests: list[SourceTensor] = []
    offset = 0
    for name, expr in readers.items():
        ids = _ids(expr, source).reshape(-1)
        places = (ids >= 0).nonzero().reshape(-1)
        inverse[ids[places]] = places + offset
        uses += torch.bincount(ids[places], minlength=size)
        dests.append(SourceTensor(name, shape_of(expr), dtype_of(expr), offset))
        offset = dests[-1].stop
    _check_one_to_one(source, uses, tuple(readers))
    return build_expr(ElementMap(source.shape, source.dtype, inverse.view(source.shape), tuple(dests)))


def _check_one_to_one(source: Source, uses: Tensor, readers: tuple[str, ...]) -> None:
    """Refuses a src tensor with elements that are used twice or not at all."""
    names = ", ".join(f"`{name}`" for name in readers[:3]) + (" and others" if len(readers) > 3 else "")
    twice, unused = int((uses > 1).sum()), int((uses == 0).sum())
    if twice:
        count = "all" if twice == len(uses) else f"{twice} of {len(uses)} elements"
        raise PlanError(f"cannot invert the plan: `{source.name}` is used twice ({count}), by {names}")
    if unused:
        raise PlanError(
            f"cannot invert the plan: `{source.name}` is only partly used, {unused} of {len(uses)} elements are in no"
            f" dest tensor (read by {names})"
        )


def _ids(expr: Expr, source: Source) -> Tensor:
    """Which element of `source` each element of `expr` is, -1 for those of others."""
    import torch

    def numbered(expr: Expr) -> Expr:
        if isinstance(expr, Cast | Arithmetic):
            raise PlanError(
                f"cannot invert the plan: {names_of(expr)} is changed and its parts do not meet in one view"
            )
        if isinstance(expr, Fill):
            return Fill(0, expr.shape, "int64")
        return with_args(expr, tuple(numbered(arg) for arg in args_of(expr)))

    state = {s.name: torch.zeros(s.shape, dtype=torch.int64) for s in sources_of(expr)}
    state[source.name] = torch.arange(1, math.prod(source.shape) + 1).view(source.shape)
    return evaluate(numbered(expr), state) - 1  # counted from 1, as what Pad adds is 0
