"""The narrow twins of two flow graphs: what has one size in the models has one size in the twins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from automap.canonical.flow import Flow
from automap.twin.dims import Digits
from automap.twin.shrink import Narrowing, full_work

#: no dim is divided by more than the first of these that makes about so much work of the whole
_LIMITS, _ENOUGH = (16, 32, 64, 128, 256), 200_000_000
#: how often what one side allows is told to the other
_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Twins:
    """Two narrow flow graphs, and how the dims of stored weights were narrowed, by any of a weight's names."""

    src: Flow
    dest: Flow
    src_dims: Mapping[str, tuple[Digits, ...]]
    dest_dims: Mapping[str, tuple[Digits, ...]]


def narrow_twins(src: Flow, dest: Flow, *, least_work: int, least_gain: float) -> Twins | None:
    """Return twins that take little work to compute, or None where narrowing does not pay.

    Args:
        src: the full flow graph.
        dest: the other one.
        least_work: so many multiplications with weights cost less than the search for twins.
        least_gain: so many times less work must the twins take.
    """
    whole = full_work(src) + full_work(dest)
    if whole < least_work:
        return None
    limit = next((n for n in _LIMITS if whole < _ENOUGH * n**2), _LIMITS[-1])
    sides = _alike(src, dest, limit)
    if sides is None:
        return None
    if whole < least_gain * sum(side.work() for side in sides):
        return None
    mine, theirs = sides
    return Twins(mine.twin(), theirs.twin(), _by_name(mine), _by_name(theirs))


def _alike(src: Flow, dest: Flow, limit: int) -> tuple[Narrowing, Narrowing] | None:
    """Both sides narrowed, dims of weights of one size by one factor: what both of them allow everywhere."""
    caps: dict[int, int] = {}
    for _ in range(_ROUNDS):
        sides = Narrowing.of(src, limit, caps), Narrowing.of(dest, limit, caps)
        mine, theirs = (side.factors() for side in sides)
        found = {size: min(mine.get(size, limit), theirs.get(size, limit)) for size in mine | theirs}
        is_agreed = all(side == {n: found[n] for n in side} for side in (mine, theirs))
        if found == caps or (is_agreed and not _mixed(sides)):
            return sides
        caps = found
    return None


def _mixed(sides: tuple[Narrowing, Narrowing]) -> bool:
    """Whether weight dims of one size are divided by different numbers."""
    found = {(d.size, d.wide // d.narrow) for side in sides for leaf in side.flow.weights for d in side.digits(leaf)}
    return len(found) != len({size for size, _ in found})


def _by_name(side: Narrowing) -> dict[str, tuple[Digits, ...]]:
    return {name: side.digits(leaf) for leaf, weight in side.flow.weights.items() for name in weight.names}
