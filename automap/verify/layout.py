"""How far two values are apart, and where: the src value is first laid out as dest's is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import permutations

import torch
from torch import Tensor

from automap.results import Gap

_SAMPLE = 4096
_MOST_DIMS = 5
_EQUAL = 1e-6  # no other layout can be nearer
_FAR_BETTER = 0.1
_STRANGE = 0.3  # values that are as far apart on average, beside their size, are not each other's


def gap(src: Tensor, dest: Tensor, order: Tensor | None = None) -> Gap | None:
    """Return how far dest is from src, in dest's layout; None where they cannot be laid over one another.

    `order` tells which src element belongs at each place of dest, flat; it is looked for if None.
    """
    if not dest.numel() or src.is_complex() or dest.is_complex():
        return None
    if order is None and _is_natural(src, dest):
        theirs = src.double().reshape(dest.shape)
    else:
        order = laid_out(src, dest) if order is None else order
        if order is None or len(order) != dest.numel():
            return None
        theirs = src.double().reshape(-1)[order].view(dest.shape)
    mine = dest.double()
    off = (mine - theirs).abs_()
    scale = float(theirs.abs().max())
    if not math.isfinite(float(off.sum())):  # infinities that are equal are no difference, NaN is one from everything
        off = torch.where(mine == theirs, 0.0, (mine - theirs).abs())
        off = torch.where(torch.isnan(off), torch.inf, off)
        scale = float(torch.where(torch.isfinite(theirs), theirs.abs(), 0.0).max())
    scale = scale or 1.0
    place = int(off.argmax())
    largest = float(off.reshape(-1)[place])
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), dest.shape))
    return Gap(largest, largest / scale, where, float(theirs.reshape(-1)[place]), float(mine.reshape(-1)[place]))


def _is_natural(src: Tensor, dest: Tensor) -> bool:
    """Whether elements stay in their order: as many of them, and those looked at are equal."""
    if src.numel() != dest.numel():
        return False
    probe = _probe(dest.numel())
    mine, theirs = (_picked(value, probe) for value in (dest, src))
    size = float(torch.nan_to_num(mine, posinf=0.0, neginf=0.0).abs().sum()) or 1.0
    return float(torch.nan_to_num(theirs - mine, posinf=0.0, neginf=0.0).abs().sum()) <= _EQUAL * size


def _probe(count: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, _SAMPLE)).long()


def _picked(value: Tensor, places: Tensor) -> Tensor:
    """Elements at flat places, without a copy of all of value."""
    return value[torch.unravel_index(places, value.shape)].double() if value.dim() else value.double().reshape(1)


def laid_out(src: Tensor, dest: Tensor) -> Tensor | None:
    """Return for each element of dest, flat, the number of the src element that belongs there; None if there is none.

    Both hold the same numbers, more or less, in layouts that differ by the order of dims. Elements stay in their order
    unless another one fits far better; where none fits and shapes differ, elements go together that are of one rank.
    """
    if src.numel() != dest.numel() or src.is_complex() or dest.is_complex():
        return None
    flat, mine = src.double().reshape(-1), dest.double().reshape(-1)
    probe = _probe(len(mine))
    size = float(torch.nan_to_num(mine[probe], posinf=0.0, neginf=0.0).abs().sum()) or 1.0

    def off(places: Tensor) -> float:
        return float(torch.nan_to_num(flat[places] - mine[probe], posinf=0.0, neginf=0.0).abs().sum()) / size

    found = torch.arange(len(mine))
    least = natural = off(probe)
    for ids in _layouts(src, dest) if natural > _EQUAL else ():
        distance = off(ids[torch.unravel_index(probe, ids.shape)])
        if distance < min(least, _FAR_BETTER * natural):
            least, found = distance, ids
        if least < _EQUAL:
            break
    if least > _STRANGE and _long(src) != _long(dest):
        ranked = torch.empty(len(mine), dtype=torch.long)
        ranked[mine.argsort()] = flat.argsort()
        found = ranked if off(ranked[probe]) < _FAR_BETTER * least else found
    return found.reshape(-1)


def _long(value: Tensor) -> tuple[int, ...]:
    return tuple(n for n in value.shape if n > 1)


def _layouts(src: Tensor, dest: Tensor) -> Iterator[Tensor]:
    ids, shape = torch.arange(src.numel()).view(src.shape).squeeze(), _long(dest)
    if ids.dim() > _MOST_DIMS:
        return
    for order in permutations(range(ids.dim())):
        moved = ids.permute(order)
        if ids.dim() != len(shape) or tuple(moved.shape) == shape:
            yield moved
