"""The same op in other blocks: ops of one kind at one place within modules whose paths differ by numbers only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from automap.capture import Capture

_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Siblings:
    """The recorded calls of a model by what they are: kind, module path without numbers, which one in its module."""

    keys: Mapping[str, Key]
    groups: Mapping[Key, tuple[str, ...]]
    order: Mapping[str, int]

    @classmethod
    def of(cls, capture: Capture) -> Siblings:
        """Return the groups of a recording's calls, each in order."""
        counts: dict[tuple[str, str], int] = {}
        keys: dict[str, Key] = {}
        groups: dict[Key, list[str]] = {}
        for node in capture.graph.nodes:
            if node.op == "call_function":
                key = _key(node, counts)
                keys[node.name] = key
                groups.setdefault(key, []).append(node.name)
        order = {name: number for number, name in enumerate(keys)}
        return cls(keys, {key: tuple(names) for key, names in groups.items()}, order)

    def like(self, name: str) -> tuple[str, ...]:
        """Return the calls like the one called name, itself among them, in order; none where there is no such call."""
        return self.groups[self.keys[name]] if name in self.keys else ()

    def after(self, name: str) -> tuple[str, ...]:
        """Return the calls like the one called name that come later."""
        group = self.like(name)
        return group[group.index(name) + 1 :] if group else ()

    def moved(self, name: str, start: str, end: str) -> str | None:
        """Return the call that is to the one called name what end is to start; None where there is none."""
        group, way = self.like(name), self.like(start)
        if name in group and start in way and end in way:
            place = group.index(name) + way.index(end) - way.index(start)
            if 0 <= place < len(group):
                return group[place]
        return self._as_near(name, start, end)

    def _as_near(self, name: str, start: str, end: str) -> str | None:
        """The call of the kind of the one called name that comes as many before end as that one before start."""
        if name not in self.keys or start not in self.keys or end not in self.keys:
            return None
        kind = self.keys[name][0]
        alike = [other for other, key in self.keys.items() if key[0] == kind]
        before = sum(self.order[name] <= self.order[other] < self.order[start] for other in alike)
        earlier = [other for other in alike if self.order[other] < self.order[end]]
        return earlier[-before] if 0 < before <= len(earlier) else None


def _key(node: fx.Node, counts: dict[tuple[str, str], int]) -> Key:
    path = str(node.meta.get("module_path", ""))
    kind = str(node.target)
    number = counts.get((path, kind), 0)
    counts[path, kind] = number + 1
    return kind, _NUMBER.sub("#", path), number


def renumbered(text: str, before: str, after: str) -> str:
    """Return a text about a module said of one with another number: `blocks.0` as `blocks.1`.

    Args:
        text: any text with names in it.
        before: the path of a module that it is about.
        after: the path of the other module.
    """
    old, new = before.split("."), after.split(".")
    end = next((n + 1 for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    if not end or len(old) != len(new):
        return text
    whole = _named(before).sub(after, text)
    return _named(".".join(old[:end])).sub(".".join(new[:end]), text) if whole == text else whole


def _named(path: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.]){re.escape(path)}(?![\w])")
