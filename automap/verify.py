"""Proves or refutes a plan: both models compared on fresh weights in float64, then with the user's own.

Weights are put into the recorded computations, never into the models; the models run once more each, as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from automap.align.draw import draw_weights
from automap.align.run import Run
from automap.align.search import relative_difference
from automap.align.solve import Solution
from automap.canonical.flow import Flow, Role
from automap.capture.preserve import preserved
from automap.capture.structure import map_tensors, tensors_in
from automap.inputs import Inputs
from automap.plan import Plan
from automap.results import OutputParity, ParityCheck

_FLOAT64_TOLERANCE = 1e-9


def run_model(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Return the tensors that a model gives for inputs, by path; the model is left as it was."""
    with preserved(model, plain=False):
        output = model(*inputs.args, **inputs.kwargs)
    return {path: tensor.detach() for path, tensor in tensors_in(output)}


def own_check(src: nn.Module, dest: nn.Module, src_inputs: Inputs, dest_inputs: Inputs, pairs: list[tuple[str, str]], tolerance: float | None) -> ParityCheck:
    """Compare both models as they are on the sample; pairs are the paths of the outputs to compare."""
    ours, theirs = run_model(src, src_inputs), run_model(dest, dest_inputs)
    limit = tolerance if tolerance is not None else _measured_tolerance(src, src_inputs, ours, pairs)
    return ParityCheck("own", "sample", tuple(_parity(a, b, ours[a], theirs[b], limit) for a, b in pairs))


def _measured_tolerance(src: nn.Module, inputs: Inputs, outputs: Mapping[str, Tensor], pairs: list[tuple[str, str]]) -> float:
    """How far outputs move when inputs move by a few roundings, with room for another order of summation."""
    dtype = next((outputs[a].dtype for a, _ in pairs if outputs[a].is_floating_point()), torch.float32)
    eps = max(torch.finfo(dtype).eps, _coarsest(src))
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


def random_check(solution: Solution, plan: Plan, pairs: list[tuple[str, str]], *, seed: int, fresh_inputs: bool) -> ParityCheck | None:
    """Compare both recorded computations in float64 on weights drawn anew, sent through the plan.

    Returns None where control flow depends on weights, so that a recording holds for one set of weights only.
    """
    if solution.src_capture.is_data_dependent or solution.dest_capture.is_data_dependent:
        return None
    src_flow, dest_flow = solution.src.flow, solution.dest.flow
    drawn = draw_weights(src_flow, seed)
    src_run = Run(src_flow, drawn)
    dest_run = Run(dest_flow, planned_weights(solution, plan, drawn))
    if fresh_inputs and not _refresh(src_flow, dest_flow, src_run, dest_run, seed):
        return None
    with torch.no_grad():
        found = _compare(src_flow, dest_flow, src_run, dest_run, pairs)
    return ParityCheck("random", "random" if fresh_inputs else "sample", found)


def planned_weights(solution: Solution, plan: Plan, drawn: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return dest's weights made from drawn src weights by a plan; those the plan leaves alone keep their own values."""
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
    made: list[tuple[Tensor, Tensor]] = []
    for index, value in src.inputs.items():
        new = _like(value, generator)
        made.append((value, new))
        src_run.set(index, new)
    for index, value in dest.inputs.items():
        twin = next((new for old, new in made if old.shape == value.shape and torch.equal(old.double(), value.double())), None)
        if twin is None:
            return False
        dest_run.set(index, twin)
    return bool(made)


def _like(value: Tensor, generator: torch.Generator) -> Tensor:
    """A fresh value of the same kind: numbers of the same spread, ids and flags in another order."""
    if value.is_floating_point() and value.numel() > 1:
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return noise * value.double().std() + value.double().mean()
    order = torch.randperm(value.numel(), generator=generator)
    return value.reshape(-1)[order].view(value.shape).to(torch.float64 if value.is_floating_point() else value.dtype)


def _compare(src: Flow, dest: Flow, src_run: Run, dest_run: Run, pairs: list[tuple[str, str]]) -> tuple[OutputParity, ...]:
    ours, theirs = dict(src.outputs), dict(dest.outputs)
    _compute(src, src_run, [ours[a] for a, _ in pairs])
    _compute(dest, dest_run, [theirs[b] for _, b in pairs])
    return tuple(
        _parity(a, b, src_run.value(ours[a]), dest_run.value(theirs[b]), _FLOAT64_TOLERANCE) for a, b in pairs
    )


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


def sensitivity(solution: Solution, plan: Plan, pairs: list[tuple[str, str]], *, seed: int) -> tuple[tuple[str, ...], float | None]:
    """Return the dest weights that move no compared output, and the relative change under another input.

    One backward pass through dest's recorded computation on drawn weights. None where the input could not be changed.
    """
    drawn = draw_weights(solution.src.flow, seed)
    weights = planned_weights(solution, plan, drawn)
    flow = solution.dest.flow
    with torch.enable_grad():
        leaves = {i: w.clone().requires_grad_(True) for i, w in weights.items()}
        run = Run(flow, leaves)
        theirs = dict(flow.outputs)
        total: Any = 0.0
        generator = torch.Generator().manual_seed(seed)
        for index in sorted(flow.ancestors([theirs[path] for _, path in pairs])):
            run.value(index)  # in order, for recursion would go as deep as the model
        for _, path in pairs:
            value = run.value(theirs[path])
            if value.is_floating_point() and value.requires_grad:
                probe = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                total = total + (torch.nan_to_num(value, posinf=0.0, neginf=0.0) * probe).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True) if isinstance(total, Tensor) else [None] * len(leaves)
    still = []
    scale = max((float((g * w).abs().max()) for g, w in zip(gradients, weights.values(), strict=True) if g is not None and g.numel()), default=0.0)
    for (index, weight), gradient in zip(weights.items(), gradients, strict=True):
        if gradient is None or not gradient.numel() or float((gradient * (weight.abs() + 1e-3)).abs().max()) <= 1e-12 * (scale + 1e-30):
            still.append(flow.weights[index].name)
    return tuple(still), _input_sensitivity(solution, weights, pairs, seed)


def _input_sensitivity(solution: Solution, weights: dict[int, Tensor], pairs: list[tuple[str, str]], seed: int) -> float | None:
    flow = solution.dest.flow
    theirs = dict(flow.outputs)
    first, second = Run(flow, weights), Run(flow, weights)
    generator = torch.Generator().manual_seed(seed + 1)
    for index, value in flow.inputs.items():
        second.set(index, _like(value, generator))
    with torch.no_grad():
        for run in (first, second):
            _compute(flow, run, [theirs[b] for _, b in pairs])
        return max((relative_difference(first.value(theirs[b]), second.value(theirs[b])) for _, b in pairs), default=None)
