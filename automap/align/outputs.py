"""Compares outputs of both sides: element by element, in another layout, or one as part of the other."""

from __future__ import annotations

import torch
from torch import Tensor

from automap.align.moments import EXACT


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference over the largest value, elements in order, else as sorted numbers; NaN as inf."""
    if a.is_complex() or b.is_complex():
        a, b = torch.view_as_real(a.to(torch.complex128)), torch.view_as_real(b.to(torch.complex128))
    x, y = a.reshape(-1).to(torch.float64), b.reshape(-1).to(torch.float64)
    if not len(x):
        return 0.0
    same = x == y
    scale = float(torch.where(torch.isfinite(x), x.abs(), 0.0).max()) or 1.0
    off = float(torch.where(same, 0.0, (x - y).abs()).max()) / scale
    if a.shape != b.shape and off > EXACT:
        gap = (x.sort().values - y.sort().values).abs()
        off = min(off, float(gap.max()) / scale)
    return off if off == off else float("inf")


def holds_all(whole: Tensor, part: Tensor) -> bool:
    """Whether every number of part is one of whole's: one output is some of the other, in whatever order."""
    if part.numel() >= whole.numel() or part.numel() < 2 or whole.is_complex() or part.is_complex():
        return False
    flat, wanted = whole.reshape(-1).double().sort().values, part.reshape(-1).double()
    if not bool((wanted != wanted[0]).any()):
        return False
    place = torch.searchsorted(flat, wanted.contiguous()).clamp(1, len(flat) - 1)
    gap = torch.minimum((flat[place] - wanted).abs(), (flat[place - 1] - wanted).abs())
    return bool((gap <= EXACT * (wanted.abs() + flat.abs().mean())).all())
