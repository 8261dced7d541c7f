"""Repairs in dest's recording by values of src: given where an edit says so, else where a weight next meets data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from automap.align import Solution
from automap.align.divergence import Values
from automap.align.forms import LinearForm
from automap.align.labels import similarity
from automap.canonical.flow import Flow, Role
from automap.capture import Capture
from automap.explanation.departures import Point
from automap.explanation.edits import edit_order, end_of_call
from automap.explanation.graphs import Given
from automap.explanation.siblings import Siblings
from automap.verify.layout import laid_out


@dataclass(frozen=True, slots=True)
class Ground:
    """What gifts are made from: a solution, dest's recording without repairs, and which values come from inputs."""

    solution: Solution
    dest: Capture
    nodes: dict[str, fx.Node]
    data: frozenset[str]

    @classmethod
    def of(cls, solution: Solution, dest: Capture) -> Ground:
        """Return the ground for one round."""
        found: set[str] = set()
        for node in dest.graph.nodes:
            if node.op == "placeholder" or any(operand.name in found for operand in node.all_input_nodes):
                found.add(node.name)
        return cls(solution, dest, {node.name: node for node in dest.graph.nodes}, frozenset(found))

    def call(self, index: int) -> fx.Node | None:
        """The recorded call, without repairs, that a node of dest's flow comes from."""
        origin = self.solution.dest.flow[index].origin
        return self.nodes.get(origin.name) if origin is not None else None

    def result(self, call: fx.Node) -> fx.Node | None:
        """The node that holds the one result of a call that is read; None where it is one of dest's own results."""
        parts = [user for user in call.users if user.op == "call_function" and "getitem" in str(user.target)]
        found = call if "shape" in call.meta else parts[0] if len(parts) == 1 else None
        outputs = {node.name for _, node in self.dest.outputs}
        return found if found is not None and found.name not in outputs else None

    def operand(self, call: fx.Node, place: int = 0, count: int = 1) -> fx.Node | None:
        """The data operand of a call at a place among `count` of them; None where it has another number."""
        found: list[fx.Node] = []
        fx.map_arg((call.args, call.kwargs), lambda node: found.append(node) if node.name in self.data else None)
        return found[place] if len(found) == count else None

    def place(self, node: int, operand: int) -> tuple[int, int]:
        """Which of the data operands of a node one is, and how many there are."""
        flow = self.solution.dest.flow
        data = [i for i in flow[node].operands if flow[i].role is Role.ACTIVATION]
        return data.index(operand), len(data)


def edit_gifts(ground: Ground, point: Point) -> list[Given]:
    """Return what the edit of a point takes, there and at the same place of later blocks."""
    edit = point.edit
    call = ground.call(point.node)
    if edit is None or call is None:
        return []
    order = edit_order(ground.solution, edit)
    is_edge = edit.kind == "put-before"
    place = ground.place(edit.node, edit.operand) if is_edge else (0, 1)
    node = ground.operand(call, *place) if is_edge else ground.result(call)
    if order is None or node is None or not _is_of_kind(ground, edit.given, node, len(order)):
        return []
    name, reader = call.name, call.name if is_edge else None
    gift = Given(node.name, reader, edit.given, order, name, name, name, not is_edge, edit.partner)
    return [gift, *_elsewhere(ground, gift, place)]


def _is_of_kind(ground: Ground, given: int, node: fx.Node, size: int) -> bool:
    """Whether a src value can stand for a recorded one: floating-point numbers, as many."""
    dtype, value = node.meta.get("dtype"), ground.solution.src.run.value(given)
    if dtype is None or not dtype.is_floating_point or not isinstance(value, Tensor):
        return False
    return value.is_floating_point() and torch.Size(node.meta["shape"]).numel() == size


def exit_gifts(ground: Ground, points: Sequence[Point]) -> list[Given]:
    """Return src's values for what the weights behind main points meet, and for the same place of later blocks."""
    used = {k for c in ground.solution.outcome.choices.values() for k in c.taken.key if isinstance(k, int)}
    found: dict[tuple[str, str | None], Given] = {}
    for point in points:
        for mine, theirs in _exits(ground.solution, point, used) if point.is_main else ():
            gift = _exit_gift(ground, point, mine, theirs)
            fresh = [gift, *_elsewhere(ground, gift)] if gift is not None else _results(ground, point, mine, theirs)
            used |= {theirs.node} if fresh else set()
            for more in fresh:
                found.setdefault(more.key, more)
    return list(found.values())


def _exits(solution: Solution, point: Point, used: set[int]) -> Iterator[tuple[LinearForm, LinearForm]]:
    """The dest uses at which values should be src's again, each with its src counterpart."""
    if point.stop.reason != "output":
        mine = _form(solution, point.stop.node)
        theirs = _counterpart(solution, mine, used) if mine is not None else None
        if mine is not None and theirs is not None:
            yield mine, theirs
        return
    uses = {form.node: form for form in solution.src.linear}
    for node in _next_uses(solution, point):
        mine, partner = _form(solution, node), solution.outcome.partners.get(node, -1)
        if mine is not None and partner in uses:
            yield mine, uses[partner]


