"""What a walk over dest keeps: decisions with their candidates, the stops it does not get past, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from automap.align.assignment import Assignment
from automap.align.candidates import Candidate
from automap.align.labels import Label

Key = tuple[int, int, int]  # dest node, weight-side operand, piece


@dataclass(slots=True)
class Choice:
    """A decision in dest: candidates in order of likeness, the one taken, whether what follows bears it out."""

    key: Key
    label: Label
    candidates: list[Candidate]
    current: int = 0
    is_confirmed: bool = False
    readers: frozenset[int] = frozenset()

    @property
    def taken(self) -> Candidate:
        """The candidate in force."""
        return self.candidates[self.current]


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a node could not be computed: `nothing-meets` (its weight meets a value src does not have), `no-use` (src has
    the value, but no weight that fits), or `output` (an output src does not give).
    """

    node: int
    reason: str
    weight: int | None = None


@dataclass(slots=True)
class Outcome:
    """What the walk found."""

    assignment: Assignment
    choices: dict[Key, Choice]
    stops: list[Stop]
    partners: dict[int, int]
    offs: dict[int, float]
    poisoned: set[int]
    matched_outputs: list[tuple[str, str, float]]
    trials: int = 0
