"""What a weight-side value of dest is to be, carried back through the arithmetic on it to the stored weights.

One step at a time: a sum gives its wanted value to one operand and 0 to the other, a product gives 1, whatever has an
inverse is inverted on the src side. The result is a guess until dest's value, computed from it, is the wanted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from automap.align.table import Side, Source
from automap.canonical.flow import Node, Ref, Role
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


#: op -> what its operand must be for a wanted result, as (op, function) on the src side
_INVERSES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "neg": ("neg", torch.neg),
    "reciprocal": ("reciprocal", torch.reciprocal),
    "exp": ("log", torch.log),
    "log": ("exp", torch.exp),
    "sqrt": ("square", torch.square),
}


class Unsettled(Exception):
    """An op on the way to the stored weights has no inverse here."""


def settled(dest: Side, src: Source, wanted: Wanted, is_open: Callable[[int], bool]) -> list[Wanted] | None:
    """Return what each stored weight of dest is to be, or None where the arithmetic cannot be undone.

    is_open tells of a weight-side dest value whether anything behind it is still undecided.
    """
    try:
        return list(_carried_back(dest, src, wanted, is_open))
    except Unsettled:
        return None


def _carried_back(dest: Side, src: Source, wanted: Wanted, is_open: Callable[[int], bool]) -> Iterator[Wanted]:
    node = dest.flow[wanted.value]
    if node.op == "weight":
        yield wanted
        return
    for step in _moved_back(dest, node, wanted) if node.op in MOVES else _undone(dest, src, node, wanted, is_open):
        yield from _carried_back(dest, src, step, is_open)


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


def _undone(dest: Side, src: Source, node: Node, wanted: Wanted, is_open: Callable[[int], bool]) -> Iterator[Wanted]:
    weights = [i for i in dict.fromkeys(node.operands) if dest.flow[i].role is Role.WEIGHT]
    if node.op in ("add", "mul") and len(weights) == len(node.args) == 2:
        yield from _shared_out(dest, node, wanted, weights, is_open)
    elif node.op in ("add", "mul") and len(weights) == 1:
        yield _without_number(dest, src, node, wanted, weights[0])
    elif node.op == "rsqrt":
        yield _inverse(src, _inverse(src, replace(wanted, value=weights[0]), *_INVERSES["sqrt"]), "reciprocal",
                       torch.reciprocal)  # fmt: skip
    elif node.op in _INVERSES and len(weights) == 1:
        yield _inverse(src, replace(wanted, value=weights[0]), *_INVERSES[node.op])
    else:
        raise Unsettled


def _inverse(src: Source, wanted: Wanted, op: str, function: Callable[[Tensor], Tensor]) -> Wanted:
    if wanted.source is None:
        return replace(wanted, fill=float(function(torch.tensor(wanted.fill, dtype=torch.float64))))
    return replace(wanted, source=src.derive(op, function, Ref(wanted.source)))


def _without_number(dest: Side, src: Source, node: Node, wanted: Wanted, weight: int) -> Wanted:
    """`w + c = v` is `w = v - c`, `w * c = v` is `w = v / c`."""
    number: Any = next(a for a in node.args if not (isinstance(a, Ref) and a.index == weight))
    if isinstance(number, Ref):
        value = dest.run.value(number.index)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise Unsettled
        number = float(value)
    if node.op == "mul" and number == 0:
        raise Unsettled
    here = replace(wanted, value=weight)
    if wanted.source is None:
        return replace(here, fill=wanted.fill - number if node.op == "add" else wanted.fill / number)
    op, change = ("add", -float(number)) if node.op == "add" else ("mul", 1.0 / float(number))
    return replace(here, source=src.derive(op, torch.add if op == "add" else torch.mul, Ref(wanted.source), change))


def _shared_out(
    dest: Side, node: Node, wanted: Wanted, weights: list[int], is_open: Callable[[int], bool]
) -> Iterator[Wanted]:
    """One operand takes the wanted value, the other what changes nothing; of a product that is zero one is zero."""
    first, second = sorted(
        weights, key=lambda i: (not is_open(i), _size(dest, i) < _size(dest, node.index), _depth(dest, i))
    )
    yield _spread(dest, node, replace(wanted, value=first))
    is_zero = node.op == "mul" and wanted.source is None and wanted.fill == 0
    if not is_zero and is_open(second):
        neutral = 0.0 if node.op == "add" else 1.0
        yield _spread(dest, node, replace(wanted, value=second, source=None, fill=neutral))


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
