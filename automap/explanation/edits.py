"""What would make a departure agree: dest's op left out, an op of src put before it, or src's result in its place.

Told by what comes behind: ops are known by their kind, values by where they are had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from automap.align import Solution
from automap.align.divergence import Divergence, Values, heard_by
from automap.canonical.flow import Flow, Role
from automap.canonical.rules.layout import MOVES
from automap.results import Gap
from automap.verify.layout import gap, laid_out

_LIKELY = 0.5  # the share of what is done with a value that must be the same on both sides
Kind = Literal["leave-out", "put-before", "replace"]


@dataclass(frozen=True, slots=True)
class Edit:
    """A repair of dest's op `node`, whose call ends in `result` and reads `operand`, which is src's value `partner`.

    "leave-out" gives src's value `given` of the operand in place of the result, "replace" that of src's op in place of
    the result, "put-before" that of src's op `op` in place of the operand.
    """

    kind: Kind
    node: int
    result: int
    operand: int
    partner: int
    given: int
    op: int | None = None

    @property
    def at(self) -> int:
        """The dest node whose value is replaced."""
        return self.operand if self.kind == "put-before" else self.result


def best_edit(solution: Solution, values: Values, front: Divergence) -> Edit | None:
    """Return the repair of an op after which both sides go on most alike, or None where none is likely."""
    options = [(share, edit) for share, edit in _edits(solution, values, front) if share >= _LIKELY]
    return max(options, key=lambda option: (option[0], _rank(solution, option[1])), default=(0.0, None))[1]


def _rank(solution: Solution, edit: Edit) -> int:
    """How much a repair says, others being as likely."""
    if edit.kind != "replace":
        return 3 if edit.kind == "put-before" else 2
    return int(edit.op is not None and solution.src.flow[edit.op].op == solution.dest.flow[edit.node].op)


def _edits(solution: Solution, values: Values, front: Divergence) -> Iterator[tuple[float, Edit]]:
    """All repairs that sizes allow, each with how much of what comes behind is the same on both sides."""
    dest, src = solution.dest.flow, solution.src.flow
    result = end_of_call(dest, front.node)
    after = _done_with(dest, result)
    for operand, partner in had_operands(solution, values, front.node):
        place = (front.node, result, operand, partner)
        if dest[result].shape == dest[operand].shape:
            yield _share(after, _done_with(src, partner)), Edit("leave-out", *place, partner)
        for op in heard_by(src, partner):
            end = end_of_call(src, op)
            behind = _done_with(src, end)
            is_new = src[op].op != dest[front.node].op or _takes_weight(src, op) > _takes_weight(dest, front.node)
            if is_new and dest[front.node].op in behind and _count(src, end) == _count(dest, operand):
                yield 1.0, Edit("put-before", *place, end, op)
            if _count(src, end) == _count(dest, result):
                yield _share(after, behind), Edit("replace", *place, end, op)


def _takes_weight(flow: Flow, index: int) -> bool:
    return any(flow[i].role is Role.WEIGHT for i in flow[index].operands)


def had_operands(solution: Solution, values: Values, node: int) -> Iterator[tuple[int, int]]:
    """Yield the operands of a dest op that src has, seen through layout, each with the src node that has it."""
    flow = solution.dest.flow
    for operand in dict.fromkeys(flow[node].operands):
        index, data = operand, _data(flow, operand)
        while values.partner(index) is None and flow[index].op in MOVES and len(data) == 1:
            index, data = data[0], _data(flow, data[0])
        partner = values.partner(index)
        if flow[operand].role is Role.ACTIVATION and partner is not None:
            yield operand, partner


def _data(flow: Flow, index: int) -> list[int]:
    return [i for i in flow[index].operands if flow[i].role is Role.ACTIVATION]


def end_of_call(flow: Flow, index: int) -> int:
    """Return the last node that holds data of the recorded call that a node belongs to."""
    origin = flow[index].origin
    return max(n.index for n in flow.nodes if n.origin is origin and n.role is Role.ACTIVATION)


def _done_with(flow: Flow, index: int) -> Counter[str]:
    """The kinds of ops that compute with a value; an output is one more."""
    found = Counter(flow[reader].op for reader in heard_by(flow, index))
    found["output"] += sum(index == output for _, output in flow.outputs)
    return +found


def _share(one: Counter[str], other: Counter[str]) -> float:
    return (one & other).total() / max((one | other).total(), 1)


def _count(flow: Flow, index: int) -> int:
    count = 1
    for n in flow[index].shape:
        count *= n
    return count


def edit_order(solution: Solution, edit: Edit) -> Tensor | None:
    """Return which element of what an edit gives belongs at each place, flat: as the operand is laid out if it can."""
    src, dest = solution.src, solution.dest
    if src.flow[edit.given].shape == src.flow[edit.partner].shape:
        return laid_out(src.run.value(edit.partner), dest.run.value(edit.operand))
    value: Tensor = src.run.value(edit.given)
    return laid_out(value, dest.run.value(edit.at) if dest.run.knows(edit.at) else value)


def edit_gap(solution: Solution, edit: Edit) -> Gap | None:
    """Return how far what an edit gives is from what is there."""
    if not solution.dest.run.knows(edit.at):
        return None
    mine, theirs = solution.dest.run.value(edit.at), solution.src.run.value(edit.given)
    is_shown = isinstance(mine, Tensor) and isinstance(theirs, Tensor)
    return gap(theirs, mine, edit_order(solution, edit)) if is_shown else None
