"""Dest's own weights against what the plan makes of src's: which tensors differ, and at which op each of them shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from automap.align.draw import own_weights
from automap.align.moments import EXACT
from automap.canonical.evaluate import compute
from automap.canonical.fixed import fixed_buffers
from automap.canonical.flow import Flow, Role, site_of
from automap.canonical.lower import lower
from automap.capture import Capture, Weight
from automap.explanation.rounds import Journey
from automap.explanation.weights import Comparison, Difference
from automap.findings import Finding, Severity, Site
from automap.plan import Expr, Plan, Source, evaluate, sources_of
from automap.planning import draft_plan
from automap.results import Departure, Gap
from automap.verify.layout import gap
from automap.verify.power import measured_power
from automap.verify.stream import Leaves, Schedule, computed

_NO_CHANGE = 1e-12


@dataclass(frozen=True, slots=True)
class Held:
    """A dest weight that holds something else: the recorded call where it shows (None: nowhere), and the departure."""

    call: str | None
    departure: Departure


def held_weights(journey: Journey, dest: Capture, src_model: nn.Module, dest_model: nn.Module) -> list[Held]:
    """Return the weights of dest that are not what the plan makes of src's, in dest's order of use.

    Args:
        journey: the match with every other difference repaired.
        dest: dest's recording without repairs.
        src_model: has the weights that are right.
        dest_model: has the weights in question.
    """
    plan = _plan(journey)
    expected = plan.apply(src_model.state_dict())
    found = {d.name: d for d in Comparison(dest_model.state_dict(), expected).differences()}
    if not found:
        return []
    with torch.no_grad(), torch._C.DisableTorchFunction():
        flow = _repaired_flow(journey, dest)
        wrong = {i: d for i, w in flow.weights.items() if (d := next((found[n] for n in w.names if n in found), None))}
        right = {i: _right(expected, w).view(w.tensor.shape) for i, w in flow.weights.items()}
        actual = {i: flow.weights[i].tensor.detach().double() for i in wrong}
        shown = _shown(flow, right, actual)
        moved = _moved(journey, flow, right, actual)
    known = {name for i in wrong for name in flow.weights[i].names}
    unused = [d for name, d in found.items() if name not in known]
    used = [_held(flow, plan, wrong[i], i, shown, moves=moved is None or moved.get(i, 0.0) > _NO_CHANGE) for i in wrong]
    return [*used, *(Held(None, Departure(_finding(plan, d, None, moves=False))) for d in unused)]


def holds_plan(plan: Plan, src_model: nn.Module, dest_model: nn.Module) -> bool:
    """Whether dest has the weights that a plan makes of src's."""
    return not any(Comparison(dest_model.state_dict(), plan.apply(src_model.state_dict())).differences())


def _plan(journey: Journey) -> Plan:
    """The plan of the match with every difference repaired, which knows more weights than the first one."""
    solution = journey.solution
    outputs = dict(solution.dest.flow.outputs)
    reached = solution.dest.flow.ancestors([outputs[path] for _, path, _ in solution.outcome.matched_outputs])
    return draft_plan(solution, reached).plan


def _right(expected: Mapping[str, Tensor], weight: Weight) -> Tensor:
    """What a dest weight should hold, as far as that is known."""
    found = next((expected[name] for name in weight.names if name in expected), weight.tensor)
    return found.detach().double()


def _repaired_flow(journey: Journey, dest: Capture) -> Flow:
    """Dest's computation with all repairs, what is given to it being computed with src's own weights."""
    src = journey.solution.src.flow
    needed = sorted({gift.src for gift in journey.repairs.given.values()})
    values = computed(src, needed, Leaves(own_weights(src), src.inputs)) if needed else []
    given = dict(zip(needed, values, strict=True))
    found = journey.repairs.applied(dest, given.__getitem__)
    assert found is not None, "the same repairs fitted before"
    return lower(found, fixed_buffers(found, journey.solution.src_capture))


def _shown(
    flow: Flow, right: Mapping[int, Tensor], actual: Mapping[int, Tensor]
) -> Mapping[int, tuple[int, Gap | None]]:
    """The op at which each wrong weight shows, all else being right, and how far off its result is."""
    schedule, leaves = Schedule.of(flow, [index for _, index in flow.outputs]), Leaves(right, flow.inputs)
    values, spoilt = dict[int, Any](), dict[int, Any](actual)
    behind: dict[int, set[int]] = {index: {index} for index in actual}
    found: dict[int, tuple[int, Gap | None]] = {}
    for index in schedule.order:
        node = flow[index]
        known = {i: values[i] for i in node.operands}
        result = schedule.step(index, leaves, values)
        causes = set().union(*(behind.get(i, set()) for i in node.operands))
        if not causes:
            continue
        own = compute(node, lambda i, known=known: spoilt[i] if i in spoilt else known[i])  # type: ignore[misc]
        if node.role is Role.WEIGHT:
            spoilt[index], behind[index] = own, causes
            continue
        off = gap(result, own) if isinstance(own, Tensor) and isinstance(result, Tensor) else None
        for leaf in causes - found.keys() if off is None or off.max_abs else ():
            found[leaf] = (index, off)
    return found


def _moved(
    journey: Journey, flow: Flow, right: Mapping[int, Tensor], actual: Mapping[int, Tensor]
) -> Mapping[int, float] | None:
    """How far the wrong weights move the outputs that agree otherwise, to first order; None where none do."""
    outputs = dict(flow.outputs)
    wanted = [outputs[path] for _, path, off in journey.solution.outcome.matched_outputs if off <= EXACT]
    if not wanted:
        return None
    return measured_power(flow, wanted, Leaves(right, flow.inputs), seed=0, others=actual).replaced


def _held(
    flow: Flow, plan: Plan, found: Difference, leaf: int, shown: Mapping[int, tuple[int, Gap | None]], *, moves: bool
) -> Held:
    node, off = shown.get(leaf, (None, None))
    site = site_of(flow, node) if node is not None else None
    origin = flow[node].origin if node is not None else None
    return Held(origin.name if origin else None, Departure(_finding(plan, found, site, moves=moves), off))


def _finding(plan: Plan, found: Difference, site: Site | None, *, moves: bool) -> Finding:
    expr = plan.entries.get(found.name)
    source = _source(expr, found.first) if expr is not None else None
    site_of_source = Site(source.name, "weight", source.shape, source.dtype) if source is not None else None
    note = f"the largest difference is {found.max_rel:.1e} of the largest value"
    notes = (note,) if moves else (note, "no compared output changes by it")
    severity: Severity = "error" if moves and not found.is_rounded else "warning"
    place = site or Site(found.name, "weight")
    return Finding("weight-differs", found.text, site_of_source, place, severity, notes)


def _source(expr: Expr, place: tuple[int, ...]) -> Source | None:
    """The src tensor that one element of an expression comes from, or None."""
    sources = sources_of(expr)
    if len(sources) < 2:
        return next(iter(sources), None)
    numbers = {s.name: torch.full(s.shape, n, dtype=torch.float64) for n, s in enumerate(sources, 1)}
    found = float(evaluate(expr, numbers)[place])
    return next((source for n, source in enumerate(sources, 1) if n == found), None)
