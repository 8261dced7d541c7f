"""One match from both models to its result: capture, alignment, plan, diagnosis, and what may be claimed of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from automap import verify as verification
from automap.align import Flows, Solution, on_twins, solve, solve_by_ops, solve_on_twins
from automap.align.moments import EXACT
from automap.align.outputs import relative_difference
from automap.capture import Capture, record
from automap.capture import capture as recorded
from automap.capture.refill import is_valueless
from automap.capture.result import Method
from automap.capture.stage import is_weightless
from automap.collector import only_new_garbage
from automap.depth import depth_finding
from automap.diagnose import Diagnosis, diagnose
from automap.errors import AutomapError, CaptureError, InputError, OutputError
from automap.findings import Finding
from automap.inputs import Inputs, describe_call, short_size
from automap.planning import Draft, draft_plan, without_arithmetic
from automap.results import CaptureSummary, Evidence, Match
from automap.twin import NotEnlarged, enlarged_plan
from automap.verify import Case, Models


@dataclass(frozen=True, slots=True)
class Matched:
    """A match, what it rests on, the models with what they are called with, and what there is to test."""

    match: Match
    solution: Solution
    models: Models
    case: Case

    @property
    def is_narrow(self) -> bool:
        """Whether it was made on narrow twins, and has to be tried on the models themselves."""
        return not self.case.is_at_size

    @property
    def is_valueless(self) -> bool:
        """Whether one of the models has shapes and no values."""
        return "fake" in (self.solution.src_capture.mode, self.solution.dest_capture.mode)


@only_new_garbage()
def matched(
    src: nn.Module, dest: nn.Module, sample_input: Any, dest_input: Any,
    src_output: str | None, dest_output: str | None, seed: int, pins: tuple[str, ...], method: Method,
    algebra: bool = True, *, is_training: bool = False, is_algebraic: bool = True, is_narrow: bool = False,
    is_tested: bool = False,
) -> Matched:  # fmt: skip
    """The match of two models; with is_narrow by ops alone or on narrow twins, where that gives a complete map.

    Whoever is given one that was found on twins has to try it on the models themselves. With is_tested there are twins
    to test the plan on as well, where these take less.
    """
    src_inputs = Inputs.of(sample_input)
    dest_inputs = src_inputs if dest_input is None else Inputs.of(dest_input)
    started = time.perf_counter()
    with _other_shown(dest, dest_inputs):
        mine = _selected(_recorded(src, src_inputs, method, is_training), src_output, "src")
    with _other_shown(src, src_inputs):
        theirs = _selected(_sketched(dest, dest_inputs, method, is_training), dest_output, "dest")
    valueless = [name for capture, name in ((mine, "src"), (theirs, "dest")) if capture.mode == "fake"]
    given = None
    if mine.mode == "real":
        given = verification.refuse_nan(src, src_inputs, mine)
    captured = time.perf_counter()
    theirs = _same_numbers(mine, theirs)
    models = Models.of(src, dest, (src_inputs, dest_inputs), (mine, theirs), given)
    ends = (src, dest), started, captured - started
    flows = Flows.of(mine, theirs)
    if (is_narrow or valueless) and method == "dispatch" and not pins and not is_training:
        same = None if valueless else _by_ops(flows, models, ends, mine, algebra=algebra, is_tested=is_tested)
        if same is not None:
            return same
        narrow = solve_on_twins(mine, theirs, flows, seed=seed, is_algebraic=is_algebraic)
        found = _on_twins(narrow, ends, algebra=algebra) if narrow is not None else None
        if narrow is not None and found is not None and (found[0].is_complete or valueless):
            return Matched(found[0], narrow, models, found[1])
    if valueless:
        raise _without_values(valueless[0], mine if valueless[0] == "src" else theirs)

    def solved(flows: Flows) -> Solved:
        options: dict[str, Any] = {"seed": seed, "pins": pins, "is_algebraic": is_algebraic, "flows": flows}
        solution = solve(mine, theirs, dest, dest_inputs, **options)
        draft = _drafted(solution, algebra=algebra)
        return solution, draft, diagnose(solution, draft, pins)

    solution, draft, diagnosis = _solved_either_way(mine, theirs, flows, solved)
    case = Case.of(solution, draft.plan, compared_outputs(solution))
    if "hooks" in (mine.method, theirs.method):
        draft, diagnosis = _held_to_models(case, draft, diagnosis, replace(models, given=None, eps=0.0), seed)
    return Matched(_match(solution, draft, diagnosis, ends), solution, models, case)


#: what a walk found, the plan drafted from it, and what these amount to
Solved: TypeAlias = tuple[Solution, Draft, Diagnosis]


def _solved_either_way(src: Capture, dest: Capture, flows: Flows, solved: Callable[[Flows], Solved]) -> Solved:
    """What a walk finds; where that is no whole map and one side joins what the other adds up, what one over the parts
    does if it gets further.
    """
    found = solved(flows)
    if found[2].verdict == "complete" or "hooks" in (src.method, dest.method):
        return found
    parted = Flows.of(src, dest, is_parted=True)
    if len(parted.src) - len(flows.src) == len(parted.dest) - len(flows.dest):
        return found
    again = solved(parted)
    is_further = len(again[1].missing) < len(found[1].missing)
    return again if again[2].verdict == "complete" or is_further else found


#: both models, when the match began, how long recording them took
Ends: TypeAlias = tuple[tuple[nn.Module, nn.Module], float, float]


def _by_ops(
    flows: Flows, models: Models, ends: Ends, src: Capture, *, algebra: bool, is_tested: bool
) -> Matched | None:
    """The match of models that do the same op for op, or None: then numbers have to decide."""
    found = solve_by_ops(src, flows)
    if found is None:
        return None
    solution, agreement = found
    draft = _drafted(solution, algebra=algebra)
    diagnosis = diagnose(solution, draft, ())
    if diagnosis.verdict != "complete":
        return None
    narrow = on_twins(solution, agreement) if is_tested else None
    case = Case.of(solution, draft.plan, compared_outputs(solution))
    if narrow is not None:
        plan = _drafted(narrow, algebra=algebra).plan
        case = replace(case, narrow=Case.of(narrow, plan, case.pairs))
    return Matched(_match(solution, draft, diagnosis, ends), solution, models, case)


def _on_twins(solution: Solution, ends: Ends, *, algebra: bool) -> tuple[Match, Case] | None:
    """The match found on narrow twins and what there is to test of it, or None where it says nothing of the models."""
    assert solution.twins is not None
    draft = _drafted(solution, algebra=algebra)
    try:
        plan = enlarged_plan(draft.plan, solution.twins)
    except NotEnlarged:
        return None
    narrow = Case.of(solution, draft.plan, compared_outputs(solution))
    src, dest = solution.flows
    case = replace(narrow, src=src, dest=dest, plan=plan, narrow=narrow, is_at_size=False)
    whole = replace(draft, plan=plan)
    if "fake" in (solution.src_capture.mode, solution.dest_capture.mode):  # nothing can be tried at full size
        whole = replace(whole, evidence={n: "aligned" if e == "proved" else e for n, e in draft.evidence.items()})
    return _match(solution, whole, diagnose(solution, draft, ()), ends), case


def _drafted(solution: Solution, *, algebra: bool) -> Draft:
    """The plan of a solution, with what may be claimed of it."""
    outputs = dict(solution.dest.flow.outputs)
    reached = solution.dest.flow.ancestors([outputs[path] for _, path, _ in solution.outcome.matched_outputs])
    draft = _exact_only(solution, draft_plan(solution, reached))
    return draft if algebra else without_arithmetic(draft)


def _match(solution: Solution, draft: Draft, found: Diagnosis, ends: Ends) -> Match:
    """The result for the caller."""
    deeper = depth_finding(solution.src.flow.weights.values(), solution.dest.flow.weights.values())
    if deeper is not None and found.verdict != "complete":
        found = _with_depth(found, deeper)
    if not compared_outputs(solution):
        message = _not_comparable(solution.src_capture, solution.dest_capture)
        found = Diagnosis((*found.findings, message), found.verdict)
        found = replace(found, verdict="differs") if found.verdict == "complete" else found
    models, started, captured_s = ends
    timings = {"capture": captured_s, **solution.timings_s}
    timings["plan"] = time.perf_counter() - started - sum(timings.values())
    return Match(
        draft.plan, found.findings, found.verdict, draft.evidence, _summary(solution.src_capture, models[0]),
        _summary(solution.dest_capture, models[1]), draft.unused, draft.idle, timings, draft.missing,
    )  # fmt: skip


def _recorded(model: nn.Module, inputs: Inputs, method: Method, is_training: bool) -> Capture:
    if not is_training:
        return recorded(model, inputs, method=method)
    if method != "dispatch":
        raise InputError(f"a forward in train mode is not recorded by {method!r}", help="leave out `capture`")
    from automap.explanation.training import comparable

    return comparable(record(model, inputs, is_training=True))


def _sketched(model: nn.Module, inputs: Inputs, method: Method, is_training: bool) -> Capture:
    """A capture of which the ops are wanted and not the values: these come from weights that are to be replaced."""
    if method == "dispatch" and not is_training and not is_weightless(model.parameters()):
        try:
            found = record(model, inputs, is_sketched=True)
        except AutomapError:  # an op refuses zeros
            found = None
        if found is not None and not (found.is_data_dependent or found.is_writing):
            return found
    return _recorded(model, inputs, method, is_training)


def _same_numbers(src: Capture, dest: Capture) -> Capture:
    """Dest with src's numbers for inputs that are src's in another precision."""

    def alike(value: Tensor) -> Tensor:
        twins = [v for v in src.inputs.values() if v.shape == value.shape and v.dtype != value.dtype]
        return next((v for v in twins if _is_rounded(v, value)), value)

    return replace(dest, inputs={name: alike(value) for name, value in dest.inputs.items()})


def _is_rounded(a: Tensor, b: Tensor) -> bool:
    """Whether two floating-point tensors are one, up to the precision of the coarser."""
    if not (a.is_floating_point() and b.is_floating_point()):
        return False
    coarser = max(a.dtype, b.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    return not (is_valueless(a) or is_valueless(b)) and torch.equal(a.to(coarser), b.to(coarser))


def _exact_only(solution: Solution, draft: Draft) -> Draft:
    """Nothing is proved by outputs that only nearly agree."""
    outputs = dict(solution.dest.flow.outputs)
    exact = [outputs[path] for _, path, off in solution.outcome.matched_outputs if off <= EXACT]
    behind = solution.dest.flow.ancestors(exact)
    sure = {name for i, w in solution.dest.flow.weights.items() if i in behind for name in w.in_state}
    evidence: dict[str, Evidence] = {
        name: "aligned" if how == "proved" and name not in sure else how for name, how in draft.evidence.items()
    }
    return replace(draft, evidence=evidence)


def _without_values(name: str, found: Capture) -> CaptureError:
    return CaptureError(
        f"{name} {found.model_name} has no values (fake or meta tensors): {found.op_count} ops were recorded, and "
        "no narrow twins with values can stand for both models",
        help="match a small twin with values (two blocks, narrow) and use plan.for_model(dest_shapes, src_shapes)",
    )


@contextmanager
def _other_shown(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Let the error for an input that does not fit one model show how the other one was to be called."""
    try:
        yield
    except InputError as problem:
        raise InputError(f"{problem}\n{describe_call(model, inputs)}", help=problem.help) from problem


