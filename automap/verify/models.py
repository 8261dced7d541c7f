"""Runs the models themselves, as they are, and compares what they give within the rounding that they show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from automap.align.outputs import relative_difference
from automap.canonical.flow import Flow
from automap.capture import Capture
from automap.capture.preserve import preserved, with_weights
from automap.capture.structure import map_tensors, tensors_in
from automap.errors import NanError
from automap.inputs import Inputs
from automap.plan.evaluate import evaluate
from automap.results import ParityCheck
from automap.verify.draw import conditioned_weights
from automap.verify.recorded import Case, Pairs, output_parity

_ROOM = 8  # one more summation order, one more place to round: beside what one rounding of everything does
_PLENTY, _CLOSE = 32, 1e-5  # so many roundings need not be measured, where that is still close
_CEILING = 5e-2  # beyond this a comparison says nothing, unless the number type cannot do better
Outputs = Mapping[str, Tensor]


def run_model(model: nn.Module, inputs: Inputs, *, is_writing: bool = True) -> dict[str, Tensor]:
    """Return the tensors that a model gives for inputs, by path; the model is left as it was.

    is_writing tells that the forward may write to the model's tensors, so that each of its ops is looked at.
    """
    with preserved(model, plain=False, is_watched=is_writing):
        output = model(*inputs.args, **inputs.kwargs)
    return {path: tensor.detach() for path, tensor in tensors_in(output)}


def refuse_nan(src: nn.Module, inputs: Inputs, recorded: Capture) -> Outputs:
    """Return what src gives, unless there is NaN in it: NaN is equal to nothing, so nothing could be proven.

    What its recording gave is taken, where that was its own forward, rather than running it again.

    Raises:
        NanError: one of the recorded outputs has NaN.
    """
    given = recorded.results or run_model(src, inputs)
    paths = [path for path, _ in recorded.outputs]
    bad = [path for path in paths if path in given and given[path].is_floating_point() and _has_nan(given[path])]
    if not bad:
        return given
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


@dataclass(frozen=True, slots=True)
class Models:
    """Both models with their inputs; `given` is what src gives, where that is known already.

    `eps` is the coarsest rounding inside of either, where it is coarser than that of weights, inputs and outputs.
    `is_writing` tells of src and of dest whether the forward may write to the model's tensors.
    """

    src: nn.Module
    dest: nn.Module
    src_inputs: Inputs
    dest_inputs: Inputs
    given: Outputs | None = None
    eps: float = 0.0
    is_writing: tuple[bool, bool] = (True, True)

    @classmethod
    def of(cls, src: nn.Module, dest: nn.Module, inputs: tuple[Inputs, Inputs], recorded: tuple[Capture, Capture],
           given: Outputs | None) -> Models:  # fmt: skip
        """Return two models with what their recordings tell of them."""
        writing = [found.is_writing or found.is_data_dependent for found in recorded]
        return cls(src, dest, *inputs, given, coarsest_rounding(*recorded), (writing[0], writing[1]))


def own_check(models: Models, pairs: Pairs, tolerance: float | None = None) -> ParityCheck:
    """Compare both models as they are on the sample, held to a relative tolerance or, if None, to their rounding.

    That is a few times the coarsest rounding that they do, or a few dozen times if that is still close; where outputs
    are farther apart, it is measured what such a rounding of all inputs and weights does to src's, and then to dest's.
    """
    src_writes, dest_writes = models.is_writing
    ours = models.given or run_model(models.src, models.src_inputs, is_writing=src_writes)
    theirs = run_model(models.dest, models.dest_inputs, is_writing=dest_writes)
    tensors = [
        *models.src.parameters(),
        *models.dest.parameters(),
        *(t for a, b in pairs for t in (ours[a], theirs[b])),
    ]
    eps = max(models.eps, _coarsest(tensors)) or float(torch.finfo(torch.float32).eps)
    limit = _ROOM * eps if tolerance is None else tolerance
    found = tuple(output_parity(a, b, ours[a], theirs[b], limit) for a, b in pairs)
    if tolerance is None and not all(output.is_equal for output in found):
        limit = max(limit, min(_PLENTY * eps, _CLOSE))
        found = tuple(replace(output, tolerance=limit) for output in found)
    sides = [
        (models.src, models.src_inputs, ours, [path for path, _ in pairs]),
        (models.dest, models.dest_inputs, theirs, [path for _, path in pairs]),
    ]
    for side in sides if tolerance is None else ():
        if not all(output.is_equal for output in found):
            limit = max(limit, measured_tolerance(*side, eps))
            found = tuple(replace(output, tolerance=limit) for output in found)
    return ParityCheck("own", "sample", found)


def coarsest_rounding(*captures: Capture) -> float:
    """Return the largest relative rounding among the results of all recorded ops."""
    kinds = {node.meta.get("dtype") for found in captures for node in found.graph.nodes if node.op == "call_function"}
    return max((torch.finfo(kind).eps for kind in kinds if kind is not None and kind.is_floating_point), default=0.0)


def _coarsest(tensors: Iterable[Tensor]) -> float:
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return max((torch.finfo(kind).eps for kind in kinds), default=0.0)


def measured_tolerance(model: nn.Module, inputs: Inputs, outputs: Outputs, paths: Sequence[str], eps: float) -> float:
    """Return how far outputs may be apart by rounding: what one rounding of all inputs and weights does, and room.

    Args:
        model: runs once more, with every number in it moved by eps up or down.
        inputs: what it is called with.
        outputs: what it gives as it is.
        paths: the outputs that count.
        eps: the relative size of a rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def nudged(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or type(tensor) not in (Tensor, nn.Parameter):
            return tensor
        wide = torch.promote_types(tensor.dtype, torch.float32)
        sign = torch.randint(2, tensor.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        return (tensor.detach().to(wide) * (1 + eps * sign.to(tensor.device, wide))).to(tensor.dtype)

    named = [*model.named_parameters(), *model.named_buffers()]
    state = {name: nudged(tensor) for name, tensor in named if tensor.is_floating_point()}
    with torch.no_grad():
        given = Inputs(map_tensors(inputs.args, nudged), map_tensors(dict(inputs.kwargs), nudged))
        with with_weights(model, state):
            moved = run_model(model, given)
    changes = [relative_difference(outputs[path], moved[path]) for path in paths if path in moved]
    change = max((c for c in changes if math.isfinite(c)), default=0.0)
    return float(min(max(_ROOM * change, _ROOM * eps), max(_CEILING, 32 * eps)))


def drawn_check(case: Case, models: Models, *, seed: int) -> ParityCheck:
    """Compare both models themselves on weights drawn anew: for recordings that miss some of what they compute."""
    drawn = _by_name(case.src, conditioned_weights(case.src, seed, is_wide=False))
    state = {**{w.name: w.tensor.detach() for w in case.src.capture.all_weights}, **drawn}
    running = {w.name for w in case.dest.weights.values()}
    made = {name: evaluate(expr, state) for name, expr in case.plan.entries.items() if name in running}
    made = {n: made[w.name] for w in case.dest.weights.values() if w.name in made for n in w.names}
    with with_weights(models.src, drawn), with_weights(models.dest, made):
        return replace(own_check(replace(models, given=None), case.pairs), weights="random")


def _by_name(flow: Flow, values: Mapping[int, Tensor]) -> dict[str, Tensor]:
    return {name: value for index, value in values.items() for name in flow.weights[index].names}
