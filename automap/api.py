"""The two calls of the product: `match` finds the plan and modifies nothing, `transfer` also applies and proves it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from automap import verify as verification
from automap.align import Solution, solve
from automap.capture import Capture
from automap.capture import capture as recorded
from automap.capture.result import Method
from automap.depth import depth_finding
from automap.diagnose import Diagnosis, diagnose
from automap.errors import CaptureError, InputError, MismatchError, OutputError
from automap.findings import Finding
from automap.inputs import Inputs, describe_call, short_size
from automap.planning import Draft, draft_plan, without_arithmetic
from automap.results import CaptureSummary, Evidence, Match, Parity, Transfer

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
    capture: Method = "dispatch",
    algebra: bool = True,
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
        pins: what goes where the computation leaves a choice, `DEST=SRC` or `DEST=SRC[0:768]`; checked, not trusted.
        capture: how the models are recorded: `dispatch`, `export` or `hooks`.
        algebra: also find weights that are computed from src's (folded norms, `1 + w`, merged branches).

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
    return _matched(src, dest, sample_input, dest_input, src_output, dest_output, seed, tuple(pins), capture, algebra)[
        0
    ]


def _matched(
    src: nn.Module, dest: nn.Module, sample_input: Any, dest_input: Any,
    src_output: str | None, dest_output: str | None, seed: int, pins: tuple[str, ...], method: Method,
    algebra: bool = True,
) -> tuple[Match, Solution, Diagnosis]:  # fmt: skip
    src_inputs = Inputs.of(sample_input)
    dest_inputs = src_inputs if dest_input is None else Inputs.of(dest_input)
    started = time.perf_counter()
    with _other_shown(dest, dest_inputs):
        mine = _selected(recorded(src, src_inputs, method=method), src_output, "src")
    with _other_shown(src, src_inputs):
        theirs = _selected(recorded(dest, dest_inputs, method=method), dest_output, "dest")
    for capture, name in ((mine, "src"), (theirs, "dest")):
        if capture.mode == "fake":
            raise _without_values(name, capture)
    if mine.mode == "real":
        verification.refuse_nan(src, src_inputs, [path for path, _ in mine.outputs])
    captured = time.perf_counter()
    solution = solve(mine, theirs, dest, dest_inputs, seed=seed, pins=pins)
    matched = solution.outcome.matched_outputs
    outputs = dict(solution.dest.flow.outputs)
    reached = solution.dest.flow.ancestors([outputs[path] for _, path, _ in matched])
    planned = time.perf_counter()
    draft = draft_plan(solution, reached)
    draft = draft if algebra else without_arithmetic(draft)
    found = diagnose(solution, draft, pins)
    if "hooks" in (mine.method, theirs.method):
        draft, found = _held_to_models(solution, draft, found, src, dest, src_inputs, dest_inputs, seed)
    deeper = depth_finding(solution.src.flow.weights.values(), solution.dest.flow.weights.values())
    if deeper is not None and found.verdict != "complete":
        found = _with_depth(found, deeper)
    if not compared_outputs(solution):
        found = Diagnosis((*found.findings, _not_comparable(mine, theirs)), found.verdict)
        found = replace(found, verdict="differs") if found.verdict == "complete" else found
    done = time.perf_counter()
    timings = {"capture": captured - started, **solution.timings_s, "plan": done - planned}
    result = Match(
        draft.plan, found.findings, found.verdict, draft.evidence, _summary(solution.src_capture, src),
        _summary(solution.dest_capture, dest), draft.unused, draft.idle, timings,
    )  # fmt: skip
    return result, solution, found


def _without_values(name: str, found: Capture) -> CaptureError:
    return CaptureError(
        f"{name} {found.model_name} has no values (fake or meta tensors): it was recorded, {found.op_count} ops, and "
        "matching compares values",
        help="match a small twin with values (two blocks, narrow) and use plan.for_model(dest_shapes, src_shapes)",
    )


@contextmanager
def _other_shown(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Let the error for an input that does not fit one model show how the other one was to be called."""
    try:
        yield
    except InputError as problem:
        raise InputError(f"{problem}\n{describe_call(model, inputs)}", help=problem.help) from problem


def _held_to_models(
    solution: Solution, draft: Draft, found: Diagnosis, src: nn.Module, dest: nn.Module,
    src_inputs: Inputs, dest_inputs: Inputs, seed: int,
) -> tuple[Draft, Diagnosis]:  # fmt: skip
    """Hooks see modules only: nothing is proved by them, and complete is what the models themselves confirm."""
    evidence: dict[str, Evidence] = {n: "aligned" if e == "proved" else e for n, e in draft.evidence.items()}
    draft, pairs = replace(draft, evidence=evidence), compared_outputs(solution)
    if found.verdict != "complete":
        return draft, found
    check = verification.drawn_check(solution, draft.plan, src, dest, src_inputs, dest_inputs, pairs, seed=seed + 401)
    if check.is_equal:
        return draft, found
    message = "the modules align and the outputs differ on equal weights: something between the modules is not the same"
    differs = Finding("output-differs", message, help="hooks do not see what; record with --capture dispatch")
    return draft, Diagnosis((differs, *found.findings), "differs")


def _with_depth(found: Diagnosis, deeper: Finding) -> Diagnosis:
    """Put a difference in depth first: behind it, what weights go where has no answer."""
    sites = [site for f in found.findings for site in (f.src, f.dest) if site is not None]
    findings = found.findings if any(site.kind == "block" for site in sites) else (deeper, *found.findings)
    return Diagnosis(findings, "impossible" if found.verdict == "differs" else found.verdict)


