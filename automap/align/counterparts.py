"""Tells without numbers where dest does just what src does: the same op on the same values gives the same value.

Both flow graphs are hashed node by node, dest's in terms of src's; values that differ in shape alone are one. A weight
that is still open is taken for the one that src uses in the same op on the same values, if there is only one such.
Where spellings differ, numbers decide, and from the first value that src has as well ops are compared again.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from automap.align.assignment import Claim
from automap.align.candidates import Candidate, certain
from automap.align.forms import ElementForm
from automap.align.outputs import has_same_numbers
from automap.align.side import Side, weight_operands
from automap.align.table import Source
from automap.align.traits import (
    ELEMENTWISE,
    Unlike,
    channels_of,
    content_of,
    data_of,
    frozen,
    is_moving,
    is_reshaped,
    is_shapeless,
    leaves_behind,
    trimmed,
)
from automap.canonical.evaluate import compute
from automap.canonical.flow import Node, Role

Key: TypeAlias = tuple[Hashable, ...]
_COMMUTATIVE = {"add", "mul", "maximum", "minimum"}
#: a value that is computed in another order of steps is off by so much of its largest number
_ROUNDING = 1e-12
#: more elements than any value has: how far apart the numbers for the elements of two values are
_ROOM = 1 << 30
#: values with more elements are not followed through layout one by one
_FOLLOWED = 20_000_000


class Decided(Protocol):
    """What is decided of dest's weights: `whole` are those that are one src weight, `blank` those still open."""

    whole: dict[int, int]
    blank: set[int]


