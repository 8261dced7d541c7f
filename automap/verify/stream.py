"""Computes a recorded flow in order and lets go of every value after its last reader.

A flow, weights and inputs come in; values of the wanted nodes go out. Nothing is recursive, so that depth costs
nothing, and never more is held than what is still to be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from automap.canonical.evaluate import compute, widen
from automap.canonical.flow import Flow


@dataclass(frozen=True, slots=True)
class Leaves:
    """What a flow is computed from: its weights by node, and its inputs."""

    weights: Mapping[int, Tensor]
    inputs: Mapping[int, Tensor]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The nodes that wanted ones need, in order, and for each of them what no later node reads."""

    flow: Flow
    wanted: tuple[int, ...]
    order: tuple[int, ...]
    dying: Mapping[int, tuple[int, ...]]

    @classmethod
    def of(cls, flow: Flow, wanted: Sequence[int]) -> Schedule:
        """Return the schedule for the given nodes."""
        order = tuple(sorted(flow.ancestors(list(wanted))))
        last = {operand: index for index in order for operand in flow[index].operands}
        dying: dict[int, list[int]] = {}
        for operand, index in last.items():
            if operand not in wanted:
                dying.setdefault(index, []).append(operand)
        return cls(flow, tuple(wanted), order, {index: tuple(found) for index, found in dying.items()})

    def run(self, leaves: Leaves, values: dict[int, Any] | None = None, start: int = 0) -> list[Tensor]:
        """Return the wanted values; values are those already known before place `start` in the order."""
        values = {} if values is None else values
        for index in self.order[start:]:
            self.step(index, leaves, values)
        return [values[index] for index in self.wanted]

    def step(self, index: int, leaves: Leaves, values: dict[int, Any], result: Any = None) -> Any:
        """Compute one node from values (unless the result is given), put it there, take out what nothing reads any
        more, and return it.
        """
        node = self.flow[index]
        if result is None:
            result = leaf(self.flow, index, leaves) if node.function is None else compute(node, values.__getitem__)
        values[index] = result
        for operand in self.dying.get(index, ()):
            values.pop(operand, None)
        return result


def leaf(flow: Flow, index: int, leaves: Leaves) -> Tensor:
    """Return the value of an input, weight or constant, floating-point numbers as float64."""
    if index in leaves.weights:
        return leaves.weights[index]
    if index in leaves.inputs:
        return widen(leaves.inputs[index])
    return widen(flow.constants[index])


def computed(flow: Flow, wanted: Sequence[int], leaves: Leaves) -> list[Tensor]:
    """Return the values of the wanted nodes."""
    return Schedule.of(flow, wanted).run(leaves)
