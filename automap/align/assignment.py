"""What is decided so far: for every element of every dest weight the src element, or a constant, that it takes."""

from __future__ import annotations

from collections.abc import Mapping
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

    With src_value None they take the constant `fill`.
    """

    dest_value: int
    dest_places: Tensor
    src_value: int | None
    src_places: Tensor
    fill: float = 0.0


@dataclass(slots=True)
class _Entry:
    step: int
    leaf: int
    places: Tensor


@dataclass(slots=True)
class Assignment:
    """Mutable book of decisions with undo: `ids[leaf]` holds numbers of src elements, flat."""

    dest: Side
    src: Side
    ids: dict[int, Tensor] = field(default_factory=dict)
    journal: list[_Entry] = field(default_factory=list)
    src_values: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def __post_init__(self) -> None:
        """Start with nothing decided."""
        leaves = [self.src.run.weights[i].reshape(-1) for i in self.src.numbering.offsets]
        self.src_values = torch.cat(leaves) if leaves else self.src_values
        for leaf, size in self.dest.numbering.sizes.items():
            self.ids[leaf] = torch.full((size,), UNKNOWN)

    def take(self, claim: Claim, step: int) -> bool:
        """Carry a claim back to the stored weights on both sides; return whether anything became known."""
        learned = False
        for target, source in self._paired(claim):
            wanted = target.ids.reshape(-1)[claim.dest_places]
            given = source.ids.reshape(-1)[claim.src_places] if source is not None else torch.full_like(wanted, ZERO)
            given = torch.where(given < 0, torch.full_like(given, ZERO), given)
            if source is None and claim.fill == 1.0:
                given = torch.full_like(wanted, ONE)
            learned = self._write(wanted, given, step) or learned
        return learned

    def accepts(self, claim: Claim) -> bool:
        """Whether a claim gives each dest element one source only, and none that contradicts what is decided."""
        if claim.src_value is None:
            return True
        for target, source in self._paired(claim):
            wanted = target.ids.reshape(-1)[claim.dest_places]
            given = source.ids.reshape(-1)[claim.src_places] if source is not None else torch.full_like(wanted, ZERO)
            given = given.clamp(min=ZERO)
            for leaf, start in self.dest.numbering.offsets.items():
                mine = (wanted >= start) & (wanted < start + self.dest.numbering.sizes[leaf])
                if not bool(mine.any()):
                    continue
                places, values = wanted[mine] - start, given[mine]
                trial = self.ids[leaf].clone()
                trial[places] = values
                known = self.ids[leaf][places]
                if bool((trial[places] != values).any()) or bool(((known != UNKNOWN) & (known != values)).float().mean() > 0.5):
                    return False
        return True

    def _paired(self, claim: Claim) -> list[tuple[Trace, Trace | None]]:
        """Pair the paths of both sides: by the ops on them, else in order."""
        targets = list(self.dest.traces(claim.dest_value))
        if claim.src_value is None:
            return [(target, None) for target in targets[:1]]
        sources = list(self.src.traces(claim.src_value))
        found: list[tuple[Trace, Trace | None]] = []
        for target in targets:
            same = next((s for s in sources if s.path == target.path), None)
            if same is not None:
                sources.remove(same)
            found.append((target, same))
        for position, (target, source) in enumerate(found):
            if source is None and sources:
                found[position] = (target, sources.pop(0))
        return found

    def _write(self, wanted: Tensor, given: Tensor, step: int) -> bool:
        learned = False
        for leaf, start in self.dest.numbering.offsets.items():
            size = self.dest.numbering.sizes[leaf]
            mine = (wanted >= start) & (wanted < start + size)
            if not bool(mine.any()):
                continue
            places, values = wanted[mine] - start, given[mine]
            fresh = self.ids[leaf][places] == UNKNOWN
            if bool(fresh.any()):
                places, values = places[fresh], values[fresh]
                self.ids[leaf][places] = values
                self.journal.append(_Entry(step, leaf, places))
                self._refresh(leaf)
                learned = True
        return learned

    def _refresh(self, leaf: int) -> None:
        ids = self.ids[leaf]
        value = torch.where(ids == UNKNOWN, torch.nan, 0.0).to(torch.float64)
        known = ids >= 0
        value[known] = self.src_values[ids[known]]
        value[ids == ONE] = 1.0
        self.dest.run.weights[leaf] = value.view(self.dest.flow[leaf].shape)
        self.dest.run.touch(leaf)

    def undo(self, steps: set[int]) -> None:
        """Take back all that was decided at the given dest nodes."""
        kept = []
        touched = set()
        for entry in self.journal:
            if entry.step in steps:
                self.ids[entry.leaf][entry.places] = UNKNOWN
                touched.add(entry.leaf)
            else:
                kept.append(entry)
        self.journal = kept
        for leaf in touched:
            self._refresh(leaf)

    def known(self) -> Mapping[int, Tensor]:
        """Return for every leaf which of its elements are decided."""
        return {leaf: ids != UNKNOWN for leaf, ids in self.ids.items()}
