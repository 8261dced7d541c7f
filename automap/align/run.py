"""One side being computed: values of nodes as far as the weights behind them are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from automap.canonical.evaluate import compute, no_value, widen
from automap.canonical.flow import Flow, Role


class Run:
    """Values of a flow graph's nodes. Unknown weight elements are NaN, and what is made of them is unknown.

    Mutable on purpose: the search fills in weights as it finds them, and takes them back. With is_complete all weights
    are given, and activations are computed when first asked for, in their order.
    """

    def __init__(self, flow: Flow, weights: Mapping[int, Tensor], *, is_complete: bool = False) -> None:
        self.flow = flow
        self.weights = dict(weights)
        self._is_complete, self._computed = is_complete, 0
        self._elsewhere: dict[int, tuple[Run, int]] = {}
        self._known: dict[int, Any] = {i: widen(t) for i, t in flow.constants.items()}
        self._known |= {i: widen(t) for i, t in flow.inputs.items()}
        self._made_of: dict[int, set[int]] = {}
        leaves: dict[int, set[int]] = {}
        for index, node in enumerate(flow.nodes):
            if node.role is Role.WEIGHT:
                leaves[index] = (
                    {index} if node.op == "weight" else set().union(*(leaves.get(i, set()) for i in node.operands))
                )
                for leaf in leaves[index]:
                    self._made_of.setdefault(leaf, set()).add(index)

    def knows(self, index: int) -> bool:
        """Whether an activation's value was set, or can be computed."""
        if index in self._known or index in self._elsewhere:
            return True
        return self._is_complete and index < len(self.flow) and self.flow[index].role is Role.ACTIVATION

    def set(self, index: int, value: Any) -> None:
        """Set a node's value."""
        self._known[index] = value

    def set_same(self, index: int, run: Run, other: int) -> None:
        """Let a node's elements be those of a node of another run, looked up there when first asked for."""
        self._known.pop(index, None)
        self._elsewhere[index] = run, other

    def is_same(self, index: int, run: Run, other: int) -> bool:
        """Whether a node's value was said to be that of a node of another run."""
        return self._elsewhere.get(index) == (run, other)

    def forget(self, index: int) -> None:
        """Take a node's value back."""
        self._known.pop(index, None)
        self._elsewhere.pop(index, None)

    def touch(self, leaf: int) -> None:
        """Tell that a weight changed: what is made of it is computed anew."""
        for index in self._made_of.get(leaf, ()):
            self._known.pop(index, None)

    def value(self, index: int) -> Any:
        """Return a node's value; constants and weight-side values are computed when first asked for."""
        if index in self._known:
            return self._known[index]
        if index in self.weights:
            return self.weights[index]
        if index in self._elsewhere:
            run, other = self._elsewhere[index]
            found, shape = run.value(other), self.flow[index].shape
            return found if run.flow[other].shape == shape else found.reshape(shape)
        node = self.flow[index]
        if self._is_complete and node.role is Role.ACTIVATION:
            self._catch_up(index)
        assert node.function is not None, f"no value for node {index} ({node.op})"
        value = compute(node, self._constant if node.role is Role.CONSTANT else self.value)
        self._known[index] = value
        return value

    def _constant(self, index: int) -> Any:
        """What a constant is made of: of what is none its shape alone."""
        node = self.flow[index]
        return self.value(index) if node.role is Role.CONSTANT else no_value(node.shape)

    def _catch_up(self, index: int) -> None:
        """Compute the activations before a node, so that none is computed inside of another."""
        for step in range(self._computed, index):
            node = self.flow[step]
            if node.role is Role.ACTIVATION and node.function is not None and step not in self._known:
                self._known[step] = compute(node, self.value)
        self._computed = max(self._computed, index)

    def is_resolved(self, index: int) -> bool:
        """Whether a weight-side value has no unknown element."""
        value = self.value(index)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            value = (
                value[tuple(0 for _ in value.shape)]
                if bool(torch.isnan(value[tuple(0 for _ in value.shape)]))
                else value
            )
        return not (isinstance(value, Tensor) and value.is_floating_point() and bool(torch.isnan(value).any()))