def _not_comparable(src: Capture, dest: Capture) -> Finding:
    """Say that no two outputs have as many numbers, and what there is."""
    kinds = []
    for found in (src, dest):
        words = [f"`{p or 'result'}` {short_size(n.meta['dtype'], n.meta['shape'])}" for p, n in found.outputs]
        kinds.append(", ".join(words[:4]) + (", ..." if len(words) > 4 else ""))
    message = f"no output of dest can be compared with one of src's: src gives {kinds[0]}; dest gives {kinds[1]}"
    return Finding("output-differs", message, help="name two that should be equal: --src-output and --dest-output")


def _selected(found: Capture, path: str | None, side: str) -> Capture:
    """The capture with only the outputs at or below a path."""
    if not found.outputs:
        raise OutputError(
            f"{side} {found.model_name} gives no tensors to compare",
            help="wrap it in a module whose forward returns the tensor that matters: path/to/file.py:factory",
        )
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
    return CaptureSummary(
        type(model).__name__,
        found.method,
        found.mode,
        found.op_count,
        len(found.all_weights),
        size,
        found.elapsed_s,
        found.notes,
    )


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
    capture: Method = "dispatch",
    algebra: bool = True,
) -> Transfer:
    """Return the proof that dest now computes what src computes: match, apply in place, verify.

    Args:
        src: the model that has the weights; not modified.
        dest: the model that wants them; its weights are replaced, its mode and hooks are not.
        sample_input: what src is called with, as for `match`.
        dest_input: the same for dest.
        strict: raise unless everything matches and the outputs agree, and leave dest as it was; if False, place
            what is known and return the result whatever it is.
        verify: `quick` compares once with the given weights, `default` also on fresh random weights and inputs in
            float64, `thorough` on several.
        tolerance: the largest relative difference of outputs with the given weights; measured if None.
        seed: for the random weights.
        src_output: the path of the output to compare.
        dest_output: the same for dest.
        pins: what goes where the computation leaves a choice, as for `match`.
        capture: how the models are recorded.
        algebra: also find weights that are computed from src's, as for `match`.

    Raises:
        MismatchError: strict, and the models do not match; it carries the Transfer.
        CaptureError, InputError, OutputError: as for `match`.
    """
    found, solution, _ = _matched(
        src, dest, sample_input, dest_input, src_output, dest_output, seed, tuple(pins), capture, algebra
    )
    if strict and not found.is_complete:
        result = Transfer(found, None, _tested(found, (), False), False, tolerance or 0.0, found.timings_s)
        raise MismatchError(f"{type(src).__name__} and {type(dest).__name__} do not match: {found.verdict}", result)
    inputs = Inputs.of(sample_input)
    dest_inputs = inputs if dest_input is None else Inputs.of(dest_input)
    result, before = _carried_over(found, solution, src, dest, inputs, dest_inputs, verify, tolerance, seed)
    if strict and not result.is_equal:
        _place(dest, before)
        raise MismatchError("the outputs differ after the transfer; dest was left as it was", result)
    return result


def _carried_over(
    found: Match, solution: Solution, src: nn.Module, dest: nn.Module, src_inputs: Inputs, dest_inputs: Inputs,
    mode: Verify, tolerance: float | None, seed: int,
) -> tuple[Transfer, dict[str, Tensor]]:  # fmt: skip
    """Place what the plan gives and verify it; also return what dest held before."""
    started = time.perf_counter()
    before = _place(dest, found.plan.apply(src.state_dict()))
    placed = time.perf_counter()
    parity = _proof(solution, found, src, dest, src_inputs, dest_inputs, mode, tolerance, seed)
    timings = {**found.timings_s, "apply": placed - started, "verify": time.perf_counter() - placed}
    limit = max((o.tolerance for c in parity.checks for o in c.outputs if c.weights == "own"), default=tolerance or 0.0)
    evidence = _tested(found, parity.unverifiable, parity.is_equal)
    return Transfer(found, parity, evidence, True, limit, timings), before


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
    tests: list[verification.RandomTest] = []
    is_whole = "hooks" not in (solution.src_capture.method, solution.dest_capture.method)
    if pairs and mode != "quick" and found.is_complete and is_whole:
        draws = 3 if mode == "thorough" else 1
        tests = [verification.random_test(solution, found.plan, pairs, seed=seed + 101 + n) for n in range(draws)]
    checks = [check for test in tests for check in test.checks]
    if pairs and mode != "quick" and found.is_complete and not is_whole:
        checks.append(
            verification.drawn_check(solution, found.plan, src, dest, src_inputs, dest_inputs, pairs, seed=seed + 101)
        )
    if pairs:
        checks.append(verification.own_check(src, dest, src_inputs, dest_inputs, pairs, tolerance))
    still = set(tests[0].still).intersection(*(test.still for test in tests)) if tests else set()
    powers = [test.input_sensitivity for test in tests if test.input_sensitivity is not None]
    return Parity(tuple(checks), tuple(sorted(still)), min(powers, default=None))


def compared_outputs(solution: Solution) -> list[tuple[str, str]]:
    """Return the paths of src and dest outputs that are compared: those that agree, else those of one size in order."""
    matched = [(a, b) for a, b, _ in solution.outcome.matched_outputs]
    if matched:
        return matched
    src, dest = solution.src.flow, solution.dest.flow
    pairs: list[tuple[str, str]] = []
    for path, index in dest.outputs:
        size = _count(dest[index].shape)
        twin = next(
            (p for p, i in src.outputs if _count(src[i].shape) == size and p not in [a for a, _ in pairs]), None
        )
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
            result[name] = "assumed"
        else:
            result[name] = "tested" if evidence == "aligned" else evidence
    return result
