"""Changes a recording without touching it: other attributes of an op, or a value given in place of an operand.

A capture and patches come in, a capture with a graph of its own goes out, or None where what follows does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from automap.capture import Capture


@dataclass(frozen=True, slots=True)
class Adjusted:
    """The op called `name` with the numbers and flags of src's op `twin`.

    It was found at the point of the call `point`: itself, an op like it, or one before it.
    """

    name: str
    twin: fx.Node
    point: str


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """The call `reader` (or all, if None) gets in place of `node` a value: elements `order` of src's node `src`.

    It was found at the point of the call `point`, as a repair of the op `like`; where `call`, the op that it repairs,
    is another one, it is a guess for a later block. Where `is_detached`, what was there is not computed any more.
    `partner` is the src node that the repaired op should read the value of, where it is known.
    """

    node: str
    reader: str | None
    src: int
    order: Tensor
    point: str
    like: str
    call: str
    is_detached: bool = False
    partner: int | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        """What tells places apart."""
        return self.node, self.reader


class Value:
    """An op that gives a value whatever it reads."""

    __name__ = "given"

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __str__(self) -> str:
        return self.__name__

    def __call__(self, operand: Tensor) -> Tensor:
        """Return the value."""
        return self.value


def copied(capture: Capture) -> tuple[Capture, dict[str, fx.Node]]:
    """Return a capture with a graph of its own, and its nodes by name."""
    graph, places = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(capture.graph, places))
    assert all(old.name == new.name for old, new in places.items())
    outputs = tuple((path, places[node]) for path, node in capture.outputs)
    return replace(capture, graph=graph, outputs=outputs), {node.name: node for node in places.values()}


def patched(capture: Capture, adjusted: Sequence[Adjusted], given: Sequence[tuple[Given, Tensor]]) -> Capture | None:
    """Return a capture with ops adjusted and operands given (flat values with them); None where shapes do not fit."""
    capture, nodes = copied(capture)
    changed = []
    for patch in adjusted:
        node = nodes[patch.name]
        node.args, node.kwargs = merged(node.args, patch.twin.args), {**patch.twin.kwargs, **_operands(node.kwargs)}
        changed.append(node)
    for step, flat in given:
        _give(capture, nodes, step, flat[step.order])
    return capture if _is_fitted(capture, changed) else None


def _give(capture: Capture, nodes: Mapping[str, fx.Node], step: Given, flat: Tensor) -> None:
    """Put a value in the place of another."""
    node = nodes[step.node]
    readers = list(node.users) if step.reader is None else [nodes[step.reader]]
    value = Value(flat.view(node.meta["shape"]))
    with capture.graph.inserting_after(node):
        source = _input(capture) if step.is_detached else node
        found = capture.graph.create_node("call_function", value, (source,))
    found.meta = dict(node.meta)
    for reader in readers:
        reader.replace_input_with(node, found)


def _input(capture: Capture) -> fx.Node:
    found: fx.Node = next(node for node in capture.graph.nodes if node.op == "placeholder")
    return found


def merged(mine: Any, theirs: Any) -> Any:
    """Return nested arguments with the operands of one call and the numbers and flags of another."""
    if isinstance(mine, fx.Node):
        return mine
    if isinstance(mine, (tuple, list)) and isinstance(theirs, (tuple, list)) and _has_operand(mine):
        last = max(place for place, item in enumerate(mine) if _has_operand(item))
        kept = max(len(theirs), last + 1)
        return type(mine)([merged(a, b) for a, b in zip_longest(mine, theirs)][:kept])
    return theirs


def _operands(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if _has_operand(value)}


def _has_operand(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_has_operand(item) for item in value)
    return isinstance(value, fx.Node)


def frame(node: fx.Node) -> Any:
    """Return where a call has its operands."""

    def places(value: Any) -> Any:
        if isinstance(value, (tuple, list)) and _has_operand(value):
            found = [places(item) for item in value]
            while found[-1] is None:
                found.pop()
            return tuple(found)
        return fx.Node if isinstance(value, fx.Node) else None

    return places(node.args), {name: places(value) for name, value in _operands(node.kwargs).items()}


def numbers(node: fx.Node) -> Any:
    """Return what a call depends on besides its operands: numbers and flags, with None and words left out alike."""

    def plain(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(plain(item) for item in value)
        return fx.Node if isinstance(value, fx.Node) else value

    named = {name: plain(value) for name, value in node.kwargs.items() if value is not None}
    return plain(node.args), tuple(sorted(named.items(), key=lambda item: item[0]))


def _is_fitted(capture: Capture, changed: Sequence[fx.Node]) -> bool:
    """Work out the shapes behind ops that have changed; return whether everything still fits together."""
    agenda = set(changed)
    values: dict[fx.Node, Any] = {}
    for node in capture.graph.nodes if agenda else ():
        if node not in agenda or node.op != "call_function" or isinstance(node.target, Value):
            continue
        try:
            args, kwargs = (fx.map_arg(part, lambda n: _shaped(n, values)) for part in (node.args, node.kwargs))
            values[node] = node.target(*args, **{**kwargs, **({"device": "meta"} if "device" in kwargs else {})})
        except (RuntimeError, TypeError, NotImplementedError, IndexError):
            return False
        if _takes(node, values[node]):
            agenda.update(node.users)
    return True


def _shaped(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    if node in values:
        return values[node]
    return torch.empty(node.meta.get("shape", ()), dtype=node.meta.get("dtype"), device="meta")


def _takes(node: fx.Node, value: Any) -> bool:
    """Give a node the shape of its new value; return whether that is another one, or there are several."""
    if not isinstance(value, Tensor):
        return True
    is_other = tuple(value.shape) != node.meta.get("shape") or node.target is getitem
    node.meta["shape"] = tuple(value.shape)
    return is_other
