"""What a weight-side value of dest is to be, carried back through the arithmetic on it to the stored weights.

One step at a time: a sum gives its wanted value to one operand and 0 to the other, a product gives 1, whatever has an
inverse is inverted on the src side. Where a weight is met twice, as in a direction over its length, it takes the wanted
value itself, and the other factor makes up for what is done with it. Each result is a guess until dest's value,
computed from it, is the wanted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from automap.align.effective import taken
from automap.align.side import Side
from automap.align.table import Source
from automap.canonical.flow import Node, Ref, Role, replace_refs
from automap.canonical.provenance import moved
from automap.canonical.rules.layout import MOVES


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """Elements of dest value `value`, at flat `places`, are to be those of src value `source` at `source_places`.

    With source None they are all to be the number `fill`.
    """

    value: int
    places: Tensor
    source: int | None
    source_places: Tensor
    fill: float = 0.0


#: op -> what its operand must be for a wanted result, as steps (op, function) on the src side
_INVERSES: dict[str, tuple[tuple[str, Callable[[Tensor], Tensor]], ...]] = {
    "neg": (("neg", torch.neg),),
    "reciprocal": (("reciprocal", torch.reciprocal),),
    "exp": (("log", torch.log),),
    "log": (("exp", torch.exp),),
    "expm1": (("log1p", torch.log1p),),
    "log1p": (("expm1", torch.expm1),),
    "sqrt": (("square", torch.square),),
    "rsqrt": (("square", torch.square), ("reciprocal", torch.reciprocal)),
    "square": (("sqrt", torch.sqrt),),
    "abs": (("abs", torch.abs),),
    "relu": (("relu", torch.relu),),
    "sigmoid": (("logit", torch.logit),),
    "tanh": (("atanh", torch.atanh),),
    "softplus": (("expm1", torch.expm1), ("log", torch.log)),
}


class Unsettled(Exception):
    """An op on the way to the stored weights has no inverse here."""


def settled(dest: Side, src: Source, wanted: Wanted, is_open: Callable[[int], bool]) -> Iterator[list[Wanted]]:
    """Yield what each stored weight of dest may have to be; nothing where the arithmetic cannot be undone.

    is_open tells of a weight-side dest value whether anything behind it is still undecided.
    """
    for is_direct in (False, True):
        settling = _Settling(dest, src, is_open)
        try:
            first = settling.direct(wanted) if is_direct else None
            if first is not None or not is_direct:
                yield [*([first] if first is not None else []), *settling.carried_back(wanted)]
        except Unsettled:
            continue


@dataclass(slots=True)
class _Settling:
    """One value carried back; `known` maps stored weights that are settled whole to the src values that they are."""

    dest: Side
    src: Source
    is_open: Callable[[int], bool]
    known: dict[int, int] = field(default_factory=dict)

    def carried_back(self, wanted: Wanted) -> Iterator[Wanted]:
        node = self.dest.flow[wanted.value]
        if node.op == "weight":
            if wanted.source is not None and len(wanted.places) == math.prod(node.shape):
                self.known[node.index] = self._laid_out(wanted, node)
            yield wanted
            return
        is_layout = node.op in MOVES and node.op != "part"
        for step in _moved_back(self.dest, node, wanted) if is_layout else self._undone(node, wanted):
            yield from self.carried_back(step)

    def direct(self, wanted: Wanted) -> Wanted | None:
        """What the one full-sized stored weight among the factors of a value is, if it is the wanted value itself."""
        node = self.dest.flow[wanted.value]
        if node.op == "weight":
            is_whole = wanted.source is not None and len(wanted.places) == math.prod(node.shape)
            if not is_whole or not self.is_open(node.index):
                return None
            self.known[node.index] = self._laid_out(wanted, node)
            return wanted
        if node.op in MOVES and node.op != "part":
            steps = list(_moved_back(self.dest, node, wanted))
            return self.direct(steps[0]) if len(steps) == 1 else None
        full = [i for i in dict.fromkeys(node.operands) if self.dest.flow[i].shape == node.shape]
        found = (self.direct(replace(wanted, value=i)) for i in full if node.op == "mul")
        return next((f for f in found if f is not None), None)

    def _laid_out(self, wanted: Wanted, node: Node) -> int:
        """The src value that a weight-side value of dest is, in its own order and shape."""
        if wanted.source is None or len(wanted.places) != math.prod(node.shape):
            raise Unsettled
        values = taken(self.src, wanted.source, wanted.source_places[torch.argsort(wanted.places)])
        return self.src.derive("reshape", torch.reshape, Ref(values), node.shape)

    def _undone(self, node: Node, wanted: Wanted) -> Iterator[Wanted]:
        """What the operands of an op are to be for its result to be the wanted one."""
        weights = [i for i in dict.fromkeys(node.operands) if self.dest.flow[i].role is Role.WEIGHT]
        if node.op in ("add", "mul") and len(weights) == len(node.args) == 2:
            yield from self._shared_out(node, wanted, weights)
        elif node.op in ("add", "mul") and len(weights) == 1:
            yield self._without_number(node, wanted, weights[0])
        elif node.op in _INVERSES and len(weights) == len(node.args) == 1:
            wanted = replace(wanted, value=weights[0])
            for op, function in _INVERSES[node.op]:
                wanted = self._inverse(wanted, op, function)
            yield wanted
        else:
            raise Unsettled

    def _inverse(self, wanted: Wanted, op: str, function: Callable[[Tensor], Tensor]) -> Wanted:
        if wanted.source is None:
            return replace(wanted, fill=float(function(torch.tensor(wanted.fill, dtype=torch.float64))))
        return replace(wanted, source=self.src.derive(op, function, Ref(wanted.source)))

    def _without_number(self, node: Node, wanted: Wanted, weight: int) -> Wanted:
        """`w + c = v` is `w = v - c`, `w * c = v` is `w = v / c`."""
        number: Any = next(a for a in node.args if not (isinstance(a, Ref) and a.index == weight))
        if isinstance(number, Ref):
            value = self.dest.run.value(number.index)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise Unsettled
            number = float(value)
        if node.op == "mul" and number == 0:
            raise Unsettled
        here = replace(wanted, value=weight)
        if wanted.source is None:
            return replace(here, fill=wanted.fill - number if node.op == "add" else wanted.fill / number)
        op, change = ("add", -float(number)) if node.op == "add" else ("mul", 1.0 / float(number))
        function = torch.add if op == "add" else torch.mul
        return replace(here, source=self.src.derive(op, function, Ref(wanted.source), change))

    def _shared_out(self, node: Node, wanted: Wanted, weights: list[int]) -> Iterator[Wanted]:
        """One operand takes the wanted value, the other what changes nothing; of a product that is zero one is zero.

        An operand that follows from what is settled already is what it is, and the other one makes up for it.
        """
        full = _size(self.dest, node.index)
        first, second = sorted(
            weights, key=lambda i: (not self.is_open(i), _size(self.dest, i) < full, _depth(self.dest, i))
        )
        for given, other in ((first, second), (second, first)):
            if self._follows(given):
                yield self._made_up(node, wanted, given, other)
                return
        yield _spread(self.dest, node, replace(wanted, value=first))
        is_zero = node.op == "mul" and wanted.source is None and wanted.fill == 0
        if not is_zero and self.is_open(second):
            neutral = 0.0 if node.op == "add" else 1.0
            yield _spread(self.dest, node, replace(wanted, value=second, source=None, fill=neutral))

    def _follows(self, index: int) -> bool:
        """Whether a weight-side value is computed from weights that are settled whole."""
        leaves = [i for i in self.dest.flow.ancestors([index]) if i in self.dest.flow.weights]
        return bool(leaves) and all(leaf in self.known for leaf in leaves)

    def _made_up(self, node: Node, wanted: Wanted, given: int, other: int) -> Wanted:
        op, undo = ("neg", torch.neg) if node.op == "add" else ("reciprocal", torch.reciprocal)
        rest = self.src.derive(op, undo, Ref(self._mirrored(given)))
        function = torch.add if node.op == "add" else torch.mul
        if wanted.source is None:
            made = self.src.derive(node.op, function, Ref(rest), wanted.fill)
        else:
            made = self.src.derive(node.op, function, Ref(rest), Ref(self._laid_out(wanted, node)))
        if self.src.flow[made].shape != self.dest.flow[other].shape:
            made = self._narrowed(made, node, other)
        places = torch.arange(_size(self.dest, other))
        return Wanted(other, places, made, places)

    def _narrowed(self, made: int, node: Node, other: int) -> int:
        """One number of a value for each element of an operand that is spread over it."""
        if self.src.flow[made].shape != node.shape:
            raise Unsettled
        shape = self.dest.flow[other].shape
        spread = torch.arange(math.prod(shape)).view(shape).expand(node.shape).reshape(-1)
        first = torch.full((math.prod(shape),), len(spread))
        return taken(self.src, made, first.scatter_reduce(0, spread, torch.arange(len(spread)), "amin"))

    def _mirrored(self, index: int) -> int:
        """A value of dest's, computed on the src side from what its weights are settled to be."""
        if index in self.known:
            return self.known[index]
        node = self.dest.flow[index]
        if node.role is not Role.WEIGHT:
            raise Unsettled
        args = replace_refs(node.args, lambda i: Ref(self._mirrored(i)))
        assert node.function is not None
        function = partial(node.function, **node.kwargs) if node.kwargs else node.function
        return self.src.derive(node.op, function, *_hashable(args))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, (tuple, list)) else value


