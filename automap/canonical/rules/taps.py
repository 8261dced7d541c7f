"""Convolutions of each channel alone along one dim, as the sum of a shifted product for each tap, where asked for.

A loop over taps adds up shifted values times a weight: the same function, with no convolution in it.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch

from automap.canonical.flow import Ref, Role
from automap.canonical.lower import Builder, aten, rule

_MOST_TAPS = 16


def over_taps(builder: Builder, data: Ref, weight: Any, geometry: list[Any], shape: tuple[int, ...]) -> Ref | None:
    """Return a convolution `(batch, channel, place)` as a sum over taps, or None where it is none of these."""
    stride, padding, dilation, is_transposed, _, groups = geometry
    channels = shape[1]
    is_by_channel = builder.shape(weight)[:2] == (channels, 1) and groups == channels > 1
    if not builder.is_parted or not is_by_channel or is_transposed or len(shape) != 3 or stride[0] != 1:
        return None
    count = builder.shape(weight)[2]
    if count > _MOST_TAPS or builder.role(weight) is not Role.WEIGHT or builder.role(data) is not Role.ACTIVATION:
        return None
    wide = (*builder.shape(data)[:2], builder.shape(data)[2] + 2 * padding[0])
    pads = [padding[0], padding[0]]
    data = builder.add("constant_pad_nd", aten.constant_pad_nd.default, data, pads, shape=wide) if padding[0] else data
    terms = []
    for tap in range(count):
        start = tap * dilation[0]
        shifted = _cut(builder, data, 2, start, start + shape[2])
        factor = builder.add("select", aten.select.int, weight, 2, tap, shape=(channels, 1))
        terms.append(_noted(builder, builder.add("mul", torch.mul, shifted, factor, shape=shape)))
    return reduce(lambda a, b: _noted(builder, builder.add("add", torch.add, a, b, shape=shape)), terms)


def _noted(builder: Builder, value: Ref) -> Ref:
    builder.taps.add(value.index)
    return value


def _cut(builder: Builder, value: Ref, dim: int, start: int, end: int) -> Ref:
    shape = tuple(end - start if d == dim else n for d, n in enumerate(builder.shape(value)))
    return builder.add("slice", aten.slice.Tensor, value, dim, start, end, shape=shape)


@rule(aten.slice.Tensor)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A slice, perhaps of all; of a sum over taps each term is cut, so that weights meet what the sum goes over."""
    shape = tuple(builder.origin.meta.get("shape", ())) if builder.origin is not None else ()
    value, dim = args[0], (args[1] if len(args) > 1 else 0) % len(shape)
    if builder.shape(value) == shape:
        return value
    is_whole = len(args) < 5 or args[4] == 1
    if is_whole and len(shape) == 3 and dim == 2 and _is_over_taps(builder, value):
        start = args[2] or 0 if len(args) > 2 else 0
        start = max(start + builder.shape(value)[dim], 0) if start < 0 else start
        return _each_cut(builder, value, start, start + shape[dim])
    return builder.add_recorded(args, kwargs)


def _is_over_taps(builder: Builder, value: Ref) -> bool:
    """Whether a value is a sum over taps, a weight added to it perhaps."""
    node = builder.nodes[value.index]
    data = [i for i in node.operands if builder.nodes[i].role is Role.ACTIVATION]
    return value.index in builder.taps or (node.op == "add" and len(data) == 1 and data[0] in builder.taps)


def _each_cut(builder: Builder, value: Ref, start: int, end: int) -> Ref:
    """Places of a sum over taps, cut from what each tap is multiplied with."""
    node = builder.nodes[value.index]
    if not _is_over_taps(builder, value):
        return _cut(builder, value, 2, start, end)
    is_data = [builder.role(a) is Role.ACTIVATION for a in node.args]
    args = [_each_cut(builder, a, start, end) if inside else a for a, inside in zip(node.args, is_data, strict=True)]
    assert node.function is not None
    shape = (*node.shape[:2], end - start)
    return _noted(builder, builder.add(node.op, node.function, *args, shape=shape))
