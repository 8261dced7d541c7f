"""A sketch with all its unknowns solved, as an expression again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from automap.errors import PlanError
from automap.plan.expr import (
    Add,
    Affine,
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
    with_args,
)
from automap.plan.shapes import shape_of
from automap.plan.simplify import slice_of
from automap.plan.sketch import Cut, Sketch
from automap.plan.unknowns import Size, Unknowns


def redrawn(sketch: Sketch, place: str, unknowns: Unknowns, factors: Mapping[int, int]) -> Expr:
    """The expression of the dest tensor `place`, with the sizes that `unknowns` has found.

    Args:
        sketch: the expression.
        place: the dest tensor's name.
        unknowns: its sizes.
        factors: sizes in the other model by their size in the plan, for numbers that follow a size.

    Raises:
        PlanError: a size is not determined.
    """
    return _Redraw(place, unknowns, factors, frozenset(_changed(sketch, unknowns))).node(sketch)


def _changed(sketch: Sketch, unknowns: Unknowns) -> Iterator[int]:
    """The sizes in the plan of all dims that are other ones now."""
    for size in sketch.sizes:
        if unknowns.value(size) != unknowns.in_plan(size):
            yield unknowns.in_plan(size)
    for arg in sketch.args:
        yield from _changed(arg, unknowns)


@dataclass(frozen=True, slots=True)
class _Redraw:
    """What every node needs."""

    place: str
    unknowns: Unknowns
    factors: Mapping[int, int]
    changed: frozenset[int]

    def node(self, sketch: Sketch) -> Expr:
        """The expression of one node and all below it."""
        args = tuple(map(self.node, sketch.args))
        match sketch.expr:
            case Source():
                return replace(sketch.expr, shape=self._shape(sketch.sizes))
            case Fill(value):
                return replace(sketch.expr, shape=self._shape(sketch.sizes), value=self._number(value))
            case Reshape() | Expand():
                return replace(sketch.expr, arg=args[0], shape=self._shape(sketch.sizes))
            case Slice():
                return self._slice(args[0], sketch.cuts)
            case Pad():
                before, after = zip(*sketch.pads, strict=True) if sketch.pads else ((), ())
                return Pad(args[0], tuple(map(self._padding, before)), tuple(map(self._padding, after)))
            case Affine(_, scale):
                return replace(sketch.expr, arg=args[0], scale=self._number(scale))
            case Concat() | Permute() | Gather() | Cast() | Sqrt() | Norm() | Mean():
                return with_args(sketch.expr, args)
            case Pointwise() | MatrixFunction() | Tril():
                return with_args(sketch.expr, args)
            case Add() | Subtract() | Multiply() | Divide() | MatMul():
                return with_args(sketch.expr, args)
            case _:
                assert_never(sketch.expr)

    def _shape(self, sizes: tuple[Size, ...]) -> Shape:
        return tuple(map(self.unknowns.needed, sizes))

    def _padding(self, size: Size | None) -> int:
        return 0 if size is None else self.unknowns.needed(size)

    def _slice(self, arg: Expr, cuts: tuple[Cut, ...]) -> Slice:
        ranges = tuple(map(self._positions, cuts))
        for dim, (positions, size) in enumerate(zip(ranges, shape_of(arg), strict=True)):
            if positions[-1] >= size:
                raise PlanError(f"`{self.place}` would be read from {positions[0]} on of dim {dim}, which has {size}")
        return slice_of(arg, ranges)

    def _positions(self, cut: Cut) -> range:
        if cut.fixed is not None:
            return cut.fixed
        length, step = self.unknowns.needed(cut.length), self.unknowns.needed(cut.step)
        start = cut.index * self.unknowns.needed(cut.block) if cut.index else 0
        start += sum(map(self.unknowns.needed, self.unknowns.before(cut.dim, cut.mark)))
        return range(start, start + length * step, step)

    def _number(self, value: float) -> float:
        """A constant; one that may follow a size (0.125 is 64 ** -0.5) and could differ is refused, or scaled."""
        if not value or not math.isfinite(value):
            return value
        power = 0.5 if abs(value) > 1 else -0.5
        size = round(abs(value) ** (1 / power)) if abs(value) ** (1 / power) < 2**53 else 0
        if size < 2 or not math.isclose(size**power, abs(value), rel_tol=1e-6):
            return value
        if size in self.factors:
            return math.copysign(self.factors[size] ** power, value) if self.factors[size] != size else value
        if any(other % size == 0 for other in self.changed):
            raise PlanError(
                f"`{self.place}`: the plan has the number {value:g}, which may stand for {size} ** {power:g}",
                help=f"say what {size} is here with dims={{{size}: ...}}",
            )
        return value
