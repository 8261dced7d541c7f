"""One-dimensional ids: where they consist of few regular pieces, and the sizes that they factor into.

Both are guesses at a good split; what is built from them is checked exactly elsewhere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from automap.plan.strides import run_length

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def strided_prefix(flat: Tensor) -> int:
    """The length of the longest regular piece that `flat` starts with (strides positive)."""
    if len(flat) < 2:
        return len(flat)
    stride = int(flat[1] - flat[0])
    if stride <= 0:
        return 1
    size = run_length(flat, stride)
    rows = flat[: len(flat) // size * size].view(-1, size)
    regular = (rows[:, 1:] - rows[:, :-1] == stride).all(dim=1)
    count = len(rows) if bool(regular.all()) else int(regular.logical_not().nonzero()[0])
    return size * strided_prefix(rows[:count, 0].contiguous())


def even_prefix(flat: Tensor) -> int:
    """The length of the evenly spaced run that `flat` starts with; 1 where its second element starts a longer one."""
    if len(flat) < 2 or flat[1] <= flat[0]:
        return len(flat[:1])
    length = run_length(flat, int(flat[1] - flat[0]))
    return 1 if length == 2 and len(flat) > 2 and run_length(flat[1:], int(flat[2] - flat[1])) > 2 else length


def pieces_of(flat: Tensor, limit: int, prefix: Callable[[Tensor], int]) -> list[int] | None:
    """The lengths of the pieces that `flat` consists of, each as `prefix` finds it; None for more than `limit`."""
    lengths: list[int] = []
    done = 0
    while done < len(flat):
        if len(lengths) == limit:
            return None
        lengths.append(prefix(flat[done:]))
        done += lengths[-1]
    return lengths


def factors_of(flat: Tensor) -> tuple[int, ...]:
    """Sizes, outermost first, such that `flat` is a sum of one term for each digit in that mixed radix.

    As fine as possible, but with regular neighbours joined: (12, 64) for twelve blocks of 64 in any order.
    """
    sizes: list[int] = []
    unit = 1
    for period in (*divisors(len(flat)), len(flat)):
        if period % unit == 0 and (period == len(flat) or is_sum_of_digits(flat, period)):
            sizes.append(period // unit)
            unit = period
    return _joined(flat, [size for size in reversed(sizes) if size > 1])


def is_sum_of_digits(flat: Tensor, period: int) -> bool:
    """Whether `flat[a * period + b]` is f(a) + g(b) for some f and g."""
    rows = flat.view(-1, period)
    relative = rows[:8] - rows[:8, :1]
    if bool((relative != relative[:1]).any()):
        return False
    return not bool((rows - rows[:, :1] != relative[:1]).any())


def divisors(size: int) -> list[int]:
    """The divisors of `size` other than 1 and itself, in order."""
    low = [d for d in range(2, math.isqrt(size) + 1) if size % d == 0]
    return sorted({*low, *(size // d for d in low)})


def _joined(flat: Tensor, sizes: list[int]) -> tuple[int, ...]:
    """The sizes with neighbours joined where their terms together are evenly spaced."""
    joined: list[int] = []
    unit = len(flat)
    for size in sizes:
        unit //= size
        if joined and _is_even(flat[: joined[-1] * size * unit : unit]):
            joined[-1] *= size
        else:
            joined.append(size)
    return tuple(joined)


def _is_even(flat: Tensor) -> bool:
    return len(flat) < 3 or bool((flat[1:] - flat[:-1] == flat[1] - flat[0]).all())
