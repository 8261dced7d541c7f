"""What is decided so far: for every element of every dest weight the src element, or a constant, that it takes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from automap.align.table import Side
from automap.canonical.provenance import Trace

#: an element not yet decided; an element that is zero; other constants count on from ONE downwards
UNKNOWN, ZERO, ONE = -1_000_000, -1, -2


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """`dest` elements (flat places in a dest weight-side value) take `src` elements (flat places in a src one).

    `doubtful` marks places that nothing but their order speaks for: numbers that are always zero meet them.
    Without places both values are taken whole, in one layout. With src_value None dest takes the constant `fill`.
    """

    dest_value: int
    dest_places: Tensor | None
    src_value: int | None
    src_places: Tensor | None
    fill: float = 0.0
    doubtful: Tensor | None = None


def _blank(size: int) -> Tensor:
    """Unknown elements, without memory for each."""
    return torch.tensor(UNKNOWN).expand(size)


def _at(ids: Tensor, places: Tensor | None) -> Tensor:
    if places is None:
        return ids.reshape(-1)
    return torch.take(ids, places) if not ids.is_contiguous() else ids.view(-1)[places]


def _is_dense(ids: Tensor) -> bool:
    """Whether a tensor is its storage in some order of dims: nothing left out, nothing twice."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(ids.stride(), ids.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _plain(path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(step for step in path if step != "again")


@dataclass(slots=True)
class _Entry:
    step: int
    leaf: int
    places: Tensor | slice


