"""Matches models that do the same op for op, on their own graphs: nothing is computed, whatever their size.

Where a single op has no counterpart this gives nothing, and numbers have to decide.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from automap.align.assignment import Assignment
from automap.align.choices import Outcome
from automap.align.counterparts import Counterparts
from automap.align.side import Side
from automap.align.solve import SMALL, Flows, Solution
from automap.align.table import Source
from automap.canonical.flow import Flow, Role
from automap.capture import Capture
from automap.twin import Twins, narrow_twins
from automap.twin.shrink import full_work


@dataclass(slots=True)
class Pairs:
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


def solve_by_ops(src: Capture, flows: Flows) -> tuple[Solution, Pairs] | None:
    """Return the solution of two large models that do the same op for op, and its pairs; None for others."""
    is_read = src.is_data_dependent or flows.dest_capture.is_data_dependent
    if is_read or full_work(flows.src) + full_work(flows.dest) < SMALL:
        return None
    started = time.perf_counter()
    pairs = _walked(Source(flows.src, {}), Side(flows.dest, {}))
    if pairs is None:
        return None
    timings = {"canonical": flows.elapsed_s, "compute": 0.0, "align": time.perf_counter() - started}
    return _solution(pairs, src, flows, timings), pairs


def on_twins(solution: Solution, pairs: Pairs) -> Solution | None:
    """Return the same solution for narrow twins, whose nodes are those of the models, or None where there are none."""
    src, dest = solution.flows
    twins = narrow_twins(src, dest, least_work=0, least_gain=1.0)
    if twins is None:
        return None
    flows = Flows(src, dest, solution.dest_capture, 0.0)
    return _solution(pairs, solution.src_capture, flows, solution.timings_s, twins)


def _walked(source: Source, side: Side) -> Pairs | None:
    """What goes with what, node by node; None as soon as there is one that nothing in src does."""
    flow = side.flow
    pairs = Pairs(set(flow.weights))
    counterparts = Counterparts(source, side, pairs)
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
        pairs.decide(index, *found)
        if counterparts.repeated(index) is None:
            return None
    pairs.same = counterparts.same
    for path, index in flow.outputs:
        shape = flow[index].shape
        alike = [p for p, i in source.flow.outputs if counterparts.is_same(index, i) and source.flow[i].shape == shape]
        if not alike:
            return None
        pairs.outputs.append((alike[0], path, 0.0))
    return pairs


def _solution(
    pairs: Pairs, src: Capture, flows: Flows, timings: Mapping[str, float], twins: Twins | None = None
) -> Solution:
    """The pairs as a solution for both models, or for twins; no weight has a value in it."""
    mine, theirs = _graphs(flows, twins)
    source, side = Source(mine, {}), Side(theirs, {})
    assignment = Assignment(side, source)
    for leaf, other in pairs.whole.items():
        assignment.pair(leaf, other, leaf)
    for index, twin in pairs.same.items():
        side.run.set_same(index, source.run, twin)
    outcome = Outcome(assignment, {}, [], pairs.users, {}, set(), pairs.outputs)
    return Solution(
        source, side, outcome, src, flows.dest_capture, False, timings, (flows.src, flows.dest), twins, is_by_ops=True
    )


def _graphs(flows: Flows, twins: Twins | None) -> tuple[Flow, Flow]:
    return (flows.src, flows.dest) if twins is None else (twins.src, twins.dest)
