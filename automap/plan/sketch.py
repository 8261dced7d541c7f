"""An expression with unknowns for its sizes: what it is in a plan for one model, before the sizes of another are known.

In: an expression, with its sizes in the plan. Out: the same tree, each dim a product of unknowns, and in `Unknowns` how
they are related. Where nothing general can be said (a list of positions), sizes are as in the plan or do not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from automap.errors import PlanError
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
)
from automap.plan.shapes import node_shape
from automap.plan.template import Form
from automap.plan.unknowns import Size, Unknowns

Whole: TypeAlias = Source | Fill | Concat | Permute | Reshape | Gather | Expand | Cast | Arithmetic


@dataclass(frozen=True, slots=True)
class Cut:
    """A slice of one dim: `length` elements, `step` apart.

    The first comes after `index` blocks of the size `block`, and then after what is before `mark` of `dim` in the plan.
    `fixed` are the positions where they are those of the plan.
    """

    length: Size
    step: Size = ()
    dim: Size = ()
    mark: int = 0
    index: int = 0
    block: Size = ()
    fixed: range | None = None


@dataclass(frozen=True, slots=True)
class Sketch:
    """A node: `sizes` are its dims, `cuts` what a Slice takes of each, `pads` what a Pad adds to each, if anything."""

    expr: Expr
    args: tuple[Sketch, ...]
    sizes: tuple[Size, ...]
    cuts: tuple[Cut, ...] = ()
    pads: tuple[tuple[Size | None, Size | None], ...] = ()


@dataclass(slots=True)
class Sketcher:
    """Sketches of expressions that share src tensors, in one set of unknowns.

    `pins` are sizes that have to be as in the plan, with the reason.
    """

    unknowns: Unknowns = field(default_factory=Unknowns)
    sources: dict[str, tuple[Source, tuple[Size, ...]]] = field(default_factory=dict)
    pins: list[tuple[Size, str]] = field(default_factory=list)

    def sketch(self, expr: Expr, place: str, starts: Iterator[Form], values: Mapping[str, int]) -> Sketch:
        """The sketch of the expression of the dest tensor `place`.

        Args:
            expr: the expression, with its sizes in the plan and its names in the other model.
            place: the dest tensor's name.
            starts: for every position that slices start at (as `starts_of` lists them), how it follows indices.
            values: the indices' values.
        """
        return _Pen(self, place, starts, values).drawn(expr)


@dataclass(frozen=True, slots=True)
class _Pen:
    """Draws the sketch of one expression."""

    sketcher: Sketcher
    place: str
    starts: Iterator[Form]
    values: Mapping[str, int]

    @property
    def unknowns(self) -> Unknowns:
        return self.sketcher.unknowns

    def drawn(self, expr: Expr) -> Sketch:
        """The sketch of one node and all below it."""
        forms = tuple(next(self.starts) for _ in expr.start) if isinstance(expr, Slice) else ()
        args = tuple(self.drawn(arg) for arg in args_of(expr))
        match expr:
            case Slice():
                return self._slice(expr, args[0], forms)
            case Pad():
                return self._pad(expr, args[0])
            case _:
                return Sketch(expr, args, self._sizes(expr, tuple(arg.sizes for arg in args)))

    def _sizes(self, expr: Whole, args: tuple[tuple[Size, ...], ...]) -> tuple[Size, ...]:
        match expr:
            case Source():
                return self._source(expr)
            case Fill(shape=shape):
                return self._new(shape)
            case Concat(_, dim):
                return self._concat(args, dim)
            case Permute(_, dims):
                return tuple(args[0][dim] for dim in dims)
            case Reshape(_, shape):
                return self.unknowns.grouped(args[0], shape) or self._rigid(args, shape, "is reshaped")
            case Gather():
                return self._gather(expr, args[0])
            case Expand(_, shape):
                return self._expand(args[0], shape)
            case Cast():
                return args[0]
            case _:
                return self._computed(expr, args)

    def _computed(self, expr: Arithmetic, args: tuple[tuple[Size, ...], ...]) -> tuple[Size, ...]:
        match expr:
            case Affine() | Sqrt() | Pointwise() | Tril():
                return args[0]
            case MatrixFunction():
                self._equate(args[0][-1:], args[0][-2:-1])
                return args[0]
            case Norm(_, dims) | Mean(_, dims):
                return tuple(() if dim in dims else size for dim, size in enumerate(args[0]))
            case Add() | Subtract() | Multiply() | Divide():
                return self._broadcast(*args)
            case MatMul():
                return self._matmul(*args)
            case _:
                assert_never(expr)

    def _new(self, shape: Shape) -> tuple[Size, ...]:
        return tuple(self.unknowns.new(size, self.place) for size in shape)

    def _rigid(self, args: tuple[tuple[Size, ...], ...], shape: Shape, what: str) -> tuple[Size, ...]:
        """Sizes of a node that is known for the sizes of the plan only."""
        sizes = self._new(shape)
        why = f"`{self.place}` {what} in a way that is known for the sizes of the plan only"
        self.sketcher.pins += [(size, why) for group in (*args, sizes) for size in group]
        return sizes

    def _source(self, source: Source) -> tuple[Size, ...]:
        known = self.sketcher.sources.setdefault(source.name, (source, self._new(source.shape)))
        if known[0] != source:
            raise PlanError(
                f"`{self.place}`: the plan has two shapes for `{source.name}`, {known[0].shape} and {source.shape}"
            )
        return known[1]

    def _concat(self, args: tuple[tuple[Size, ...], ...], dim: int) -> tuple[Size, ...]:
        for other in args[1:]:
            self._equate(args[0][:dim] + args[0][dim + 1 :], other[:dim] + other[dim + 1 :])
        parts = [arg[dim] for arg in args]
        total = self.unknowns.new(sum(map(self.unknowns.in_plan, parts)), self.place)
        self.unknowns.add_up(total, parts, f"what `{self.place}` joins")
        return (*args[0][:dim], total, *args[0][dim + 1 :])

    def _equate(self, left: tuple[Size, ...], right: tuple[Size, ...]) -> None:
        for one, other in zip(left, right, strict=True):
            self.unknowns.equate(one, other, f"sizes in `{self.place}`")

    def _gather(self, expr: Gather, arg: tuple[Size, ...]) -> tuple[Size, ...]:
        (size,) = self._rigid(((arg[expr.dim],),), (len(expr.indices),), f"takes {len(expr.indices)} positions")
        return (*arg[: expr.dim], size, *arg[expr.dim + 1 :])

    def _expand(self, arg: tuple[Size, ...], shape: Shape) -> tuple[Size, ...]:
        padded = ((),) * (len(shape) - len(arg)) + arg
        return tuple(size or self.unknowns.new(n, self.place) for size, n in zip(padded, shape, strict=True))

    def _broadcast(self, left: tuple[Size, ...], right: tuple[Size, ...]) -> tuple[Size, ...]:
        rank = max(len(left), len(right))
        pairs = zip(((),) * (rank - len(left)) + left, ((),) * (rank - len(right)) + right, strict=True)
        return tuple(self._shared(one, other) for one, other in pairs)

    def _shared(self, left: Size, right: Size) -> Size:
        if left and right:
            self._equate((left,), (right,))
        return left or right

    def _matmul(self, left: tuple[Size, ...], right: tuple[Size, ...]) -> tuple[Size, ...]:
        self._equate(left[-1:], right[-2:][:1])
        return (*self._broadcast(left[:-2], right[:-2]), *left[-2:-1], *right[-1:][: len(right) - 1])

    def _pad(self, expr: Pad, arg: Sketch) -> Sketch:
        sizes, pads = [], []
        for size, before, after in zip(arg.sizes, expr.before, expr.after, strict=True):
            front = self.unknowns.new(before, self.place) if before else None
            back = front if before == after else self.unknowns.new(after, self.place) if after else None
            parts = [part for part in (front, size, back) if part is not None]
            total = size
            if len(parts) > 1:
                total = self.unknowns.new(before + self.unknowns.in_plan(size) + after, self.place)
                self.unknowns.add_up(total, parts, f"what `{self.place}` is padded with")
            sizes.append(total)
            pads.append((front, back))
        return Sketch(expr, (arg,), tuple(sizes), pads=tuple(pads))

    def _slice(self, expr: Slice, arg: Sketch, forms: tuple[Form, ...]) -> Sketch:
        shape = tuple(map(self.unknowns.in_plan, arg.sizes))
        lengths = node_shape(expr, (shape,))
        cuts = tuple(
            self._cut(size, form, step, length)
            for size, form, step, length in zip(arg.sizes, forms, expr.step, lengths, strict=True)
        )
        return Sketch(expr, (arg,), tuple(cut.length for cut in cuts), cuts)

    def _cut(self, size: Size, form: Form, step: int, length: int) -> Cut:
        """One dim of a slice."""
        total, start = self.unknowns.in_plan(size), form.shift
        if form.terms:
            cut = self._indexed_cut(size, form, length) if step == 1 else None
            start = form.value(self.values)
        elif length == total:
            return Cut(size)
        elif step == 1:
            cut = Cut(self.unknowns.piece(size, start, start + length, self.place), dim=size, mark=start)
        else:
            cut = self._stepped_cut(size, start, step, length)
        return cut or self._fixed_cut(size, range(start, start + length * step, step))

    def _fixed_cut(self, size: Size, positions: range) -> Cut:
        (length,) = self._rigid(((size,),), (len(positions),), f"takes {len(positions)} positions")
        return Cut(length, fixed=positions)

    def _stepped_cut(self, size: Size, start: int, step: int, length: int) -> Cut | None:
        """One element of every block."""
        is_whole = length * step == self.unknowns.in_plan(size) and start < step
        halves = self.unknowns.grouped((size,), (length, step)) if is_whole else None
        if halves is None:
            return None
        self.unknowns.piece(halves[1], start, start + 1, self.place)
        return Cut(halves[0], halves[1], halves[1], start)

    def _indexed_cut(self, size: Size, form: Form, length: int) -> Cut | None:
        """A slice of one block of a dim, the one that an index counts."""
        ((name, block), *more) = form.terms
        total, (count, start) = self.unknowns.in_plan(size), divmod(form.shift, block)
        fits = not more and total % block == 0 and start + length <= block
        halves = self.unknowns.grouped((size,), (total // block, block)) if fits else None
        if halves is None:
            return None
        index, inner = self.values[name] + count, halves[1]
        if length == block:
            return Cut(inner, index=index, block=inner)
        piece = self.unknowns.piece(inner, start, start + length, self.place)
        return Cut(piece, dim=inner, mark=start, index=index, block=inner)
