"""The narrow twin of one flow graph: the same ops over fewer channels.

Constants are computed at full size and read where the twin's elements lie; weights and everything else are narrower
from the start. Node numbers are those of the full graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from automap.canonical.evaluate import compute, no_value, widen
from automap.canonical.flow import Flow, Node, Role
from automap.capture import Weight
from automap.capture.refill import is_valueless, stand_in
from automap.twin.dims import Digits, Dims
from automap.twin.rules import Shaped, behind_moves, choosing_inputs, narrow_args, relate

#: a layer of the twin is at least so wide
_LEAST_WIDTH = 4


@dataclass(frozen=True, slots=True)
class Narrowing:
    """How every dim of a flow graph is narrowed: by node, in order of its dims."""

    flow: Flow
    dims: Dims
    variables: Mapping[int, tuple[int, ...]]
    chosen: Mapping[int, int]

    @classmethod
    def of(cls, flow: Flow, limit: int, caps: Mapping[int, int]) -> Narrowing:
        """Return what the ops of a flow graph allow: nothing is divided by more than limit, or by what caps has for a
        weight's size.
        """
        dims = Dims(limit)
        variables = {node.index: tuple(dims.new(size) for size in node.shape) for node in flow.nodes}
        chosen = choosing_inputs(flow)
        shaped = Shaped(flow, dims, variables, chosen)
        for index in flow.inputs:
            dims.keep(variables[index])
        for variable in (v for index in flow.weights for v in variables[index]):
            dims.cap(variable, caps.get(dims.size(variable), limit), _LEAST_WIDTH)
        for node in flow.nodes:
            if node.function is not None and node.role is not Role.CONSTANT:
                relate(shaped, node)
        dims.solve()
        return cls(flow, dims, variables, chosen)

    def digits(self, index: int) -> tuple[Digits, ...]:
        """Return how the dims of a node's value are narrowed."""
        return tuple([self.dims.digits(v) for v in self.variables[index]])

    def factors(self) -> dict[int, int]:
        """Return by how much weight dims are divided, by their sizes: where that differs, the least of it."""
        found: dict[int, int] = {}
        for digits in (d for leaf in self.flow.weights for d in self.digits(leaf)):
            factor = digits.wide // digits.narrow
            found[digits.size] = min(found.get(digits.size, factor), factor)
        return found

    def work(self) -> int:
        """Return how many multiplications with weights the twin takes."""
        return _work(self.flow, lambda index: [d.narrow_size for d in self.digits(index)])

    def twin(self) -> Flow:
        """Return the narrow flow graph."""
        constants = _boundary(self.flow)
        nodes, kept = [], {}
        for node in self.flow.nodes:
            found = self.digits(node.index)
            shape = tuple([d.narrow_size for d in found])
            if node.role is Role.CONSTANT:
                if node.index in constants:
                    kept[node.index] = _narrowed(constants[node.index], found)
                node = Node(node.index, "constant", None, (), {}, node.origin, node.role, (), shape, node.attributes)
            elif node.function is not None:
                node = replace(node, args=narrow_args(self.flow, node, self.digits), shape=shape)
            else:
                node = replace(node, shape=shape)
            nodes.append(node)
        weights = {index: _weight(weight, self.digits(index)) for index, weight in self.flow.weights.items()}
        inputs = {leaf: self._chosen_rows(leaf, value) for leaf, value in self.flow.inputs.items()}
        return replace(self.flow, nodes=tuple(nodes), constants=kept, weights=weights, inputs=inputs)

    def _chosen_rows(self, leaf: int, value: Tensor) -> Tensor:
        """What an input is in the twin: where it chooses rows of narrowed tables, the first ones, one for each kind."""
        tables = [
            self.digits(node.operands[0])[0]
            for node in self.flow.nodes
            if node.op == "lookup" and behind_moves(self.flow, node.operands[1]) == leaf
        ]
        if leaf not in self.chosen or not tables or any(digits.is_kept for digits in tables):
            return value
        ranks: Tensor = torch.unique(value, return_inverse=True)[1]
        return ranks.view(value.shape)


def full_work(flow: Flow) -> int:
    """Return how many multiplications with weights a flow graph takes."""
    return _work(flow, lambda index: flow[index].shape)


def _work(flow: Flow, shape: Callable[[int], Sequence[int]]) -> int:
    total = 0
    for node in flow.nodes:
        if node.op in ("matmul", "convolution") and node.role is Role.ACTIVATION:
            is_product = node.op == "matmul"
            inner = shape(node.operands[0])[-1:] if is_product else shape(node.operands[1])[1:]
            total += math.prod(shape(node.index)) * math.prod(inner)
    return total


def _boundary(flow: Flow) -> dict[int, Any]:
    """The values of the constants that data or weights meet."""
    known: dict[int, Any] = {i: stand_in(t) if is_valueless(t) else widen(t) for i, t in flow.constants.items()}
    read = {
        i for node in flow.nodes if node.role is not Role.CONSTANT for i in node.operands
        if flow[i].role is Role.CONSTANT
    }  # fmt: skip

    def value(index: int) -> Any:
        if index not in known:
            node = flow[index]
            if node.role is not Role.CONSTANT:  # its shape alone is asked for
                return no_value(node.shape)
            known[index] = compute(node, value)
        return known[index]

    read |= {index for _, index in flow.outputs if flow[index].role is Role.CONSTANT}
    return {index: value(index) for index in sorted(read)}


def _weight(weight: Weight, digits: tuple[Digits, ...]) -> Weight:
    """A narrow weight; without values zeros, or ones for vectors: what is drawn near them stays positive."""
    if not is_valueless(weight.tensor):
        return replace(weight, tensor=_narrowed(weight.tensor.detach(), digits))
    shape = tuple(d.narrow_size for d in digits)
    value = torch.full((), float(len(shape) < 2), dtype=weight.tensor.dtype)
    return replace(weight, tensor=value.expand(shape))


def _narrowed(value: Any, found: tuple[Digits, ...]) -> Any:
    """The elements of a value that the twin keeps: of every wide digit the first ones."""
    if not isinstance(value, Tensor):
        return value
    for dim, digits in enumerate(found):
        if not digits.is_kept and value.shape[dim] != 1:
            sizes = (digits.outer, digits.wide, digits.inner)
            split = value.reshape(*value.shape[:dim], *sizes, *value.shape[dim + 1 :])
            value = split.narrow(dim + 1, 0, digits.narrow).flatten(dim, dim + 2)
    return value
