"""What src offers: every use of its weights in normal form, with the values that meet it on fresh random weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from automap.align.by_size import BySize
from automap.align.forms import ElementForm, LinearForm, addends, convolution_form, element_form, matmul_form, unfolded
from automap.align.labels import Label, labels, next_steps
from automap.align.moments import clean, keys
from automap.align.run import Run
from automap.align.spread import is_broadcast, spread_values
from automap.canonical.flow import Flow, Node, Ref, Role, refs_in, replace_refs
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


@dataclass(slots=True)
class Uses:
    """All uses of src's weights, by kind."""

    linear: list[LinearForm] = field(default_factory=list)
    elements: dict[str, list[ElementForm]] = field(default_factory=dict)
    lookups: list[Lookup] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)


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


class Source(Side):
    """Src, computed as far as it is asked for: its uses by kind, and all values it ever holds."""

    def __init__(self, flow: Flow, weights: Mapping[int, Tensor]) -> None:
        super().__init__(flow, weights, is_complete=True)
        self._indexes: dict[str, tuple[Tensor, Tensor]] = {}
        self._derived: dict[object, int] = {}
        self._spread: dict[int, list[bool]] = {}
        self._sorted: dict[str, BySize] = {}

    @cached_property
    def all_uses(self) -> Uses:
        """All uses of weights."""
        found = Uses()
        for node in self.flow.nodes:
            if node.role is Role.ACTIVATION and node.op != "input":
                self.run.value(node.index)
                self._file(node, found)
            elif node.op == "index" and node.role is Role.WEIGHT and self.flow[node.operands[-1]].role is Role.CONSTANT:
                rows = self.run.value(node.operands[-1])
                if isinstance(node.args[1], Ref) and not rows.is_floating_point() and rows.dtype != torch.bool:
                    found.lookups.append(Lookup(node.index, node.operands[0], rows.reshape(-1)))
        return found

    @property
    def linear(self) -> list[LinearForm]:
        """The products and convolutions."""
        return self.all_uses.linear

    @property
    def elements(self) -> dict[str, list[ElementForm]]:
        """The tables met elementwise, by kind of op."""
        return self.all_uses.elements

    @property
    def lookups(self) -> list[Lookup]:
        """The tables whose rows are chosen."""
        return self.all_uses.lookups

    @property
    def slots(self) -> list[Slot]:
        """Every other place where weights enter."""
        return self.all_uses.slots

    def derive(self, op: str, function: Callable[..., Tensor], *args: Any) -> int:
        """Add a weight-side value that is computed from others, and return its number: the same one for the same call.

        args hold `Ref`s, numbers and tuples of numbers.
        """
        if op in ("neg", "reciprocal") and self.flow[args[0].index].op == op:
            return self.flow[args[0].index].operands[0]
        key = (op, function, args)
        if key not in self._derived:
            index, value = len(self.flow), function(*replace_refs(args, self.run.value))
            node = Node(index, op, function, args, {}, None, Role.WEIGHT, tuple(refs_in(args)), tuple(value.shape))
            self.flow = self.run.flow = replace(self.flow, nodes=(*self.flow.nodes, node))
            self.run.set(index, value)
            self._derived[key] = index
        return self._derived[key]

    def is_spread(self, index: int) -> bool:
        """Whether what is computed with a value reads some of its channels more than once, as shared heads are."""
        size = math.prod(self.flow[index].shape)
        if size not in self._spread:
            self._spread[size] = spread_values(self.flow, size)
        return self._spread[size][index]

    def number(self, index: int) -> int:
        """Return the number of the first element of a weight-side value that is a src tensor of its own in claims."""
        if index not in self.numbering.offsets:
            self.numbering = self.numbering.extended(index, math.prod(self.flow[index].shape))
        return self.numbering.offsets[index]

    def _file(self, node: Node, found: Uses) -> None:
        operands = weight_operands(self.flow, node)
        if len(operands) == len(node.operands) and node.op in ("matmul", "convolution"):
            operands = operands[-1:]
            found.slots.append(Slot(node.index, node.operands[0], node.op + ".data"))
        for weight in operands:
            form = self.linear_form(node, weight)
            if form is not None:
                found.linear.append(form)
                chosen = self.chosen_rows(form)
                if chosen is not None:
                    found.lookups.append(chosen)
            elif node.op == "lookup" and weight == node.operands[0]:
                found.lookups.append(Lookup(node.index, weight, self.run.value(node.operands[1]).reshape(-1)))
            else:
                found.slots.append(Slot(node.index, weight, node.op))
                element = element_form(self.flow, node, weight, self.run.value, self.essential(weight))
                if element is not None:
                    self._file_element(node, element, found.elements.setdefault(element.kind, []))

    def _file_element(self, node: Node, element: ElementForm, found: list[ElementForm]) -> None:
        found.append(element)
        for term in addends(self.flow, element):
            form = element_form(self.flow, node, element.weight, self.run.value, self.essential(element.weight), term)
            if form is not None:
                found.append(form)

    def product_at(self, index: int) -> LinearForm | None:
        """Return the product with a weight that a node is, or None."""
        node = self.flow[index]
        if node.op not in ("matmul", "convolution") or not weight_operands(self.flow, node):
            return None
        return self.linear_form(node, weight_operands(self.flow, node)[-1])

    def elements_on(self, data: int, kind: str) -> list[ElementForm]:
        """Return the tables of a kind that one value meets."""
        readers = [self.flow[r] for r in self.flow.readers.get(data, ())]
        found = [
            element_form(self.flow, node, weight, self.run.value, self.essential(weight))
            for node in readers
            for weight in weight_operands(self.flow, node)
        ]
        return [form for form in found if form is not None and form.kind == kind]

    def meeting(self, form: ElementForm, tolerance: float) -> list[ElementForm]:
        """The src tables of a kind that meet a group of numbers which form meets as well."""
        if form.kind not in self.elements or not len(form.meets):
            return []
        known, owners = self._index(form.kind)
        mine = keys(form.meets)
        probe = mine.abs().argmax()
        value = mine[probe]
        slack = 10 * tolerance * (form.meets[probe].abs().sum() + 1e-9)
        low, high = torch.searchsorted(known, torch.stack([value - slack, value + slack]).contiguous()).tolist()
        found = torch.unique(owners[low : max(high, low)]).tolist()
        return [self.elements[form.kind][number] for number in found]

    def meeting_some(self, form: ElementForm, tolerance: float) -> list[ElementForm]:
        """The src tables of a kind that meet any of the groups of numbers that form meets."""
        if form.kind not in self.elements or not len(form.meets):
            return []
        known, owners = self._index(form.kind)
        mine = keys(form.meets)
        slack = 10 * tolerance * (form.meets.abs().sum(1) + 1e-9)
        low = torch.searchsorted(known, (mine - slack).contiguous())
        found: set[int] = set()
        for step in range(3):
            place = (low + step).clamp(max=len(known) - 1)
            found.update(owners[place][(known[place] - mine).abs() <= slack].tolist())
        return [self.elements[form.kind][number] for number in sorted(found)]

    def _index(self, kind: str) -> tuple[Tensor, Tensor]:
        """A key for all that tables of a kind meet, in order, with the table each belongs to."""
        if kind not in self._indexes:
            tables = self.elements[kind]
            found = torch.cat([keys(t.meets) for t in tables])
            owners = torch.cat([torch.full((len(t.meets),), n) for n, t in enumerate(tables)])
            order = torch.argsort(found)
            self._indexes[kind] = (found[order].contiguous(), owners[order])
        return self._indexes[kind]

    def alike(self, form: LinearForm, kind: str, tolerance: float, among: str = "linear") -> list[LinearForm]:
        """The src products of a kind that may meet what a form meets: told by their mean square, stacks always.

        among names what is searched: `linear`, `patches`, `inputless`, `absorbed` or `unscaled`.
        """
        if among not in self._sorted:
            self._sorted[among] = BySize(getattr(self, among))
        return self._sorted[among].near(form, kind, tolerance)

    @cached_property
    def patches(self) -> list[LinearForm]:
        """The convolutions over patches, as products of matrices."""
        found = (unfolded(form, self.flow[form.node], self.run.value) for form in self.linear)
        return [form for form in found if form is not None]

    @cached_property
    def absorbed(self) -> list[LinearForm]:
        """The products of data that a weight scales and another one shifts, as products of the data before that."""
        from automap.align.effective import absorbed

        found = (absorbed(self, form) for form in self.linear)
        return [form for form in found if form is not None]

    @cached_property
    def unscaled(self) -> list[LinearForm]:
        """The products of data that a number multiplies, as products of the data before that."""
        from automap.align.unscaled import unscaled_products

        return unscaled_products(self)

    @cached_property
    def inputless(self) -> list[LinearForm]:
        """The products with what is computed from weights alone, as uses of that as one weight."""
        from automap.align.inputless import inputless_products

        return inputless_products(self)

    @cached_property
    def unmixed(self) -> list[LinearForm]:
        """The products of values that are mixed over positions, as products of what is mixed."""
        from automap.align.mixed import unmixed

        return [early for form in self.linear for early in unmixed(self, form)]

    @cached_property
    def branches(self) -> list[LinearForm]:
        """The sums of products of one value, as one product each."""
        from automap.align.branches import summed_products

        return summed_products(self)

    @cached_property
    def chains(self) -> list[LinearForm]:
        """Two products one after the other, as one product each."""
        from automap.align.branches import chained_products

        return chained_products(self)

    @cached_property
    def sums(self) -> list[tuple[ElementForm, int]]:
        """The tables added one after the other, as one each, with how many were added after the first."""
        from automap.align.effective import folded_tables

        return folded_tables(self)

    @cached_property
    def numbers(self) -> Tensor:
        """Every number that an activation holds, in order (at most 20 million of them)."""
        found, total = [], 0
        for node in self.flow.nodes:
            if node.role is Role.ACTIVATION and self.run.knows(node.index) and total < 20_000_000:
                value: Any = self.run.value(node.index)
                if (
                    isinstance(value, Tensor)
                    and value.is_floating_point()
                    and node.op not in ("reshape", "transpose", "permute")
                ):
                    found.append(clean(value).reshape(-1))
                    total += value.numel()
        return torch.cat(found).sort().values if found else torch.zeros(1, dtype=torch.float64)

    def holds(self, value: Tensor, tolerance: float = 1e-9) -> bool:
        """Whether a sample of value's numbers is found among src's activations."""
        flat = clean(value).reshape(-1)
        flat = flat[flat != 0]
        sample = (
            flat[torch.linspace(0, max(len(flat) - 1, 0), min(16, max(len(flat), 1))).long()] if len(flat) else flat
        )
        if not len(sample):
            return True
        place = torch.searchsorted(self.numbers, sample.contiguous()).clamp(1, len(self.numbers) - 1)
        gap = torch.minimum((self.numbers[place] - sample).abs(), (self.numbers[place - 1] - sample).abs())
        return bool((gap <= tolerance * (sample.abs() + 1e-9)).float().mean() >= 0.9)
