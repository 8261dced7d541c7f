"""What a tensor holds in place of what belongs there: rows in another order, another weight, a multiple, noise.

Two states of one model come in, that which is and that which should be; sentences go out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_MOST_RUNS = 3
_ROUNDINGS = 4  # what is computed on the way may be rounded more than once
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # numpy does not know every number type
_NARROW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Difference:
    """A dest weight that does not hold what it should: how, in words, and how far off (relative to the largest value).

    `is_rounded` tells that it holds the right numbers in a narrower type; `first` is the index of the first element
    that is wrong.
    """

    name: str
    text: str
    max_rel: float
    is_rounded: bool
    first: tuple[int, ...]


@dataclass(slots=True)
class Comparison:
    """Finds out how the tensors of one state differ from those of another; mutable only in what it has looked up."""

    actual: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    _rows: dict[int, dict[int, tuple[str, int]]] = field(default_factory=dict)

    def differences(self) -> Iterator[Difference]:
        """Yield a difference for each tensor that is not what it should be, up to rounding in its own type."""
        for name, wanted in self.expected.items():
            held = self.actual.get(name)
            if held is None or held.shape != wanted.shape or not held.is_floating_point():
                continue
            wanted = wanted.to(held.device)
            if not _is_close(held, wanted):
                off = (held.double() - wanted.double()).abs().max() / (wanted.double().abs().max() or 1.0)
                text, is_rounded = self._text(name, held, wanted)
                first = tuple(torch.nonzero(_off(held, wanted))[0].tolist())
                yield Difference(name, text, float(off), is_rounded, first)

    def _text(self, name: str, held: Tensor, wanted: Tensor) -> tuple[str, bool]:
        if not bool(held.any()):
            return f"`{name}` is zero throughout", False
        other = self._other(name, held)
        if other is not None:
            return f"`{name}` holds what belongs in `{other}`", False
        narrow = next((kind for kind in _NARROW if torch.equal(wanted.to(kind).to(held.dtype), held)), None)
        if narrow is not None:
            return f"`{name}` holds the right numbers rounded to {str(narrow).removeprefix('torch.')}", True
        if held.dim() == 2 and held.shape[0] == held.shape[1] and _is_close(held, wanted.T):
            return f"`{name}` is transposed", False
        factor = _factor(held, wanted)
        if factor is not None:
            return f"`{name}` is what belongs there times {factor:.6g}", False
        return self._part_text(name, held, wanted), False

    def _other(self, name: str, held: Tensor) -> str | None:
        """The dest weight whose content a tensor holds."""
        alike = ((n, t) for n, t in self.expected.items() if n != name and t.shape == held.shape)
        return next((n for n, t in alike if torch.equal(t.to(held.dtype), held)), None)

    def _part_text(self, name: str, held: Tensor, wanted: Tensor) -> str:
        """Say which slices along which dim differ, and what they hold instead."""
        wrong = {dim: _wrong(held, wanted, dim) for dim, size in enumerate(held.shape) if size > 1}
        dim = min(wrong, key=lambda d: (len(wrong[d]) / held.shape[d], d), default=None)
        if dim is None:
            return f"`{name}` differs"
        moved = self._moved(name, held, wrong[dim], dim)
        if moved is not None or len(wrong[dim]) == held.shape[dim]:
            return moved or f"`{name}` differs throughout"
        return (
            f"{_kind(held, dim, len(wrong[dim]))} {_runs(wrong[dim])} of `{name}` differ{'s' * (len(wrong[dim]) == 1)}"
        )

    def _moved(self, name: str, held: Tensor, wrong: Sequence[int], dim: int) -> str | None:
        """Say where the wrong slices along a dim belong, if all of them are found."""
        own = {_key(row): number for number, row in enumerate(self.expected[name].to(held.dtype).unbind(dim))}
        places = [self._place(name, held.select(dim, row), own, dim) for row in wrong]
        if any(place is None for place in places):
            return None
        steps = list(_steps(wrong, [place for place in places if place is not None]))
        kind = _kind(held, dim)
        owners = [owner for owner in dict.fromkeys(owner for _, owner, _ in steps) if owner != name]
        if len(steps) > _MOST_RUNS:
            where = f" of {', '.join(f'`{owner}`' for owner in owners[:_MOST_RUNS])}" if owners else ""
            return f"{kind} {_runs(wrong)} of `{name}` hold what belongs in other {kind}{where}"
        texts = [
            f"{_runs(rows)} hold{'s' * (len(rows) == 1)} what belongs in {_runs(theirs)}"
            + (f" of `{owner}`" if owner != name else "")
            for rows, owner, theirs in steps
        ]
        return f"{kind} of `{name}`: {', '.join(texts)}"

    def _place(self, name: str, row: Tensor, own: Mapping[int, int], dim: int) -> tuple[str, int] | None:
        """The weight and row that a slice belongs to: in the same weight, else, for whole rows, in any."""
        key = _key(row)
        if key in own:
            return name, own[key]
        return self._all_rows(row.numel(), row.dtype).get(key) if dim == 0 and row.dim() else None

    def _all_rows(self, size: int, dtype: torch.dtype) -> dict[int, tuple[str, int]]:
        """Where each row of a size belongs, over all weights."""
        if size not in self._rows:
            alike = {n: t for n, t in self.expected.items() if t.dim() > 1 and t.numel() == len(t) * size}
            self._rows[size] = {_key(row.to(dtype)): (n, k) for n, t in alike.items() for k, row in enumerate(t)}
        return self._rows[size]


def _is_close(held: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors of one shape are equal up to rounding in the first one's type."""
    return not bool(_off(held, wanted).any())


