"""A candidate: one possible src counterpart of a use in dest, as claims about weights.

Its likeness says how alike both sides are in what follows. Values decide between candidates, never names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from automap.align.assignment import Claim
from automap.align.labels import Label


@dataclass(frozen=True, eq=False)
class Candidate:
    """One possible counterpart: what it claims, which src part it takes, and how alike the two are (higher is better).

    Claims are worked out when first asked for: most candidates are never tried. `channels` tells for a product of
    matrices the src op and which of its output channels dest's are, `readers` the src ops that compute with these. A
    folded one takes an effective weight; `shift` is then what src adds in the same step.
    """

    work_out: Callable[[], tuple[Claim, ...]]
    key: tuple[object, ...]
    label: Label
    likeness: float
    off: float = 0.0
    channels: tuple[int, Tensor, Tensor] | None = None
    readers: frozenset[int] = frozenset()
    shift: int | None = None
    is_folded: bool = False

    @property
    def id(self) -> tuple[object, ...]:
        """What tells this candidate from the others of one use."""
        return (*self.key, self.is_folded)

    @property
    def src_node(self) -> int:
        """The src op that it is about, -1 where it is a constant."""
        return next((part for part in self.key if isinstance(part, int)), -1)

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """What this candidate says about weights."""
        return self.work_out()


def certain(*claims: Claim) -> Callable[[], tuple[Claim, ...]]:
    """Return claims that are worked out already, in the form that a Candidate takes."""
    return lambda: claims


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A set of output channels that must find one counterpart, and the ops that compute with them."""

    channels: Tensor
    label: Label
    readers: frozenset[int] = frozenset()
