"""Proves or refutes a plan on the recorded computations: fresh weights through the plan, both sides in float64.

Weights are put into the recordings, never into the models. A test says what it could have shown as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from automap.align.outputs import relative_difference
from automap.align.solve import Solution
from automap.canonical.flow import Flow
from automap.plan import Plan
from automap.results import NO_POWER, OutputParity, ParityCheck
from automap.verify.compare import FLOAT64_TOLERANCE as FLOAT64_TOLERANCE
from automap.verify.compare import output_parity as output_parity
from automap.verify.compare import uncast
from automap.verify.draw import conditioned_weights
from automap.verify.exchanges import Exchange, Wrong, all_exchanges, few_exchanges
from automap.verify.fresh import fresh_inputs
from automap.verify.power import Power, measured_power
from automap.verify.reruns import rerun
from automap.verify.stream import Leaves, computed
from automap.verify.walked import walked_outputs

_RERUNS, _RERUN_FORWARDS = 32, 8  # wrong maps that are tried for real, and what they may cost

Pairs = Sequence[tuple[str, str]]  # the paths of the outputs to compare, src's and dest's
Swaps = Literal["none", "few", "all"]


@dataclass(frozen=True, slots=True)
class Case:
    """Both recorded computations, a plan, and the paths of the outputs that it should make equal.

    `only` are the src weights that the recordings hold for, where control flow depends on values. `walked` is how far
    apart outputs were on the sample in the match itself, where that was on weights that the plan makes of drawn ones.
    `narrow` is the same case on narrow twins, to be tested in its place; without `is_at_size` the plan was found on
    these.
    """

    src: Flow
    dest: Flow
    plan: Plan
    pairs: Pairs
    only: Mapping[int, Tensor] | None = None
    walked: tuple[OutputParity, ...] = ()
    narrow: Case | None = None
    is_at_size: bool = True

    @classmethod
    def of(cls, solution: Solution, plan: Plan, pairs: Pairs) -> Case:
        """Return what there is to test of a match; nothing that the solution has computed is kept."""
        is_data_dependent = solution.src_capture.is_data_dependent or solution.dest_capture.is_data_dependent
        only = solution.src.run.weights if is_data_dependent else None
        walked = walked_outputs(solution, plan, pairs) if only is None else ()
        return cls(solution.src.flow, solution.dest.flow, plan, tuple(pairs), only, walked)

    @property
    def src_nodes(self) -> list[int]:
        """The src nodes that are compared."""
        return [dict(self.src.outputs)[path] for path, _ in self.pairs]

    @property
    def dest_nodes(self) -> list[int]:
        """The dest nodes that are compared."""
        return [dict(self.dest.outputs)[path] for _, path in self.pairs]


@dataclass(frozen=True, slots=True)
class RandomTest:
    """One draw of src's weights sent through the plan: the comparisons, and what they could have shown.

    `still` are the dest weights that move no compared output, `input_sensitivity` is how far outputs move (relative)
    when the input is drawn anew. `swaps_tried` wrong maps were made of the plan, and `missed` are those that move no
    compared output. `notes` say what could not be compared.
    """

    checks: tuple[ParityCheck, ...]
    still: tuple[str, ...]
    input_sensitivity: float | None
    swaps_tried: int = 0
    missed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def random_test(solution: Solution, plan: Plan, pairs: Pairs, *, seed: int, swaps: Swaps = "few") -> RandomTest:
    """Return the test of a plan that a match found, see `run_test`."""
    return run_test(Case.of(solution, plan, pairs), seed=seed, swaps=swaps)


def run_test(case: Case, *, seed: int, swaps: Swaps = "few", is_brief: bool = False) -> RandomTest:
    """Compare both recorded computations in float64 on drawn weights: on the sample, and on fresh inputs.

    There are no comparisons where control flow depends on values, so that a recording holds for one set of weights
    only, and none on fresh inputs where dest's are not simply src's.

    Args:
        case: what is tested.
        seed: for weights and inputs.
        swaps: how many wrong maps are tried: none, a few by the gradients of the one backward pass, or all of them,
            those that move outputs least for real.
        is_brief: whether what the match has shown on the sample stands, so that only fresh inputs are computed.
    """
    with torch.no_grad(), torch._C.DisableTorchFunction():
        if case.only is not None:
            return _untested(case, case.only, seed)
        drawn = conditioned_weights(case.src, seed)
        fresh = fresh_inputs(case.src, case.dest, seed + 1)
        is_brief = is_brief and bool(case.walked)
        sides = [] if is_brief and fresh is not None else [(case.src.inputs, case.dest.inputs)]
        sides += [fresh] if fresh is not None else []
        ours = [computed(case.src, case.src_nodes, Leaves(drawn, inputs)) for inputs, _ in sides]
        weights = planned_weights(case, drawn)
        del drawn
        if len(sides) == 1 and fresh is not None:
            found = _fresh_only(case, Leaves(weights, fresh[1]), ours[0], seed=seed, swaps=swaps)
            return found or run_test(case, seed=seed, swaps=swaps)
        return _compared(case, weights, [inputs for _, inputs in sides], ours, seed=seed, swaps=swaps)


def _untested(case: Case, weights: Mapping[int, Tensor], seed: int) -> RandomTest:
    """What the outputs depend on with the weights as they are."""
    leaves = Leaves(planned_weights(case, weights), case.dest.inputs)
    power = measured_power(case.dest, case.dest_nodes, leaves, seed=seed)
    note = "no weights were drawn: control flow depends on values, so that a recording holds for its own weights only"
    return RandomTest((), _names(case.dest, power.still), power.inputs, notes=(note,))


def _fresh_only(case: Case, leaves: Leaves, ours: Sequence[Tensor], *, seed: int, swaps: Swaps) -> RandomTest | None:
    """Compare dest on fresh inputs, beside what the match has shown on the sample; None where that says too little:
    src gives NaN, or to first order nothing depends on the input.
    """
    if any(bool(torch.isnan(value).any()) for value in ours):
        return None
    power = measured_power(case.dest, case.dest_nodes, leaves, seed=seed, wrong=_wrong(case, swaps))
    if power.inputs is not None and power.inputs < NO_POWER:
        return None
    checks = ParityCheck("random", "sample", case.walked), _check("random", case.pairs, ours, power.outputs)
    return _result(case, leaves, power, checks, power.inputs, (), swaps=swaps)


def _compared(
    case: Case,
    weights: Mapping[int, Tensor],
    inputs: Sequence[Mapping[int, Tensor]],
    ours: Sequence[Sequence[Tensor]],
    *,
    seed: int,
    swaps: Swaps,
) -> RandomTest:
    """Compare dest on one set of weights with what src gives: on the sample (first), and on fresh inputs."""
    leaves = Leaves(weights, inputs[0])
    power = measured_power(case.dest, case.dest_nodes, leaves, seed=seed, wrong=_wrong(case, swaps))
    checks, moved = [_check("sample", case.pairs, ours[0], power.outputs)], power.inputs
    notes: tuple[str, ...] = ()
    if len(inputs) > 1 and any(bool(torch.isnan(value).any()) for value in ours[1]):
        notes = ("src gives NaN on fresh inputs, which were not compared",)
    elif len(inputs) > 1:
        theirs = computed(case.dest, case.dest_nodes, Leaves(weights, inputs[1]))
        checks.append(_check("random", case.pairs, ours[1], theirs))
        moved = max(moved or 0.0, *(relative_difference(a, b) for a, b in zip(power.outputs, theirs, strict=True)))
    return _result(case, leaves, power, tuple(checks), moved, notes, swaps=swaps)


def _result(
    case: Case,
    leaves: Leaves,
    power: Power,
    checks: tuple[ParityCheck, ...],
    moved: float | None,
    notes: tuple[str, ...],
    *,
    swaps: Swaps,
) -> RandomTest:
    missed = _missed(case, leaves, power, is_rerun=swaps == "all")
    named = tuple(exchange.describe(case.dest) for exchange in missed)
    return RandomTest(checks, _names(case.dest, power.still), moved, len(power.tried), named, notes)


def _wrong(case: Case, swaps: Swaps) -> Wrong:
    match swaps:
        case "none":
            return Wrong()
        case "few":
            return few_exchanges(case.dest, case.plan)
        case "all":
            return all_exchanges(case.dest, case.plan)


def _missed(case: Case, leaves: Leaves, power: Power, *, is_rerun: bool) -> list[Exchange]:
    """The wrong maps that move no output; with is_rerun, those that move outputs least are tried for real."""
    found = {tried.exchange: tried.change > FLOAT64_TOLERANCE for tried in power.tried}
    if is_rerun:
        least = sorted(power.tried, key=lambda tried: tried.change)[:_RERUNS]
        budget = _RERUN_FORWARDS * len(case.dest)
        real = rerun(case.dest, case.dest_nodes, leaves, [tried.exchange for tried in least], budget=budget)
        found |= {exchange: change > FLOAT64_TOLERANCE for exchange, change in real.items()}
    return [exchange for exchange, is_caught in found.items() if not is_caught]


def _names(flow: Flow, leaves: Sequence[int]) -> tuple[str, ...]:
    return tuple(flow.weights[index].name for index in leaves)


def _check(
    inputs: Literal["sample", "random"], pairs: Pairs, ours: Sequence[Tensor], theirs: Sequence[Tensor]
) -> ParityCheck:
    rows = zip(pairs, ours, theirs, strict=True)
    return ParityCheck("random", inputs, tuple(output_parity(*p, x, y, FLOAT64_TOLERANCE) for p, x, y in rows))


def planned_weights(case: Case, drawn: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return dest's weights made of drawn src weights by the plan, unrounded; what it leaves alone keeps its own."""
    state = {name: drawn[i] for i, w in case.src.weights.items() for name in w.in_state}
    state |= {w.name: w.tensor.detach().double() for w in case.src.capture.all_weights if w.name not in state}
    made = replace(case.plan, entries={name: uncast(expr) for name, expr in case.plan.entries.items()}).apply(state)
    return {
        i: made[w.name].double().view(w.tensor.shape) if w.name in made else w.tensor.detach().double()
        for i, w in case.dest.weights.items()
    }
