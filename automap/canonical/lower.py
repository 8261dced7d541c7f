"""Lowers a capture to a flow graph: fused ops become their steps with one weight each, spellings become one name.

A `Builder` collects nodes; what a recorded call becomes is decided by the rules in `rules/`, one function per ATen op.
Numbers are float64 throughout: casts between floating-point types vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from automap.canonical.flow import Flow, Node, Ref, Role, refs_in
from automap.capture import Capture, Weight

aten = torch.ops.aten
Rule = Callable[["Builder", tuple[Any, ...], dict[str, Any]], Any]
RULES: dict[Any, Rule] = {}

#: ops that mix channels with a weight; their result is data even where both operands are weights
LINEAR = {"matmul", "convolution", "lookup"}
#: ops that read the shape of their operand and not its content
SHAPE_ONLY = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero"}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a lowering for the given ATen overloads."""

    def register(function: Rule) -> Rule:
        for target in targets:
            assert target not in RULES, f"two rules for {target}"
            RULES[target] = function
        return function

    return register


class Builder:
    """Collects the nodes of a flow graph; `origin` is the recorded call being lowered.

    With is_parted, products of joined values and convolutions of single channels become sums of products; `taps` are
    the nodes of the latter.
    """

    def __init__(self, *, is_parted: bool = False) -> None:
        self.is_parted = is_parted
        self.taps: set[int] = set()
        self.nodes: list[Node] = []
        self.weights: dict[int, Weight] = {}
        self.constants: dict[int, Tensor] = {}
        self.inputs: dict[int, Tensor] = {}
        self.origin: fx.Node | None = None

    def leaf(self, op: str, role: Role, shape: tuple[int, ...]) -> Ref:
        """Add an input, weight or constant and return a reference to it."""
        index = len(self.nodes)
        self.nodes.append(Node(index, op, None, (), {}, self.origin, role, (), shape))
        return Ref(index)

    def constant(self, value: Tensor) -> Ref:
        """Add a constant tensor."""
        ref = self.leaf("constant", Role.CONSTANT, tuple(value.shape))
        self.constants[ref.index] = value
        return ref

    def add(self, op: str, function: Callable[..., Any], *args: Any, shape: tuple[int, ...] = (), **kwargs: Any) -> Ref:
        """Add an op called op, computed by function(*args, **kwargs), and return a reference to its value."""
        operands = tuple(refs_in((args, kwargs)))
        index = len(self.nodes)
        role = self._role(op, operands)
        self.nodes.append(Node(index, op, function, args, kwargs, self.origin, role, operands, shape))
        return Ref(index)

    def add_recorded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
        """Add the recorded call as it is, by the name that it has in torch."""
        assert self.origin is not None
        target: Any = self.origin.target
        return self.add(op_name(target), target, *args, shape=_shape(self.origin), **kwargs)

    def role(self, value: Any) -> Role:
        """The role of a reference, or constant for a plain number."""
        return self.nodes[value.index].role if isinstance(value, Ref) else Role.CONSTANT

    def shape(self, value: Any) -> tuple[int, ...]:
        """The shape of a reference, or () for a plain number."""
        return self.nodes[value.index].shape if isinstance(value, Ref) else ()

    def _role(self, op: str, operands: tuple[int, ...]) -> Role:
        if op in SHAPE_ONLY:
            return Role.CONSTANT
        found = Role.CONSTANT
        for index in operands:
            role = self.nodes[index].role
            if role is Role.ACTIVATION:
                return role
            found = role if role is Role.WEIGHT else found
        return Role.ACTIVATION if found is Role.WEIGHT and op in LINEAR else found


def op_name(target: Any) -> str:
    """Return the name of an op in torch, without its namespace and overload."""
    return str(target).removeprefix("aten.").split(".")[0]


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta.get("shape", ()))


def _leaf(builder: Builder, node: fx.Node, capture: Capture, fixed: frozenset[str]) -> Ref:
    if node.op == "placeholder":
        ref = builder.leaf("input", Role.ACTIVATION, _shape(node))
        builder.inputs[ref.index] = capture.inputs[node.name]
    elif node.name in capture.weights and capture.weights[node.name].name in fixed:
        ref = builder.constant(capture.weights[node.name].tensor.detach())
    elif node.name in capture.weights:
        ref = builder.leaf("weight", Role.WEIGHT, _shape(node))
        builder.weights[ref.index] = capture.weights[node.name]
    else:
        ref = builder.constant(capture.constants[node.name])
    return ref


def _live(graph: fx.Graph) -> set[fx.Node]:
    output = next(node for node in graph.nodes if node.op == "output")
    live: set[fx.Node] = set()
    stack = list(output.all_input_nodes)
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack.extend(node.all_input_nodes)
    return live


def lower(capture: Capture, fixed: frozenset[str] = frozenset(), *, is_parted: bool = False) -> Flow:
    """Return the flow graph of what reaches a capture's outputs; the buffers named in fixed are constants.

    With is_parted, products of values that are joined along their channels are sums of a product of each, and
    convolutions of each channel alone sums over their taps.
    """
    from automap.canonical import rules

    rules.load()
    builder = Builder(is_parted=is_parted)
    place: dict[fx.Node, Any] = {}
    live = _live(capture.graph)
    for node in capture.graph.nodes:
        if node not in live:
            continue
        builder.origin = node
        if node.op != "call_function":
            place[node] = _leaf(builder, node, capture, fixed)
            continue
        args = fx.map_arg(node.args, place.__getitem__)
        kwargs = dict(fx.map_arg(node.kwargs, place.__getitem__))
        place[node] = _lowered(builder, node, tuple(args), kwargs)
    outputs = tuple((path, place[node].index) for path, node in capture.outputs if isinstance(place.get(node), Ref))
    return _flow(builder, outputs, capture)


def _lowered(builder: Builder, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    known = RULES.get(node.target)
    if known is not None:
        return known(builder, args, kwargs)
    return builder.add_recorded(args, kwargs)


def _flow(builder: Builder, outputs: tuple[tuple[str, int], ...], capture: Capture) -> Flow:
    readers: dict[int, list[int]] = {}
    needed = {index for _, index in outputs}
    for node in reversed(builder.nodes):
        if node.index in needed:
            needed.update(node.operands)
    for node in builder.nodes:
        for operand in node.operands if node.index in needed else ():
            readers.setdefault(operand, []).append(node.index)
    frozen: Mapping[int, tuple[int, ...]] = {index: tuple(dict.fromkeys(found)) for index, found in readers.items()}
    return Flow(tuple(builder.nodes), builder.weights, builder.constants, builder.inputs, outputs, capture, frozen)
