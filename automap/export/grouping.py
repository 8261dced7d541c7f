"""Entries that do the same in many blocks become one, with a group for the numbers of the blocks.

A group stands for any numbers, so it is only used where it matches the names of these blocks and no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from automap.export.entries import BLOCK, Entry, Names
from automap.export.families import Family
from automap.export.names import holes
from automap.export.patterns import known, pattern, regex
from automap.plan.template import instantiate


def grouped(entries: Sequence[Entry], names: Names) -> list[Entry]:
    """The entries, as few as groups allow that match none of `names` besides."""
    kinds: dict[object, list[Entry]] = {}
    for number, entry in enumerate(entries):
        wide = _wide(entry)
        kinds.setdefault(number if wide is None else (replace(wide, blocks=()), _form(wide.blocks)), []).append(entry)
    return [entry for members in kinds.values() for entry in _merged(members, names)]


def _form(blocks: Sequence[str]) -> str:
    return re.sub(r"\d+", "0", blocks[0])


def _merged(members: Sequence[Entry], names: Names) -> list[Entry]:
    """One entry for all members where that is exact, else each with a group of its own or as it is."""
    wide = [found for member in members if (found := _wide(member)) is not None]
    blocks = tuple(block for one in wide for block in one.blocks)
    if len(blocks) > 1:
        whole = replace(wide[0], blocks=blocks)
        if _is_exact(whole, names):
            return [whole]
    narrow = [(member, _narrow(member)) for member in members]
    return [one if one is not None and _is_exact(one, names) else member for member, one in narrow]


def _wide(entry: Entry) -> Entry | None:
    """The entry with BLOCK for everything from the first number to the last, if that is equal in all names."""
    found: set[Entry] = set()
    blocks: list[str] = []
    for member in entry.members():
        spans = {_span(name) for name in (*member.sources, *member.targets)}
        if len(spans) > 1 or "" in spans:
            return None
        (block,) = spans
        blocks.append(block)
        sources, targets = (tuple(_put(name, block) for name in side) for side in (member.sources, member.targets))
        found.add(replace(member, sources=sources, targets=targets))
    return replace(found.pop(), blocks=tuple(blocks)) if len(found) == 1 else None


def _span(name: str) -> str:
    """What stands from the first number between two dots to the last."""
    parts = name.split(".")
    places = [place for place, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[places[0] : places[-1] + 1]) if places else ""


def _put(name: str, block: str) -> str:
    """The name with BLOCK in the place of its numbers."""
    parts = name.split(".")
    start = next(place for place, part in enumerate(parts) if part.isdecimal())
    return ".".join([*parts[:start], BLOCK, *parts[start + block.count(".") + 1 :]])


def _narrow(entry: Entry) -> Entry | None:
    """The entry with BLOCK for its indices, if these stand in all names with the same text between them."""
    every = (*entry.sources, *entry.targets)
    middles = {name[name.find("{") : name.rfind("}") + 1] for name in every}
    if not entry.indices or len(middles) > 1:
        return None
    (middle,) = middles
    if holes(middle) != [index.name for index in entry.indices]:
        return None
    blocks = tuple(instantiate(middle, values) for values in Family((), entry.indices).members())
    sources, targets = (tuple(name.replace(middle, BLOCK) for name in side) for side in (entry.sources, entry.targets))
    return Entry(sources, targets, entry.operations, (), blocks)


def _is_exact(entry: Entry, names: Names) -> bool:
    """Whether the patterns of an entry match its own names only."""
    own: tuple[set[str], set[str]] = (set(), set())
    for member in entry.members():
        own[0].update(name for name, _ in known(member.sources, names[0]))
        own[1].update(name for name, _ in known(member.targets, names[1]))
    return all(
        _matches(side, entry.blocks, every) <= mine
        for side, mine, every in zip((entry.sources, entry.targets), own, names, strict=True)
    )


def _matches(templates: Iterable[str], blocks: Sequence[str], names: Iterable[str]) -> set[str]:
    patterns = [regex(pattern(template, blocks)) for template in templates]
    return {name for name in names if any(one.match(name) for one in patterns)}
