"""Where the elements of a value come from: weight elements behind a weight-side value, channels behind a reader.

`traces` follows a weight-side value back to the stored weights: one `Trace` per path, giving for every element the
weight element it is made of. `parts` splits the output channels of a linear op by who reads them, in reading order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automap.canonical.flow import Flow, Node, Role, replace_refs
from automap.canonical.rules.layout import MOVES

#: layout ops that put no element in two places
_BIJECTIVE = {
    "reshape",
    "permute",
    "transpose",
    "slice",
    "select",
    "squeeze",
    "unsqueeze",
    "roll",
    "flip",
    "constant_pad_nd",
}
#: ops after which no element of the result is one of the operands'
MIXING = {
    "matmul", "convolution", "part", "inverse", "linalg_matrix_exp", "linalg_householder_product", "_linalg_solve_ex",
    "linalg_inv_ex", "cumsum",
}  # fmt: skip
_COMMUTATIVE = {"add", "mul", "maximum", "minimum"}


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """For every element of a weight-side value, the weight element behind it along one path.

    `ids` has the value's shape and holds numbers from `Numbering`, -1 where the element is a constant. `path` names the
    ops between weight and value that are not mere layout; empty for a pure move. `is_once` tells that no weight element
    stands in two places.
    """

    ids: Tensor
    path: tuple[str, ...]
    is_once: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Numbering:
    """Gives every element of every weight of a flow graph a number: the weight's offset plus its row-major index."""

    offsets: Mapping[int, int]
    sizes: Mapping[int, int]
    leaves: tuple[int, ...]
    starts: Tensor

    @classmethod
    def of(cls, flow: Flow) -> Numbering:
        """Return the numbering of flow's weights in order of first use."""
        offsets, start = {}, 0
        sizes = {index: weight.tensor.numel() for index, weight in flow.weights.items()}
        for index, size in sizes.items():
            offsets[index] = start
            start += size
        return cls(offsets, sizes, tuple(offsets), torch.tensor(list(offsets.values()), dtype=torch.long))

    def extended(self, index: int, size: int) -> Numbering:
        """Return the numbering with one value more, at the end."""
        start = int(self.starts[-1]) + self.sizes[self.leaves[-1]] if self.leaves else 0
        starts = torch.cat([self.starts, torch.tensor([start])])
        return Numbering({**self.offsets, index: start}, {**self.sizes, index: size}, (*self.leaves, index), starts)

    def owners(self, numbers: Tensor) -> tuple[Tensor, list[int]]:
        """Return for each number the place in `leaves` of what it belongs to (-1 for constants), and all that occur."""
        if not numbers.numel():
            return numbers, []
        first, last = (torch.bucketize(torch.stack(torch.aminmax(numbers)), self.starts, right=True) - 1).tolist()
        if first == last:
            return torch.tensor(first).expand(numbers.shape), [first]
        found = torch.bucketize(numbers.contiguous(), self.starts, right=True) - 1
        present = torch.bincount(found.reshape(-1) - first).nonzero().squeeze(1) + first
        return found, present.tolist()

    def ids(self, flow: Flow, index: int) -> Tensor:
        """Return the numbers of one weight's elements, in its shape."""
        start = self.offsets[index]
        return torch.arange(start, start + self.sizes[index]).view(flow[index].shape)


def traces(flow: Flow, numbering: Numbering, index: int, constant: Any) -> tuple[Trace, ...]:
    """Return the paths from stored weights to weight-side node index; constant(i) gives a constant's value."""
    known: dict[int, tuple[Trace, ...]] = {}
    for step in sorted(_weight_side(flow, index)):
        node = flow[step]
        if node.op == "weight":
            known[step] = (Trace(numbering.ids(flow, step), (), True),)
        elif node.op in MOVES and node.op != "part":
            known[step] = _moved(node, known, constant, flow)
        elif node.op in MIXING:
            known[step] = ()
        else:
            known[step] = _mapped(node, known, flow)
    return known[index]


def _weight_side(flow: Flow, index: int) -> set[int]:
    found: set[int] = set()
    stack = [index]
    while stack:
        step = stack.pop()
        if step not in found and flow[step].role is Role.WEIGHT:
            found.add(step)
            stack.extend(flow[step].operands)
    return found


def _moved(node: Node, known: dict[int, tuple[Trace, ...]], constant: Any, flow: Flow) -> tuple[Trace, ...]:
    """Push the numbers through a layout op, once for each path found among its operands."""
    paths = list(dict.fromkeys(trace.path for i in node.operands for trace in known.get(i, ())))
    behind = [trace for i in node.operands for trace in known.get(i, ())]
    is_once = node.op in _BIJECTIVE and len(behind) == 1 and behind[0].is_once
    found = []
    for path in paths:
        operands = {i: _with_path(known[i], path, flow[i]) for i in node.operands if i in known}
        found.append(Trace(moved(node, operands, constant), path, is_once))
    return tuple(found)


