"""Stored tensors: what a checkpoint holds, by name, with the places of the bytes but not the bytes themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from automap.apply.places import Place

if TYPE_CHECKING:
    from torch import Tensor

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A box of a tensor, from `starts` with `sizes`, and where it lies.

    Its element 0 is at byte `offset` of `place` (or of `held`, bytes in memory), the others by `strides` in elements.
    """

    place: Place
    offset: int
    starts: Sizes
    sizes: Sizes
    strides: Sizes
    held: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a checkpoint; its parts are disjoint and make up all of it."""

    dtype: str
    shape: Sizes
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All tensors of a checkpoint, the metadata of its files and index, and notes on what was unwrapped or dropped."""

    spec: str
    tensors: Mapping[str, StoredTensor]
    files: tuple[Place, ...]
    metadata: Mapping[str, str]
    index_metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def dense_strides(sizes: Sizes) -> Sizes:
    """The strides of a contiguous tensor.

    Example:
        >>> dense_strides((2, 3, 4))
        (12, 4, 1)
    """
    return tuple(math.prod(sizes[dim + 1 :]) for dim in range(len(sizes)))


def span_of(sizes: Sizes, strides: Sizes) -> int:
    """The number of elements from the first to the last, both included."""
    if 0 in sizes:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def whole(dtype: str, shape: Sizes, place: Place, offset: int) -> StoredTensor:
    """A contiguous tensor in one piece."""
    return StoredTensor(dtype, shape, (Part(place, offset, (0,) * len(shape), shape, dense_strides(shape)),))
