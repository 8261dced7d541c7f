"""Entries of a list of conversions: src tensors that become dest tensors, in one block or in all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from automap.export.families import Family
from automap.export.text import Code
from automap.plan.fold import Index
from automap.plan.template import instantiate

STAR = "*"
BLOCK = "{n}"
Names: TypeAlias = tuple[Sequence[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Entry:
    """Src tensors that become dest tensors by operations (as code), or are renamed where there are none.

    Names are templates. In src names STAR stands for all numbers; a name that ends with a dot is that of a module, and
    stands for all tensors in it. Where there are `blocks`, such as "0" or "1.layers.3", BLOCK stands for each of them;
    else there is one entry for all values of the indices.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: tuple[Code, ...] = ()
    indices: tuple[Index, ...] = ()
    blocks: tuple[str, ...] = ()

    @property
    def is_idle(self) -> bool:
        """Whether nothing changes, not even the name."""
        return not self.operations and self.sources == self.targets

    def members(self) -> Iterator[Entry]:
        """The entry for each block, names without numbers to fill in."""
        for block in self.blocks:
            yield self._of([[name.replace(BLOCK, block) for name in side] for side in (self.sources, self.targets)])
        for values in () if self.blocks else Family((), self.indices).members():
            yield self._of([[instantiate(name, values) for name in side] for side in (self.sources, self.targets)])

    def _of(self, sides: Sequence[Iterable[str]]) -> Entry:
        return Entry(tuple(sides[0]), tuple(sides[1]), self.operations)
