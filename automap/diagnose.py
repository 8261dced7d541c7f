"""Findings and verdict: what the walk over dest could not explain, in the user's terms, cause before symptom."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from automap.align.choices import Stop
from automap.align.divergence import Values
from automap.align.moments import EXACT
from automap.align.side import Side
from automap.align.solve import Solution
from automap.canonical.flow import Flow, Role, site_of
from automap.causes import explain_stop
from automap.coincidences import unreached, unturned
from automap.findings import Finding, Site
from automap.plan import format_expr, sources_of
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
    findings += _depth_findings(solution, draft) if relevant else []
    findings += _stop_findings(solution, relevant)
    findings += _cut_findings(solution)
    findings += _output_findings(solution)
    findings += _quiet_findings(solution, draft)
    findings += _coincidences(solution)
    findings += unturned(solution) if not any(f.severity == "error" for f in findings) else []
    findings += unreached(solution)
    order = {"error": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda f: order[f.severity])
    return Diagnosis(tuple(findings), _verdict(solution, draft, findings))


def _relevant_stops(solution: Solution) -> list[Stop]:
    """The stops behind outputs that do not agree although src has something to compare them with."""
    flow = solution.dest.flow
    wanted = flow.ancestors([index for path, index in flow.outputs if path in _failed_outputs(solution)])
    return [stop for stop in solution.outcome.stops if stop.node in wanted]


def _stop_findings(solution: Solution, stops: list[Stop]) -> list[Finding]:
    """The cause of each stop, one finding for one cause; where none shows, what stopped."""
    if not stops:
        return []
    values = Values(solution)
    found: dict[str, Finding] = {}
    for stop in stops[:6]:
        cause = explain_stop(solution, values, stop) or _stop_finding(solution, stop)
        if cause.message in found:
            continue
        found[cause.message] = replace(cause, notes=(*cause.notes, _consequence(solution, stop)))
    return list(found.values())


def _cut_findings(solution: Solution) -> list[Finding]:
    """Src uses whose outputs dest takes only in part, or twice: another number of classes, say."""
    choices = solution.outcome.choices.values()
    src, dest = solution.src.flow, solution.dest.flow
    found = []
    runs = [(c.taken.src_node, c.taken.key) for c in choices if "run" in c.taken.key]
    for node in sorted({node for node, _ in runs}):
        cut = [c for c in choices if "run" in c.taken.key and c.taken.src_node == node]
        offered = {k.key for c in cut for k in c.candidates if "run" in k.key and k.src_node == node}
        if offered != {key for other, key in runs if other == node}:
            site = site_of(src, node)
            text = f"dest takes only some outputs of `{site.name}` ({site.kind}): another number of classes or of heads"
            found.append(Finding("shape-differs", text, site, None))
    pieces = Counter((c.key[0], c.key[1], c.taken.key, c.taken.src_node) for c in choices)
    for (node, _, _, theirs), count in pieces.items():
        if count > 1:
            site = site_of(dest, node)
            text = f"`{site.name}` ({site.kind}) in dest would take the same outputs of src {count} times: it is wider"
            found.append(Finding("shape-differs", text, site_of(src, theirs) if theirs >= 0 else None, site))
    return found


def _consequence(solution: Solution, stop: Stop) -> str:
    if stop.weight is None:
        return "an output differs in consequence"
    return f"from `{solution.dest.flow.weights[_leaf(solution, stop.weight)].name}` on, dest's values are none of src's"


def _depth_findings(solution: Solution, draft: Draft) -> list[Finding]:
    """Whole blocks of src that nothing in dest takes, where their siblings are taken."""
    unused = set(draft.unused) & {w.name for w in solution.src.flow.weights.values()}
    taken = {w.name for w in solution.src.flow.weights.values()} - unused
    idle = {p for name in unused for p in _blocks(name)} - {p for name in taken for p in _blocks(name)}
    siblings = {p.rpartition(".")[0] for name in taken for p in _blocks(name)}
    tops = sorted(p for p in idle if p.rpartition(".")[0] in siblings and not any(q in idle for q in _blocks(p)[:-1]))
    if not tops or (draft.missing and _has_blocks_left(solution, draft)):
        return []
    count = sum(any(name.startswith(f"{top}.") for top in tops) for name in unused)
    if len(draft.missing) >= count / len(tops):  # dest has a block's worth of weights left itself
        return []
    message = (
        f"src has blocks that dest has not: {', '.join(f'`{t}`' for t in tops)} ({count} weights, layers "
        f"without a counterpart)"
    )
    return [Finding("unused-source", message, Site(tops[0], "block"), None)]


def _blocks(name: str) -> list[str]:
    """The prefixes of a name that end in a number: the numbered blocks that a weight belongs to."""
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n, part in enumerate(parts) if part.isdigit()]


def _has_blocks_left(solution: Solution, draft: Draft) -> bool:
    """Whether whole numbered blocks of dest are without a source as well: then it is not the depth alone."""
    missing, placed = set(draft.missing), set(draft.plan.entries)
    left = {p for name in missing for p in _blocks(name)} - {p for name in placed for p in _blocks(name)}
    return bool(left)


def _failed_outputs(solution: Solution) -> list[str]:
    """Dest outputs without a partner, where src has an output of that size without one, or nothing agrees at all.

    Single numbers beside outputs that agree (losses, counts) are alike in size alone.
    """
    matched = solution.outcome.matched_outputs
    theirs, ours = {b for _, b, _ in matched}, {a for a, _, _ in matched}
    flow, src = solution.dest.flow, solution.src.flow
    free = [src[i].shape for p, i in src.outputs if p not in ours and src[i].role is Role.ACTIVATION]
    sizes = [_count(shape) for shape in free]
    left = [(p, i) for p, i in flow.outputs if p not in theirs and flow[i].role is Role.ACTIVATION]
    return [p for p, i in left if not matched or (_count(flow[i].shape) > 1 and _count(flow[i].shape) in sizes)]


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
    return (
        "impossible"
        if draft.missing or (not solution.outcome.matched_outputs and solution.outcome.stops)
        else "differs"
    )


def _stop_finding(solution: Solution, stop: Stop) -> Finding:
    site = site_of(solution.dest.flow, stop.node)
    weight = site_of(solution.dest.flow, _leaf(solution, stop.weight)) if stop.weight is not None else site
    if stop.reason == "nothing-meets":
        return Finding(
            "unmatched-weight",
            f"nothing in src computes what `{weight.name}` is applied to ({site.name}, {site.kind})",
            None,
            site,
            notes=("everything before it in dest is accounted for, up to here",),
            help="the two models compute something else between the last weights that align and this one",
        )
    return Finding(
        "unmatched-weight", f"no src weight is used as `{weight.name}` is ({site.name}, {site.kind})", None, weight
    )


def _leaf(solution: Solution, index: int) -> int:
    flow = solution.dest.flow
    leaves = sorted(i for i in flow.ancestors([index]) if i in flow.weights)
    return leaves[0] if leaves else index


def _output_findings(solution: Solution) -> list[Finding]:
    found = []
    for src_path, dest_path, off in solution.outcome.matched_outputs:
        if off > EXACT:
            message = (
                f"output `{dest_path or 'result'}` differs from src's `{src_path or 'result'}` by "
                f"{off:.1e} (relative) on equal weights"
            )
            found.append(Finding("output-differs", message, Site(src_path, "output"), Site(dest_path, "output")))
    failed = _failed_outputs(solution)
    for path in failed:
        index = dict(solution.dest.flow.outputs)[path]
        if not any(
            stop.node in solution.dest.flow.ancestors([index])
            for stop in solution.outcome.stops
            if stop.reason != "output"
        ):
            site = site_of(solution.dest.flow, index)
            cause = explain_stop(solution, Values(solution), Stop(index, "output"))
            found += [cause] if cause is not None else []
            found.append(
                Finding("output-differs", f"output `{path or 'result'}` is nothing that src gives", None, site)
            )
    theirs = {b for _, b, _ in solution.outcome.matched_outputs}
    for path, index in solution.dest.flow.outputs:
        if path not in theirs and path not in failed and solution.dest.flow[index].role is Role.ACTIVATION:
            message = f"output `{path or 'result'}` has no counterpart in src and was not compared"
            found.append(Finding("output-extra", message, None, site_of(solution.dest.flow, index), "warning"))
    return found


_POOLS = {"mean", "avg_pool2d", "avg_pool1d", "_adaptive_avg_pool2d", "max_pool2d_with_indices", "amax"}
_NORMS = {"layer_norm", "group_norm", "rms_norm", "batch_norm"}


def _coincidences(solution: Solution) -> list[Finding]:
    """Pools that change nothing on this input, where both models have them in another order with norms."""
    orders = [[_kind(side.flow[i].op) for i in _tail(side.flow)] for side in (solution.src, solution.dest)]
    idle = [i for i in _tail(solution.dest.flow) if _is_idle_pool(solution.dest, i)]
    idle_src = [i for i in _tail(solution.src.flow) if _is_idle_pool(solution.src, i)]
    if orders[0] == orders[1] or not (idle or idle_src):
        return []
    site = site_of(solution.dest.flow, idle[0]) if idle else None
    theirs = site_of(solution.src.flow, idle_src[0]) if idle_src else None
    message = (
        "on this input a pool is over a single position and changes nothing: "
        f"src has {' before '.join(orders[0])} and dest {' before '.join(orders[1])}, "
        "which a larger input would tell apart"
    )
    return [Finding("rewired", message, theirs, site, "warning", help="match again with a larger sample input")]


def _kind(op: str) -> str:
    return "pool" if op in _POOLS else "norm"


def _tail(flow: Flow, count: int = 3) -> list[int]:
    """The last norms and pools of a model, in order."""
    found = [n.index for n in flow.nodes if n.role is Role.ACTIVATION and n.op in _POOLS | _NORMS]
    return found[-count:]


def _is_idle_pool(side: Side, index: int) -> bool:
    node = side.flow[index]
    return node.op in _POOLS and _count(node.shape) == _count(side.flow[node.operands[0]].shape)


def _quiet_findings(solution: Solution, draft: Draft) -> list[Finding]:
    found = [
        Finding(
            "not-executed",
            f"`{dest}` takes `{src}` by name and shape alone: no compared output depends on it",
            Site(src, "weight"),
            Site(dest, "weight"),
            "warning",
        )
        for dest, src in draft.assumed
    ]
    found += [_filled_finding(name, value) for name, value in draft.filled]
    found += [_computed_finding(draft, name) for name in draft.computed]
    found += [_kept_finding(name) for name in draft.own]
    found += [_uncomputed_finding(name, formula) for name, formula in draft.uncomputed]
    found += [_unwritten_finding(name, reason) for name, reason in draft.unwritten]
    found += [
        Finding(
            "ambiguous",
            f"{count} elements of `{name}` meet only zeros on this input (units that never turn on): "
            "their order is a guess",
            None,
            Site(name, "weight"),
            notes=(others,) if others else (),
            help="match again with a larger or another sample input, which turns them on",
        )
        for name, count, others in draft.doubtful
    ]
    found += [_partly_finding(*partly) for partly in draft.partly]
    found += [
        Finding(
            "no-effect", f"`{name}` moves no compared output and was left as it is", None, Site(name, "weight"), "note"
        )
        for name in draft.idle
    ]
    return found


def _filled_finding(name: str, value: float) -> Finding:
    """A weight that src has nothing for and that a constant makes do nothing."""
    if value == 0:
        message = f"`{name}` is filled with zeros: src adds nothing there"
        return Finding("zero-filled", message, None, Site(name, "weight"), "note")
    words = "ones" if value == 1 else f"{value:.6g}"
    message = f"`{name}` is filled with {words}: src multiplies with nothing there, and so does dest with that"
    return Finding("neutral-filled", message, None, Site(name, "weight"), "note")


def _computed_finding(draft: Draft, name: str) -> Finding:
    formula = format_expr(draft.plan.entries[name])
    return Finding("computed", f"`{name}` is computed: {formula}", None, Site(name, "weight"), "note")


def _uncomputed_finding(name: str, formula: str) -> Finding:
    message = f"`{name}` would have to be computed: {formula}"
    return Finding("unmatched-weight", message, None, Site(name, "weight"), help="allow arithmetic (no --no-algebra)")


def _unwritten_finding(name: str, reason: str) -> Finding:
    message = f"`{name}` is computed from src's weights in a way that no plan can hold: {reason}"
    return Finding("unmatched-weight", message, None, Site(name, "weight"), help="compute it by hand and load it")


def _kept_finding(name: str) -> Finding:
    message = f"the buffer `{name}` has no counterpart in src and was left as it is: the outputs agree with it"
    return Finding("no-effect", message, None, Site(name, "weight"), "note")


def _partly_finding(name: str, blind: int, unknown: int) -> Finding:
    """Elements that the sample does not read: taken as the others go on, or zero."""
    rest = f"; {unknown} of them have no counterpart in src and are zero" if unknown else ""
    message = (
        f"{blind} elements of `{name}` are not read on this input and were taken from src as the others go on{rest}"
    )
    return Finding("not-executed", message, None, Site(name, "weight"), "warning" if unknown else "note")


def _pin_findings(draft: Draft, pins: tuple[str, ...]) -> list[Finding]:
    """A pin that the alignment contradicts is an error: it is checked, not trusted."""
    found = []
    for pin in pins:
        dest, _, src = pin.partition("=")
        name = src.partition("[")[0]
        expr = draft.plan.entries.get(dest)
        if expr is None or name not in {s.name for s in sources_of(expr)}:
            message = f"the pin `{pin}` contradicts what the computation shows"
            found.append(Finding("ambiguous", message, Site(name, "weight"), Site(dest, "weight")))
    return found
