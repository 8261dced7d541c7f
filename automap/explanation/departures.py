"""Where dest leaves src in one walk: ops whose operands src has too and whose result it has not.

A solution comes in. Goes out: for each stop of the walk, and each output that is not src's, the ops at which the values
part, each with the src op that reads the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from automap.align import Solution
from automap.align.choices import Stop
from automap.align.divergence import Divergence, Values, divergences, heard_by, scalars
from automap.align.moments import EXACT
from automap.canonical.flow import Flow, Node, Role, site_of
from automap.causes import explain_stop
from automap.explanation.edits import Edit, best_edit, edit_gap, had_operands
from automap.findings import Finding, Site
from automap.results import Gap
from automap.verify.layout import gap

_SPECIFIC = {"unused-source", "constant-differs"}  # causes that say something of an op, whatever is around it
_VAGUE = {"rewired", "op-extra", "output-differs"}  # causes that say less than that an op of src is missing


@dataclass(frozen=True, slots=True)
class Point:
    """Dest's op `node` gives another value than src's op `twin` (None where src has no such op) on the same operands.

    `finding` is the cause; `is_main` that it is the one cause of its stop that counts most; `edit` what would mend it.
    """

    node: int
    twin: int | None
    stop: Stop
    finding: Finding
    gap: Gap | None
    is_main: bool
    edit: Edit | None


def points(solution: Solution) -> list[Point]:
    """Return where dest leaves src, in dest's order, each op once."""
    values = Values(solution)
    found: dict[int, Point] = {}
    for stop in leads(solution):
        for point in _points(solution, values, stop):
            known = found.get(point.node)
            if known is None or (point.is_main and not known.is_main):
                found[point.node] = point
    return [found[node] for node in sorted(found)]


def leads(solution: Solution) -> list[Stop]:
    """Return what shows that dest is not src: stops of the walk, and outputs that are none of src's."""
    dest, src = solution.dest.flow, solution.src.flow
    exact = {path: theirs for theirs, path, off in solution.outcome.matched_outputs if off <= EXACT}
    free = {_count(src[index].shape) for path, index in src.outputs if path not in exact.values()}
    open_outputs = [
        index
        for path, index in dest.outputs
        if path not in exact and dest[index].role is Role.ACTIVATION and _count(dest[index].shape) in free
    ]
    if exact and not open_outputs:
        return []
    behind = dest.ancestors(open_outputs or [index for _, index in dest.outputs])
    stops = [stop for stop in solution.outcome.stops if stop.reason != "output" and stop.node in behind]
    stopped = {stop.node for stop in stops}
    ends = [index for index in open_outputs if stopped.isdisjoint(dest.ancestors([index]))]
    return [*sorted(stops, key=lambda stop: stop.node), *(Stop(index, "output") for index in ends)]


def _points(solution: Solution, values: Values, stop: Stop) -> Iterator[Point]:
    """The ops at which values part on the way to a stop: the main one, and others that are departures by themselves."""
    dest = solution.dest.flow
    cause = explain_stop(solution, values, stop)
    fronts = divergences(solution, values, stop) or _direct(solution, values, stop)
    named = [front for front in fronts if cause is not None and site_of(dest, front.node) == cause.dest]
    main = next(iter((*named, *fronts)), None)
    if main is None and cause is not None and stop.reason != "output":
        yield Point(stop.node, None, stop, cause, None, True, None)
    for front in fronts:
        twin = _twin(solution, dest[front.node], front.readers)
        edit = best_edit(solution, values, front)
        finding = _finding(solution, values, front, twin, edit, cause if front is main else None)
        if finding is None and front is main:
            finding = _unnamed(solution, front.node, twin)
        if finding is not None:
            finding = _sized(solution, finding, front.node, twin)
            off = op_gap(solution, front.node, twin) or _edited_gap(solution, edit)
            yield Point(front.node, twin, stop, finding, off, front is main, edit)


def _direct(solution: Solution, values: Values, stop: Stop) -> list[Divergence]:
    """A use that meets a value src has, where src does something else with that value."""
    if stop.reason == "output":
        return []
    partners = tuple(partner for _, partner in had_operands(solution, values, stop.node))
    readers = tuple(dict.fromkeys(r for p in partners for r in heard_by(solution.src.flow, p)))
    return [Divergence(stop.node, partners, readers)] if partners else []


def _finding(
    solution: Solution, values: Values, front: Divergence, twin: int | None, edit: Edit | None, cause: Finding | None
) -> Finding | None:
    """What a front differs in; cause is that of the whole stop, if the front is the main one of it."""
    own = own_cause(solution.dest.flow, front.node, solution.src.flow, twin) if twin is not None else None
    if own is not None:
        return own if cause is None or cause.code != own.code else cause
    found = cause or explain_stop(solution, values, Stop(front.node, "output"))
    if edit is not None and edit.kind == "put-before" and (found is None or found.code in _VAGUE):
        return _missing(solution, edit)
    if cause is None and edit is None and (found is None or found.code not in _SPECIFIC):
        return None
    return found