def laid_out(flow: Flow, index: int, constant: Any) -> Tensor:
    """Return for each element of a weight-side value its place among the values that layout ops made it from."""
    known: dict[int, Tensor] = {}
    start = 0
    for step in sorted(_layout_side(flow, index)):
        node = flow[step]
        if node.op in MOVES and any(i in known for i in node.operands):
            known[step] = moved(node, {i: known[i] for i in node.operands if i in known}, constant)
        else:
            size = math.prod(node.shape)
            known[step] = torch.arange(start, start + size).view(node.shape)
            start += size
    return known[index]


def _layout_side(flow: Flow, index: int) -> set[int]:
    """A value and those it is laid out from, back to the nearest that are computed or stored."""
    found: set[int] = set()
    stack = [index]
    while stack:
        step = stack.pop()
        found.add(step)
        if flow[step].op in MOVES and flow[step].op != "part":
            stack.extend(i for i in flow[step].operands if flow[i].role is Role.WEIGHT and i not in found)
    return found


def _with_path(found: tuple[Trace, ...], path: tuple[str, ...], node: Node) -> Tensor:
    same = next((t.ids for t in found if t.path == path), None)
    return same if same is not None else torch.full(node.shape, -1)


def moved(node: Node, ids: Mapping[int, Tensor], constant: Any) -> Tensor:
    """Return a layout op's result on element numbers; what it adds itself is -1."""

    def operand(index: int) -> Any:
        if index in ids:  # as_strided counts from the start of a storage: it needs one of its own
            mine = ids[index]
            return mine.clone(memory_format=torch.contiguous_format) if "as_strided" in node.op else mine
        value = constant(index)
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            return torch.full(value.shape, -1)
        return value

    args = replace_refs(node.args, operand)
    kwargs = replace_refs(node.kwargs, operand)
    if node.op == "constant_pad_nd":
        args, kwargs = (args[0], args[1], -1), {}
    assert node.function is not None
    if node.op == "im2col":  # takes no integers, and pads with zeros
        return node.function((args[0] + 1).double(), *args[1:], **kwargs).long() - 1  # type: ignore[no-any-return]
    return node.function(*args, **kwargs)  # type: ignore[no-any-return]


def _mapped(node: Node, known: dict[int, tuple[Trace, ...]], flow: Flow) -> tuple[Trace, ...]:
    """Elementwise ops keep each operand's numbers; ops that change the shape by computing lose them."""
    found: list[Trace] = []
    for position, index in enumerate(node.operands):
        for trace in known.get(index, ()):
            if _broadcasts(tuple(trace.ids.shape), node.shape):
                others = [i for i in node.operands if i != index and flow[i].role is Role.WEIGHT]
                label = node.op if node.op in _COMMUTATIVE or not others else f"{node.op}.{position}"
                path = trace.path if _is_identity(node, flow) else (*trace.path, label)
                while any(t.path == path for t in found):
                    path = (*path, "again")
                found.append(Trace(trace.ids.expand(node.shape), path))
    return tuple(found)


