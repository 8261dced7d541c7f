"""Tensors that hold the numbers of elements: taking some of them, and how two lie on their storages."""

from __future__ import annotations

import torch
from torch import Tensor


def at(ids: Tensor, places: Tensor | None) -> Tensor:
    """Return the numbers at flat places, or all of them: flat, shape `(n,)`."""
    if places is None:
        return ids.reshape(-1)
    return torch.take(ids, places) if not ids.is_contiguous() else ids.view(-1)[places]


def lie_alike(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are all of their storages in the same order of dims; dims of size one do not count."""
    mine = _steps(a)
    return mine == _steps(b) and _is_dense(mine)


def _steps(ids: Tensor) -> list[tuple[int, int]]:
    """The stride and size of each dim with more than one element."""
    return [(step, size) for step, size in zip(ids.stride(), ids.shape, strict=True) if size > 1]


def _is_dense(steps: list[tuple[int, int]]) -> bool:
    """Whether dims of these strides and sizes leave nothing of a storage out and have nothing twice."""
    expected = 1
    for step, size in sorted(steps):
        if step != expected:
            return False
        expected *= size
    return True
