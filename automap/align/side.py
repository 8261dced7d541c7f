"""One side of a match: its flow graph, what is computed of it, and how its weights are used."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from automap.align.forms import LinearForm, convolution_form, matmul_form
from automap.align.labels import Label, labels, next_steps
from automap.align.run import Run
from automap.align.spread import is_broadcast
from automap.canonical.flow import Flow, Node, Role
from automap.canonical.provenance import Numbering, Part, Trace, laid_out, parts, traces
from automap.canonical.rules.layout import MOVES

#: traces of so many elements are kept, larger ones made anew
_KEPT = 65_536
#: layout ops after which strides tell where each element is
_STRIDED = {"reshape", "permute", "transpose", "slice", "select", "squeeze", "unsqueeze", "expand"}


@dataclass(frozen=True, slots=True)
class Slot:
    """A place where a weight-side value enters an op other than by a product: joins, choices, tables as data."""

    node: int
    weight: int
    op: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """Rows of a table chosen by data: the numbers of the rows, flat."""

    node: int
    weight: int
    rows: Tensor


def weight_operands(flow: Flow, node: Node) -> tuple[int, ...]:
    """Return the weight-side operands that an activation-valued node computes with."""
    if node.role is not Role.ACTIVATION:
        return ()
    return tuple(dict.fromkeys(i for i in node.operands if flow[i].role is Role.WEIGHT))


class Side:
    """One side's flow graph with what both src and dest need of it: a run, labels, traces and parts."""

    def __init__(self, flow: Flow, weights: Mapping[int, Tensor], *, is_complete: bool = False) -> None:
        self.flow = flow
        self.run = Run(flow, weights, is_complete=is_complete)
        self.numbering = Numbering.of(flow)
        self._traces: dict[int, tuple[Trace, ...]] = {}
        self._parts: dict[int, tuple[Part, ...]] = {}
        self._essential: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        self._distinct: dict[int, Tensor] = {}

    @cached_property
    def labels(self) -> list[Label]:
        """What happens to each node's value afterwards."""
        return labels(self.flow)

    @cached_property
    def next_steps(self) -> list[Label]:
        """What the next few ops do with each node's value."""
        return next_steps(self.flow)

    def traces(self, index: int) -> tuple[Trace, ...]:
        """Return the paths from stored weights to a weight-side node."""
        if index in self._traces:
            return self._traces[index]
        found = traces(self.flow, self.numbering, index, self.run.value)
        if sum(trace.ids.numel() for trace in found) <= _KEPT:
            self._traces[index] = found
        return found

    def parts(self, form: LinearForm) -> tuple[Part, ...]:
        """Return the parts of a linear use's output channels."""
        if form.node not in self._parts:
            if form.groups > 1 and form.kind == "convolution":
                self._parts[form.node] = (Part(torch.arange(form.width), (), ()),)
            else:
                self._parts[form.node] = parts(self.flow, form.node, form.channels, self.run.value)
        return self._parts[form.node]

    def part_label(self, part: Part, form: LinearForm) -> Label:
        """Return one label per depth for what reads a part: the set of what each reader does."""
        if not part.readers:
            return self.labels[form.node]
        found: list[Hashable] = [part.label]
        for depth in range(len(self.labels[form.node])):
            found.append(frozenset((self.flow[r].op, p, self.labels[r][depth]) for r, p in part.readers))
        return tuple(found)

    def linear_form(self, node: Node, weight: int) -> LinearForm | None:
        """Return the linear form of a node's use of a weight-side operand, or None where it is not linear."""
        if node.op == "convolution" and weight == node.args[1].index and node.args[0].index != weight:
            return convolution_form(self.flow, node, weight, self.run.value)
        if node.op == "matmul":
            return matmul_form(self.flow, node, weight, self.run.value, is_repeated=self._is_repeated(weight))
        return None

    def essential(self, weight: int) -> tuple[tuple[int, ...], Tensor]:
        """Return the shape of a weight-side value without repetition (broadcast dims as 1) and the places that
        remain.
        """
        if weight not in self._essential:
            shape = self.flow[weight].shape
            places = torch.arange(math.prod(shape)).view(shape)
            for dim in range(len(shape) if is_broadcast(self.flow, weight) else 0):
                found = self.traces(weight)
                if shape[dim] > 1 and found and all(bool((t.ids == t.ids.narrow(dim, 0, 1)).all()) for t in found):
                    places = places.narrow(dim, 0, 1)
            self._essential[weight] = (tuple(places.shape), places.reshape(-1))
        return self._essential[weight]

    def distinct(self, weight: int) -> Tensor:
        """Return the places in a weight-side value where each of its elements stands first, in order."""
        if weight not in self._distinct:
            self._distinct[weight] = self._first_places(weight)
        return self._distinct[weight]

    def _first_places(self, weight: int) -> Tensor:
        _, places = self.essential(weight)
        found = self.traces(weight)
        if not found:
            return places
        ids = torch.stack([t.ids.reshape(-1)[places] for t in found], 1)
        _, inverse = torch.unique(ids, dim=0, return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), len(inverse)).scatter_reduce(
            0, inverse, torch.arange(len(inverse)), "amin"
        )
        return places[first.sort().values]

    def is_reordered(self, weight: int) -> bool:
        """Whether an op on the way from what is stored may put elements in another order than strides tell."""
        nodes = [self.flow[i] for i in self.flow.ancestors([weight])]
        return any(node.op in MOVES and node.op not in _STRIDED for node in nodes) or (
            any(node.op in ("permute", "transpose") for node in nodes) and any(node.op == "reshape" for node in nodes)
        )

    def is_shared(self, weight: int) -> bool:
        """Whether what is stored behind a weight-side value is computed with in more than one place."""
        leaves = [i for i in self.flow.ancestors([weight]) if i in self.flow.weights]
        return any(len(self._uses(leaf)) > 1 for leaf in leaves)

    def uses(self, weight: int) -> set[int]:
        """Return the ops that compute with what is stored behind a weight-side value."""
        leaves = [i for i in self.flow.ancestors([weight]) if i in self.flow.weights]
        return set().union(*(self._uses(leaf) for leaf in leaves))

    def _uses(self, leaf: int) -> set[int]:
        found: set[int] = set()
        stack = [leaf]
        while stack:
            for reader in self.flow.readers.get(stack.pop(), ()):
                if self.flow[reader].role is Role.WEIGHT:
                    stack.append(reader)
                else:
                    found.add(reader)
        return found

    def _is_repeated(self, weight: int) -> bool:
        """Whether a stack of matrices holds one matrix many times."""
        shape = self.flow[weight].shape
        if len(shape) < 3 or not self._passes_expand(weight):
            return False
        places = laid_out(self.flow, weight, self.run.value)
        return bool((places == places[:1]).all())

    def chosen_rows(self, form: LinearForm) -> Lookup | None:
        """Return a product with one-hot rows as the lookup it is, or None."""
        x = self.run.value(form.data)
        if (
            form.groups != 1
            or form.kind != "matmul"
            or self.flow[form.node].operands[1] != form.weight
            or self.flow[form.weight].op != "weight"
        ):
            return None
        x = x.reshape(-1, x.shape[-1])
        if x.shape[-1] < 2 or bool(((x != 0) & (x != 1)).any()) or bool((x.sum(-1) != 1).any()):
            return None
        return Lookup(form.node, form.weight, x.argmax(-1))

    def _passes_expand(self, weight: int) -> bool:
        stack = [weight]
        while stack:
            node = self.flow[stack.pop()]
            if node.op in ("expand", "repeat"):
                return True
            stack.extend(i for i in node.operands if self.flow[i].role is Role.WEIGHT)
        return False
