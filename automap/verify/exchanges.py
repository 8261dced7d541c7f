"""Wrong maps that a test must tell from the right one: two weights, two parts or two rows of dest exchanged.

Listed from the plan alone; what exchanging them does is measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, pairwise
from typing import TypeVar

from torch import Tensor

from automap.canonical.flow import Flow
from automap.plan import Concat, Expr, Plan, shape_of

_FEW, _MOST = 8, 20_000  # pairs and weights by default; pairs at the very most
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spot:
    """The part `start..stop` of a dest weight along a dim; all of it where stop is None."""

    leaf: int
    dim: int = 0
    start: int = 0
    stop: int | None = None

    def of(self, weight: Tensor) -> Tensor:
        """Return the part of a weight that lies here."""
        return weight if self.stop is None else weight.narrow(self.dim, self.start, self.stop - self.start)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Two spots of one shape whose content changes places."""

    first: Spot
    second: Spot

    @property
    def leaves(self) -> tuple[int, ...]:
        """The dest weights that it changes."""
        return tuple(dict.fromkeys((self.first.leaf, self.second.leaf)))

    def applied(self, weights: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return weights with the two spots exchanged; the given ones stay as they are."""
        changed = dict(weights)
        for leaf in self.leaves:
            changed[leaf] = weights[leaf].clone()
        self.first.of(changed[self.first.leaf]).copy_(self.second.of(weights[self.second.leaf]))
        self.second.of(changed[self.second.leaf]).copy_(self.first.of(weights[self.first.leaf]))
        return changed

    def describe(self, flow: Flow) -> str:
        """Return what is exchanged, in words."""
        first, second = (flow.weights[spot.leaf].name for spot in (self.first, self.second))
        if self.first.stop is None:
            return f"`{first}` and `{second}`"
        if self.first.stop - self.first.start == 1 and self.first.dim == 0:
            return f"rows {self.first.start} and {self.second.start} of `{first}`"
        return f"{_span(self.first)} and {_span(self.second)} of `{first}`"


def _span(spot: Spot) -> str:
    comma = ":, " * spot.dim
    return f"[{comma}{spot.start}:{spot.stop}]"


@dataclass(frozen=True, slots=True)
class Strip:
    """All exchanges of neighbouring blocks of a dest weight: `size` elements each along a dim."""

    leaf: int
    dim: int
    size: int

    def blocks(self, weight: Tensor) -> Tensor:
        """Return the blocks of a weight, one a row."""
        return weight.movedim(self.dim, 0).reshape(weight.shape[self.dim] // self.size, -1)

    def exchange(self, number: int) -> Exchange:
        """Return the exchange of block number with the next one."""
        first = Spot(self.leaf, self.dim, number * self.size, (number + 1) * self.size)
        return Exchange(first, replace(first, start=first.start + self.size, stop=(number + 2) * self.size))


@dataclass(frozen=True, slots=True)
class Wrong:
    """The exchanges to try: of whole weights in pairs, of neighbouring blocks in strips."""

    pairs: tuple[Exchange, ...] = ()
    strips: tuple[Strip, ...] = ()


def all_exchanges(dest: Flow, plan: Plan) -> Wrong:
    """Return every pair of weights of one shape that the plan tells apart, and the rows and parts of each weight."""
    entries = _entries(dest, plan)
    pairs = (pair for members in _classes(dest, entries) for pair in combinations(members, 2))
    return Wrong(_exchanges(islice(pairs, _MOST), entries), _all_strips(entries))


def few_exchanges(dest: Flow, plan: Plan) -> Wrong:
    """Return some of all exchanges, spread evenly: neighbours of one shape, rows and parts of a few weights."""
    entries = _entries(dest, plan)
    pairs = [pair for members in _classes(dest, entries) for pair in pairwise(members)]
    return Wrong(tuple(_spread(_exchanges(pairs, entries))), tuple(_spread(_all_strips(entries))))


def _entries(dest: Flow, plan: Plan) -> dict[int, Expr]:
    return {index: plan.entries[w.name] for index, w in dest.weights.items() if w.name in plan.entries}


def _classes(dest: Flow, entries: Mapping[int, Expr]) -> list[list[int]]:
    """The weights of each shape, in order of use."""
    found: dict[tuple[int, ...], list[int]] = {}
    for index in entries:
        found.setdefault(tuple(dest.weights[index].tensor.shape), []).append(index)
    return list(found.values())


def _exchanges(pairs: Iterable[tuple[int, int]], entries: Mapping[int, Expr]) -> tuple[Exchange, ...]:
    return tuple(Exchange(Spot(a), Spot(b)) for a, b in pairs if entries[a] != entries[b])


def _all_strips(entries: Mapping[int, Expr]) -> tuple[Strip, ...]:
    return tuple(strip for index, expr in entries.items() for strip in _strips(index, expr))


def _spread(found: Sequence[T]) -> list[T]:
    step = max(len(found) / _FEW, 1.0)
    return [found[int(n * step)] for n in range(min(_FEW, len(found)))]


def _strips(leaf: int, expr: Expr) -> list[Strip]:
    """The rows of a weight, and the parts that the plan joins it of."""
    shape = shape_of(expr)
    found = [Strip(leaf, 0, 1)] if shape and shape[0] > 1 else []
    if isinstance(expr, Concat):
        sizes = {shape_of(arg)[expr.dim] for arg in expr.args}
        if len(sizes) == 1 and (expr.dim, *sizes) != (0, 1):
            found.append(Strip(leaf, expr.dim, sizes.pop()))
    return found
