"""Ids that form one regular pattern over one tensor, as slices, reshapes and permutes of it.

In: the flat row-major positions that each dest element reads. They are regular if position = base + the sum of
stride * digit, over the digits of the element's own number in some mixed radix. Out: the expression, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from automap.plan.expr import Expr, Gather, Permute, Reshape, Shape
from automap.plan.shapes import shape_of
from automap.plan.simplify import slice_of

if TYPE_CHECKING:
    from torch import Tensor


_BLOCK = 2**15  # torch runs longer operations on several threads, which gains nothing here and stalls on busy machines


@dataclass(frozen=True, slots=True)
class Digit:
    """One digit of the mixed radix: `size` steps of `stride`, walked backwards if `is_flipped`."""

    size: int
    stride: int
    is_flipped: bool = False


def run_length(flat: Tensor, stride: int) -> int:
    """How many elements from the first on are `stride` apart."""
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK + 1]
        breaks = (block[1:] - block[:-1] != stride).nonzero()
        if len(breaks):
            return start + int(breaks[0]) + 1
    return len(flat)


def is_even(rows: Tensor, stride: int) -> bool:
    """Whether neighbours in every row are `stride` apart; in blocks, as the first often decide and caches are small."""
    step = max(1, _BLOCK // rows.shape[1])
    blocks = (rows[start : start + step] for start in range(0, len(rows), step))
    return not any(bool((block[:, 1:] - block[:, :-1] != stride).any()) for block in blocks)


def digits_of(flat: Tensor) -> tuple[int, tuple[Digit, ...]] | None:
    """The first position and the digits (outermost first) of 1-D `flat`; None where it is not regular."""
    digits = []
    while len(flat) > 1:
        stride = int(flat[1] - flat[0])
        size = run_length(flat, stride)
        rows = flat.view(-1, size) if len(flat) % size == 0 else None
        if rows is None or not (len(rows) == 1 or is_even(rows, stride)):
            return None
        digits.append(Digit(size, stride))
        flat = rows[:, 0].contiguous()
    return int(flat[0]), tuple(reversed(digits))


def strided_expr(leaf: Expr, base: int, digits: tuple[Digit, ...], shape: Shape) -> Expr | None:
    """The expression of `shape` that reads what `digits_of` found; None where it does not fit into leaf's dims."""
    base += sum(digit.stride * (digit.size - 1) for digit in digits if digit.stride < 0)
    digits = tuple(Digit(digit.size, abs(digit.stride), digit.stride < 0) for digit in digits)
    leaf_shape = shape_of(leaf)
    for view in (leaf_shape, (math.prod(leaf_shape),)):
        expr = _from_view(leaf if view == leaf_shape else Reshape(leaf, view), base, digits)
        if expr is not None:
            return Reshape(expr, shape)
    return None


def _from_view(view: Expr, base: int, digits: tuple[Digit, ...]) -> Expr | None:
    """Slices of `view`, cut into one dim a digit and permuted to the digits' order."""
    digits = _split_at_dims(digits, shape_of(view))
    order = sorted((digit for digit in range(len(digits)) if digits[digit].stride), key=lambda d: -digits[d].stride)
    dims = _dims_of(shape_of(view), base, [digits[digit] for digit in order])
    expr = _cut(view, dims) if dims is not None else None
    if expr is None:
        return None
    expr = Permute(expr, tuple(order.index(digit) for digit in sorted(order)))
    expr = Reshape(expr, tuple(digit.size if digit.stride else 1 for digit in digits))
    for dim, digit in enumerate(digits):
        if digit.stride == 0:
            expr = Gather(expr, dim, (0,) * digit.size)
        elif digit.is_flipped:
            expr = Gather(expr, dim, tuple(reversed(range(digit.size))))
    return expr


def _split_at_dims(digits: tuple[Digit, ...], shape: Shape) -> tuple[Digit, ...]:
    """The digits, those that run over several dims of `shape` split between them."""
    parts: list[Digit] = []
    for digit in digits:
        unit = 1
        inner_first: list[Digit] = []
        for size in reversed(shape):
            unit *= size
            steps = unit // digit.stride if digit.stride and unit % digit.stride == 0 else 0
            if 1 < steps < digit.size and digit.size % steps == 0:
                inner_first.append(replace(digit, size=steps))
                digit = Digit(digit.size // steps, unit, digit.is_flipped)
        parts += [digit, *reversed(inner_first)]
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class _Dim:
    """What is read of a dim of `size`: `start` + the sum of the digits, largest stride first."""

    size: int
    start: int
    digits: tuple[Digit, ...]

    @property
    def extent(self) -> int:
        """The distance from the first to the last position, and one."""
        return 1 + sum((digit.size - 1) * digit.stride for digit in self.digits)

    @property
    def is_whole(self) -> bool:
        """Whether the dim is read in order from end to end."""
        return self.digits == (Digit(self.size, 1),) and self.start == 0


def _dims_of(shape: Shape, base: int, digits: Sequence[Digit]) -> list[_Dim] | None:
    """The digits (largest stride first) distributed over the dims of `shape`; None where one fits none."""
    dims = []
    unit, left = math.prod(shape), list(digits)
    for size in shape:
        unit //= size
        mine = [digit for digit in left if digit.stride >= unit and size > 1]
        if any(digit.stride % unit for digit in mine):
            return None
        left = left[len(mine) :]
        units = tuple(replace(digit, stride=digit.stride // unit) for digit in mine)
        dims.append(_Dim(size, base // unit % size, units))
    return None if left else dims


def _cut(expr: Expr, dims: list[_Dim]) -> Expr | None:
    """`expr` with one dim for each digit: slice, cut off the outermost digit of each dim, and so on."""
    while not all(dim.is_whole for dim in dims):
        steps = [_cut_once(dim) for dim in dims]
        found = [step for step in steps if step is not None]
        if len(found) < len(steps):
            return None
        dims = [dim for _, parts in found for dim in parts]
        expr = Reshape(slice_of(expr, [outer for outer, _ in found]), tuple(dim.size for dim in dims))
    return expr


def _cut_once(dim: _Dim) -> tuple[range, tuple[_Dim, ...]] | None:
    """The part of a dim that is read, and the dims that this part is cut into; None where digits overlap."""
    if dim.start + dim.extent > dim.size:
        return None
    if not dim.digits:
        return range(dim.start, dim.start + 1), ()
    first, *others = dim.digits
    whole = _Dim(first.size, 0, (Digit(first.size, 1),))
    if not others:
        return range(dim.start, dim.start + dim.extent, first.stride), (whole,)
    length = first.size * first.stride
    low = dim.start - dim.start % first.stride
    if dim.extent == length or low + length > dim.size:
        low = dim.start
    if low + length > dim.size:
        return None
    return range(low, low + length), (whole, _Dim(first.stride, dim.start - low, tuple(others)))
