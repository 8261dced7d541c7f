"""What is decided so far: for every element of every dest weight the src element, or a constant, that it takes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from automap.align.ids import at, lie_alike
from automap.align.settle import Wanted, settled
from automap.align.side import Side
from automap.align.table import Source
from automap.canonical.evaluate import compute
from automap.canonical.flow import Role
from automap.canonical.provenance import Trace

#: an element not yet decided, or dest's own; elements that are zero and one; other constants count on downwards
UNKNOWN, OWN, ZERO, ONE = -1_000_000, -999_999, -1, -2
_SAME = 1e-9

#: a stored dest weight, flat places in it, the numbers of the src elements that they take
Share: TypeAlias = tuple[int, Tensor, Tensor]


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

    `blank` are dest weights of which nothing is decided, `whole` those that are one src weight in its own order: for
    these the first number alone stands for all, and no memory is taken for each element.
    """

    dest: Side
    src: Source
    ids: dict[int, Tensor] = field(default_factory=dict)
    journal: list[_Entry] = field(default_factory=list)
    _leaves: list[int] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    _src_leaves: list[int] = field(default_factory=list)
    _src_starts: list[int] = field(default_factory=list)
    blank: set[int] = field(default_factory=set)
    whole: dict[int, int] = field(default_factory=dict)
    doubts: dict[int, Tensor] = field(default_factory=dict)
    fills: list[float] = field(default_factory=lambda: [0.0, 1.0])
    own: set[int] = field(default_factory=set)
    _worked_out: tuple[Claim, list[Share] | None] | None = None

    def __post_init__(self) -> None:
        """Start with nothing decided."""
        self._leaves = list(self.dest.numbering.offsets)
        self._starts = list(self.dest.numbering.offsets.values())
        self._src_leaves = list(self.src.numbering.offsets)
        self._src_starts = list(self.src.numbering.offsets.values())
        self.blank = set(self._leaves)
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
        for leaf, places, values in self._carried(claim) or ():
            if leaf in self.blank:
                self.blank.discard(leaf)
                self.ids[leaf] = self.ids[leaf].clone()
                is_fresh = bool(places.numel())
            else:
                fresh = self.ids[leaf][places] == UNKNOWN
                is_fresh, places, values = bool(fresh.any()), places[fresh], values[fresh]
            if is_fresh:
                self.ids[leaf][places] = values
                self.journal.append(_Entry(step, leaf, places))
                self._refresh(leaf)
                learned = True
        return learned

    def numbers(self, leaf: int) -> Tensor:
        """Return the number of the src element that each element of a dest weight is, flat."""
        if leaf not in self.whole:
            return self.ids[leaf]
        start = self.src.numbering.offsets[self.whole[leaf]]
        return torch.arange(start, start + self.dest.numbering.sizes[leaf])

    def _doubt(self, claim: Claim) -> None:
        assert claim.doubtful is not None
        assert claim.dest_places is not None
        for target, _ in self._paired(claim):
            wanted = at(target.ids, claim.dest_places)[claim.doubtful]
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
        if not lie_alike(mine, theirs):
            return None
        leaf, other = self._leaf_of(self.dest, targets[0]), self._leaf_of(self.src, sources[0])
        sizes = self.dest.numbering.sizes[leaf], self.src.numbering.sizes[other]
        if not sizes[0] == sizes[1] == mine.numel():
            return None
        is_moved = self.dest.is_reordered(claim.dest_value) or self.src.is_reordered(claim.src_value)
        return None if is_moved and not torch.equal(mine - mine.min(), theirs - theirs.min()) else (leaf, other)

    def keep_own(self, leaf: int, step: int) -> None:
        """Let a dest weight keep the values it has: a table of dest's own that src need not have."""
        tensor = self.dest.flow.weights[leaf].tensor.detach()
        self.blank.discard(leaf)
        self.own.add(leaf)
        self.ids[leaf] = torch.tensor(OWN).expand(tensor.numel())
        self.journal.append(_Entry(step, leaf, slice(None)))
        self.dest.run.weights[leaf] = tensor.double()
        self.dest.run.touch(leaf)

    def pair(self, leaf: int, other: int, step: int) -> None:
        """Let a dest weight be one src weight, element by element in storage order."""
        start, size = self.src.numbering.offsets[other], self.src.numbering.sizes[other]
        self.blank.discard(leaf)
        self.ids[leaf] = torch.tensor(start).expand(size)
        self.whole[leaf] = other
        self.journal.append(_Entry(step, leaf, slice(None)))

    def _take_whole(self, leaf: int, other: int, step: int) -> None:
        self.pair(leaf, other, step)
        self.dest.run.weights[leaf] = self.src.run.weights[other].reshape(self.dest.flow[leaf].shape)
        self.dest.run.touch(leaf)

    def accepts(self, claim: Claim) -> bool:
        """Whether a claim gives each dest element one source only, and none that contradicts what is decided."""
        targets = self.dest.traces(claim.dest_value)
        is_simple = len(targets) == 1 and not targets[0].path
        if is_simple and claim.src_value is None:
            return True
        if is_simple and targets[0].is_once and self._leaf_of(self.dest, targets[0]) in self.blank:
            return True
        carried = self._carried(claim)
        if carried is None:
            return False
        for leaf, places, values in carried if claim.src_value is not None else ():
            known = self.numbers(leaf)[places]
            if bool(((known != UNKNOWN) & (known != values)).float().mean() > 0.5):
                return False
            trial = torch.empty(self.dest.numbering.sizes[leaf], dtype=torch.long)
            trial[places] = values
            if not torch.equal(trial[places], values):
                return False
        return True

    def shares(self, claim: Claim) -> list[Share]:
        """Return what a claim says of each stored weight of dest; nothing where it cannot be carried back."""
        return self._carried(claim) or []

    def _carried(self, claim: Claim) -> list[Share] | None:
        """What a claim says of each stored weight of dest, or None where arithmetic between has no way back."""
        if self._worked_out is None or self._worked_out[0] is not claim:
            self._worked_out = (claim, self._work_out(claim))
        return self._worked_out[1]

    def _work_out(self, claim: Claim) -> list[Share] | None:
        """Weight by weight where both values are made alike, else by undoing dest's arithmetic; guesses are checked."""
        mine = sorted(_plain(t.path) for t in self.dest.traces(claim.dest_value))
        theirs = [] if claim.src_value is None else sorted(_plain(t.path) for t in self.src.traces(claim.src_value))
        is_alike = mine == theirs or (mine == [()] and claim.src_value is None)
        if is_alike and not any(mine):
            return list(self._leafwise(claim, self._paired(claim)))
        for by_size in (False, True):
            pairs = self._paired(claim, by_size=by_size) if theirs else []
            found = list(self._leafwise(claim, pairs)) if all(source is not None for _, source in pairs) else []
            if found and self._gives(claim, found):
                return found
        if is_alike:  # where the same arithmetic gives another value, the numbers in it differ
            return list(self._leafwise(claim, self._paired(claim)))
        return next((shares for shares in self._settled(claim) if self._gives(claim, shares)), None)

    def _leafwise(self, claim: Claim, pairs: list[tuple[Trace, Trace | None]]) -> Iterator[Share]:
        for target, source in pairs:
            wanted = at(target.ids, claim.dest_places)
            if source is None:
                given = torch.full_like(wanted, self._constant(claim.fill))
            else:
                given = at(source.ids, claim.src_places).clamp(min=ZERO)
            yield from self._by_leaf(wanted, given)

    def _settled(self, claim: Claim) -> Iterator[list[Share]]:
        """What the shares of the weights behind a computed value may be, by undoing what is done to them."""
        places = self._places(self.dest, claim.dest_value, claim.dest_places)
        source = places if claim.src_value is None else self._places(self.src, claim.src_value, claim.src_places)
        wanted = Wanted(claim.dest_value, places, claim.src_value, source, claim.fill)
        for found in settled(self.dest, self.src, wanted, self._is_open):
            yield [(w.value, w.places, self._numbers(w)) for w in found]

    def _places(self, side: Side, index: int, places: Tensor | None) -> Tensor:
        return torch.arange(math.prod(side.flow[index].shape)) if places is None else places

    def _numbers(self, wanted: Wanted) -> Tensor:
        """The src numbers of wanted elements: of stored weights where they are moved only, else of the value itself."""
        if wanted.source is None:
            return torch.full_like(wanted.places, self._constant(wanted.fill))
        behind = self.src.traces(wanted.source)
        if len(behind) == 1 and not behind[0].path:
            return at(behind[0].ids, wanted.source_places).clamp(min=ZERO)
        return self.src.number(wanted.source) + wanted.source_places

    def _constant(self, fill: float) -> int:
        if fill not in self.fills:
            self.fills.append(fill)
        return -1 - self.fills.index(fill)

    def _is_open(self, index: int) -> bool:
        leaves = (i for i in self.dest.flow.ancestors([index]) if i in self.ids)
        return any(leaf in self.blank or bool((self.ids[leaf] == UNKNOWN).any()) for leaf in leaves)

    def _gives(self, claim: Claim, shares: list[Share]) -> bool:
        """Whether dest's value, computed with what the shares say, is the one claimed."""
        flow = self.dest.flow
        weights: dict[int, Tensor] = {}
        for leaf, places, numbers in shares:
            value = weights.setdefault(leaf, self.dest.run.weights[leaf].reshape(-1).clone())
            value[places] = self.values(numbers)
        known: dict[int, Any] = {leaf: value.view(flow[leaf].shape) for leaf, value in weights.items()}
        for index in sorted(flow.ancestors([claim.dest_value])):
            if index not in known:
                is_computed = flow[index].role is Role.WEIGHT and flow[index].op != "weight"
                known[index] = compute(flow[index], known.__getitem__) if is_computed else self.dest.run.value(index)
        mine = known[claim.dest_value].reshape(-1)[self._places(self.dest, claim.dest_value, claim.dest_places)]
        if claim.src_value is None:
            return bool(torch.allclose(mine, torch.full_like(mine, claim.fill), rtol=_SAME, atol=_SAME))
        theirs = self.src.run.value(claim.src_value).reshape(-1)
        theirs = theirs[self._places(self.src, claim.src_value, claim.src_places)]
        return bool(torch.allclose(mine, theirs, rtol=_SAME, atol=_SAME * float(theirs.abs().max())))

    def values(self, numbers: Tensor, value_of: Callable[[int], Any] | None = None) -> Tensor:
        """Return the float64 values of src elements and constants; what is not decided is NaN."""
        value_of = self.src.run.value if value_of is None else value_of
        flat, numbering = numbers.reshape(-1), self.src.numbering
        owners, present = numbering.owners(flat)
        if len(present) == 1 and present[0] >= 0:
            taken = value_of(numbering.leaves[present[0]])
            return torch.take(taken, flat - numbering.starts[present[0]])
        value = torch.full(flat.shape, torch.nan, dtype=torch.float64)
        for owner in present:
            if owner >= 0:
                mine = owners == owner
                taken = value_of(numbering.leaves[owner]).reshape(-1)
                value[mine] = taken[flat[mine] - numbering.starts[owner]]
        for place, fill in enumerate(self.fills):
            value[flat == -1 - place] = fill
        return value

    def _by_leaf(self, wanted: Tensor, given: Tensor) -> Iterator[Share]:
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

    def _paired(self, claim: Claim, *, by_size: bool = False) -> list[tuple[Trace, Trace | None]]:
        """Pair the paths of both sides: by ops or sizes, else in order; what adds to a paired one is zero."""
        targets = list(self.dest.traces(claim.dest_value))
        if claim.src_value is None:
            return [(target, None) for target in targets]
        sources = list(self.src.traces(claim.src_value))
        free = list(sources)
        found: list[tuple[Trace, Trace | None]] = []
        for target in targets:
            alike = [s for s in free if self._is_alike(target, s, by_size=by_size)]
            same = max(alike, key=lambda s: self._kinship(target, s)) if len(alike) > 1 else next(iter(alike), None)
            free = [s for s in free if s is not same]
            found.append((target, same))
        for position, (target, source) in enumerate(found):
            if source is None:
                found[position] = (target, free.pop(0) if free else self._apart(target, found, sources))
        return found

    def _is_alike(self, target: Trace, source: Trace, *, by_size: bool) -> bool:
        sizes = self.dest.numbering.sizes, self.src.numbering.sizes
        if by_size:
            return sizes[0][self._leaf_of(self.dest, target)] == sizes[1][self._leaf_of(self.src, source)]
        return _plain(source.path) == _plain(target.path)

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
        self.dest.run.weights[leaf] = self.values(self.ids[leaf]).view(self.dest.flow[leaf].shape)
        self.dest.run.touch(leaf)

    def undo(self, steps: set[int]) -> None:
        """Take back all that was decided at the given dest nodes."""
        kept = []
        touched = set()
        for entry in self.journal:
            if entry.step in steps:
                if isinstance(entry.places, slice):
                    self.whole.pop(entry.leaf, None)
                    self.own.discard(entry.leaf)
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
