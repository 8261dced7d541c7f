"""The flow graph: one forward as primitive ops that take at most one weight each, in topological order.

Nodes are numbered; an op's operands are `Ref`s to earlier nodes. Every node is an input, a weight, a constant or an op.
`Role` says what a node's value is made of, which decides how a weight that meets it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor, fx

from automap.capture import Capture, Weight
from automap.findings import Site


class Role(Enum):
    """What a value is made of: nothing learned or given, weights alone, or data that flows through the model."""

    CONSTANT = "constant"
    WEIGHT = "weight"
    ACTIVATION = "activation"


@dataclass(frozen=True, slots=True)
class Ref:
    """An operand: the number of the node whose value it is."""

    index: int


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the flow graph.

    `op` is the canonical name (`"input"`, `"weight"`, `"constant"`, or that of an op such as `"matmul"`), `function`
    computes an op's value from `args` and `kwargs` with every Ref replaced, `origin` is the recorded call it came from.
    """

    index: int
    op: str
    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    origin: fx.Node | None
    role: Role
    operands: tuple[int, ...]
    shape: tuple[int, ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Flow:
    """A model's computation as numbered nodes; operands come before what reads them."""

    nodes: tuple[Node, ...]
    weights: Mapping[int, Weight]
    constants: Mapping[int, Tensor]
    inputs: Mapping[int, Tensor]
    outputs: tuple[tuple[str, int], ...]
    capture: Capture
    readers: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index: int) -> Node:
        return self.nodes[index]

    def ancestors(self, starts: Iterator[int] | tuple[int, ...] | list[int] | set[int]) -> set[int]:
        """Return starts and everything their values are computed from."""
        found: set[int] = set()
        stack = list(starts)
        while stack:
            index = stack.pop()
            if index not in found:
                found.add(index)
                stack.extend(self.nodes[index].operands)
        return found


_PLAIN = (int, float, bool, str, type(None))  # most arguments


def refs_in(value: Any) -> list[int]:
    """Return the node numbers of every Ref in nested arguments, in order."""
    found: list[int] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[int]) -> None:
    kind = type(value)
    if kind is Ref:
        found.append(value.index)
    elif kind in _PLAIN:
        return
    elif isinstance(value, (tuple, list)):
        for item in value:
            _collect(item, found)
    elif isinstance(value, Mapping):
        for item in value.values():
            _collect(item, found)


def replace_refs(value: Any, function: Callable[[int], Any]) -> Any:
    """Return nested arguments with every Ref replaced by function(its number)."""
    kind = type(value)
    if kind is Ref:
        return function(value.index)
    if kind in _PLAIN:
        return value
    if isinstance(value, (tuple, list)):
        return kind([replace_refs(item, function) for item in value])
    if isinstance(value, Mapping):
        return {key: replace_refs(item, function) for key, item in value.items()}
    return value


def site_of(flow: Flow, index: int) -> Site:
    """Return where in the user's model node number index was computed."""
    import linecache
    from pathlib import PurePath

    node = flow[index]
    if index in flow.weights:
        weight = flow.weights[index]
        dtype = str(weight.tensor.dtype).removeprefix("torch.")
        return Site(weight.name, "weight", tuple(weight.tensor.shape), dtype)
    meta = node.origin.meta if node.origin is not None else {}
    file, line = meta.get("file", ""), meta.get("line", 0)
    code = linecache.getline(file, line).strip() if file else ""
    dtype = str(meta.get("dtype", "")).removeprefix("torch.")
    return Site(
        meta.get("module_path", ""), node.op, meta.get("shape"), dtype, PurePath(file).name if file else "", line, code
    )
