"""Revises a walk that has come to a stop: other candidates for what is open, factors that a weight makes up for.

Works on a Search, which computes again from the first decision that changes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING

from automap.align.choices import Key, Stop
from automap.align.replay import replay, restore
from automap.align.scale import Factor, proportional, rescaled, steady
from automap.align.second import Second
from automap.canonical.flow import Ref, Role
from automap.canonical.rules.layout import MOVES

if TYPE_CHECKING:
    from automap.align.search import Search

#: so many ops are computed again for one revision; so many values of dest that are src's times a number are tried
_REVISION, _FACTORS = 6_000, 6
_PRODUCTS = ("matmul", "convolution")


def _nearest(search: Search, index: int) -> list[Key]:
    """The decisions that a value, or the first factor of one, is a product, sum or layout of."""
    flow, before, factor = search.dest.flow, index, index
    while True:
        found = sorted(search.decided_at(index))
        pieces = [k for k in found if search.choices[k].taken.channels is not None or flow[index].op == "lookup"]
        if pieces:
            inside = flow.ancestors([factor]) if factor != before else set()
            turned = [k for k in pieces if search.choices[k].readers & inside]
            return turned or [k for k in pieces if before in search.choices[k].readers][:1] or pieces[:1]
        operands = [i for i in flow[index].operands if flow[i].role is Role.ACTIVATION]
        if not operands or flow[index].op not in (*MOVES, "add", "mul", "div", "matmul"):
            return []
        before, factor = (index, operands[0]) if flow[index].op == "matmul" else (before, factor)
        index = operands[0]


def keep_own(search: Search, stop: Stop) -> bool:
    """Let buffers that src has nothing for keep what they hold, and return whether that gets past a stop.

    Whether it is right the outputs tell.
    """
    flow = search.dest.flow
    leaves = [i for i in flow.ancestors([stop.weight]) if i in flow.weights] if stop.weight is not None else []
    if not leaves or any(flow.weights[i].is_parameter or i not in search.assignment.blank for i in leaves):
        return False
    for leaf in leaves:
        search.assignment.keep_own(leaf, stop.node)
    return search.process(stop.node) is None


def mend(search: Search, stop: Stop) -> bool:
    """Get past a stop by revising what is open behind it or by a factor; return whether that worked."""
    factors = proportional(search.dest, search.src, _operands(search, stop)) if search.is_algebraic else []
    sure, others = [f for f in factors if not f.is_held], [f for f in factors if f.is_held]
    return _rescale(search, stop, sure) or repair(search, stop) or _rescale(search, stop, others)


def _rescale(search: Search, stop: Stop, factors: list[Factor]) -> bool:
    """Where a value behind a stop is src's times a number, let the first product behind it make up for that."""
    if not factors:
        return False
    second = Second(search)
    for factor in factors[:_FACTORS]:
        ratio = steady(factor, second)
        if ratio is None:
            continue
        keys = [k for k in _nearest(search, factor.node) if not search.dest.is_shared(k[1])]
        if keys and _rescale_pieces(search, stop, keys, ratio):
            return True
    return False


def _rescale_pieces(search: Search, stop: Stop, keys: list[Key], ratio: float | Ref) -> bool:
    """Let all pieces of a product that a value is made of, the halves of a rotation say, make up for a factor."""
    former = {key: search.choices[key].taken for key in keys}
    if any(search.offered.get(key) is candidate for key, candidate in former.items()):
        return False
    search.offered |= {key: rescaled(search.src, candidate, ratio) for key, candidate in former.items()}
    if replay(search, stop, {key: search.offered[key].id for key in keys}) is None:
        return True
    restore(search, stop, {key: candidate.id for key, candidate in former.items()})
    for key in keys:
        del search.offered[key]
    return False


def repair(search: Search, stop: Stop) -> bool:
    """Try other candidates for the open decisions behind a stop, likest first; return whether the stop goes away."""
    keys = _open_keys(search, stop)
    if not keys:
        return False
    before = {key: search.choices[key].taken.id for key in keys}
    allowed = search.work + _REVISION
    for trial in _trials(search, keys):
        search.trials += 1
        if search.work > allowed:
            break
        if replay(search, stop, {**trial}) is None:
            return True
    restore(search, stop, before)
    return False


