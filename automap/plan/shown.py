"""Sizes as people write them: expressions whose numbers print as `d`, `3d` or `i*d`, for the text of rules only.

In: an expression and names for sizes. Out: an equal expression, as an integer that prints as a name is still the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from automap.plan.expr import Expand, Expr, Fill, Pad, Shape, Slice, args_of, walk_sources, with_args
from automap.plan.shapes import shape_of

MIN_NAMED = 8
MAX_MULTIPLE = 16
_LETTERS = "defghlmnopqrstuvwxyzabc"  # not i, j, k, which are indices
_STEP = re.compile(r"\{([1-9][0-9]*)?([a-z]+)([+-][0-9]+)?\}")


class ShownInt(int):
    """An integer that is printed as `text`."""

    text: str

    def __new__(cls, value: int, text: str) -> ShownInt:
        """The integer `value`, printed as `text`."""
        shown = super().__new__(cls, value)
        shown.text = text
        return shown

    def __str__(self) -> str:
        return self.text


def size_names(exprs: Iterable[Expr]) -> dict[int, str]:
    """Names for the sizes that the text of `exprs` needs: those that are dims of dest or src tensors, `d` the first."""
    exprs = tuple(exprs)
    counts = Counter(size for expr in exprs for shape in _shapes(expr) for size in shape if size >= MIN_NAMED)
    ranked = [size for size, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    printed = {sizes for expr in exprs for sizes in _printed(expr)}
    needed = {base for sizes in printed for size in sizes if (base := _base(size, ranked)) and _all_have(sizes, ranked)}
    return dict(zip((size for size in ranked if size in needed), _LETTERS, strict=False))


def _shapes(expr: Expr) -> Iterator[Shape]:
    yield shape_of(expr)
    for source in walk_sources(expr):
        yield source.shape


def _printed(expr: Expr) -> Iterator[tuple[int, ...]]:
    """The sizes that the notation of `expr` writes out, those together that stand together."""
    match expr:
        case Slice(arg, start, stop):
            for first, last, size in zip(start, stop, shape_of(arg), strict=True):
                if last - first != size:
                    yield first, last
        case Fill(shape=shape) | Expand(shape=shape):
            yield from ((size,) for size in shape)
        case Pad(_, before, after):
            yield from ((size,) for size in (*before, *after))
        case _:
            pass
    for arg in args_of(expr):
        yield from _printed(arg)


def _base(size: int, ranked: Iterable[int]) -> int | None:
    """The first of `ranked` that `size` is a small multiple of."""
    return next((base for base in ranked if size and size % base == 0 and size // base <= MAX_MULTIPLE), None)


def _all_have(sizes: Iterable[int], ranked: Iterable[int]) -> bool:
    """Whether every size but 0 is a small multiple of one of `ranked`."""
    return all(not size or _base(size, ranked) for size in sizes)


def size_text(size: int, names: Mapping[int, str]) -> str:
    """`size` as a name, a small multiple of one, or a number."""
    base = _base(size, names)
    if base is None:
        return str(size)
    return f"{'' if size == base else size // base}{names[base]}"


def shown(expr: Expr, starts: tuple[str, ...] = (), names: Mapping[int, str] | None = None) -> Expr:
    """The same expression, to be printed with templates where slices start and with names for sizes."""
    return _shown(expr, iter(starts), names or {})


def _shown(expr: Expr, starts: Iterator[str], names: Mapping[int, str]) -> Expr:
    match expr:
        case Slice(arg, start, stop):
            places = [next(starts, str(first)) for first in start]
            bounds = [
                _bounds(first, last, size, place, names)
                for first, last, size, place in zip(start, stop, shape_of(arg), places, strict=True)
            ]
            expr = replace(expr, start=tuple(first for first, _ in bounds), stop=tuple(last for _, last in bounds))
        case Fill(shape=shape) | Expand(shape=shape):
            expr = replace(expr, shape=_named(shape, names))
        case Pad(_, before, after):
            expr = replace(expr, before=_named(before, names), after=_named(after, names))
        case _:
            pass
    return with_args(expr, tuple(_shown(arg, starts, names) for arg in args_of(expr)))


def _named(sizes: tuple[int, ...], names: Mapping[int, str]) -> tuple[int, ...]:
    return tuple(ShownInt(size, size_text(size, names)) for size in sizes)


def _bounds(first: int, last: int, size: int, place: str, names: Mapping[int, str]) -> tuple[int, int]:
    """Start and stop of one dim, with their texts."""
    if last - first == size:
        return first, last
    if "{" in place:
        return ShownInt(first, _moving_text(place, 0, names)), ShownInt(last, _moving_text(place, last - first, names))
    if not _all_have((first, last), names):
        return first, last
    return ShownInt(first, size_text(first, names)), ShownInt(last, size_text(last, names))


def _moving_text(place: str, more: int, names: Mapping[int, str]) -> str:
    """The template `place`, and `more`: `i*d+2`, `(i+1)*d`."""
    found = _STEP.fullmatch(place)
    if found is None:
        return place[1:-1] + (f"+{size_text(more, names)}" if more else "")
    step = int(found[1] or 1)
    count, rest = divmod(int(found[3] or 0) + more, step)
    text = found[2] + (f"{count:+d}" if count else "")
    if step > 1:
        text = f"({text})*{size_text(step, names)}" if count else f"{text}*{size_text(step, names)}"
    return text + (f"+{size_text(rest, names)}" if rest else "")