def _form(solution: Solution, node: int) -> LinearForm | None:
    """The linear use that a node is, its data being known."""
    side = solution.dest
    weights = [i for i in side.flow[node].operands if side.flow[i].role is Role.WEIGHT]
    data = [i for i in side.flow[node].operands if side.flow[i].role is Role.ACTIVATION]
    if len(weights) != 1 or len(data) != 1 or not side.run.knows(data[0]):
        return None
    return side.linear_form(side.flow[node], weights[0])


def _counterpart(solution: Solution, form: LinearForm, used: set[int]) -> LinearForm | None:
    """The src use of the same size, not taken yet, that is used most alike; the first of those."""
    label, size = solution.dest.labels[form.node], torch.Size(solution.dest.flow[form.node].shape).numel()
    alike = [
        other
        for other in solution.src.linear
        if other.node not in used
        and (other.kind, other.width, other.columns.shape) == (form.kind, form.width, form.columns.shape)
        and torch.Size(solution.src.flow[other.node].shape).numel() == size
    ]
    return max(alike, key=lambda other: (similarity(label, solution.src.labels[other.node]), -other.node), default=None)


def _next_uses(solution: Solution, point: Point) -> list[int]:
    """The first uses of weights behind an op that meet other values than src's."""
    flow, values = solution.dest.flow, Values(solution)
    stack, seen, found = [point.node], set[int](), []
    while stack:
        for reader in flow.readers.get(stack.pop(), ()):
            if reader in seen:
                continue
            seen.add(reader)
            form = _form(solution, reader) if flow[reader].op in ("matmul", "convolution") else None
            if form is None:
                stack.append(reader)
            elif values.partner(form.data) is None:
                found.append(reader)
    return sorted(found)


def _exit_gift(ground: Ground, point: Point, mine: LinearForm, theirs: LinearForm) -> Given | None:
    """Src's value of what one use meets, laid out as what the other meets."""
    reader, front = ground.call(mine.node), ground.call(point.node)
    value: Tensor = ground.solution.dest.run.value(mine.data)
    operand = ground.operand(reader) if reader is not None else None
    if reader is None or front is None or operand is None or operand.meta["shape"] != tuple(value.shape):
        return None
    order = laid_out(ground.solution.src.run.value(theirs.data), value)
    name = reader.name
    return Given(operand.name, name, theirs.data, order, front.name, name, name) if order is not None else None


def _results(ground: Ground, point: Point, mine: LinearForm, theirs: LinearForm) -> list[Given]:
    """Src's result of a use for all that reads dest's, where what they meet has different sizes."""
    call, front = ground.call(mine.node), ground.call(point.node)
    last = end_of_call(ground.solution.src.flow, theirs.node)
    value: Tensor = ground.solution.src.run.value(last)
    node = ground.result(call) if call is not None else None
    if call is None or front is None or node is None or node.meta.get("shape") != tuple(value.shape):
        return []
    order = torch.arange(value.numel())
    return [Given(node.name, None, last, order, front.name, call.name, call.name, is_detached=True)]


# ---------------------------------------------------------------- other blocks
def _elsewhere(ground: Ground, gift: Given, place: tuple[int, int] = (0, 1)) -> Iterator[Given]:
    """The same for later blocks, where both sides have as many of them."""
    flow = ground.solution.src.flow
    calls, sources = Siblings.of(ground.dest).after(gift.like), _later(ground, gift.src)
    partners = _later(ground, gift.partner) if gift.partner is not None else (None,) * len(sources)
    if not len(calls) == len(sources) == len(partners):
        return
    shape = ground.nodes[gift.node].meta["shape"]
    for name, index, partner in zip(calls, sources, partners, strict=True):
        call = ground.nodes[name]
        node = ground.result(call) if gift.reader is None else ground.operand(call, *place)
        if node is None or index is None or flow[index].shape != flow[gift.src].shape or node.meta["shape"] != shape:
            continue
        reader = name if gift.reader is not None else None
        yield replace(gift, node=node.name, reader=reader, src=index, call=name, partner=partner)


def _later(ground: Ground, index: int) -> tuple[int | None, ...]:
    """The src nodes that are to calls of later blocks what a node is to its own."""
    flow = ground.solution.src.flow
    origin = flow[index].origin
    calls = Siblings.of(ground.solution.src_capture).after(origin.name) if origin is not None else ()
    place = _place(flow, index)
    return tuple(_at(flow, call, place) for call in calls)


def _place(flow: Flow, index: int) -> int:
    """Which of the nodes of its recorded call a node is."""
    return [node.index for node in flow.nodes if node.origin is flow[index].origin].index(index)


def _at(flow: Flow, call: str, place: int) -> int | None:
    found = [node.index for node in flow.nodes if node.origin is not None and node.origin.name == call]
    return found[place] if place < len(found) else None
