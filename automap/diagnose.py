"""Findings and verdict: what the walk over dest could not explain, in the user's terms, cause before symptom."""

from __future__ import annotations

from dataclasses import dataclass

from automap.align.moments import EXACT
from automap.align.search import Stop
from automap.align.solve import Solution
from automap.canonical.flow import Role, site_of
from automap.findings import Finding, Site
from automap.planning import Draft
from automap.results import Verdict


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings of a match, errors first, and its verdict."""

    findings: tuple[Finding, ...]
    verdict: Verdict


def diagnose(solution: Solution, draft: Draft, pins: tuple[str, ...]) -> Diagnosis:
    """Return what a solution and its plan amount to."""
    findings = [*_pin_findings(draft, pins)]
    relevant = _relevant_stops(solution)
    findings += [_stop_finding(solution, stop) for stop in relevant]
    findings += _output_findings(solution)
    findings += _quiet_findings(solution, draft)
    order = {"error": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda f: order[f.severity])
    return Diagnosis(tuple(findings), _verdict(solution, draft, findings))


def _relevant_stops(solution: Solution) -> list[Stop]:
    """The stops behind outputs that do not agree although src has something to compare them with."""
    flow = solution.dest.flow
    wanted = flow.ancestors([index for path, index in flow.outputs if path in _failed_outputs(solution)])
    return [stop for stop in solution.outcome.stops if stop.node in wanted]


def _failed_outputs(solution: Solution) -> list[str]:
    """Dest outputs without a partner, where src has an output of that size without one, or nothing agrees at all."""
    matched = solution.outcome.matched_outputs
    theirs, ours = {b for _, b, _ in matched}, {a for a, _, _ in matched}
    flow, src = solution.dest.flow, solution.src.flow
    free = [src[i].shape for p, i in src.outputs if p not in ours and src[i].role is Role.ACTIVATION]
    sizes = [_count(shape) for shape in free]
    left = [(p, i) for p, i in flow.outputs if p not in theirs and flow[i].role is Role.ACTIVATION]
    return [p for p, i in left if not matched or _count(flow[i].shape) in sizes]


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _verdict(solution: Solution, draft: Draft, findings: list[Finding]) -> Verdict:
    errors = [f for f in findings if f.severity == "error"]
    if not errors:
        return "complete"
    if any(f.code == "ambiguous" for f in errors):
        return "ambiguous"
    return "impossible" if draft.missing or not solution.outcome.matched_outputs and solution.outcome.stops else "differs"


def _stop_finding(solution: Solution, stop: Stop) -> Finding:
    site = site_of(solution.dest.flow, stop.node)
    weight = site_of(solution.dest.flow, _leaf(solution, stop.weight)) if stop.weight is not None else site
    if stop.reason == "nothing-meets":
        return Finding(
            "unmatched-weight", f"nothing in src computes what `{weight.name}` is applied to ({site.name}, {site.kind})",
            None, site, notes=("everything before it in dest is accounted for, up to here",),
            help="the two models compute something else between the last weights that align and this one",
        )  # fmt: skip
    return Finding("unmatched-weight", f"no src weight is used as `{weight.name}` is ({site.name}, {site.kind})", None, weight)


def _leaf(solution: Solution, index: int) -> int:
    flow = solution.dest.flow
    leaves = sorted(i for i in flow.ancestors([index]) if i in flow.weights)
    return leaves[0] if leaves else index


def _output_findings(solution: Solution) -> list[Finding]:
    found = []
    for src_path, dest_path, off in solution.outcome.matched_outputs:
        if off > EXACT:
            message = f"output `{dest_path or 'result'}` differs from src's `{src_path or 'result'}` by {off:.1e} (relative) on equal weights"
            found.append(Finding("output-differs", message, Site(src_path, "output"), Site(dest_path, "output")))
    failed = _failed_outputs(solution)
    for path in failed:
        index = dict(solution.dest.flow.outputs)[path]
        if not any(stop.node in solution.dest.flow.ancestors([index]) for stop in solution.outcome.stops if stop.reason != "output"):
            site = site_of(solution.dest.flow, index)
            found.append(Finding("output-differs", f"output `{path or 'result'}` is nothing that src gives", None, site))
    theirs = {b for _, b, _ in solution.outcome.matched_outputs}
    for path, index in solution.dest.flow.outputs:
        if path not in theirs and path not in failed and solution.dest.flow[index].role is Role.ACTIVATION:
            message = f"output `{path or 'result'}` has no counterpart in src and was not compared"
            found.append(Finding("output-extra", message, None, site_of(solution.dest.flow, index), "warning"))
    return found


def _quiet_findings(solution: Solution, draft: Draft) -> list[Finding]:
    found = [
        Finding("not-executed", f"`{dest}` takes `{src}` by name and shape alone: no compared output depends on it", Site(src, "weight"), Site(dest, "weight"), "warning")
        for dest, src in draft.assumed
    ]  # fmt: skip
    found += [
        Finding("zero-filled", f"`{name}` is filled with zeros: src adds nothing there", None, Site(name, "weight"), "note")
        for name in draft.zero_filled
    ]
    found += [Finding("no-effect", f"`{name}` moves no compared output and was left as it is", None, Site(name, "weight"), "note") for name in draft.idle]
    return found


def _pin_findings(draft: Draft, pins: tuple[str, ...]) -> list[Finding]:
    """A pin that the alignment contradicts is an error: it is checked, not trusted."""
    from automap.plan import sources_of

    found = []
    for pin in pins:
        dest, _, src = pin.partition("=")
        name = src.partition("[")[0]
        expr = draft.plan.entries.get(dest)
        if expr is None or name not in {s.name for s in sources_of(expr)}:
            message = f"the pin `{pin}` contradicts what the computation shows"
            found.append(Finding("ambiguous", message, Site(name, "weight"), Site(dest, "weight")))
    return found
