"""Where to cut a tensor of ids so that each piece is simpler: between sources, or where a pattern changes.

A cut is along one dim, or within a period of it: q, k and v that alternate head by head are three pieces of one period.
Cuts are guesses at a good structure; what is built from the pieces is checked exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from automap.plan.expr import Concat, Expr, Reshape
from automap.plan.sequence import divisors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cuts:
    """Pieces along `dim`, viewed as repetitions of `period` elements; `starts` are where pieces begin, 0 included."""

    dim: int
    period: int
    starts: tuple[int, ...]


def joined_pieces(ids: Tensor, cuts: Cuts, build: Callable[[Tensor], Expr]) -> Expr:
    """The pieces of `ids`, each built on its own, joined again."""
    dim, shape = cuts.dim, tuple(ids.shape)
    if cuts.period == shape[dim]:
        pieces = _pieces(ids, dim, cuts)
        return Concat(tuple(build(piece) for piece in pieces), dim)
    view = (*shape[:dim], shape[dim] // cuts.period, cuts.period, *shape[dim + 1 :])
    pieces = _pieces(ids.reshape(view), dim + 1, cuts)
    return Reshape(Concat(tuple(build(piece) for piece in pieces), dim + 1), shape)


def _pieces(ids: Tensor, dim: int, cuts: Cuts) -> Iterator[Tensor]:
    for start, stop in pairwise((*cuts.starts, cuts.period)):
        yield ids.narrow(dim, start, stop - start).contiguous()


def cuts_between(labels: Tensor, limit: int) -> Cuts | None:
    """The cuts between different `labels`, along the dim that tears fewest apart; None where all need over `limit`."""
    found = [cuts for dim in range(labels.dim()) if (cuts := _cuts_along(labels, dim)) is not None]
    found = [cuts for cuts in found if len(cuts.starts) <= limit]
    if len(found) < 2:
        return found[0] if found else None
    return min(found, key=lambda cuts: (_torn(labels, cuts), len(cuts.starts), cuts.dim))


def cuts_between_patterns(ids: Tensor, limit: int) -> Cuts | None:
    """The cuts between slices with other differences inside, at most `limit` and not much less than ten slices apart.

    None where there are none, or all are too many.
    """
    found = []
    for dim in range(ids.dim()):
        first = tuple(slice(None) if d == dim else slice(0, 1) for d in range(ids.dim()))
        found.append(_cuts_along(ids - ids[first], dim))
    few = [cuts for cuts in found if cuts and len(cuts.starts) <= min(limit, max(2, cuts.period // 8))]
    return min(few, key=lambda cuts: (len(cuts.starts), cuts.dim)) if few else None


def _cuts_along(labels: Tensor, dim: int) -> Cuts | None:
    """The cuts where slices of `labels` along `dim` change; None where they are all equal."""
    size = labels.shape[dim]
    if size < 2:
        return None
    changed = labels.narrow(dim, 1, size - 1) != labels.narrow(dim, 0, size - 1)
    changes = changed.movedim(dim, 0).reshape(size - 1, -1).any(dim=1).nonzero().reshape(-1) + 1
    if not len(changes):
        return None
    starts = changes.new_zeros(len(changes) + 1)
    starts[1:] = changes
    period = _period(labels, dim, starts)
    return Cuts(dim, period, tuple(start for start in starts.tolist() if start < period))


def _period(labels: Tensor, dim: int, starts: Tensor) -> int:
    """The shortest number of slices along `dim` that repeats."""
    size = labels.shape[dim]
    kinds = labels.index_select(dim, starts).movedim(dim, 0).reshape(len(starts), -1)
    kind = (kinds * _weights(kinds)).sum(dim=1)
    lengths = starts.diff(append=starts.new_full((1,), size))
    sequence = kind.repeat_interleave(lengths)
    for period in divisors(size):
        rows = sequence.view(-1, period)
        if bool((rows == rows[:1]).all()):
            return period
    return size


def _weights(kinds: Tensor) -> Tensor:
    """One factor a column, such that rows with equal sums are (nearly always) equal; a collision costs only looks."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**62), 2**62, kinds.shape[1:], generator=generator)


def _torn(labels: Tensor, cuts: Cuts) -> int:
    """How many (piece, label) pairs the cuts make: the number of labels if none is torn apart."""
    dim, shape = cuts.dim, labels.shape
    view = labels.reshape(*shape[:dim], shape[dim] // cuts.period, cuts.period, *shape[dim + 1 :])
    pairs = 0
    for piece in _pieces(view, dim + 1, cuts):
        pairs += len(piece.unique())  # type: ignore[no-untyped-call]
    return pairs