def _off(held: Tensor, wanted: Tensor) -> Tensor:
    """Where a tensor is not what it should be."""
    a, b = held.double(), wanted.double()
    room = _ROUNDINGS * torch.finfo(held.dtype).eps * b.abs()
    return ~(((a - b).abs() <= room) | (a == b) | (a.isnan() & b.isnan()))


def _wrong(held: Tensor, wanted: Tensor, dim: int) -> list[int]:
    """The numbers of the slices along a dim that are not what they should be."""
    off = _off(held, wanted).movedim(dim, 0).reshape(held.shape[dim], -1).any(1)
    return [int(number) for number in torch.nonzero(off).reshape(-1)]


def _factor(held: Tensor, wanted: Tensor) -> float | None:
    """The one factor that a tensor is off by, or None."""
    a, b = held.double().reshape(-1), wanted.double().reshape(-1)
    if len(a) < 2 or not bool(b.any()):
        return None
    factor = float(a @ b) / float(b @ b)
    if abs(factor - 1) < 1e-3:
        return None
    return factor if bool(((a - factor * b).abs() <= 1e-4 * (factor * b).abs()).all()) else None


def _key(row: Tensor) -> int:
    """A number that tells the content of a slice."""
    return hash(row.detach().cpu().reshape(-1).view(_BITS[row.element_size()]).numpy().tobytes())


def _kind(held: Tensor, dim: int, count: int = 2) -> str:
    if dim > 1:
        return f"slice{'s' * (count > 1)} along dim {dim}"
    return ("element" if held.dim() == 1 else ("row", "column")[dim]) + "s" * (count > 1)


def _runs(numbers: Sequence[int]) -> str:
    """Return numbers as ranges: `0..95, 97`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first}..{last}" for first, last in runs]
    return ", ".join(texts[:6]) + (f" and {len(texts) - 6} more runs" if len(texts) > 6 else "")


def _steps(rows: Sequence[int], places: Sequence[tuple[str, int]]) -> Iterator[tuple[list[int], str, list[int]]]:
    """Yield the runs of rows that hold a run of others: (rows, the weight the others belong to, the others)."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end < len(rows):
            is_next = rows[end] == rows[end - 1] + 1 and places[end] == (places[end - 1][0], places[end - 1][1] + 1)
            if is_next:
                continue
        yield list(rows[start:end]), places[start][0], [place for _, place in places[start:end]]
        start = end
