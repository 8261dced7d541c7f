"""Ops of dest that differ from their src twins in numbers and flags alone: what they would have to be."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import fx

from automap.align import Solution
from automap.canonical.flow import Flow, Role
from automap.canonical.rules.layout import MOVES
from automap.capture import Capture
from automap.explanation.departures import Point
from automap.explanation.graphs import Adjusted, frame, numbers

_MOST_FOLLOWERS = 4


def reconsidered(solution: Solution, here: Sequence[Point]) -> set[str]:
    """Return the names of the recorded calls at the points: those among them that were adjusted were not helped."""
    return {mine.name for point in here if point.twin is not None for mine, _ in _pairs(solution, point)}


def adjustments(
    solution: Solution, dest: Capture, here: Sequence[Point], settled: Collection[str]
) -> Iterator[list[Adjusted]]:
    """Yield what may be tried together: src's numbers and flags for an op at a point, then for each that is like it.

    What changes the shape of a result goes alone, or together with ops behind it that change it back; what is settled
    already is left out.
    """
    done: set[str] = set(settled)
    for point in here:
        front = solution.dest.flow[point.node].origin
        for mine, theirs in _pairs(solution, point) if point.twin is not None else ():
            if mine.name in done or not _differ_plainly(mine, theirs) or front is None:
                continue
            done.add(mine.name)
            yield [Adjusted(mine.name, theirs, front.name)]
            if mine.meta.get("shape") != theirs.meta.get("shape"):
                continue
            for node in dest.graph.nodes:
                if node.name not in done and _is_alike(node, mine):
                    done.add(node.name)
                    yield [Adjusted(node.name, theirs, front.name)]


def followed(dest: Capture, src: Capture, patch: Adjusted) -> Iterator[list[Adjusted]]:
    """Yield a patch together with more and more of the same for the next ops of the kind on both sides."""
    calls = [[node for node in found.graph.nodes if node.target == patch.twin.target] for found in (dest, src)]
    named = zip(calls, (patch.name, patch.twin.name), strict=True)
    following = [_behind(nodes, name) for nodes, name in named]
    found = [patch]
    for mine, theirs in zip(*following, strict=False):
        if _differ_plainly(mine, theirs):
            found.append(Adjusted(mine.name, theirs, patch.point))
            yield list(found)


def _behind(nodes: list[fx.Node], name: str) -> list[fx.Node]:
    place = [node.name for node in nodes].index(name) + 1
    return nodes[place : place + _MOST_FOLLOWERS]


def _pairs(solution: Solution, point: Point) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The recorded calls behind an op and its twin: their own, then those that compute the weights they take."""
    assert point.twin is not None
    sides = [(solution.dest.flow, point.node), (solution.src.flow, point.twin)]
    chains = [dict.fromkeys(flow[i].origin for i in (start, *_weight_side(flow, start))) for flow, start in sides]
    for mine, theirs in zip(*chains, strict=False):
        if mine is not None and theirs is not None and mine.op == theirs.op == "call_function":
            yield mine, theirs


def _weight_side(flow: Flow, index: int) -> list[int]:
    behind = flow.ancestors([i for i in flow[index].operands if flow[i].role is Role.WEIGHT])
    return [i for i in sorted(behind) if flow[i].role is Role.WEIGHT and flow[i].op not in MOVES | {"weight"}]


def _differ_plainly(mine: fx.Node, theirs: fx.Node) -> bool:
    if mine.target != theirs.target or frame(mine) != frame(theirs):
        return False
    return bool(numbers(mine) != numbers(theirs))


def _is_alike(node: fx.Node, other: fx.Node) -> bool:
    if node.op != other.op or node.target != other.target:
        return False
    return bool(numbers(node) == numbers(other))
