"""Figures as places on one logarithmic axis, ready to be drawn: no markup here.

The axis goes from 1e-18 to 1e2 in relative difference. Nothing at all is 0, what is beyond the axis or no number is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from automap.report.model import farthest
from automap.results import OpParity, OutputParity, ParityCheck

_LOW, _HIGH = -18, 2  # powers of ten
_MOST_COLUMNS = 240
_MOST_WORST = 8
_MOST_OUTPUTS = 8
TICKS = tuple((f"1e{power}", (power - _LOW) / (_HIGH - _LOW)) for power in (-15, -10, -5, 0))


@dataclass(frozen=True, slots=True)
class Bar:
    """One compared output; `share` and `limit` say where its difference and its tolerance are on the axis."""

    output: OutputParity
    share: float
    limit: float


@dataclass(frozen=True, slots=True)
class CheckChart:
    """A check with its outputs, the farthest apart first where there are too many to show at once."""

    check: ParityCheck
    bars: tuple[Bar, ...]
    rest: tuple[Bar, ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """Ops that follow each other, as one column of the chart: the farthest apart of them, and how many they are."""

    worst: OpParity
    count: int
    left: float
    width: float
    share: float


@dataclass(frozen=True, slots=True)
class OpChart:
    """All compared ops in dest's order, those that differ, and the ones that are farthest apart.

    `limit` is where their tolerance is on the axis, where all have the same one.
    """

    columns: tuple[Column, ...]
    worst: tuple[OpParity, ...]
    first: OpParity | None
    count: int
    different: int
    limit: float | None


def share_of(figure: float) -> float:
    """Return where a relative difference is on the axis, from 0 to 1.

    Example:
        >>> share_of(1e-8), share_of(0.0), share_of(float("nan"))
        (0.5, 0.0, 1.0)
    """
    if math.isnan(figure):
        return 1.0
    if figure <= 0:
        return 0.0
    return round(min(max((math.log10(figure) - _LOW) / (_HIGH - _LOW), 0.0), 1.0), 4) if figure < math.inf else 1.0


def check_chart(check: ParityCheck) -> CheckChart:
    """Return a check's outputs as bars."""
    bars = tuple(Bar(output, share_of(output.max_rel), share_of(output.tolerance)) for output in check.outputs)
    if len(bars) <= _MOST_OUTPUTS:
        return CheckChart(check, bars)
    ranked = tuple(sorted(bars, key=lambda bar: (bar.output.is_equal, -bar.share)))
    return CheckChart(check, ranked[:_MOST_OUTPUTS], ranked[_MOST_OUTPUTS:])


def op_chart(ops: Sequence[OpParity]) -> OpChart | None:
    """Return ops as at most 240 columns, or None where there are none."""
    if not ops:
        return None
    size = math.ceil(len(ops) / _MOST_COLUMNS)
    groups = [ops[start : start + size] for start in range(0, len(ops), size)]
    width = round(1 / len(groups), 6)
    columns = tuple(_column(group, number * width, width) for number, group in enumerate(groups))
    ranked = sorted(ops, key=lambda op: (op.is_equal, -share_of(op.max_rel)))
    first = next((op for op in ops if not op.is_equal), None)
    different = sum(not op.is_equal for op in ops)
    return OpChart(columns, tuple(ranked[:_MOST_WORST]), first, len(ops), different, _common_limit(ops))


def _common_limit(ops: Sequence[OpParity]) -> float | None:
    limits = {op.tolerance for op in ops}
    return share_of(limits.pop()) if len(limits) == 1 and math.inf not in limits else None


def _column(group: Sequence[OpParity], left: float, width: float) -> Column:
    """One column; an op that differs is never hidden by one that does not."""
    worst = farthest([op for op in group if not op.is_equal] or group)
    return Column(worst, len(group), round(left, 6), width, share_of(worst.max_rel))
