"""Strided views without data: what a move does to offset, sizes and strides, or that it needs a copy. Without torch."""

from __future__ import annotations

import math
from typing import TypeAlias

from automap.apply.stored import Sizes, dense_strides
from automap.plan import Expand, Expr, Permute, Reshape, Slice

Strided: TypeAlias = tuple[int, Sizes, Sizes]  # offset of the first element, sizes, strides; all in elements


def moved(expr: Expr, sizes: Sizes, strides: Sizes) -> Strided | None:
    """What a node sees of its argument, or None where it does more than look at it in another way.

    Example:
        >>> from automap.plan import Source
        >>> moved(Permute(Source("w", (2, 3)), (1, 0)), (2, 3), (3, 1))
        (0, (3, 2), (1, 3))
    """
    match expr:
        case Slice(_, start, stop, step):
            offset = sum(first * stride for first, stride in zip(start, strides, strict=True))
            taken = tuple(len(range(*ends)) for ends in zip(start, stop, step, strict=True))
            return offset, taken, tuple(stride * by for stride, by in zip(strides, step, strict=True))
        case Permute(_, dims):
            return 0, tuple(sizes[dim] for dim in dims), tuple(strides[dim] for dim in dims)
        case Expand(_, shape):
            new = len(shape) - len(sizes)
            repeated = [0 if size != wide else by for size, by, wide in zip(sizes, strides, shape[new:], strict=True)]
            return 0, shape, (*(0,) * new, *repeated)
        case Reshape(_, shape):
            found = reshaped_strides(sizes, strides, shape)
            return None if found is None else (0, shape, found)
        case _:
            return None


def reshaped_strides(sizes: Sizes, strides: Sizes, shape: Sizes) -> Sizes | None:
    """The strides by which elements are in row-major order in another shape; None where no strides do that.

    Source: `computeStride_impl` of torch's TensorUtils: dims that lie as one in memory may be cut anew, others not.
    """
    if 0 in sizes:
        return dense_strides(shape)
    found: list[int] = []  # innermost first
    left = list(reversed(shape))
    for count, stride in _dims_as_one(sizes, strides):
        done = 1
        while left and (done < count or left[0] == 1):
            found.append(done * stride)
            done *= left.pop(0)
        if done != count:
            return None
    found += [1] * len(left)
    return tuple(reversed(found))


def _dims_as_one(sizes: Sizes, strides: Sizes) -> list[tuple[int, int]]:
    """Groups of dims that can be counted through with one stride, innermost first: elements and stride of each."""
    groups: list[tuple[int, int]] = []
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if groups and stride == math.prod(groups[-1]):
            groups[-1] = (groups[-1][0] * size, groups[-1][1])
        else:
            groups.append((size, stride))
    return groups or [(1, 1)]