def _moved_back(dest: Side, node: Node, wanted: Wanted) -> Iterator[Wanted]:
    """The same elements in the operands of a layout op."""
    operands = [i for i in dict.fromkeys(node.operands) if dest.flow[i].role is Role.WEIGHT]
    starts, total = {}, 0
    for i in operands:
        starts[i], total = total, total + math.prod(dest.flow[i].shape)
    numbers = {
        i: torch.arange(s, s + math.prod(dest.flow[i].shape)).view(dest.flow[i].shape) for i, s in starts.items()
    }
    read = moved(node, numbers, dest.run.value).reshape(-1)[wanted.places]
    for i, start in starts.items():
        mine = (read >= start) & (read < start + numbers[i].numel())
        if bool(mine.any()):
            theirs = wanted.source_places[mine] if wanted.source is not None else wanted.source_places
            yield replace(wanted, value=i, places=read[mine] - start, source_places=theirs)


def _spread(dest: Side, node: Node, wanted: Wanted) -> Wanted:
    """Places in an operand that is broadcast to the shape of the result."""
    shape = dest.flow[wanted.value].shape
    places = torch.arange(math.prod(shape)).view(shape).expand(node.shape).reshape(-1)[wanted.places]
    return replace(wanted, places=places)


def _size(dest: Side, index: int) -> int:
    return math.prod(dest.flow[index].shape)


def _depth(dest: Side, index: int) -> int:
    """How many computing ops lie between a value and the nearest stored weight."""
    node = dest.flow[index]
    if node.op == "weight":
        return 0
    behind = [_depth(dest, i) for i in node.operands if dest.flow[i].role is Role.WEIGHT]
    return min(behind, default=99) + (node.op not in MOVES)
