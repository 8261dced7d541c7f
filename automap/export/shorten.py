"""Entries for tensors become entries for modules, where all tensors of the module that are known go the same way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from automap.export.entries import STAR, Entry, Names
from automap.export.names import holes
from automap.export.text import Group


def shortened(entries: Sequence[Entry], names: Names) -> list[Entry]:
    """Entries that do the same to all of `names`, those of src and those of dest, and are as few as modules allow."""
    candidates: dict[Entry, list[Entry]] = {}
    for entry in entries:
        for cut in range(1, _depth(entry) + 1):
            short = _cut(entry, cut)
            if short is not None:
                candidates.setdefault(short, []).append(entry)
    place = {entry: number for number, entry in enumerate(entries)}
    found: dict[int, Entry] = {}
    left = dict.fromkeys(entries)
    for short in sorted(candidates, key=lambda short: short.sources[0].count(".")):
        members = [entry for entry in candidates[short] if entry in left]
        if members and _is_whole(short, members, names):
            found[place[members[0]]] = short
            left = {entry: None for entry in left if entry not in members}
    found |= {place[entry]: entry for entry in left}
    return [found[number] for number in sorted(found)]


def _depth(entry: Entry) -> int:
    return min(name.count(".") for name in (*entry.sources, *entry.targets))


def _cut(entry: Entry, cut: int) -> Entry | None:
    """The entry without the last `cut` parts of all names, if these are the same everywhere and have no numbers."""
    if any(isinstance(operation, Group) for operation in entry.operations):
        return None  # functions of our own are for one shape, so for one tensor
    endings = {tuple(name.split(".")[-cut:]) for name in (*entry.sources, *entry.targets)}
    if len(endings) > 1 or any(STAR in part or holes(part) for part in endings.pop()):
        return None
    sources, targets = (
        tuple(".".join(name.split(".")[:-cut]) + "." for name in side) for side in (entry.sources, entry.targets)
    )
    return replace(entry, sources=sources, targets=targets)


def _is_whole(short: Entry, members: Iterable[Entry], names: Names) -> bool:
    """Whether `members` are all that is known in the modules of `short`."""
    own: tuple[set[str], set[str]] = (set(), set())
    for member in (block for entry in members for block in entry.members()):
        own[0].update(member.sources)
        own[1].update(member.targets)
    starts: tuple[set[str], set[str]] = (set(), set())
    for block in short.members():
        starts[0].update(block.sources)
        starts[1].update(block.targets)
    return all(
        {name for name in known if name.startswith(tuple(heads))} <= mine
        for known, mine, heads in zip(names, own, starts, strict=True)
    )
