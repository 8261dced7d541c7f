"""One match from beginning to end: both captures, both flow graphs, src computed, dest walked.

Large models are aligned on narrow twins of both flow graphs. Where dest's control flow depends on its weights, dest is
captured again with what is known, until nothing is new.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from automap.align.assignment import UNKNOWN, Assignment
from automap.align.choices import Outcome
from automap.align.counterparts import Counterparts
from automap.align.draw import draw_weights, own_weights
from automap.align.pins import parsed_pins
from automap.align.search import Search
from automap.align.side import Side
from automap.align.table import Source
from automap.canonical.fixed import fixed_buffers
from automap.canonical.flow import Flow
from automap.canonical.lower import lower
from automap.capture import Capture, record
from automap.capture.preserve import with_weights
from automap.capture.refill import is_valueless, stand_in
from automap.inputs import Inputs
from automap.twin import Twins, narrow_twins

_Key = TypeVar("_Key", int, str)
_ROUNDS = 12
#: multiplications with weights, on both sides, that are done sooner than twins are found; what twins have to save
SMALL, _GAIN = 1_000_000_000, 4.0


@dataclass(frozen=True, slots=True)
class Solution:
    """Both sides and what the walk found; `is_drawn` tells that src was computed on drawn weights, not its own.

    With `twins`, both sides are these; `flows` are the graphs of the models themselves, src's and dest's. Where ops
    alone have told everything, no weight of either side has a value.
    """

    src: Source
    dest: Side
    outcome: Outcome
    src_capture: Capture
    dest_capture: Capture
    is_drawn: bool
    timings_s: Mapping[str, float]
    flows: tuple[Flow, Flow]
    twins: Twins | None = None


@dataclass(frozen=True, slots=True)
class Flows:
    """The flow graphs of both models, and dest's capture with the inputs that both are given."""

    src: Flow
    dest: Flow
    dest_capture: Capture
    elapsed_s: float
    is_parted: bool = False

    @classmethod
    def of(cls, src: Capture, dest: Capture, *, is_parted: bool = False) -> Flows:
        """Return both captures lowered, each knowing what is a constant to the other.

        With is_parted, products of joined values are sums of products on both sides.
        """
        started = time.perf_counter()
        dest = replace(dest, inputs=_valued(dest.inputs))
        src_flow = lower(src, fixed_buffers(src, dest), is_parted=is_parted)
        src_flow = replace(src_flow, inputs=_valued(src_flow.inputs))
        if not src.is_data_dependent and not dest.is_data_dependent:
            src_flow, dest = _without_constant_inputs(src_flow, dest)
        dest_flow = lower(dest, fixed_buffers(dest, src), is_parted=is_parted)
        return cls(src_flow, dest_flow, dest, time.perf_counter() - started, is_parted)


def solve(
    src: Capture,
    dest: Capture,
    dest_model: nn.Module | None,
    dest_inputs: Inputs,
    *,
    seed: int,
    pins: Sequence[str] = (),
    is_algebraic: bool = True,
    flows: Flows | None = None,
) -> Solution:
    """Return what a walk over dest finds, on weights drawn from seed where src's control flow allows it.

    flows are both captures lowered, where that is done already.
    """
    flows = Flows.of(src, dest) if flows is None else flows
    dest, started = flows.dest_capture, time.perf_counter()
    is_drawn = not src.is_data_dependent
    with torch.no_grad():
        source = _computed(flows.src, draw_weights(flows.src, seed) if is_drawn else own_weights(flows.src))
        computed = time.perf_counter()
        side, outcome = _walk(source, flows.dest, pins, is_algebraic)
        for _ in range(_ROUNDS if dest.is_data_dependent and dest_model is not None else 0):
            if not outcome.stops:
                break
            assert dest_model is not None
            again = _captured_again(dest_model, dest_inputs, side, outcome)
            flow = lower(again, fixed_buffers(again, src), is_parted=flows.is_parted)
            following, found = _walk(source, flow, pins, is_algebraic)
            if _known(found) <= _known(outcome):
                break
            side, outcome, dest = following, found, again
    timings = _timings(flows.elapsed_s, started, computed)
    return Solution(source, side, outcome, src, dest, is_drawn, timings, (flows.src, side.flow))


