"""Which dims of a flow graph can be narrowed together, found by unification.

Every dim of every value is a variable. Dims that an op makes equal are one class; a dim that is several others laid out
in one (`768 = 12 x 64`) is linked to these. A class is kept as it is, or narrowed: its size is `outer x wide x inner`,
of which `wide` alone is divided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

#: a narrowed digit has at least so many elements left, or an order among them would not show
_LEAST = 2


@dataclass(frozen=True, slots=True)
class Digits:
    """A dim as `outer x wide x inner`, row-major; `narrow` is what is left of wide (equal to it: the dim is kept)."""

    outer: int
    wide: int
    narrow: int
    inner: int

    @property
    def size(self) -> int:
        """How many elements the dim has in the model."""
        return self.outer * self.wide * self.inner

    @property
    def narrow_size(self) -> int:
        """How many elements it has in the twin."""
        return self.outer * self.narrow * self.inner

    @property
    def is_kept(self) -> bool:
        """Whether the twin has the dim as it is."""
        return self.wide == self.narrow

    def scaled(self, count: int, unit: int) -> int:
        """Return how many elements of the twin `count` elements are, counted in whole units of the model."""
        whole, rest = divmod(count, unit)
        assert not rest
        return whole * (unit // self.wide * self.narrow)


@dataclass(slots=True)
class _Class:
    size: int
    factor: int
    outer: int = 1
    inner: int = 1

    @property
    def is_kept(self) -> bool:
        return self.factor == 1

    def lower(self, limit: int) -> bool:
        """Divide by no more than limit, a power of two, and than the dim allows; return whether that is news."""
        before = self.factor
        wide, rest = divmod(self.size, self.outer * self.inner)
        self.factor = 1 if rest else min(limit, before)
        while self.factor > 1 and (wide % self.factor or wide // self.factor < _LEAST):
            self.factor //= 2
        return self.factor != before


@dataclass(frozen=True, slots=True)
class _Link:
    """One dim is others laid out in one, row-major."""

    whole: int
    parts: tuple[int, ...]


@dataclass(slots=True)
class Dims:
    """Variables for dims with what is known of them; mutable while the rules of the ops are read.

    `limit` is the power of two that no dim is divided by more than.
    """

    limit: int
    _parents: list[int] = field(default_factory=list)
    _classes: list[_Class] = field(default_factory=list)
    _links: list[_Link] = field(default_factory=list)
    _chosen: dict[int, int] = field(default_factory=dict)
    _digits: dict[int, Digits] = field(default_factory=dict)

    def new(self, size: int) -> int:
        """Return a new variable for a dim of a size."""
        self._parents.append(len(self._parents))
        self._classes.append(_Class(size, self.limit))
        return len(self._parents) - 1

    def kept(self, size: int) -> int:
        """Return a new variable for a dim that stays as it is."""
        variable = self.new(size)
        self._classes[variable].factor = 1
        return variable

    def keep(self, variables: Iterable[int]) -> None:
        """Let dims stay as they are."""
        for variable in variables:
            self._of(variable).factor = 1

    def cap(self, variable: int, factor: int, least: int) -> None:
        """Divide a dim by no more than factor, and leave no less than so many elements."""
        found = self._of(variable)
        found.factor = min(found.factor, factor)
        while found.factor > 1 and found.size < found.factor * least:
            found.factor //= 2

    def same(self, a: int, b: int) -> None:
        """Make two dims one class; one of them may be broadcast, which says nothing."""
        a, b = self._root(a), self._root(b)
        if a == b or self._classes[a].size != self._classes[b].size:
            return
        mine, theirs = self._classes[a], self._classes[b]
        self._parents[b] = a
        mine.outer, mine.inner = math.lcm(mine.outer, theirs.outer), math.lcm(mine.inner, theirs.inner)
        mine.factor = min(mine.factor, theirs.factor)

    def link(self, whole: int, parts: Sequence[int]) -> None:
        """Say that a dim is others laid out in one, the last one fastest."""
        parts = [p for p in parts if self.size(p) != 1]
        if len(parts) == 1:
            self.same(whole, parts[0])
        elif parts:
            self._links.append(_Link(whole, tuple(parts)))

    def regroup(self, before: Sequence[int], after: Sequence[int]) -> None:
        """Say that dims are others, the elements of both in the same row-major order."""
        if any(self.size(v) == 0 for v in (*before, *after)):  # no elements, and no order of them
            self.keep((*before, *after))
            return
        for ins, outs in _groups([(v, self.size(v)) for v in before], [(v, self.size(v)) for v in after]):
            if len(ins) == 1 or len(outs) == 1:
                whole, parts = (ins[0], outs) if len(ins) == 1 else (outs[0], ins)
                self.link(whole, parts)
            else:
                whole = self.new(math.prod(self.size(v) for v in ins))
                self.link(whole, ins)
                self.link(whole, outs)

    def size(self, variable: int) -> int:
        """Return a dim's size in the model."""
        return self._classes[variable].size

    def solve(self) -> None:
        """Settle every class: carry what is kept and where the wide digit lies along links until nothing moves."""
        for variable in range(len(self._parents)):
            self._of(variable).lower(self.limit)
        changed = True
        while changed:
            changed = False
            for number, link in enumerate(self._links):
                changed |= self._settle(number, link)

    def digits(self, variable: int) -> Digits:
        """Return how a dim is narrowed, once everything is settled."""
        root = self._root(variable)
        if root not in self._digits:
            found = self._classes[root]
            wide = found.size // (found.outer * found.inner)
            self._digits[root] = (
                Digits(1, found.size, found.size, 1)
                if found.is_kept
                else Digits(found.outer, wide, wide // found.factor, found.inner)
            )
        return self._digits[root]

    def _settle(self, number: int, link: _Link) -> bool:
        whole, parts = self._of(link.whole), [self._of(p) for p in link.parts]
        if number not in self._chosen:
            able = [place for place, part in enumerate(parts) if not part.is_kept]
            if able and not whole.is_kept:
                self._chosen[number] = able[-1]
        place = self._chosen.get(number)
        if place is None or whole.is_kept or parts[place].is_kept:
            return self._keep_all([whole, *parts])
        part, others = parts[place], [*parts[:place], *parts[place + 1 :]]
        before, behind = (math.prod(p.size for p in some) for some in (parts[:place], parts[place + 1 :]))
        outer, inner = math.lcm(whole.outer, before * part.outer), math.lcm(whole.inner, behind * part.inner)
        if outer % before or inner % behind or any(part is p for p in others) or whole is part:
            return self._keep_all([whole, *parts])
        changed = self._keep_all(others)
        for each, digits in ((whole, (outer, inner)), (part, (outer // before, inner // behind))):
            changed |= (each.outer, each.inner) != digits
            each.outer, each.inner = digits
        for each in (whole, part, whole):
            changed |= each.lower(min(whole.factor, part.factor))
        return changed

    def _keep_all(self, classes: Iterable[_Class]) -> bool:
        return sum(each.lower(1) for each in classes) > 0

    def _of(self, variable: int) -> _Class:
        return self._classes[self._root(variable)]

    def _root(self, variable: int) -> int:
        while self._parents[variable] != variable:
            self._parents[variable] = self._parents[self._parents[variable]]
            variable = self._parents[variable]
        return variable


def _groups(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> Iterable[tuple[list[int], list[int]]]:
    """The least runs of dims on both sides with equal products, dims of size one left out."""
    ins, outs = [p for p in before if p[1] != 1], [p for p in after if p[1] != 1]
    while ins and outs:
        left, right = [ins.pop(0)], [outs.pop(0)]
        mine, theirs = left[0][1], right[0][1]
        while mine != theirs:
            if mine < theirs:
                left.append(ins.pop(0))
                mine *= left[-1][1]
            else:
                right.append(outs.pop(0))
                theirs *= right[-1][1]
        yield [v for v, _ in left], [v for v, _ in right]
