"""What src offers: every use of its weights in normal form, with the values that meet it on fresh random weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from automap.align.by_size import BySize
from automap.align.forms import ElementForm, LinearForm, addends, element_form, unfolded
from automap.align.moments import clean, keys
from automap.align.side import Lookup, Side, Slot, weight_operands
from automap.align.spread import spread_values
from automap.canonical.flow import Flow, Node, Ref, Role, refs_in, replace_refs


@dataclass(slots=True)
class Uses:
    """All uses of src's weights, by kind."""

    linear: list[LinearForm] = field(default_factory=list)
    elements: dict[str, list[ElementForm]] = field(default_factory=dict)
    lookups: list[Lookup] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)


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