def _missing(solution: Solution, edit: Edit) -> Finding:
    """An op of src that dest does not have, or a weight."""
    assert edit.op is not None
    src, dest = solution.src.flow, solution.dest.flow
    mine, theirs = site_of(dest, edit.node), site_of(src, edit.op)
    leaf = _leaf(src, edit.op) if src[edit.op].op in ("add", "mul") else None
    if leaf is not None:
        words = ("adds", "bias") if src[edit.op].op == "add" else ("multiplies by", "scale")
        name = src.weights[leaf].name
        text = f"src {words[0]} `{name}` ({words[1]}) here; dest has no such weight and goes on with {mine.kind}"
        return Finding("unused-source", text, site_of(src, leaf), mine)
    text = f"src applies {_named(theirs)} to the value that dest's {_named(mine)} reads directly"
    return Finding("op-missing", text, theirs, mine)


def _leaf(flow: Flow, index: int) -> int | None:
    """The stored weight that an op takes directly, or through ops on weights alone."""
    behind = flow.ancestors([i for i in flow[index].operands if flow[i].role is Role.WEIGHT])
    return next((i for i in sorted(behind) if i in flow.weights), None)


def _edited_gap(solution: Solution, edit: Edit | None) -> Gap | None:
    off = edit_gap(solution, edit) if edit is not None else None
    if off is None or edit is None or edit.kind != "put-before":
        return off
    return replace(off, at=site_of(solution.dest.flow, edit.node).name or solution.dest.flow[edit.node].op)


def _named(site: Site) -> str:
    return f"`{site.kind}`{f' in {site.name}' if site.name else ''}"


def _twin(solution: Solution, node: Node, readers: tuple[int, ...]) -> int | None:
    """The src op of the same kind among those that read the same values, else the first of them."""
    src = solution.src.flow
    same = [r for r in readers if src[r].op == node.op]
    shaped = [r for r in same if _count(src[r].shape) == _count(node.shape)]
    return next(iter((*shaped, *same, *readers)), None)


def own_cause(dest: Flow, node: int, src: Flow, twin: int) -> Finding | None:
    """Return the numbers and flags in which a dest op differs from a src op of the same kind, or None."""
    if src[twin].op != dest[node].op:
        return None
    mine, theirs = scalars(dest[node]), scalars(src[twin])
    names = [name for name in dict.fromkeys([*theirs, *mine]) if mine.get(name) != theirs.get(name)]
    if not names:
        return None
    label = {name: _label(dest, dest[node], name) for name in names}
    words = ", ".join(f"{label[name]}{theirs.get(name)} in src, {mine.get(name)} in dest" for name in names)
    return Finding("attribute-differs", f"{dest[node].op} {words}", site_of(src, twin), site_of(dest, node))


def _label(flow: Flow, node: Node, name: str) -> str:
    """What a number is, where that shows."""
    if not name.startswith("argument"):
        return f"{name} "
    if node.op in ("mul", "div"):
        return "scale "
    readers = {flow[reader].op for reader in flow.readers.get(node.index, ())}
    return "eps " if node.op == "add" and readers & {"rsqrt", "sqrt", "div", "pow"} else ""


def _sized(solution: Solution, finding: Finding, node: int, twin: int | None) -> Finding:
    """A finding whose places have the shapes and number types of what is computed there."""
    return replace(
        finding,
        dest=_with_shape(finding.dest, solution.dest.flow, node),
        src=_with_shape(finding.src, solution.src.flow, twin) if twin is not None else finding.src,
    )


def _with_shape(site: Site | None, flow: Flow, index: int) -> Site | None:
    if site is None or site.shape is not None or site.kind == "weight":
        return site
    origin = flow[index].origin
    if origin is None or site.name != origin.meta.get("module_path", ""):
        return site
    same = [node.shape for node in flow.nodes if node.origin is origin and node.op == site.kind]
    known = [n.meta["dtype"] for n in (origin, *origin.users) if "dtype" in n.meta]
    shape = next(iter(same), flow[index].shape)
    return replace(site, shape=shape, dtype=str(next(iter(known), "")).removeprefix("torch."))


def _unnamed(solution: Solution, node: int, twin: int | None) -> Finding:
    dest = solution.dest.flow
    theirs = site_of(solution.src.flow, twin) if twin is not None else None
    text = f"`{dest[node].op}` gives another value in dest than src has, on the same operands"
    return Finding("output-differs", text, theirs, site_of(dest, node))


def op_gap(solution: Solution, node: int, twin: int | None) -> Gap | None:
    """Return how far dest's value of a node is from src's value of another that is of the same kind."""
    if twin is None or solution.dest.flow[node].op != solution.src.flow[twin].op:
        return None
    if not solution.dest.run.knows(node) or not solution.src.run.knows(twin):
        return None
    mine, theirs = solution.dest.run.value(node), solution.src.run.value(twin)
    return gap(theirs, mine) if isinstance(mine, Tensor) and isinstance(theirs, Tensor) else None


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
