"""Proves or refutes a plan: both models compared on fresh weights in float64, then with the user's own.

Weights are put into the recorded computations, never into the models; the models run once more each, as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from automap.align.draw import draw_weights
from automap.align.outputs import relative_difference
from automap.align.run import Run
from automap.align.solve import Solution
from automap.canonical.flow import Flow, Role
from automap.capture.preserve import preserved, with_weights
from automap.capture.structure import map_tensors, tensors_in
from automap.errors import NanError
from automap.inputs import Inputs
from automap.plan import Plan
from automap.results import OutputParity, ParityCheck

_FLOAT64_TOLERANCE = 1e-9
_NO_EFFECT = 1e-12  # beside the weight that moves outputs most

Pairs = Sequence[tuple[str, str]]  # the paths of the outputs to compare, src's and dest's


def run_model(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Return the tensors that a model gives for inputs, by path; the model is left as it was."""
    with preserved(model, plain=False):
        output = model(*inputs.args, **inputs.kwargs)
    return {path: tensor.detach() for path, tensor in tensors_in(output)}


def refuse_nan(src: nn.Module, inputs: Inputs, paths: Sequence[str]) -> None:
    """Raise NanError where one of src's outputs has NaN: NaN is equal to nothing, so nothing could be proven."""
    given = run_model(src, inputs)
    bad = [path for path in paths if path in given and given[path].is_floating_point() and _has_nan(given[path])]
    if not bad:
        return
    where = ", ".join(f"`{path or 'result'}`" for path in bad[:4])
    named = [*src.named_parameters(), *src.named_buffers()]
    weights = [f"`{name}`" for name, tensor in named if tensor.is_floating_point() and _has_nan(tensor)]
    cause = f"NaN is in its {', '.join(weights[:4])}" if weights else "no weight has NaN, so its forward makes it"
    raise NanError(
        f"src {type(src).__name__} gives NaN in {where}, which is equal to nothing: {cause}",
        help=None if weights else "give another sample input, or pick an output without NaN with --src-output",
    )


def _has_nan(tensor: Tensor) -> bool:
    return bool(torch.isnan(tensor.detach()).any())


def own_check(
    src: nn.Module, dest: nn.Module, src_inputs: Inputs, dest_inputs: Inputs, pairs: Pairs, tolerance: float | None
) -> ParityCheck:
    """Compare both models as they are on the sample; pairs are the paths of the outputs to compare."""
    ours, theirs = run_model(src, src_inputs), run_model(dest, dest_inputs)
    limit = tolerance if tolerance is not None else _measured_tolerance(src, dest, src_inputs, ours, pairs)
    return ParityCheck("own", "sample", tuple(_parity(a, b, ours[a], theirs[b], limit) for a, b in pairs))


def drawn_check(
    solution: Solution,
    plan: Plan,
    src: nn.Module,
    dest: nn.Module,
    src_inputs: Inputs,
    dest_inputs: Inputs,
    pairs: Pairs,
    *,
    seed: int,
) -> ParityCheck:
    """Compare both models themselves on weights drawn anew: for recordings that miss some of what they compute."""
    drawn = draw_weights(solution.src.flow, seed)
    made = planned_weights(solution, plan, drawn)
    with with_weights(src, _by_name(solution.src.flow, drawn)), with_weights(dest, _by_name(solution.dest.flow, made)):
        return replace(own_check(src, dest, src_inputs, dest_inputs, pairs, None), weights="random")


