"""What the match has compared already: src and dest on the sample, computed in float64 on the weights drawn for it.

Dest's values of the walk prove the plan only if the plan makes exactly the weights that the walk computed with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from automap.align.solve import Solution
from automap.plan import Plan
from automap.plan.evaluate import evaluate
from automap.results import OutputParity
from automap.verify.compare import FLOAT64_TOLERANCE, output_parity, uncast

_ROUNDING = 1e-12  # of arithmetic that the walk and the plan may do in another order


def walked_outputs(solution: Solution, plan: Plan, pairs: Sequence[tuple[str, str]]) -> tuple[OutputParity, ...]:
    """Return how far apart the compared outputs of a match were; nothing where that does not prove the plan.

    It does not where src ran on its own weights, where the walk did not get to an output, where outputs differ, or
    where the plan makes other weights than those that dest's values came from.
    """
    if not solution.is_drawn:
        return ()
    found = [_compared(solution, *pair) for pair in pairs]
    if not found or not all(parity is not None and parity.is_equal for parity in found):
        return ()
    if not all(_is_same(used, planned) for used, planned in _weights(solution, plan)):
        return ()
    return tuple(parity for parity in found if parity is not None)


def _compared(solution: Solution, src_path: str, dest_path: str) -> OutputParity | None:
    mine, other = dict(solution.dest.flow.outputs)[dest_path], dict(solution.src.flow.outputs)[src_path]
    if not solution.dest.run.knows(mine):
        return None
    if solution.dest.run.is_same(mine, solution.src.run, other):  # nothing need be computed to see that
        shape = solution.dest.flow[mine].shape
        return OutputParity(src_path, dest_path, shape, "float64", 0.0, 0.0, FLOAT64_TOLERANCE)
    ours = solution.src.run.value(other)
    theirs = solution.dest.run.value(mine)
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return None
    return output_parity(src_path, dest_path, ours, theirs, FLOAT64_TOLERANCE)


def _weights(solution: Solution, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """Each weight as the walk used it, beside the one that the plan makes; one pair at a time is held."""
    src, dest = solution.src, solution.dest
    names = {n: w for i, w in src.run.weights.items() if i in src.flow.weights for n in src.flow.weights[i].in_state}
    others = {w.name: w.tensor.detach().double() for w in src.flow.capture.all_weights if w.name not in names}
    state = names | others
    for index, weight in dest.flow.weights.items():
        expr = plan.entries.get(weight.name)
        own = weight.tensor.detach().double()
        yield dest.run.weights[index], own if expr is None else evaluate(uncast(expr), state).reshape(own.shape)


def _is_same(used: Tensor, planned: Tensor) -> bool:
    """Whether two weights are equal but for elements that the walk never read (NaN) and for rounding."""
    if used.data_ptr() == planned.data_ptr() and used.stride() == planned.stride():
        return True
    if torch.equal(used, planned):
        return True
    off = torch.where(torch.isnan(used), 0.0, (used - planned).abs())
    return bool((off <= _ROUNDING * planned.abs().max()).all()) if planned.numel() else True
