"""Tries wrong maps for real: dest computed again from the first op that an exchange changes.

All of it in one pass: where an exchange begins, the rest of the flow runs once more beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from automap.align.outputs import relative_difference
from automap.canonical.flow import Flow
from automap.verify.exchanges import Exchange
from automap.verify.stream import Leaves, Schedule


def rerun(
    flow: Flow, wanted: Sequence[int], leaves: Leaves, exchanges: Sequence[Exchange], *, budget: int
) -> Mapping[Exchange, float]:
    """Return how far (relative) each exchange really moves the wanted values.

    Args:
        flow: dest's computation.
        wanted: the nodes that are compared.
        leaves: the right weights, and the inputs.
        exchanges: the wrong maps, in order of interest.
        budget: how many ops may be computed for all of them; what goes beyond is left out.
    """
    schedule = Schedule.of(flow, wanted)
    starts = _starts(schedule, exchanges)
    agenda: dict[int, list[Exchange]] = {}
    for exchange in exchanges:
        cost = len(schedule.order) - starts[exchange]
        if cost <= budget:
            budget -= cost
            agenda.setdefault(starts[exchange], []).append(exchange)
    values: dict[int, Any] = {}
    found: dict[Exchange, list[Tensor]] = {}
    for place, index in enumerate(schedule.order):
        for exchange in agenda.get(place, ()):
            changed = Leaves(exchange.applied(leaves.weights), leaves.inputs)
            found[exchange] = schedule.run(changed, dict(values), place)
        schedule.step(index, leaves, values)
    right = [values[index] for index in schedule.wanted]
    return {
        exchange: max(relative_difference(a, b) for a, b in zip(right, moved, strict=True))
        for exchange, moved in found.items()
    }


def _starts(schedule: Schedule, exchanges: Sequence[Exchange]) -> dict[Exchange, int]:
    """The place in the order where each exchange begins: the first of its weights."""
    places = {index: place for place, index in enumerate(schedule.order)}
    end = len(schedule.order)
    return {e: min((places.get(leaf, end) for leaf in e.leaves), default=end) for e in exchanges}
