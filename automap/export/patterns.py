r"""Names as the regular expressions of transformers' WeightRenaming and WeightConverter, and what these make of names.

Every pattern begins with `^`, on both sides, so that an entry is as exact on the way back as on the way there. The
number of a block is one group, `(\d+)`, the only one that transformers fills in.

Source: transformers 5.23, core_model_loading.py: `WeightTransform.rename_source_key`, `revert_weight_conversion`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from automap.errors import ExportError
from automap.export.entries import BLOCK, STAR, Entry, Names

_PLAIN = re.compile(r"[\w.:/-]*[A-Za-z0-9]", re.ASCII)


def check_plain(names: Iterable[str]) -> None:
    """Refuses names that would mean something else in a pattern.

    Raises:
        ExportError: a name has other characters than letters, digits and `_ . - : /`, or ends with one of these.
    """
    for name in names:
        if not _PLAIN.fullmatch(name):
            raise ExportError(
                f"cannot export to transformers: `{name}` has characters that mean something else in a pattern"
            )


def pattern(template: str, blocks: Sequence[str] = ()) -> str:
    r"""The pattern for a name: BLOCK becomes a group for `blocks`, other numbers stay holes of an f-string.

    Example:
        >>> pattern("layers.{n}.attn.qkv.", ["0", "1"])
        '^layers\\.(\\d+)\\.attn\\.qkv\\.'
    """
    if not blocks:
        return "^" + _escaped(template)
    numbers = re.sub(r"\d+", lambda _: r"\d+", _escaped(blocks[0]))
    return "^" + _escaped(template).replace(BLOCK, f"({numbers})")


def _escaped(text: str) -> str:
    return text.replace(".", r"\.").replace(rf"{STAR}\.", f"{STAR}.")


def regex(text: str) -> re.Pattern[str]:
    """A pattern as transformers compiles it: `*.` is anything up to a dot, a name ends where it ends."""
    return re.compile(text.replace(f"{STAR}.", r".*\.") + (r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", text) else ""))


def known(sides: Sequence[str], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The names that one of `sides` stands for, each with what comes after it."""
    for side in sides:
        if STAR in side:
            wide = regex(pattern(side))
            yield from ((name, name[found.end() :]) for name in names if (found := wide.match(name)))
        elif side.endswith("."):
            yield from ((name, name.removeprefix(side)) for name in names if name.startswith(side))
        else:
            yield side, ""


@dataclass(frozen=True, slots=True)
class _Step:
    """A renaming or converter in one direction: the first of `given` that matches is replaced by `made`."""

    given: tuple[re.Pattern[str], ...]
    made: str
    is_converter: bool

    def renamed(self, name: str) -> str | None:
        """The new name, or None where nothing matches."""
        for one in self.given:
            found = one.match(name)
            if found is not None:
                made = self.made.replace(r"\1", found[1]) if r"\1" in self.made else self.made
                return made + name[found.end() :]
        return None


def _steps(entries: Iterable[Entry], *, is_reverse: bool) -> list[_Step]:
    steps = []
    for entry in entries:
        for member in () if entry.is_idle else [entry] if entry.blocks else entry.members():
            given, made = (member.targets, member.sources) if is_reverse else (member.sources, member.targets)
            written = sorted((pattern(name, entry.blocks) for name in given), key=len, reverse=True)
            target = made[0].replace(BLOCK, r"\1")
            steps.append(_Step(tuple(map(regex, written)), target, bool(entry.operations)))
    return steps[::-1] if is_reverse else steps


def _walked(name: str, steps: Sequence[_Step], *, is_reverse: bool) -> tuple[str, bool]:
    """The name after all renamings and then at most one converter (in reverse before), and whether there was one."""
    if not is_reverse:
        return _converted(_chained(name, steps), steps)
    name, is_found = _converted(name, steps)
    return (name, True) if is_found else (_chained(name, steps), False)


def _chained(name: str, steps: Sequence[_Step]) -> str:
    for step in steps:
        name = name if step.is_converter else step.renamed(name) or name
    return name


def _converted(name: str, steps: Sequence[_Step]) -> tuple[str, bool]:
    made = next((made for step in steps if step.is_converter and (made := step.renamed(name)) is not None), None)
    return (name, False) if made is None else (made, True)


def first_astray(entries: Sequence[Entry], names: Names) -> str | None:
    """The first name that `entries` would not bring where they should, on loading or saving; None where all arrive."""
    forward, back = _steps(entries, is_reverse=False), _steps(entries, is_reverse=True)
    for member in (member for entry in entries for member in entry.members()):
        is_converter = bool(member.operations)
        for name, ending in known(member.sources, names[0]):
            if _walked(name, forward, is_reverse=False) != (member.targets[0] + ending, is_converter):
                return name
            if is_converter and _chained(name, back) != name:
                return name
        for name, ending in known(member.targets, names[1]):
            if _walked(name, back, is_reverse=True) != (member.sources[0] + ending, is_converter):
                return name
    return None