def _held_to_models(case: Case, draft: Draft, found: Diagnosis, models: Models, seed: int) -> tuple[Draft, Diagnosis]:
    """Hooks see modules only: nothing is proved by them, and complete is what the models themselves confirm."""
    evidence: dict[str, Evidence] = {n: "aligned" if e == "proved" else e for n, e in draft.evidence.items()}
    draft = replace(draft, evidence=evidence)
    if found.verdict != "complete":
        return draft, found
    if verification.drawn_check(case, models, seed=seed + 401).is_equal:
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


def compared_outputs(solution: Solution) -> list[tuple[str, str]]:
    """Return the paths of src and dest outputs that are compared: those that agree, else those of one size in order."""
    matched = [_same_shape(solution, a, b, off) for a, b, off in solution.outcome.matched_outputs]
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


def _same_shape(solution: Solution, src_path: str, dest_path: str, off: float) -> tuple[str, str]:
    """Two outputs that agree: where src's has another shape, one of the same shape that agrees as well, if there is."""
    theirs, mine = dict(solution.src.flow.outputs), dict(solution.dest.flow.outputs)[dest_path]
    shape = solution.dest.flow[mine].shape
    if solution.src.flow[theirs[src_path]].shape == shape:
        return src_path, dest_path
    value, src = solution.dest.run.value(mine), solution.src
    alike = [p for p, i in theirs.items() if src.flow[i].shape == shape and isinstance(src.run.value(i), Tensor)]
    limit = max(off, EXACT)
    equal = (p for p in alike if relative_difference(src.run.value(theirs[p]), value) <= limit)
    return next(equal, src_path), dest_path


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
