"""Products of values that are joined along their channels, as the sum of a product of each: `cat(a, b) @ w` is
`a @ w' + b @ w''`.

This is done only where it is asked for (`Builder.is_parted`): most models join alike, and then the whole is simpler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from automap.canonical.flow import Node, Ref, Role
from automap.canonical.lower import Builder, aten

#: ops that compute each number from one number alone
_ALONE = {
    "relu", "gelu", "silu", "sigmoid", "tanh", "elu", "leaky_relu", "hardtanh", "hardswish", "softplus", "exp", "neg",
    "sin", "cos", "abs", "clamp",
}  # fmt: skip

Product = Callable[[Ref, Ref], Ref]


def over_parts(builder: Builder, data: Ref, axis: int, weight: Ref, along: int, product: Product) -> Ref | None:
    """Return the sum of `product(part of data, part of weight)` where data is joined along axis, or None where not.

    along is the dim of weight that axis is multiplied into.
    """
    if not builder.is_parted or builder.role(weight) is not Role.WEIGHT or builder.role(data) is not Role.ACTIVATION:
        return None
    parts = _parts(builder, data, axis % len(builder.shape(data)))
    if parts is None or len(parts) < 2:
        return None
    terms, start = [], 0
    for part in parts:
        size = builder.shape(part)[axis]
        terms.append(product(part, _piece(builder, weight, along, start, size)))
        start += size
    return reduce(lambda a, b: builder.add("add", torch.add, a, b, shape=builder.shape(a)), terms)


def spread_product(builder: Builder, rows: Ref, weight: Ref, product: Product) -> Ref:
    """Return `rows @ weight`; rows that are one row many times are multiplied once."""
    node = builder.nodes[rows.index]
    while node.op == "reshape" and builder.nodes[node.operands[0]].shape[-1:] == node.shape[-1:]:
        node = builder.nodes[node.operands[0]]
    below = builder.nodes[node.operands[0]] if node.op == "expand" else node
    width = builder.shape(weight)[-1]
    if below is node or below.shape[-1:] != node.shape[-1:]:
        return product(rows, weight)
    count = math.prod(below.shape[:-1])
    once = builder.add(
        "reshape", torch.reshape, Ref(below.index), (count, below.shape[-1]), shape=(count, below.shape[-1])
    )
    made, size = product(once, weight), (*below.shape[:-1], width)
    made = builder.add("reshape", torch.reshape, made, size, shape=size)
    size = (*node.shape[:-1], width)
    made = builder.add("expand", torch.broadcast_to, made, size, shape=size)
    size = (*builder.shape(rows)[:-1], width)
    return builder.add("reshape", torch.reshape, made, size, shape=size)


def _piece(builder: Builder, value: Ref, axis: int, start: int, size: int) -> Ref:
    shape = _resized(builder.shape(value), axis, size)
    return builder.add("slice", aten.slice.Tensor, value, axis, start, start + size, shape=shape)


def _resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return tuple(size if d == axis else n for d, n in enumerate(shape))


def _parts(builder: Builder, value: Ref, axis: int) -> list[Ref] | None:
    """What a value is joined from along an axis, each in the value's own layout; None where it is not joined."""
    node = builder.nodes[value.index]
    if node.op == "cat" and node.role is Role.ACTIVATION:
        dim = (node.args[1] if len(node.args) > 1 else 0) % len(node.shape)
        return _joined(builder, node, axis) if dim == axis else None
    before = _axis_before(builder, node, axis)
    parts = None if before is None else _parts(builder, *before)
    if before is None or parts is None:
        return None
    made, start = [], 0
    for part in parts:
        size = builder.shape(part)[before[1]]
        made.append(_again(builder, node, (before[0].index, part), axis, slice(start, start + size)))
        start += size
    return made


def _joined(builder: Builder, node: Node, axis: int) -> list[Ref]:
    found: list[Ref] = []
    for part in node.args[0]:
        if builder.shape(part)[axis] > 0:
            found += _parts(builder, part, axis) or [part]
    return found


def _axis_before(builder: Builder, node: Node, axis: int) -> tuple[Ref, int] | None:
    """The one value that an op lays out or computes with channel by channel, and where the axis is in it."""
    data = [i for i in node.operands if builder.nodes[i].role is Role.ACTIVATION]
    if len(data) != 1 or node.operands.count(data[0]) != 1:
        return None
    before, shape = Ref(data[0]), builder.nodes[data[0]].shape
    if node.op in ("reshape", "expand"):
        behind = math.prod(node.shape[axis + 1 :])
        lead = len(node.shape) - len(shape)
        if node.op == "expand":
            return (before, axis - lead) if axis >= lead and shape[axis - lead] == node.shape[axis] else None
        found = [d for d, n in enumerate(shape) if n == node.shape[axis] and math.prod(shape[d + 1 :]) == behind]
        return (before, found[-1]) if found else None
    if node.op == "transpose":
        pair = [d % len(shape) for d in node.args[1:3]]
        return before, pair[1 - pair.index(axis)] if axis in pair else axis
    if node.op == "permute":
        return before, node.args[1][axis] % len(shape)
    return (before, axis) if shape == node.shape and _is_by_channel(builder, node) else None


def _is_by_channel(builder: Builder, node: Node) -> bool:
    """Whether an op computes each number from one number of its data, and weights."""
    if node.op in _ALONE:
        return len(node.operands) == 1
    return node.op in ("add", "mul") and not any(builder.nodes[i].role is Role.CONSTANT for i in node.operands)


def _again(builder: Builder, node: Node, replaced: tuple[int, Ref], axis: int, places: slice) -> Ref:
    """An op carried out on one part of its data: some of the places along an axis."""
    whole, part = replaced
    size = places.stop - places.start
    shape = _resized(node.shape, axis, size)

    def own(argument: Any) -> Any:
        if not isinstance(argument, Ref):
            return argument
        if argument.index == whole:
            return part
        other = builder.shape(argument)
        place = axis - len(node.shape) + len(other)
        is_spread = place < 0 or other[place] == 1
        return argument if is_spread else _piece(builder, argument, place, places.start, size)

    args = (part, shape) if node.op in ("reshape", "expand") else tuple(own(a) for a in node.args)
    assert node.function is not None
    return builder.add(node.op, node.function, *args, shape=shape, **node.kwargs)
