"""The two calls of the product: `match` finds the plan and modifies nothing, `transfer` also applies and proves it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from automap import verify as verification
from automap.align import Solution, solve
from automap.capture import Capture, record
from automap.diagnose import Diagnosis, diagnose
from automap.errors import MismatchError, OutputError
from automap.inputs import Inputs
from automap.planning import draft_plan
from automap.results import CaptureSummary, Evidence, Match, Parity, ParityCheck, Transfer

Verify = Literal["quick", "default", "thorough"]


def match(
    src: nn.Module,
    dest: nn.Module,
    sample_input: Any,
    *,
    dest_input: Any = None,
    src_output: str | None = None,
    dest_output: str | None = None,
    seed: int = 0,
    pins: Sequence[str] = (),
    capture: str = "dispatch",
) -> Match:
    """Return how dest's weights are made of src's, what stands in the way, and how sure each part is.

    Nothing is modified: both models run once in eval mode and are left as found.

    Args:
        src: the model that has the weights.
        dest: the model that wants them.
        sample_input: what src is called with: a tensor, a tuple (args), a dict (kwargs) or `Inputs`.
        dest_input: the same for dest, where its signature differs.
        src_output: the path of the output to compare (`logits`, `0.last_hidden_state`); all outputs if None.
        dest_output: the same for dest.
        seed: for the random weights that the match is made on.
        pins: `DEST=SRC` names that must go together; a pin is checked, not trusted.
        capture: how the models are recorded: `dispatch`, `export` or `hooks`.

    Raises:
        CaptureError: a model's forward could not be recorded.
        InputError: a model does not take the sample input.
        OutputError: a model gives no tensors, or not at the path asked for.

    Example:
        >>> import torch, automap
        >>> a, b = torch.nn.Linear(3, 2), torch.nn.Conv1d(3, 2, 1)
        >>> found = automap.match(a, b, torch.randn(5, 3), dest_input=torch.randn(1, 3, 4))
        >>> found.verdict
        'impossible'
    """
    return _matched(src, dest, sample_input, dest_input, src_output, dest_output, seed, tuple(pins), capture)[0]


def _matched(
    src: nn.Module, dest: nn.Module, sample_input: Any, dest_input: Any,
    src_output: str | None, dest_output: str | None, seed: int, pins: tuple[str, ...], method: str,
) -> tuple[Match, Solution, Diagnosis]:  # fmt: skip
    src_inputs = Inputs.of(sample_input)
    dest_inputs = src_inputs if dest_input is None else Inputs.of(dest_input)
    started = time.perf_counter()
    mine = _selected(record(src, src_inputs), src_output, "src")
    theirs = _selected(record(dest, dest_inputs), dest_output, "dest")
    captured = time.perf_counter()
    solution = solve(mine, theirs, dest, dest_inputs, seed=seed)
    matched = solution.outcome.matched_outputs
    outputs = dict(solution.dest.flow.outputs)
    reached = solution.dest.flow.ancestors([outputs[path] for _, path, _ in matched])
    planned = time.perf_counter()
    draft = draft_plan(solution, reached)
    found = diagnose(solution, draft, pins)
    done = time.perf_counter()
    timings = {"capture": captured - started, **solution.timings_s, "plan": done - planned}
    result = Match(
        draft.plan, found.findings, found.verdict, draft.evidence, _summary(solution.src_capture, src),
        _summary(solution.dest_capture, dest), draft.unused, draft.idle, timings,
    )  # fmt: skip
    return result, solution, found


def _selected(found: Capture, path: str | None, side: str) -> Capture:
    """The capture with only the outputs at or below a path."""
    from dataclasses import replace

    if not found.outputs:
        raise OutputError(f"{side} {found.model_name} gives no tensors to compare")
    if path is None:
        return found
    kept = tuple((p, node) for p, node in found.outputs if p == path or p.startswith(f"{path}."))
    if not kept:
        raise OutputError(
            f"{side} {found.model_name} gives nothing at {path!r}",
            help=f"--{side}-output takes one of {', '.join(repr(p) for p, _ in found.outputs[:8])}",
        )
    return replace(found, outputs=kept)


def _summary(found: Capture, model: nn.Module) -> CaptureSummary:
    size = sum(w.tensor.numel() * w.tensor.element_size() for w in found.all_weights)
    return CaptureSummary(type(model).__name__, found.method, found.mode, found.op_count, len(found.all_weights), size, found.elapsed_s)


def transfer(
    src: nn.Module,
    dest: nn.Module,
    sample_input: Any,
    *,
    dest_input: Any = None,
    strict: bool = True,
    verify: Verify = "default",
    tolerance: float | None = None,
    seed: int = 0,
    src_output: str | None = None,
    dest_output: str | None = None,
    pins: Sequence[str] = (),
    capture: str = "dispatch",
) -> Transfer:
    """Return the proof that dest now computes what src computes: match, apply in place, verify.

    Args:
        src: the model that has the weights; not modified.
        dest: the model that wants them; its weights are replaced, its mode and hooks are not.
        sample_input: what src is called with, as for `match`.
        dest_input: the same for dest, where its signature differs.
        strict: raise unless everything matches and the outputs agree, and leave dest as it was; if False, place
            what is known and return the result whatever it is.
        verify: `quick` compares once with the given weights, `default` also on fresh random weights and inputs in
            float64, `thorough` on several.
        tolerance: the largest relative difference of outputs with the given weights; measured if None.
        seed: for the random weights.
        src_output: the path of the output to compare.
        dest_output: the same for dest.
        pins: `DEST=SRC` names that must go together.
        capture: how the models are recorded.

    Raises:
        MismatchError: strict, and the models do not match; it carries the Transfer.
        CaptureError, InputError, OutputError: as for `match`.
    """
    found, solution, _ = _matched(src, dest, sample_input, dest_input, src_output, dest_output, seed, tuple(pins), capture)
    if strict and not found.is_complete:
        result = Transfer(found, None, _tested(found, (), False), False, tolerance or 0.0, found.timings_s)
        raise MismatchError(f"{type(src).__name__} and {type(dest).__name__} do not match: {found.verdict}", result)
    started = time.perf_counter()
    before = _place(dest, found.plan.apply(src.state_dict()))
    placed = time.perf_counter()
    src_inputs = Inputs.of(sample_input)
    dest_inputs = src_inputs if dest_input is None else Inputs.of(dest_input)
    parity = _proof(solution, found, src, dest, src_inputs, dest_inputs, verify, tolerance, seed)
    timings = {**found.timings_s, "apply": placed - started, "verify": time.perf_counter() - placed}
    limit = max((o.tolerance for c in parity.checks for o in c.outputs if c.weights == "own"), default=tolerance or 0.0)
    evidence = _tested(found, parity.unverifiable, parity.is_equal)
    result = Transfer(found, parity, evidence, True, limit, timings)
    if strict and not result.is_equal:
        _place(dest, before)
        raise MismatchError("the outputs differ after the transfer; dest was left as it was", result)
    return result


def _place(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy values into a model's parameters and buffers by name; return what was there."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    before = {}
    with torch.no_grad():
        for name, value in state.items():
            before[name] = named[name].detach().clone()
            named[name].copy_(value)
    return before


def _proof(
    solution: Solution, found: Match, src: nn.Module, dest: nn.Module, src_inputs: Inputs, dest_inputs: Inputs,
    mode: Verify, tolerance: float | None, seed: int,
) -> Parity:  # fmt: skip
    pairs = compared_outputs(solution)
    checks: list[ParityCheck | None] = []
    still: tuple[str, ...] = ()
    power: float | None = None
    if pairs and mode != "quick" and found.is_complete:
        for extra in range(3 if mode == "thorough" else 1):
            checks.append(verification.random_check(solution, found.plan, pairs, seed=seed + 101 + extra, fresh_inputs=False))
            checks.append(verification.random_check(solution, found.plan, pairs, seed=seed + 201 + extra, fresh_inputs=True))
        still, power = verification.sensitivity(solution, found.plan, pairs, seed=seed + 301)
    if pairs:
        checks.append(verification.own_check(src, dest, src_inputs, dest_inputs, pairs, tolerance))
    return Parity(tuple(c for c in checks if c is not None), still, power)


def compared_outputs(solution: Solution) -> list[tuple[str, str]]:
    """Return the paths of src and dest outputs that are compared: those that agree, else those of one size in order."""
    matched = [(a, b) for a, b, _ in solution.outcome.matched_outputs]
    if matched:
        return matched
    src, dest = solution.src.flow, solution.dest.flow
    pairs = []
    for path, index in dest.outputs:
        size = _count(dest[index].shape)
        twin = next((p for p, i in src.outputs if _count(src[i].shape) == size and p not in [a for a, _ in pairs]), None)
        if twin is not None:
            pairs.append((twin, path))
    return pairs


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _tested(found: Match, unverifiable: tuple[str, ...], is_equal: bool) -> dict[str, Evidence]:
    """The evidence after a transfer: what was aligned and moves an output that agrees was tested."""
    blind = set(unverifiable)
    result: dict[str, Evidence] = {}
    for name, evidence in found.evidence.items():
        if name in blind or (evidence == "aligned" and not is_equal):
            result[name] = "proved" if evidence == "proved" else "assumed"
        else:
            result[name] = "tested" if evidence == "aligned" else evidence
    return result
