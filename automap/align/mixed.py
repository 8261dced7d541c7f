"""Products of values that are mixed over positions, read as products of what is mixed: the two commute.

A mean over positions before a head or behind it, neighbours summed before a projection or behind it: both compute the
same, and a product of the mixed value meets the same channels as one of the value before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from automap.align.forms import LinearForm, center
from automap.align.moments import clean, moments
from automap.align.side import Side
from automap.canonical.flow import Flow, Node, Role
from automap.canonical.rules.layout import MOVES

_MOST_STEPS = 8


def unmixed(side: Side, form: LinearForm) -> Iterator[LinearForm]:
    """Yield a product of matrices as one of each value that its data was mixed from, nearest first."""
    if form.kind != "matmul" or form.groups != 1 or form.is_folded:
        return
    index, axis = form.data, _channel_axis(side.flow, form)
    for _ in range(_MOST_STEPS):
        node = side.flow[index]
        before = _before(side.flow, node, axis)
        if before is None:
            return
        index, axis = before
        if node.op not in MOVES:
            values = clean(side.run.value(index)).movedim(axis, -1)
            columns = moments(values.reshape(1, -1, values.shape[-1]), (1,))
            yield replace(form, data=index, columns=columns, center=center(columns), count=values[..., 0].numel())


def _channel_axis(flow: Flow, form: LinearForm) -> int:
    """The dim of a product's data that its weight is multiplied into."""
    node, rank = flow[form.node], len(flow[form.data].shape)
    if node.op == "convolution":
        return 1
    return rank - 1 if node.operands[0] == form.data or rank == 1 else rank - 2


def _before(flow: Flow, node: Node, axis: int) -> tuple[int, int] | None:
    """What an op that acts alike on all channels was given, and where the channels are in it; None for other ops."""
    data = [i for i in node.operands if flow[i].role is Role.ACTIVATION]
    if node.op == "matmul":
        is_mixed = axis == len(node.shape) - 1 and flow[node.operands[0]].role is not Role.WEIGHT
        return (node.operands[1], len(flow[node.operands[1]].shape) - 1) if is_mixed and data else None
    if len(data) != 1 or len(node.operands) != 1:
        return None
    shape = flow[data[0]].shape
    if node.op == "mean" and len(node.args) > 1 and node.args[1] is not None:
        gone = {d % len(shape) for d in node.args[1]}
        kept = (
            list(range(len(shape)))
            if len(node.shape) == len(shape)
            else [d for d in range(len(shape)) if d not in gone]
        )
        return None if kept[axis] in gone else (data[0], kept[axis])
    if node.op == "transpose":
        pair = [d % len(shape) for d in node.args[1:3]]
        return data[0], pair[1 - pair.index(axis)] if axis in pair else axis
    if node.op == "permute":
        return data[0], node.args[1][axis] % len(shape)
    return _reshaped(node, data[0], shape, axis) if node.op == "reshape" else None


def _reshaped(node: Node, index: int, shape: tuple[int, ...], axis: int) -> tuple[int, int] | None:
    """The dim of the same size, with as many elements behind it, that a dim of a reshaped value was before."""
    behind = math.prod(node.shape[axis + 1 :])
    found = [d for d, n in enumerate(shape) if n == node.shape[axis] and math.prod(shape[d + 1 :]) == behind]
    return (index, found[-1]) if found else None