def solve_on_twins(
    src: Capture, dest: Capture, flows: Flows, *, seed: int, is_algebraic: bool = True
) -> Solution | None:
    """Return what a walk over narrow twins finds, or None where there are none or the models are small themselves."""
    if src.is_data_dependent or dest.is_data_dependent:
        return None
    narrowing = time.perf_counter()
    is_valueless = "fake" in (src.mode, dest.mode)
    least_work, least_gain = (0, 0.0) if is_valueless else (SMALL, _GAIN)
    twins = narrow_twins(flows.src, flows.dest, least_work=least_work, least_gain=least_gain)
    if twins is None:
        return None
    started = time.perf_counter()
    try:
        with torch.no_grad():
            source = _computed(twins.src, draw_weights(twins.src, seed))
            computed = time.perf_counter()
            side, outcome = _walk(source, twins.dest, (), is_algebraic)
    except (RuntimeError, IndexError):  # an op does not take the sizes of the twins: there are none then
        return None
    timings = _timings(flows.elapsed_s + started - narrowing, started, computed)
    return Solution(source, side, outcome, src, flows.dest_capture, True, timings, (flows.src, flows.dest), twins)


def _timings(canonical_s: float, started: float, computed: float) -> dict[str, float]:
    return {"canonical": canonical_s, "compute": computed - started, "align": time.perf_counter() - computed}


def _computed(flow: Flow, weights: Mapping[int, Tensor]) -> Source:
    with torch._C.DisableTorchFunction():  # what is recorded is computed as it is
        return Source(flow, weights)


def _without_constant_inputs(src: Flow, dest: Capture) -> tuple[Flow, Capture]:
    """Give both sides the same random numbers where the sample is one number throughout, which tells nothing apart."""
    fresh: dict[tuple[tuple[int, ...], float], Tensor] = {}

    def told_apart(value: Tensor) -> Tensor:
        flat = value.reshape(-1)
        if not value.is_floating_point() or flat.numel() < 2 or bool((flat != flat[0]).any()):
            return value
        key = (tuple(value.shape), float(flat[0]))
        generator = torch.Generator().manual_seed(len(fresh))
        noise = fresh.setdefault(key, torch.randn(value.shape, generator=generator, dtype=torch.float64))
        return noise + value

    inputs = {index: told_apart(value) for index, value in src.inputs.items()}
    others = {name: told_apart(value) for name, value in dest.inputs.items()}
    return replace(src, inputs=inputs), replace(dest, inputs=others)


def _valued(inputs: Mapping[_Key, Tensor]) -> dict[_Key, Tensor]:
    return {key: stand_in(value) if is_valueless(value) else value for key, value in inputs.items()}


def _walk(source: Source, flow: Flow, pins: Sequence[str], is_algebraic: bool) -> tuple[Side, Outcome]:
    """The walk over dest with what ops alone tell, and where that does not come to its end, by numbers throughout."""
    is_read = source.flow.capture.is_data_dependent or flow.capture.is_data_dependent  # shapes may be others then
    with torch._C.DisableTorchFunction():
        found = None if pins or is_read else _walked(source, flow, (), is_algebraic, is_structural=True)
        if found is not None and _is_settled(flow, found[1]):
            return found
        return _walked(source, flow, pins, is_algebraic, is_structural=False)


def _is_settled(flow: Flow, outcome: Outcome) -> bool:
    """Whether a walk came to its end, and every weight behind an output is behind one that agrees."""
    agreeing = {path for _, path, _ in outcome.matched_outputs}
    seen = flow.ancestors([index for path, index in flow.outputs if path in agreeing])
    others = flow.ancestors([index for path, index in flow.outputs if path not in agreeing])
    return not outcome.stops and bool(agreeing) and (others - seen).isdisjoint(flow.weights)


def _walked(
    source: Source, flow: Flow, pins: Sequence[str], is_algebraic: bool, *, is_structural: bool
) -> tuple[Side, Outcome]:
    blank = {i: torch.tensor(torch.nan, dtype=torch.float64).expand(w.tensor.shape) for i, w in flow.weights.items()}
    side = Side(flow, blank)
    assignment = Assignment(side, source)
    counterparts = Counterparts(source, side, assignment) if is_structural else None
    search = Search(source, side, assignment, parsed_pins(pins, source.flow, flow), is_algebraic, counterparts)
    live = flow.ancestors([index for _, index in flow.outputs])
    return side, search.walk(live, flow.outputs)


def _known(outcome: Outcome) -> int:
    return sum(int((ids != UNKNOWN).sum()) for ids in outcome.assignment.ids.values())


def _captured_again(model: nn.Module, inputs: Inputs, side: Side, outcome: Outcome) -> Capture:
    """Record dest with the weights found so far in place of its own, so that it takes the way src took."""
    state: dict[str, Tensor] = {}
    for leaf, weight in side.flow.weights.items():
        ids = outcome.assignment.ids[leaf].view(weight.tensor.shape)
        own = weight.tensor.detach()
        value = torch.where(ids == UNKNOWN, own.double(), torch.nan_to_num(side.run.weights[leaf]))
        state |= {name: value.to(own.dtype) for name in weight.names}
    with with_weights(model, state):
        found = record(model, inputs)
    return replace(found, is_data_dependent=True)
