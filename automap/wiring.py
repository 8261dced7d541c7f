"""Causes that are no number: steps that one side has and the other has not, other layouts, other operands."""

from __future__ import annotations

from automap.align.divergence import Divergence, Values, held_at
from automap.align.solve import Solution
from automap.between import added, detour, heard_ops, laid_out, layout_text, missing_way, skipped, way_text
from automap.canonical.flow import Flow, Node, Role
from automap.canonical.rules.layout import MOVES
from automap.naming import Cause, cause_finding, leaf_name, leaves_of, named


def other_steps(solution: Solution, node: Node, found: Divergence, *, is_alone: bool) -> list[Cause]:
    """Ops that one side does first, where both go on alike after them; is_alone tells that src has no such op there."""
    dest, src = solution.dest.flow, solution.src.flow
    less = skipped(src, dest, node, found.readers)
    more = added(src, dest, node, found.readers) if is_alone else []
    if more and not (less and len(less) < len(more)):
        text = f"dest applies {way_text(more)} to a value to which src applies {readers_text(src, found)}"
        site = found.readers[0] if found.readers else None
        return [Cause(1, cause_finding(solution, "op-extra", text, site, node.index))]
    if not less or (len(less) == 1 and any(leaves_of(src, i) for i in less[0].operands)):
        return []
    text = f"src applies {way_text(less)} to a value to which dest applies {named(dest, node)} directly"
    return [Cause(1, cause_finding(solution, "op-missing", text, less[0].index, node.index))]


def readers_text(src: Flow, found: Divergence) -> str:
    return ", ".join(dict.fromkeys(named(src, src[r]) for r in found.readers)) or "nothing"


def rewired(solution: Solution, values: Values, found: Divergence, reader: int) -> Cause:
    """Two ops of one kind that read other values: by steps that src has before, by another layout, or by wiring."""
    dest, src = solution.dest.flow, solution.src.flow
    node = dest[found.node]
    way = missing_way(src, reader, found.operands)
    lost = unused_weights(solution, node, way[0].index) if len(way) == 1 else []
    if lost:
        return lost[0]
    if way:
        text = f"src applies {way_text(way)} to a value that dest's {named(dest, node)} reads directly"
        return Cause(4, cause_finding(solution, "op-missing", text, way[0].index, node.index))
    route = routes(solution, values, node, src[reader])
    if route is not None:
        return route
    text = f"{named(dest, node)} in dest reads other values than {named(src, src[reader])} in src"
    return Cause(7, cause_finding(solution, "rewired", text, reader, node.index))


def routes(solution: Solution, values: Values, mine: Node, theirs: Node) -> Cause | None:
    """Two ops that read one value through other layouts: a part of it, rolled, padded."""
    dest, src = solution.dest, solution.src
    ours = [i for i in mine.operands if dest.flow[i].role is Role.ACTIVATION]
    others = [i for i in theirs.operands if src.flow[i].role is Role.ACTIVATION]
    for one, other in zip(ours, others, strict=False):
        (start, here), (origin, there) = laid_out(dest, one), laid_out(src, other)
        partner = values.partner(start)
        if partner is None or not (partner == origin or values.is_same(partner, origin)):
            continue
        words = [layout_text(way) for way in (here, there)]
        if words[0] != words[1]:
            through = [f"through {w}" if w else "as it is" for w in words]
            text = (
                f"{named(dest.flow, mine)} in dest reads {through[0]} what {named(src.flow, theirs)} in src reads "
                f"{through[1]}"
            )
            return Cause(3, cause_finding(solution, "rewired", text, theirs.index, mine.index))
    return None


def unused_weights(solution: Solution, node: Node, reader: int) -> list[Cause]:
    """Src adds or multiplies a weight there, and dest goes on with a node without it."""
    src, dest = solution.src.flow, solution.dest.flow
    causes = []
    for leaf in (w for i in src[reader].operands for w in leaves_of(src, i) if src[reader].op in ("add", "mul")):
        kind = "bias" if src[reader].op == "add" else "scale"
        has_as_many = _of_shape(dest, src, leaf) >= _of_shape(src, src, leaf)
        text = (
            f"src {'adds' if kind == 'bias' else 'multiplies by'} `{src.weights[leaf].name}` "
            f"({kind}) here; dest {'' if has_as_many else 'has no such weight and '}goes on with {node.op}"
        )
        causes.append(Cause(3, cause_finding(solution, "unused-source", text, leaf, node.index)))
    return causes


def _of_shape(flow: Flow, src: Flow, leaf: int) -> int:
    shape = src.weights[leaf].tensor.shape
    return sum(weight.tensor.shape == shape for weight in flow.weights.values())


def same_width_elsewhere(solution: Solution, mine: Node, theirs: Node) -> Cause | None:
    """Dest's product reads what src's product of another width reads: src has one of that width behind other values."""
    dest, src = solution.dest.flow, solution.src.flow
    if not any(dest[i].role is Role.WEIGHT for i in mine.operands):
        return None
    here = {s for i in theirs.operands if src[i].role is Role.ACTIVATION for s in sources_of(src, i)}
    inner = dest[mine.operands[0]].shape[-1]
    products = [
        f.node
        for f in solution.src.linear
        if f.kind == "matmul" and f.width == mine.shape[-1] and f.columns.shape[1] == inner
    ]
    read = {
        f: {s for i in src[f].operands if src[i].role is Role.ACTIVATION for s in sources_of(src, i)} for f in products
    }
    if not products or any(not here.isdisjoint(read[f]) for f in products):
        return None
    other = next((f for f in products if f > theirs.index), products[-1])
    base = next((src[i] for i in sorted(read[other], reverse=True) if src[i].op not in MOVES), None)
    text = (
        f"{named(dest, mine)} reads in dest what {named(src, theirs)} reads in src; src weights of that shape, such as "
        f"`{leaf_name(src, other)}`, read other values" + (f" (of {named(src, base)})" if base is not None else "")
    )
    return Cause(0, cause_finding(solution, "rewired", text, theirs.index, mine.index))


def sources_of(flow: Flow, index: int) -> set[int]:
    """Return a node and everything that it is only a layout of."""
    found, stack = set[int](), [index]
    while stack:
        step = stack.pop()
        found.add(step)
        if flow[step].op in MOVES:
            stack.extend(i for i in flow[step].operands if flow[i].role is Role.ACTIVATION)
    return found


def unfinished(solution: Solution, values: Values, index: int) -> list[Cause]:
    """Dest gives a value that src has and goes on with."""
    src, partner = solution.src.flow, values.partner(held_at(solution.dest.flow, values, index))
    if partner is None:
        return []
    outputs = {i for _, i in src.outputs}
    ways = [detour(src, first, lambda n: False, outputs) for first in heard_ops(src, partner)]
    way = min((w for w in ways if w), key=len, default=None)
    if way is None:
        return []
    text = f"src applies {way_text(way)} to what dest gives as it is"
    return [Cause(4, cause_finding(solution, "op-missing", text, way[0].index, index))]
