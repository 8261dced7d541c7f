"""Factors that both sides apply at different places: found where a dest value is a src value times one number."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from automap.align.assignment import Claim
from automap.align.candidates import Candidate
from automap.align.moments import EXACT, moments
from automap.align.second import Second
from automap.align.side import Side
from automap.align.table import Source
from automap.canonical.flow import Ref, Role

_MOST_NODES = 400
_OPS = ("matmul", "add", "mul", "div", "lookup")


@dataclass(frozen=True, slots=True)
class Factor:
    """Dest's value `node` is `twin` of src times `ratio`; `is_held` tells that src has it as it is as well."""

    node: int
    twin: int
    ratio: float
    is_held: bool


def proportional(dest: Side, src: Source, starts: tuple[int, ...]) -> list[Factor]:
    """Return the dest values behind starts that are src values times a number other than one, nearest first."""
    behind = sorted(i for i in dest.flow.ancestors(starts) if dest.flow[i].op in _OPS)
    known = _sums_by_size(src)
    found = []
    for index in reversed(behind[-_MOST_NODES:]):
        value = dest.run.value(index) if dest.run.knows(index) else None
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1:
            ratios = [(twin, _ratio(_sums(value), theirs)) for twin, theirs in known.get(value.numel(), ())]
            is_held = any(r == 1.0 for _, r in ratios)
            others = [(twin, r) for twin, r in reversed(ratios) if r is not None and r != 1.0]
            found += [
                Factor(index, *pair, is_held) for pair in others
            ]  # the last one in src is what goes on from there
    return found


def steady(factor: Factor, second: Second) -> float | Ref | None:
    """Return the ratio of a factor as what it is on all weights: a number, a weight-side scalar, or None."""
    mine, theirs = second.of_dest(factor.node), second.of_src(factor.twin)
    again = _ratio(_sums(mine), _sums(theirs))
    return None if again is None else second.factor(factor.ratio, again)


def _sums_by_size(src: Source) -> dict[int, list[tuple[int, Tensor]]]:
    found: dict[int, list[tuple[int, Tensor]]] = {}
    for node in src.flow.nodes:
        if node.role is Role.ACTIVATION and node.op in _OPS:
            value = src.run.value(node.index)
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1:
                found.setdefault(value.numel(), []).append((node.index, _sums(value)))
    return found


def _sums(value: Tensor) -> Tensor:
    return moments(value, tuple(range(value.dim())))


def _ratio(mine: Tensor, theirs: Tensor) -> float | None:
    """The number that a value is times another, by the sums of their first three powers; one where it is the other."""
    if float(theirs[1]) <= 0 or float(mine[1]) <= 0 or float(theirs[2]) == 0:
        return None
    ratio = float(mine[2] / theirs[2])
    ratio = abs(ratio) ** (1 / 3) * (1 if ratio > 0 else -1)
    powers = torch.tensor([ratio, ratio**2, ratio**3], dtype=torch.float64)
    size = torch.stack([theirs[1].sqrt(), theirs[1], theirs[1] ** 1.5]) * powers.abs()
    if bool(((mine - theirs * powers).abs() > 1e3 * EXACT * size).any()):
        return None
    return 1.0 if abs(ratio - 1) < 1e-6 else ratio


def rescaled(src: Source, candidate: Candidate, ratio: float | Ref) -> Candidate:
    """Return a candidate whose weights, and the shift behind it, are divided by a number or a scalar."""
    from automap.align.tables import added_to

    factor = Ref(src.derive("reciprocal", torch.reciprocal, ratio)) if isinstance(ratio, Ref) else 1.0 / ratio

    def claims() -> tuple[Claim, ...]:
        return tuple(
            c if c.src_value is None else replace(c, src_value=_times(src, c.src_value, factor))
            for c in candidate.claims
        )

    shift, order = added_to(src, candidate, candidate.channels[0]) if candidate.channels else (None, torch.arange(0))
    if shift is not None:
        from automap.align.effective import taken

        shift = _times(src, taken(src, shift, order), factor)
    key = (*candidate.key, "scaled")
    return replace(candidate, work_out=claims, key=key, shift=shift, is_folded=True)


def _times(src: Source, index: int, factor: float | Ref) -> int:
    return src.derive("mul", torch.mul, Ref(index), factor)