@dataclass(slots=True)
class Counterparts:
    """For each dest node computed so far the src node that has the same elements in the same order, in `same`.

    Of several such src nodes it is the first one.
    """

    src: Source
    dest: Side
    assignment: Decided
    same: dict[int, int] = field(default_factory=dict)
    _exact: dict[Key, int] = field(default_factory=dict)
    _first: dict[int, int] = field(default_factory=dict)
    _open: dict[Key, list[int]] = field(default_factory=dict)
    _patterns: dict[tuple[bool, int], Hashable] = field(default_factory=dict)
    _by_probe: dict[int, list[tuple[float, int]]] | None = None
    _alike: dict[int, list[int]] = field(default_factory=dict)
    _moved: dict[tuple[int, frozenset[int]], list[int]] | None = None
    _moves: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Hash src: what is computed twice there has the number of its first time."""
        for node in self.src.flow.nodes:
            if node.role is not Role.CONSTANT:
                self._first[node.index] = self._numbered(node)
        for index, value in self.dest.flow.inputs.items():
            alike = [i for i, other in self.src.flow.inputs.items() if has_same_numbers(value, other)]
            if alike:  # of several that are equal on this sample, one after the other
                taken = self.same.values()
                self.same[index] = next((i for i in alike if i not in taken), alike[0])

    def _numbered(self, node: Node) -> int:
        if node.function is None:
            return node.index
        if is_reshaped(node):
            return self._first.get(node.operands[0], node.index)
        try:
            found = self._exact.setdefault(self._key(self.src, node, self._of_src), node.index)
            if found == node.index and weight_operands(self.src.flow, node):
                self._open.setdefault(self._key(self.src, node, self._open_src), []).append(node.index)
        except Unlike:
            return node.index
        return found

    # ------------------------------------------------------------------ one dest node
    def repeated(self, index: int) -> int | None:
        """Return the src node that does the same as a dest node whose weights are decided, and keep it; or None."""
        self.same.pop(index, None)
        twin = self._repeated(self.dest.flow[index])
        if twin is not None:
            self.same[index] = twin
        return twin

    def _repeated(self, node: Node) -> int | None:
        if is_reshaped(node):
            return self.same.get(node.operands[0])
        try:
            return self._exact.get(self._key(self.dest, node, self._of_dest))
        except Unlike:
            return None

    def is_moved(self, index: int) -> bool:
        """Whether a dest node only lays out anew what src has as well; a src node with the same elements in the same
        order is kept, if there is one.
        """
        try:
            places = self._places(self.dest, index)
        except Unlike:
            return False
        if self._moved is None:
            self._moved = self._islands()
        alike = self._moved.get((places.numel(), self._roots(self.dest, index)), [])
        flat = places.reshape(-1)
        twin = next((i for i in alike if self._has_places(i, flat)), None)
        if twin is not None:
            self.same[index] = self._first[twin]
        return True

    def is_same(self, index: int, src_index: int) -> bool:
        """Whether a dest node is known to have the elements of a src node in their order."""
        return index in self.same and self.same[index] == self._first.get(src_index)

    def only_use(self, index: int) -> Candidate | None:
        """Return the candidate that a dest node with open weights does what a single src node does, or None."""
        found = self.only_twin(index)
        if found is None:
            return None
        twin, pairs = self.src.flow[found[0]], found[1]
        claims = [Claim(leaf, None, other, None) for leaf, other in pairs.items()]
        channels = channels_of(self.src.flow, twin)
        return Candidate(certain(*claims), (twin.index, "same"), (), 0.0, channels=channels)

    def only_twin(self, index: int) -> tuple[int, dict[int, int]] | None:
        """Return the single src node that does what a dest node with open weights does, if there is one, and for each
        of these weights the src weight that it is.
        """
        node = self.dest.flow[index]
        if all(self.dest.flow[i].role is not Role.ACTIVATION for i in node.operands):
            return None  # what is met depends on nothing
        try:
            key = self._key(self.dest, node, self._open_dest)
        except Unlike:
            return None
        depth = 2 if node.op in ("matmul", "convolution") else 1
        steps = self.dest.next_steps[index][:depth]
        found = [i for i in self._open.get(key, []) if self.src.next_steps[i][:depth] == steps]
        if len(found) > 1:  # told apart by what follows, as far as that is looked at
            label = self.dest.labels[index]
            found = [i for i in found if self.src.labels[i] == label]
        if len(found) != 1:
            return None
        pairs = self._paired(node, self.src.flow[found[0]])
        return (found[0], pairs) if pairs else None

    def note(self, index: int) -> None:
        """Keep the src node that has the same numbers as a dest node, if there is one."""
        twin = self._with_value(self.dest.run.value(index))
        if twin is not None:
            self.same[index] = twin

    def tables_on(self, data: int, kind: str) -> list[ElementForm]:
        """Return the tables of a kind that src applies to the value of a dest node."""
        twin = self.same.get(data)
        if twin is None:
            return []
        if not self._alike:
            for index, first in self._first.items():
                self._alike.setdefault(first, []).append(index)
        return [form for index in self._alike[twin] for form in self.src.elements_on(index, kind)]

    def _paired(self, node: Node, twin: Node) -> dict[int, int]:
        """For each open weight behind a dest node the one at its place behind a src node; none if one is decided
        otherwise.
        """
        mine = leaves_behind(self.dest.flow, node)
        theirs = leaves_behind(self.src.flow, twin)
        pairs = dict(zip(mine, theirs, strict=True))
        if any(pairs[a] != b for a, b in zip(mine, theirs, strict=True)):
            return {}
        decided = {leaf: self.assignment.whole.get(leaf) for leaf in pairs if leaf not in self.assignment.blank}
        if any(pairs[leaf] != other for leaf, other in decided.items()):
            return {}
        return {leaf: other for leaf, other in pairs.items() if leaf not in decided}

    # ------------------------------------------------------------------ layout
    def _places(self, side: Side, index: int) -> Tensor:
        """Numbers for the elements of a value, equal where it is the same element of the same value before layout."""
        if side is self.src and index in self._moves:
            return self._moves[index]
        node = side.flow[index]
        if math.prod(node.shape) > _FOLLOWED:
            raise Unlike
        twin = self.same.get(index) if side is self.dest else None
        if twin is not None:
            return self._places(self.src, twin).reshape(node.shape)
        if is_moving(side.flow, node):
            found: Tensor = compute(node, lambda i: self._operand_places(side, i))
        elif side is self.src and node.role is Role.ACTIVATION:
            start = 1 + _ROOM * self._first[index]  # zero is for what is padded
            found = torch.arange(start, start + math.prod(node.shape), dtype=torch.float64).view(node.shape)
        else:
            raise Unlike
        if side is self.src:
            self._moves[index] = found
        return found

    def _has_places(self, index: int, flat: Tensor) -> bool:
        """Whether a src value has the elements given, in their order."""
        try:
            return torch.equal(self._places(self.src, index).reshape(-1), flat)
        except Unlike:
            return False

    def _operand_places(self, side: Side, index: int) -> Any:
        return side.run.value(index) if side.flow[index].role is Role.CONSTANT else self._places(side, index)

    def _roots(self, side: Side, index: int) -> frozenset[int]:
        """The src values, each by the number of its first node, that a value is laid out from."""
        twin = self.same.get(index) if side is self.dest else None
        if twin is not None:
            return self._roots(self.src, twin)
        node = side.flow[index]
        if not is_moving(side.flow, node):
            return frozenset((self._first[index],))
        return frozenset().union(*(self._roots(side, i) for i in data_of(side.flow, node)))

    def _islands(self) -> dict[tuple[int, frozenset[int]], list[int]]:
        """The src nodes that lay out values anew, by their size and what they are laid out from."""
        found: dict[tuple[int, frozenset[int]], list[int]] = {}
        for node in self.src.flow.nodes:
            if node.role is Role.ACTIVATION and self._first[node.index] == node.index:
                key = math.prod(node.shape), self._roots(self.src, node.index)
                found.setdefault(key, []).append(node.index)
        return found

    # ------------------------------------------------------------------ keys
    def _key(self, side: Side, node: Node, operand: Callable[[int], Hashable]) -> Key:
        flow = side.flow
        data = [flow[i].shape for i in node.operands if flow[i].role is Role.ACTIVATION]
        is_any_shape = is_shapeless(flow, node, data)

        def shaped(index: int) -> Hashable:
            """An operand with its shape, where that matters: dims of size one in front of a table do not."""
            role, shape = flow[index].role, flow[index].shape
            if role is Role.CONSTANT or (is_any_shape and role is Role.ACTIVATION):
                return operand(index)
            return operand(index), trimmed(shape) if node.op in ELEMENTWISE and role is Role.WEIGHT else shape

        args = frozen(node.args, shaped)
        if node.op in _COMMUTATIVE and len(args) == 2 and not node.kwargs:
            args = tuple(sorted(args, key=hash))
        return (node.op, node.function, args, frozen(node.kwargs, shaped))

    def _of_src(self, index: int) -> Hashable:
        return self._pattern(self.src, index) if self.src.flow[index].role is Role.CONSTANT else self._first[index]

    def _of_dest(self, index: int) -> Hashable:
        node = self.dest.flow[index]
        if node.role is Role.CONSTANT:
            return self._pattern(self.dest, index)
        found = self._weight(node) if node.role is Role.WEIGHT else self.same.get(index)
        if found is None:
            raise Unlike
        return found

    def _weight(self, node: Node) -> int | None:
        """The src number of a weight-side dest value, where it is made of whole src weights in the same way."""
        if node.op == "weight":
            return self.assignment.whole.get(node.index)
        if is_reshaped(node):
            return self._weight(self.dest.flow[node.operands[0]])
        return self._exact.get(self._key(self.dest, node, self._of_dest))

    def _open_src(self, index: int) -> Hashable:
        return self._pattern(self.src, index) if self.src.flow[index].role is Role.WEIGHT else self._of_src(index)

    def _open_dest(self, index: int) -> Hashable:
        return self._pattern(self.dest, index) if self.dest.flow[index].role is Role.WEIGHT else self._of_dest(index)

    def _pattern(self, side: Side, index: int) -> Hashable:
        """What a constant is, or how a weight-side value is made of stored weights, whichever these are."""
        place = (side is self.src, index)
        if place not in self._patterns:
            node = side.flow[index]
            if node.role is Role.CONSTANT:
                found = content_of(side.run.value(index))
            elif node.op == "weight":
                found = ("weight", math.prod(node.shape))
            elif is_reshaped(node):
                found = self._pattern(side, node.operands[0])
            else:
                found = self._key(side, node, lambda i: self._pattern(side, i))
            self._patterns[place] = found
        return self._patterns[place]

    # ------------------------------------------------------------------ values
    def _with_value(self, value: Any) -> int | None:
        """The first src node that has a value's numbers in their order."""
        if not isinstance(value, Tensor) or value.dtype != torch.float64 or not value.numel():
            return None
        low, high = torch.aminmax(value)
        if not bool(low < high):  # one number throughout, which many values are
            return None
        if self._by_probe is None:
            self._by_probe = self._probed()
        rows, probe = self._by_probe.get(value.numel(), []), _probe(value)
        slack = 1e-9 * (abs(probe) + 1e-3)
        near = rows[bisect_left(rows, (probe - slack,)) : bisect_left(rows, (probe + slack,))]
        return next((i for i in sorted(i for _, i in near) if _is_same(self.src.run.value(i), value)), None)

    def _probed(self) -> dict[int, list[tuple[float, int]]]:
        """One number of each src value with its node, in order, by how many numbers it has."""
        found: dict[int, list[tuple[float, int]]] = {}
        for node in self.src.flow.nodes:
            if node.role is Role.ACTIVATION and self._first[node.index] == node.index:
                value = self.src.run.value(node.index)
                if isinstance(value, Tensor) and value.dtype == torch.float64 and value.numel():
                    found.setdefault(value.numel(), []).append((_probe(value), node.index))
        return {count: sorted(rows) for count, rows in found.items()}


def _probe(value: Tensor) -> float:
    """One number of a tensor, not at its edge."""
    place, index = int(0.618 * value.numel()), []
    for size in reversed(value.shape):
        index.append(place % size)
        place //= size
    return float(value[tuple(reversed(index))])


def _is_same(a: Tensor, b: Tensor) -> bool:
    scale = float(a.abs().max())
    return math.isfinite(scale) and float((a.reshape(b.shape) - b).abs().max()) <= _ROUNDING * scale
