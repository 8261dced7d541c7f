"""Both models side by side: a Report's rows grouped into parts of dest and the parts of src they are made of.

Grouping is by names alone and for reading only: a block holds the rows of one module of dest, with `{i}` for numbered
ones that are made alike. Together the blocks have every row once, in dest's order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from automap.report.model import EVIDENCE, Report, Row
from automap.results import Evidence

_DEPTH = 2  # parts of a name without numbers that make a block
_MOST_BLOCKS = 400  # beyond, coarser ones are made
_MOST_OPEN = 60  # rows that are shown without a click
_Key = tuple[str, str]  # a part of dest, and the numbers that it stands for


@dataclass(frozen=True, slots=True)
class Block:
    """A part of dest and the parts of src that its weights are made of, in the order of first use.

    `dest` is "" for weights of the model itself; `findings` are positions in the report's findings; `is_open` says
    that there is room to show the rows at once.
    """

    src: tuple[str, ...]
    dest: str
    indices: str
    rows: tuple[Row, ...]
    findings: tuple[int, ...] = ()
    is_open: bool = False

    @property
    def count(self) -> int:
        """How many dest weights it has."""
        return sum(len(row.members) for row in self.rows)

    @property
    def copies(self) -> int:
        """How many modules of dest it stands for."""
        return max(len(row.members) for row in self.rows) if self.indices else 1

    @property
    def evidence(self) -> Mapping[Evidence, int]:
        """How many weights there are of each kind of evidence, the strongest first."""
        counts = Counter(row.evidence for row in self.rows for _ in row.members)
        return {how: counts[how] for how in EVIDENCE if counts[how]}


def blocks_of(report: Report) -> tuple[Block, ...]:
    """Return the rows of report in blocks, with the findings that each one has."""
    rows = [row for stage in report.stages for row in stage.rows]
    groups = next(found for part in _PARTS if len(found := _grouped(rows, part)) <= _MOST_BLOCKS or part is _all)
    findings = _findings_by_part(report, groups)
    blocks, room = [], _MOST_OPEN
    for key, members in groups.items():
        is_open = len(members) <= room
        room -= len(members) if is_open else 0
        blocks.append(Block(_sources(members), *key, tuple(members), findings.get(key, ()), is_open))
    return tuple(blocks)


def part_of(name: str) -> str:
    """Return the part of a model that a weight's name stands in: up to its last hole, else its first number.

    Example:
        >>> [part_of(name) for name in ("layers.{i}.fc.weight", "a.0.b.1.w", "vit.embeddings.proj.bias", "cls_token")]
        ['layers.{i}', 'a.0', 'vit.embeddings', '']
    """
    parts = name.split(".")[:-1]
    holes = [at for at, part in enumerate(parts) if "{" in part]
    numbers = [at for at, part in enumerate(parts) if part.isdigit()]
    end = holes[-1] + 1 if holes else numbers[0] + 1 if numbers else _DEPTH
    return ".".join(parts[:end])


def _first_part(name: str) -> str:
    first, dot, _ = name.partition(".")
    return first if dot else ""


def _all(name: str) -> str:
    return ""


_PARTS: tuple[Callable[[str], str], ...] = (part_of, _first_part, _all)


def _grouped(rows: Iterable[Row], part: Callable[[str], str]) -> dict[_Key, list[Row]]:
    """Rows by the part of dest they are in and the numbers they stand for, in the order of first members."""
    groups: dict[_Key, list[Row]] = {}
    for row in rows:
        groups.setdefault((part(row.dest), row.indices if part is part_of else ""), []).append(row)
    return groups


def _sources(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part_of(name) for row in rows for name in row.sources))


def _findings_by_part(report: Report, groups: Mapping[_Key, list[Row]]) -> dict[_Key, tuple[int, ...]]:
    """Positions of findings by the block that the dest side of each is in."""
    owners: dict[str, _Key] = {}
    for key, rows in groups.items():
        for member in (member for row in rows for member in row.members):
            for prefix in _prefixes(member.dest):
                owners.setdefault(prefix, key)
    found: dict[_Key, tuple[int, ...]] = {}
    for position, folded in enumerate(report.findings):
        site = folded.finding.dest
        owner = owners.get(site.name) if site is not None else None
        if owner is not None:
            found[owner] = (*found.get(owner, ()), position)
    return found


def _prefixes(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))
