"""Matches models that do the same op for op, on their own graphs: nothing is computed, whatever their size.

Where a single op has no counterpart this gives nothing, and numbers have to decide.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from automap.align.assignment import Assignment
from automap.align.choices import Outcome
from automap.align.counterparts import Counterparts
from automap.align.side import Side
from automap.align.solve import SMALL, Flows, Solution
from automap.align.table import Source
from automap.canonical.flow import Role
from automap.capture import Capture
from automap.twin import narrow_twins
from automap.twin.shrink import full_work


@dataclass(slots=True)
class Agreement:
    """What goes with what, by node: `whole` are dest weights with the src weight that each of them is, `blank` those
    still open, `same` dest nodes with the src node that gives the same, `users` those of them that decided on weights.

    Mutable on purpose: a walk over dest fills it in.
    """

    blank: set[int]
    whole: dict[int, int] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)
    users: dict[int, int] = field(default_factory=dict)
    outputs: list[tuple[str, str, float]] = field(default_factory=list)

    def decide(self, node: int, twin: int, weights: Mapping[int, int]) -> None:
        """Let a dest node be what a src node is, with these weights."""
        self.whole |= weights
        self.blank -= weights.keys()
        self.users[node] = twin


def solve_by_ops(src: Capture, flows: Flows) -> tuple[Solution, Agreement] | None:
    """Return the solution of two large models that do the same op for op, and its agreement; None for others."""
    is_read = src.is_data_dependent or flows.dest_capture.is_data_dependent
    if is_read or full_work(flows.src) + full_work(flows.dest) < SMALL:
        return None
    started = time.perf_counter()
    source, side = Source(flows.src, {}), Side(flows.dest, {})
    agreement = _walked(source, side)
    if agreement is None:
        return None
    timings = {"canonical": flows.elapsed_s, "compute": 0.0, "align": time.perf_counter() - started}
    outcome = _outcome(agreement, source, side)
    own = flows.src, flows.dest
    return Solution(source, side, outcome, src, flows.dest_capture, False, timings, own), agreement


def on_twins(solution: Solution, agreement: Agreement) -> Solution | None:
    """Return the same solution for narrow twins, whose nodes are those of the models, or None where there are none."""
    src, dest = solution.flows
    twins = narrow_twins(src, dest, least_work=0, least_gain=1.0)
    if twins is None:
        return None
    source, side = Source(twins.src, {}), Side(twins.dest, {})
    return replace(solution, src=source, dest=side, outcome=_outcome(agreement, source, side), twins=twins)


def _walked(source: Source, side: Side) -> Agreement | None:
    """What goes with what, node by node; None as soon as there is one that nothing in src does."""
    flow = side.flow
    agreement = Agreement(set(flow.weights))
    counterparts = Counterparts(source, side, agreement)
    live = flow.ancestors([index for _, index in flow.outputs])
    for node in flow.nodes:
        index = node.index
        if index not in live or node.role is not Role.ACTIVATION or node.op == "input":
            continue
        if counterparts.repeated(index) is not None or counterparts.is_moved(index):
            continue
        found = counterparts.only_twin(index)
        if found is None:
            return None
        agreement.decide(index, *found)
        if counterparts.repeated(index) is None:
            return None
    agreement.same = counterparts.same
    for path, index in flow.outputs:
        shape = flow[index].shape
        alike = [p for p, i in source.flow.outputs if counterparts.is_same(index, i) and source.flow[i].shape == shape]
        if not alike:
            return None
        agreement.outputs.append((alike[0], path, 0.0))
    return agreement


def _outcome(agreement: Agreement, source: Source, side: Side) -> Outcome:
    """The agreement as what a walk over side finds, be it of the models or of their twins."""
    assignment = Assignment(side, source)
    for leaf, other in agreement.whole.items():
        assignment.pair(leaf, other, leaf)
    for index, twin in agreement.same.items():
        side.run.set_same(index, source.run, twin)
    return Outcome(assignment, {}, [], agreement.users, {}, set(), agreement.outputs)