def _is_identity(node: Node, flow: Flow) -> bool:
    """Whether an op with one operand gives back what it gets, such as resizing to the size a table already has."""
    if len(node.operands) != 1 or flow[node.operands[0]].shape != node.shape or node.op in ("neg", "add", "mul"):
        return False
    probe = torch.randn(node.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    args, kwargs = replace_refs(node.args, lambda _: probe), replace_refs(node.kwargs, lambda _: probe)
    assert node.function is not None
    result = node.function(*args, **kwargs)
    return (
        isinstance(result, Tensor)
        and (result.shape, result.dtype) == (probe.shape, probe.dtype)
        and torch.allclose(result, probe, rtol=1e-9, atol=1e-9)
    )


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    if len(shape) > len(target):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


@dataclass(frozen=True, slots=True)
class Part:
    """Output channels of a linear op that the same ops read, in the order in which they read them."""

    channels: Tensor
    label: tuple[str, ...]
    readers: tuple[tuple[int, int], ...]


def parts(flow: Flow, index: int, channels: Tensor, constant: Any) -> tuple[Part, ...]:
    """Return the parts of node index, whose element e carries channel number channels[e].

    Reading goes through layout, unary ops and sums or products with weights and constants, and stops at whatever else
    computes.
    """
    count = int(channels.max()) + 1 if channels.numel() else 0
    ports = _ports(flow, index, channels, constant)
    reads = np.zeros((count, len(ports)), dtype=bool)
    first = np.full((len(ports), count), np.iinfo(np.int64).max)
    for number, (_, _, ids) in enumerate(ports):
        flat = ids.reshape(-1).numpy()
        order = np.arange(len(flat))
        valid = flat >= 0
        reversed_ids, reversed_order = flat[valid][::-1], order[valid][::-1]
        first[number, reversed_ids] = reversed_order
        reads[:, number] = first[number] < np.iinfo(np.int64).max
    if not ports:
        return (Part(torch.arange(count), (), ()),)
    return _grouped(flow, reads, first, ports)


def _grouped(flow: Flow, reads: Any, first: Any, ports: list[tuple[int, int, Tensor]]) -> tuple[Part, ...]:
    groups: dict[bytes, list[int]] = {}
    for channel in range(len(reads)):
        groups.setdefault(reads[channel].tobytes(), []).append(channel)
    found = []
    for members in groups.values():
        chosen = np.array(members)
        mine = [number for number in range(len(ports)) if reads[members[0], number]]
        if mine:
            lead = min(mine, key=lambda number: _spread(first[number][chosen]))
            chosen = chosen[np.argsort(first[lead][chosen], kind="stable")]
        label = tuple(sorted(f"{flow[ports[m][0]].op}.{ports[m][1]}" for m in mine))
        readers = tuple((ports[m][0], ports[m][1]) for m in mine)
        found.append(Part(torch.from_numpy(chosen), label, readers))
    return tuple(found)


def _spread(positions: Any) -> int:
    """Prefer the reader that has the channels closest together; ties go to the first."""
    return int(positions.max() - positions.min())


def _ports(flow: Flow, index: int, channels: Tensor, constant: Any) -> list[tuple[int, int, Tensor]]:
    """(reader, operand position, channel numbers as read) of every op that computes with node index's value."""
    carried: dict[int, Tensor] = {index: channels}
    found: list[tuple[int, int, Tensor]] = []
    agenda = sorted(flow.readers.get(index, ()))
    seen: set[int] = set()
    while agenda:
        step = agenda.pop(0)
        if step in seen:
            continue
        seen.add(step)
        node = flow[step]
        mine = {i: carried[i] for i in node.operands if i in carried}
        passed = _passed(flow, node, mine, constant)
        if passed is None:
            found.extend(_read(flow, node, mine))
        else:
            carried[step] = passed
            agenda = sorted({*agenda, *flow.readers.get(step, ())})
    return found


def _read(flow: Flow, node: Node, mine: Mapping[int, Tensor]) -> list[tuple[int, int, Tensor]]:
    found = []
    for position, operand in enumerate(node.operands):
        if operand in mine:
            ids = mine[operand]
            if node.op == "view_as_complex":
                found.append((node.index, 0, ids[..., 0]))
                found.append((node.index, 1, ids[..., 1]))
            else:
                found.append((node.index, position, ids))
    return found


def _passed(flow: Flow, node: Node, mine: Mapping[int, Tensor], constant: Any) -> Tensor | None:
    """The channel numbers of node's own value, if it is made of one carried value without mixing channels."""
    others = [i for i in node.operands if i not in mine]
    if node.op in MOVES:
        if any(flow[i].role is not Role.CONSTANT for i in others) and node.op not in ("cat", "stack"):
            return None
        blanks = {i: torch.full(flow[i].shape, -1) for i in others if flow[i].role is not Role.CONSTANT}
        return moved(node, {**mine, **blanks}, constant)
    if node.op in ("add", "mul", "cast", "div") and len(mine) == 1:
        ((operand, ids),) = mine.items()
        plain = all(flow[i].role is not Role.ACTIVATION and len(flow[i].shape) <= len(node.shape) for i in others)
        if plain and tuple(ids.shape) == node.shape and _is_lone(flow, operand, others):
            return ids
        is_sum = node.op == "add" and tuple(ids.shape) == node.shape
        if is_sum and (_is_split_next(flow, node.index) or all(_is_product(flow, i) for i in node.operands)):
            return ids
    return None


def _is_product(flow: Flow, index: int) -> bool:
    """Whether a value is the result of a linear op, with a bias perhaps, in some layout: sums of such are one more."""
    node = flow[index]
    while node.op in MOVES or (node.op == "add" and sum(flow[i].role is Role.ACTIVATION for i in node.operands) == 1):
        data = [i for i in node.operands if flow[i].role is Role.ACTIVATION]
        if len(data) != 1:
            return False
        node = flow[data[0]]
    return node.op in ("matmul", "convolution") and any(flow[i].role is Role.WEIGHT for i in node.operands)


def _is_lone(flow: Flow, operand: int, others: list[int]) -> bool:
    """Whether the other operand is a plain factor or per-channel weight, not a table over positions."""
    return all(flow[i].role is Role.WEIGHT or int(np.prod(flow[i].shape)) == 1 for i in others)


def _is_split_next(flow: Flow, index: int) -> bool:
    """Whether all that reads a sum takes slices of it, as recurrent cells do."""
    readers = flow.readers.get(index, ())
    return bool(readers) and all(
        flow[i].op in ("slice", "select", "part", "as_strided") or (flow[i].op == "reshape" and _is_split_next(flow, i))
        for i in readers
    )