def _by_name(flow: Flow, values: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Values of weights under all their names, in the weights' own dtypes."""
    kept = {index: value.to(flow.weights[index].tensor.dtype) for index, value in values.items()}
    return {name: value for index, value in kept.items() for name in flow.weights[index].names}


def _measured_tolerance(
    src: nn.Module, dest: nn.Module, inputs: Inputs, outputs: Mapping[str, Tensor], pairs: Pairs
) -> float:
    """How far outputs move when inputs move by a few roundings, with room for another order of summation."""
    dtype = next((outputs[a].dtype for a, _ in pairs if outputs[a].is_floating_point()), torch.float32)
    eps = max(torch.finfo(dtype).eps, _coarsest(src), _coarsest(dest))
    generator = torch.Generator().manual_seed(0)

    def nudged(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.dtype)
        return tensor * (1 + 2 * eps * noise)

    moved = run_model(src, Inputs(map_tensors(inputs.args, nudged), map_tensors(dict(inputs.kwargs), nudged)))
    change = max((relative_difference(outputs[a], moved[a]) for a, _ in pairs if a in moved), default=0.0)
    return float(min(max(64 * change, 2048 * eps), 5e-2))


def _coarsest(model: nn.Module) -> float:
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max((torch.finfo(kind).eps for kind in kinds), default=0.0)


def _parity(src_path: str, dest_path: str, a: Tensor, b: Tensor, limit: float) -> OutputParity:
    rel = relative_difference(a, b)
    same = a.shape == b.shape
    gap = float((a.double() - b.double()).abs().max()) if same and a.numel() and not a.is_complex() else rel
    dtype = str(b.dtype).removeprefix("torch.")
    return OutputParity(src_path, dest_path, tuple(b.shape), dtype, gap, rel, limit)


@dataclass(frozen=True, slots=True)
class RandomTest:
    """One draw of src's weights sent through the plan: the comparisons, and what they could have shown.

    `still` are the dest weights that move no compared output; `input_sensitivity` is the relative change of dest's
    outputs under another input.
    """

    checks: tuple[ParityCheck, ...]
    still: tuple[str, ...]
    input_sensitivity: float | None


def random_test(solution: Solution, plan: Plan, pairs: Pairs, *, seed: int) -> RandomTest:
    """Compare both recorded computations in float64 on weights drawn anew, on the sample and on fresh inputs.

    There are no checks where control flow depends on values, so that a recording holds for one set of weights only,
    and none on fresh inputs where dest's are not simply src's.
    """
    src, dest = solution.src.flow, solution.dest.flow
    drawn = draw_weights(src, seed)
    weights = planned_weights(solution, plan, drawn)
    wanted, paths = [dict(src.outputs)[a] for a, _ in pairs], [dict(dest.outputs)[b] for _, b in pairs]
    theirs, still = _traced_back(dest, weights, paths, seed)
    src_run, dest_run = Run(src, drawn), Run(dest, weights)
    is_same_input = _refresh(src, dest, src_run, dest_run, seed)
    with torch.no_grad():
        other = _outputs(dest, dest_run, paths)
        power = max((relative_difference(x, y) for x, y in zip(theirs, other, strict=True)), default=None)
        if solution.src_capture.is_data_dependent or solution.dest_capture.is_data_dependent:
            return RandomTest((), still, power)
        checks = [_check("sample", pairs, _outputs(src, Run(src, drawn), wanted), theirs)]
        if is_same_input:
            checks.append(_check("random", pairs, _outputs(src, src_run, wanted), other))
    return RandomTest(tuple(checks), still, power)


def _check(
    inputs: Literal["sample", "random"], pairs: Pairs, ours: Sequence[Tensor], theirs: Sequence[Tensor]
) -> ParityCheck:
    rows = zip(pairs, ours, theirs, strict=True)
    return ParityCheck("random", inputs, tuple(_parity(*pair, x, y, _FLOAT64_TOLERANCE) for pair, x, y in rows))


def planned_weights(solution: Solution, plan: Plan, drawn: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return dest's weights made from drawn src weights by a plan; those it leaves alone keep their own."""
    src_flow, dest_flow = solution.src.flow, solution.dest.flow
    state = {name: drawn[i] for i, w in src_flow.weights.items() for name in w.in_state}
    state |= {w.name: w.tensor.detach().double() for w in solution.src_capture.all_weights if w.name not in state}
    made = plan.apply(state)
    return {
        i: made[w.name].double().view(w.tensor.shape) if w.name in made else w.tensor.detach().double()
        for i, w in dest_flow.weights.items()
    }


def _refresh(src: Flow, dest: Flow, src_run: Run, dest_run: Run, seed: int) -> bool:
    """Give both runs fresh inputs of the same kind; False where dest's inputs are not simply src's."""
    generator = torch.Generator().manual_seed(seed + 1)
    made = [(value, _like(value, generator)) for value in src.inputs.values()]
    is_same = bool(made)
    for index, (_, new) in zip(src.inputs, made, strict=True):
        src_run.set(index, new)
    for index, value in dest.inputs.items():
        alike = (new for old, new in made if old.shape == value.shape and torch.equal(old.double(), value.double()))
        twin = next(alike, None)
        is_same &= twin is not None
        dest_run.set(index, _like(value, generator) if twin is None else twin)
    return is_same


def _like(value: Tensor, generator: torch.Generator) -> Tensor:
    """A fresh value of the same kind: numbers of the same spread, ids and flags in another order."""
    if value.is_floating_point() and value.numel() > 1:
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        spread = value.double().std()
        return noise * (spread if float(spread) > 0 else 1.0) + value.double().mean()
    order = torch.randperm(value.numel(), generator=generator)
    return value.reshape(-1)[order].view(value.shape).to(torch.float64 if value.is_floating_point() else value.dtype)


def _outputs(flow: Flow, run: Run, wanted: list[int]) -> list[Tensor]:
    """Return the values of nodes, computed with as little memory as can be."""
    _compute(flow, run, wanted)
    return [run.value(index) for index in wanted]


def _compute(flow: Flow, run: Run, wanted: list[int]) -> None:
    """Compute what is wanted in order, letting go of values after their last use."""
    needed = flow.ancestors(wanted)
    last: dict[int, int] = {}
    for index in needed:
        for operand in flow[index].operands:
            last[operand] = max(last.get(operand, 0), index)
    dying: dict[int, list[int]] = {}
    for operand, index in last.items():
        dying.setdefault(index, []).append(operand)
    for index in sorted(needed):
        run.value(index)
        for operand in dying.get(index, ()):
            if operand not in wanted and flow[operand].role is Role.ACTIVATION:
                run.forget(operand)


def _traced_back(
    flow: Flow, weights: Mapping[int, Tensor], wanted: list[int], seed: int
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Return the values of nodes, and the names of the weights that move none of them, by one backward pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        leaves = {i: w.detach().requires_grad_(True) for i, w in weights.items()}
        run = Run(flow, leaves)
        for index in sorted(flow.ancestors(wanted)):
            run.value(index)  # in order, for recursion would go as deep as the model
        values = [run.value(index) for index in wanted]
        total = torch.zeros((), dtype=torch.float64)
        for value in values:
            if value.is_floating_point() and value.requires_grad:
                probe = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                total = total + (torch.nan_to_num(value, posinf=0.0, neginf=0.0) * probe).sum()
        none = [None] * len(leaves)
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True) if total.requires_grad else none
    moves = [_effect(g, w) for g, w in zip(found, weights.values(), strict=True)]
    limit = _NO_EFFECT * (max(moves, default=0.0) + 1e-30)
    still = tuple(flow.weights[i].name for i, move in zip(leaves, moves, strict=True) if move <= limit)
    return [value.detach() for value in values], still


def _effect(gradient: Tensor | None, weight: Tensor) -> float:
    """How far outputs move when one element of a weight moves by its own size."""
    if gradient is None or not gradient.numel():
        return 0.0
    return float((weight.detach().abs() + 1e-3).mul_(gradient).abs_().max())