def settle_early(search: Search, index: int) -> None:
    """Decide on what is open where src must hold a value of dest: what a head gives, what a loop goes on with."""
    if index in search.poisoned:
        return
    stop = Stop(index, "unheld")
    if not _is_of_one_head(search, index):  # a first step from zeros bears out nothing for good
        _settle_loop(search, stop)
        return
    keys = [k for k in _open_keys(search, stop) if "run" in search.choices[k].taken.key]
    if len(keys) > 0 and (search.src.holds(search.dest.run.value(index)) or repair(search, stop)):
        search.confirm(index, 0.0)


def _settle_loop(search: Search, stop: Stop) -> None:
    """See that src holds the state that a loop goes on with; what cannot be mended once is not tried at each step."""
    keys = frozenset(_open_keys(search, stop))
    if not keys or keys in search.lost or not _is_fed_back(search, stop.node):
        return
    if not search.src.holds(search.dest.run.value(stop.node)) and not repair(search, stop):
        search.lost.add(keys)


def _is_fed_back(search: Search, index: int) -> bool:
    """Whether a value goes into a product with a weight that it has been through already, as the state of a loop."""
    flow, run = search.dest.flow, search.dest.run
    products = [flow[r] for r in flow.readers.get(index, ()) if flow[r].op in _PRODUCTS]
    weights = [i for n in products for i in n.operands if flow[i].role is Role.WEIGHT and run.is_resolved(i)]
    return bool(weights) and not flow.ancestors([index]).isdisjoint(
        use for i in weights for use in search.dest.uses(i) if flow[use].op in _PRODUCTS
    )


def _is_of_one_head(search: Search, index: int) -> bool:
    """Whether a value is a softmax, or a product of one with something else."""
    flow = search.dest.flow
    if flow[index].op != "matmul":
        return flow[index].op == "softmax"
    operands = [i for i in flow[index].operands if flow[i].role is Role.ACTIVATION]
    return len(operands) == 2 and any(_before_layout(search, i) == "softmax" for i in operands)


def _before_layout(search: Search, index: int) -> str:
    node = search.dest.flow[index]
    while node.op in MOVES and len(node.operands) == 1:
        node = search.dest.flow[node.operands[0]]
    return node.op


def _open_keys(search: Search, stop: Stop) -> list[Key]:
    behind = frozenset().union(
        *(search.fresh.get(i, frozenset()) | search.ripe.get(i, frozenset()) for i in _operands(search, stop))
    )
    keys = [
        k
        for k in behind
        if k in search.choices and not search.choices[k].is_confirmed and len(search.choices[k].candidates) > 1
    ]
    return sorted(keys)[-10:]


def _operands(search: Search, stop: Stop) -> tuple[int, ...]:
    return (stop.node,) if stop.reason == "output" else (*search.dest.flow[stop.node].operands, stop.node)


def _trials(search: Search, keys: list[Key], limit: int = 120) -> Iterator[dict[Key, tuple[object, ...]]]:
    """Assignments of candidates to decisions, those that change least first, none taken twice."""
    lists = [search.choices[key].candidates for key in keys]
    start = tuple(search.choices[key].current for key in keys)
    orders = [[start[n], *(i for i in range(len(c)) if i != start[n])][:24] for n, c in enumerate(lists)]
    heap: list[tuple[int, tuple[int, ...]]] = [(0, tuple(0 for _ in keys))]
    seen = {heap[0][1]}
    given = 0
    popped = 0
    while heap and given < limit and popped < 60_000:
        _, ranks = heapq.heappop(heap)
        popped += 1
        chosen = [lists[n][orders[n][r]] for n, r in enumerate(ranks)]
        if len({c.key for c in chosen}) == len(chosen) and any(ranks):
            given += 1
            yield {key: c.id for key, c in zip(keys, chosen, strict=True)}
        for n in range(len(keys)):
            following = (*ranks[:n], ranks[n] + 1, *ranks[n + 1 :])
            if following[n] < len(orders[n]) and following not in seen:
                seen.add(following)
                heapq.heappush(heap, (sum(following), following))
