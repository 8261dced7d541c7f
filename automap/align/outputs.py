"""Compares outputs of both sides: element by element, with dims in another order, or one as a slice of the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import torch
from torch import Tensor


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference over the largest value; inf for NaN and for tensors that cannot be laid over.

    Tensors of one shape are compared as they are, others in the best order of dims, or as a slice of one another.
    """
    if a.is_complex() or b.is_complex():
        a, b = torch.view_as_real(a.to(torch.complex128)), torch.view_as_real(b.to(torch.complex128))
    if a.shape == b.shape:
        return _off(a, b)
    return min((_off(x, y) for x, y in _overlays(a.squeeze(), b.squeeze())), default=float("inf"))


def has_same_numbers(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of real numbers are equal in shape and elements, whatever their dtypes."""
    return a.shape == b.shape and torch.equal(a.double(), b.double())


def _off(a: Tensor, b: Tensor) -> float:
    x, y = a.reshape(-1).to(torch.float64), b.reshape(-1).to(torch.float64)
    if not len(x):
        return 0.0
    scale = float(torch.where(torch.isfinite(x), x.abs(), 0.0).max()) or 1.0
    off = float(torch.where(x == y, 0.0, (x - y).abs()).max()) / scale
    return off if off == off else float("inf")


def _overlays(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Ways to lay two tensors of different shape over one another."""
    if a.numel() == b.numel():
        yield a, b
        if a.dim() == b.dim() <= 4:
            yield from ((a.permute(p), b) for p in permutations(range(a.dim())) if a.permute(p).shape == b.shape)
        return
    whole, part = (a, b) if a.numel() > b.numel() else (b, a)
    for piece in _slices(whole, part):
        yield (piece, part) if whole is a else (part, piece)


def _slices(whole: Tensor, part: Tensor) -> Iterator[Tensor]:
    """The slices of a tensor, along one dim, that have a part's shape."""
    for dim, size in enumerate(whole.shape):
        rest = (*whole.shape[:dim], *whole.shape[dim + 1 :])
        if part.dim() == whole.dim() - 1 and rest == tuple(part.shape):
            yield from whole.unbind(dim)
        elif part.dim() == whole.dim() and rest == (*part.shape[:dim], *part.shape[dim + 1 :]):
            width = part.shape[dim]
            yield from (whole.narrow(dim, start, width) for start in range(size - width + 1))