@dataclass(slots=True)
class Assignment:
    """Mutable book of decisions with undo: `ids[leaf]` holds numbers of src elements, flat.

    `blank` are dest weights of which nothing is decided, `whole` those that are one src weight in its own order.
    """

    dest: Side
    src: Side
    ids: dict[int, Tensor] = field(default_factory=dict)
    journal: list[_Entry] = field(default_factory=list)
    _leaves: list[int] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    _src_leaves: list[int] = field(default_factory=list)
    _src_starts: list[int] = field(default_factory=list)
    blank: set[int] = field(default_factory=set)
    whole: dict[int, int] = field(default_factory=dict)
    doubts: dict[int, Tensor] = field(default_factory=dict)
    _worked_out: tuple[Claim, list[tuple[int, Tensor, Tensor]]] | None = None
    src_values: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def __post_init__(self) -> None:
        """Start with nothing decided."""
        self._leaves = list(self.dest.numbering.offsets)
        self._starts = list(self.dest.numbering.offsets.values())
        self._src_leaves = list(self.src.numbering.offsets)
        self._src_starts = list(self.src.numbering.offsets.values())
        self.blank = set(self._leaves)
        leaves = [self.src.run.weights[i].reshape(-1) for i in self.src.numbering.offsets]
        self.src_values = torch.cat(leaves) if leaves else self.src_values
        for leaf, size in self.dest.numbering.sizes.items():
            self.ids[leaf] = _blank(size)

    def take(self, claim: Claim, step: int) -> bool:
        """Carry a claim back to the stored weights on both sides; return whether anything became known."""
        learned = False
        if claim.doubtful is not None:
            self._doubt(claim)
        twins = self._twins(claim)
        if twins is not None and twins[0] in self.blank:
            self._take_whole(*twins, step)
            return True
        for leaf, places, values in self._carried(claim):
            if leaf in self.blank:
                self.blank.discard(leaf)
                self.ids[leaf] = self.ids[leaf].clone()
            fresh = self.ids[leaf][places] == UNKNOWN
            if bool(fresh.any()):
                places, values = places[fresh], values[fresh]
                self.ids[leaf][places] = values
                self.journal.append(_Entry(step, leaf, places))
                self._refresh(leaf)
                learned = True
        return learned

    def _doubt(self, claim: Claim) -> None:
        assert claim.doubtful is not None
        assert claim.dest_places is not None
        for target, _ in self._paired(claim):
            wanted = _at(target.ids, claim.dest_places)[claim.doubtful]
            for leaf, places, _ in self._by_leaf(wanted, wanted):
                size = self.dest.numbering.sizes[leaf]
                self.doubts.setdefault(leaf, torch.zeros(size, dtype=torch.bool))[places] = True

    def _twins(self, claim: Claim) -> tuple[int, int] | None:
        """The dest and src weight that a claim makes one, element by element in storage order, or None."""
        if claim.dest_places is not None or claim.src_value is None:
            return None
        targets, sources = self.dest.traces(claim.dest_value), self.src.traces(claim.src_value)
        if len(targets) != 1 or len(sources) != 1 or targets[0].path != sources[0].path:
            return None
        mine, theirs = targets[0].ids, sources[0].ids
        if mine.shape != theirs.shape or mine.stride() != theirs.stride() or not _is_dense(mine):
            return None
        leaf, other = self._leaf_of(self.dest, targets[0]), self._leaf_of(self.src, sources[0])
        sizes = self.dest.numbering.sizes[leaf], self.src.numbering.sizes[other]
        return (leaf, other) if sizes[0] == sizes[1] == mine.numel() else None

    def _take_whole(self, leaf: int, other: int, step: int) -> None:
        start, size = self.src.numbering.offsets[other], self.src.numbering.sizes[other]
        self.blank.discard(leaf)
        self.ids[leaf] = self.src.numbering.numbers[start : start + size]
        self.whole[leaf] = other
        self.journal.append(_Entry(step, leaf, slice(None)))
        self.dest.run.weights[leaf] = self.src_values[start : start + size].view(self.dest.flow[leaf].shape)
        self.dest.run.touch(leaf)

    def accepts(self, claim: Claim) -> bool:
        """Whether a claim gives each dest element one source only, and none that contradicts what is decided."""
        if claim.src_value is None:
            return True
        targets = self.dest.traces(claim.dest_value)
        if len(targets) == 1 and targets[0].is_once and self._leaf_of(self.dest, targets[0]) in self.blank:
            return True
        for leaf, places, values in self._carried(claim):
            known = self.ids[leaf][places]
            if bool(((known != UNKNOWN) & (known != values)).float().mean() > 0.5):
                return False
            trial = torch.empty_like(self.ids[leaf])
            trial[places] = values
            if not torch.equal(trial[places], values):
                return False
        return True

    def _carried(self, claim: Claim) -> list[tuple[int, Tensor, Tensor]]:
        """(dest weight, flat places in it, numbers of src elements) for each dest weight that a claim touches."""
        if self._worked_out is None or self._worked_out[0] is not claim:
            self._worked_out = (claim, list(self._work_out(claim)))
        return self._worked_out[1]

    def _work_out(self, claim: Claim) -> Iterator[tuple[int, Tensor, Tensor]]:
        for target, source in self._paired(claim):
            wanted = _at(target.ids, claim.dest_places)
            if source is None:
                given = torch.full_like(wanted, ONE if claim.fill == 1.0 else ZERO)
            else:
                given = _at(source.ids, claim.src_places).clamp(min=ZERO)
            yield from self._by_leaf(wanted, given)

    def _by_leaf(self, wanted: Tensor, given: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        high = int(wanted.max()) if wanted.numel() else -1
        if high < 0:
            return
        low = int(torch.where(wanted < 0, high, wanted).min())
        first, last = bisect_right(self._starts, low) - 1, bisect_right(self._starts, high) - 1
        for position in range(first, last + 1):
            leaf, start = self._leaves[position], self._starts[position]
            if first == last and int(wanted.min()) >= 0:
                yield leaf, wanted - start, given
                continue
            mine = (wanted >= start) & (wanted < start + self.dest.numbering.sizes[leaf])
            if bool(mine.any()):
                yield leaf, wanted[mine] - start, given[mine]

    def _paired(self, claim: Claim) -> list[tuple[Trace, Trace | None]]:
        """Pair the paths of both sides: by the ops on them, else in order; what adds to a paired one is zero."""
        targets = list(self.dest.traces(claim.dest_value))
        if claim.src_value is None:
            return [(target, None) for target in targets]
        sources = list(self.src.traces(claim.src_value))
        free = list(sources)
        found: list[tuple[Trace, Trace | None]] = []
        for target in targets:
            alike = [s for s in free if _plain(s.path) == _plain(target.path)]
            same = max(alike, key=lambda s: self._kinship(target, s), default=None)
            free = [s for s in free if s is not same]
            found.append((target, same))
        for position, (target, source) in enumerate(found):
            if source is None:
                found[position] = (target, free.pop(0) if free else self._apart(target, found, sources))
        return found

    def _kinship(self, target: Trace, source: Trace) -> int:
        """How much speaks for two weights being one: what is decided of them already, then their size."""
        mine, theirs = self._leaf_of(self.dest, target), self._leaf_of(self.src, source)
        start = self.src.numbering.offsets[theirs]
        ids = self.ids[mine]
        is_begun = bool(((ids >= start) & (ids < start + self.src.numbering.sizes[theirs])).any())
        return 2 * is_begun + (self.dest.numbering.sizes[mine] == self.src.numbering.sizes[theirs])

    def _leaf_of(self, side: Side, trace: Trace) -> int:
        first = int(trace.ids[(0,) * trace.ids.dim()]) if trace.ids.numel() else -1
        first = first if first >= 0 else int(trace.ids.max())
        leaves, starts = self._order(side)
        return leaves[max(bisect_right(starts, first) - 1, 0)]

    def _order(self, side: Side) -> tuple[list[int], list[int]]:
        return (self._leaves, self._starts) if side is self.dest else (self._src_leaves, self._src_starts)

    def _apart(self, target: Trace, found: list[tuple[Trace, Trace | None]], sources: list[Trace]) -> Trace | None:
        """A source already paired serves again where its other target covers other elements."""
        mine = target.ids >= 0
        if any(s is not None and t is not target and bool((mine & (t.ids >= 0)).any()) for t, s in found):
            return None
        return sources[0] if sources else None

    def _refresh(self, leaf: int) -> None:
        ids = self.ids[leaf]
        value = self.src_values[ids.clamp(min=0)] if len(self.src_values) else ids.double()
        if int(ids.min()) < 0:
            value[ids == UNKNOWN] = torch.nan
            value[ids == ZERO] = 0.0
            value[ids == ONE] = 1.0
        self.dest.run.weights[leaf] = value.view(self.dest.flow[leaf].shape)
        self.dest.run.touch(leaf)

    def undo(self, steps: set[int]) -> None:
        """Take back all that was decided at the given dest nodes."""
        kept = []
        touched = set()
        for entry in self.journal:
            if entry.step in steps:
                if isinstance(entry.places, slice):
                    del self.whole[entry.leaf]
                    self.ids[entry.leaf] = _blank(self.dest.numbering.sizes[entry.leaf])
                else:
                    self.ids[entry.leaf][entry.places] = UNKNOWN
                touched.add(entry.leaf)
            else:
                kept.append(entry)
        self.journal = kept
        for leaf in touched:
            if bool((self.ids[leaf] == UNKNOWN).all()):
                self.blank.add(leaf)
                self.ids[leaf] = _blank(self.dest.numbering.sizes[leaf])
            self._refresh(leaf)

    def known(self) -> Mapping[int, Tensor]:
        """Return for every leaf which of its elements are decided."""
        return {leaf: ids != UNKNOWN for leaf, ids in self.ids.items()}
