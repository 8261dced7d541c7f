"""Signatures of values that do not depend on how they are laid out, and matching by them.

A group of numbers (a channel over all positions, say) is told by the sums of its first, second and third powers. With
random weights, groups that are not the same thing differ in them; groups that are the same agree to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: largest relative difference of moments taken for rounding, for constants rounded otherwise, and for one thing
#: computed slightly differently
EXACT, ROUNDED, CLOSE = 1e-9, 1e-6, 2e-4
_TIE = 1e-11
_HUGE = 1e8


def clean(value: Tensor) -> Tensor:
    """Return value as float64 with masks' infinities and huge numbers as zeros, complex numbers as sums of their
    parts.
    """
    if value.is_complex():
        value = torch.view_as_real(value).sum(-1)
    value = value.to(torch.float64)
    if not value.numel():
        return value
    low, high = torch.aminmax(value)
    if float(low) > -_HUGE and float(high) < _HUGE:
        return value
    return torch.where(value.abs() < _HUGE, value, torch.zeros_like(value))


def moments(value: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the sum of value, its square and its cube over dims, shape `(*rest, 3)`: padding with zeros changes
    nothing.
    """
    value = clean(value)
    square = value * value
    powers = (value, square, square * value)
    if not dims:
        return torch.stack(powers, -1)
    return torch.stack([p.sum(dims) for p in powers], -1)


def scales(table: Tensor) -> Tensor:
    """Return the size that differences in each column of a table of moments are to be seen against, `(3,)`."""
    size = table.abs().mean(0)
    second = size[1]
    return (
        torch.stack([torch.maximum(size[0], second.sqrt()), second, torch.maximum(size[2], 1e-6 * second**1.5)]) + 1e-12
    )


def keys(table: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return one number per row that tells rows apart: all three moments, each by its scale."""
    weighted = table / scale if scale is not None else table
    return weighted @ torch.tensor([1.0, 0.75487766, 0.56984029], dtype=torch.float64)


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest relative difference between two tables of moments `(n, 3)`, row by row."""
    if a.numel() == 0:
        return 0.0
    scale = torch.maximum(a.abs(), b.abs()) + 1e-3 * torch.maximum(scales(a), scales(b))
    return float(((a - b).abs() / scale).max())


def _ranked(table: Tensor, scale: Tensor) -> Tensor:
    """Rows in order of their moments; rows that agree to rounding keep their own order."""
    key = keys(table, scale)
    order = torch.argsort(key, stable=True)
    ordered = key[order]
    step = torch.cat([torch.zeros(1, dtype=torch.bool), (ordered[1:] - ordered[:-1]) > _TIE])
    rank = torch.empty_like(order)
    rank[order] = torch.cumsum(step, 0)
    return torch.argsort(rank, stable=True)


def bijection(a: Tensor, b: Tensor, tolerance: float = EXACT) -> tuple[Tensor, float] | None:
    """Return p and the distance such that row i of a is row p[i] of b, or None where the rows are not the same.

    Rows that are equal on one side (dead channels) are matched in their own order.
    """
    if a.shape != b.shape:
        return None
    off = distance(a, b)
    if off <= min(tolerance, EXACT):  # it is what equal rows mean, and the simplest plan
        return torch.arange(len(a)), off
    scale = torch.maximum(scales(a), scales(b))
    order_a, order_b = _ranked(a, scale), _ranked(b, scale)
    off = distance(a[order_a], b[order_b])
    if off <= tolerance:
        found = torch.empty_like(order_a)
        found[order_a] = order_b
        return found, off
    return _nearest(a, b, tolerance) if tolerance > EXACT and len(a) <= 4096 else None


def _nearest(a: Tensor, b: Tensor, tolerance: float) -> tuple[Tensor, float] | None:
    scale = scales(a)
    if distance(a, b) <= tolerance:
        return torch.arange(len(a)), distance(a, b)
    gaps = torch.cdist(a / scale, b / scale)
    found = gaps.argmin(1)
    if len(torch.unique(found)) != len(a):
        return None
    off = distance(a, b[found])
    return (found, off) if off <= tolerance else None


def injection(a: Tensor, b: Tensor, tolerance: float = EXACT) -> Tensor:
    """Return for each row of a the first row of b that agrees with it, -1 where none does."""
    scale = scales(b)
    mine, theirs = keys(a, scale), keys(b, scale)
    order = torch.argsort(theirs, stable=True)
    theirs = theirs[order].contiguous()
    low = torch.searchsorted(theirs, (mine - 4 * tolerance * (mine.abs() + 1)).contiguous())
    found = torch.full((len(a),), -1)
    for step in range(4):
        candidate = order[(low + step).clamp(max=len(theirs) - 1)]
        gap = (a - b[candidate]).abs() / (a.abs() + 1e-3 * scale)
        hit = (gap.max(1).values <= tolerance) & (found < 0)
        found = torch.where(hit, candidate, found)
    return found


#: so many rows of one value are looked for among those of another
_TRIED = 8


def row_order(few: Tensor, rows: Tensor) -> Tensor | None:
    """Return p such that for every row of few (of those tried) `row[i]` is `r[p[i]]` for one r of rows, or None."""
    if rows.numel() > 20_000_000 or not len(few):
        return None
    row = few[0]
    place, theirs = torch.argsort(row), rows.sort(1)
    gaps = (theirs.values - row[place]).abs().max(1).values
    best = int(gaps.argmin())
    if float(gaps[best]) > EXACT * (float(row.abs().max()) + 1e-12):
        return None
    order = torch.empty_like(place)
    order[place] = theirs.indices[best]
    tried = few[:: -(-len(few) // _TRIED)][1:]
    return order if all(_is_among(row, rows[:, order]) for row in tried) else None


def _is_among(row: Tensor, rows: Tensor) -> bool:
    gaps = (rows - row).abs().max(1).values
    return float(gaps.min()) <= EXACT * (float(row.abs().max()) + 1e-12)
