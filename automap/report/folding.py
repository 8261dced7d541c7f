"""Folding: rows that say the same of `blocks.0`, `blocks.1`, ... become one row that says it of `blocks.{0..11}`.

A row is a tuple of texts with tensor or module names in them. Rows fold only when all their texts are equal but for
numbers inside names that are the same in every row or count up together, and only over unbroken ranges, which are
written out: nothing that a fold says is untrue of a member.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[\w.{}]*\.[\w.{}]*")
_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Fold:
    """One row for several: its texts with ranges in them, and the positions of the rows it stands for, in order."""

    texts: tuple[str, ...]
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row taken apart: texts cut at the numbers inside names (`skeleton`), and these numbers.

    `names` tells in which name each number is; `is_inner` that a range stands on its left in that name.
    """

    skeleton: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...]
    names: tuple[int, ...]
    is_inner: tuple[bool, ...]
    members: tuple[int, ...]


def fold(rows: Sequence[tuple[str, ...]]) -> tuple[Fold, ...]:
    """Return rows folded, in the order of their first members; together the folds have each row once.

    Example:
        >>> fold([("a.0.weight", "b.1.w"), ("a.1.weight", "b.2.w")])
        (Fold(texts=('a.{0..1}.weight', 'b.{1..2}.w'), members=(0, 1)),)
    """
    folds = [Fold(texts, (index,)) for index, texts in enumerate(rows)]
    while True:
        parts = [_take_apart(row) for row in folds]
        slots = max((len(part.numbers) for part in parts), default=0)
        merged = next((found for slot in reversed(range(slots)) if (found := _merge(parts, slot))), None)
        if merged is None:
            return tuple(folds)
        folds = sorted(merged, key=lambda row: row.members[0])


def _take_apart(row: Fold) -> _Row:
    skeleton: list[tuple[str, ...]] = []
    found: list[tuple[int, int, bool]] = []
    for text in row.texts:
        edges = [0]
        for name in _WORD.finditer(text):
            if not any(letter.isalpha() or letter == "_" for letter in name[0]):
                continue
            for number in _NUMBER.finditer(name[0]):
                found.append((int(number[0]), 100_000 * len(skeleton) + name.start(), "{" in name[0][: number.start()]))
                edges += [name.start() + number.start(), name.start() + number.end()]
        edges.append(len(text))
        skeleton.append(tuple(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)))
    numbers, names, is_inner = zip(*found, strict=True) if found else ((), (), ())
    return _Row(tuple(skeleton), numbers, names, is_inner, row.members)


def _merge(rows: Sequence[_Row], slot: int) -> list[Fold] | None:
    """Return rows with every run that counts up in slot folded, or None where there is no such run."""
    groups: dict[object, list[_Row]] = {}
    for row in rows:
        before = row.numbers[:slot] if slot < len(row.numbers) else None
        groups.setdefault((row.skeleton, before), []).append(row)
    runs = [run for group in groups.values() for run in _runs(group, slot)]
    return [_join(run) for run in runs] if len(runs) < len(rows) else None


def _runs(rows: list[_Row], slot: int) -> list[list[_Row]]:
    """Cut rows into the longest runs in which each number is constant, or counts up with the one in slot."""
    if slot >= len(rows[0].numbers):
        return [[row] for row in rows]
    runs: list[list[_Row]] = []
    for row in sorted(rows, key=lambda row: row.numbers):
        if runs and _continues(runs[-1], row, slot):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _continues(run: list[_Row], row: _Row, slot: int) -> bool:
    step = tuple(new - last for new, last in zip(row.numbers, run[-1].numbers, strict=True))
    if step[slot] != 1 or set(step) - {0, 1} or len(row.members) != len(run[0].members):
        return False
    if len(run) > 1:
        return step == tuple(b - a for a, b in zip(run[0].numbers, run[1].numbers, strict=True))
    moving = [at for at, by in enumerate(step) if by]
    return len({row.names[at] for at in moving}) == len(moving) and not any(row.is_inner[at] for at in moving)


def _join(run: list[_Row]) -> Fold:
    first, last = run[0].numbers, run[-1].numbers
    words = [str(a) if a == b else f"{{{a}..{b}}}" for a, b in zip(first, last, strict=True)]
    texts = []
    for pieces in run[0].skeleton:
        own, words = words[: len(pieces) - 1], words[len(pieces) - 1 :]
        texts.append(pieces[0] + "".join(word + piece for word, piece in zip(own, pieces[1:], strict=True)))
    return Fold(tuple(texts), tuple(member for row in run for member in row.members))
