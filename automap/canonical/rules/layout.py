"""Ops that only lay values out anew: one name each, multi-part results as separate values."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

from automap.canonical.flow import Ref
from automap.canonical.lower import Builder, aten, rule

#: canonical names of ops that move elements without changing them
MOVES = {
    "reshape", "permute", "transpose", "expand", "slice", "select", "cat", "stack", "squeeze", "unsqueeze", "index",
    "index_select", "roll", "flip", "repeat", "as_strided", "as_strided_scatter", "constant_pad_nd", "unfold",
    "pixel_shuffle",
    "pixel_unshuffle", "part", "diagonal", "gather", "slice_scatter", "select_scatter", "im2col", "copy",
}  # fmt: skip


def _out(builder: Builder) -> tuple[int, ...]:
    return tuple(builder.origin.meta.get("shape", ())) if builder.origin is not None else ()


@rule(
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten.native_dropout.default,
    aten.lift.default,
)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0]


@rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.view_copy.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    if isinstance(args[0], Ref) and builder.shape(args[0]) == _out(builder):
        return args[0]
    return builder.add("reshape", torch.reshape, args[0], tuple(_out(builder)), shape=_out(builder))


@rule(aten.t.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(builder.shape(args[0])) < 2:
        return args[0]
    return builder.add("transpose", torch.transpose, args[0], 0, 1, shape=_out(builder))


@rule(aten.transpose.int)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    return builder.add("transpose", torch.transpose, *args, shape=_out(builder))


@rule(aten.expand.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if builder.shape(args[0]) == _out(builder):
        return args[0]
    return builder.add("expand", torch.broadcast_to, args[0], tuple(_out(builder)), shape=_out(builder))


@rule(aten.constant_pad_nd.default, aten.roll.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Padding or rolling, by nothing perhaps."""
    return builder.add_recorded(args, kwargs) if any(args[1]) else args[0]


@rule(aten.permute.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    is_idle = [dim % len(args[1]) for dim in args[1]] == list(range(len(args[1])))
    return args[0] if is_idle else builder.add_recorded(args, kwargs)


@rule(aten.copy.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`dest.copy_(value)`: the value, in the shape of what it overwrites."""
    if builder.shape(args[1]) == _out(builder):
        return args[1]
    return builder.add("expand", torch.broadcast_to, args[1], tuple(_out(builder)), shape=_out(builder))


@rule(aten.as_strided.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A look into a storage: what was written there last, or what was there before writes to other places."""
    base, size, stride = args[0], tuple(args[1]), tuple(args[2])
    offset = (args[3] if len(args) > 3 else 0) or 0
    while isinstance(base, Ref) and builder.nodes[base.index].op == "as_strided_scatter":
        below, written, *geometry = builder.nodes[base.index].args
        if (tuple(geometry[0]), tuple(geometry[1]), geometry[2] or 0) == (size, stride, offset):
            return written
        if not _overlap(builder.shape(base)[0], (size, stride, offset), (geometry[0], geometry[1], geometry[2] or 0)):
            base = below
        else:
            break
    if _is_whole(builder.shape(base), size, stride, offset):
        return builder.add("reshape", torch.reshape, base, size, shape=size)
    return builder.add(
        "as_strided", aten.as_strided.default, base, list(size), list(stride), offset, shape=_out(builder)
    )


def _is_whole(before: tuple[int, ...], size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> bool:
    """Whether a look into a storage sees all of it in its own order."""
    expected = math.prod(size)
    if offset or expected != math.prod(before):
        return False
    for count, step in zip(size, stride, strict=True):
        expected //= max(count, 1)
        if count > 1 and step != expected:
            return False
    return True


def _overlap(length: int, one: tuple[Any, Any, int], other: tuple[Any, Any, int]) -> bool:
    places = torch.arange(length)
    mask = torch.zeros(length, dtype=torch.bool)
    mask[torch.as_strided(places, *one).reshape(-1)] = True
    return bool(mask[torch.as_strided(places, *other).reshape(-1)].any())


@rule(operator.getitem)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    whole, position = args
    if isinstance(whole, tuple):
        return whole[position]
    return builder.add("part", operator.getitem, whole, position, shape=_out(builder))


def _pieces(builder: Builder, value: Ref, dim: int, sizes: list[int]) -> tuple[Ref, ...]:
    full = list(builder.shape(value))
    parts, start = [], 0
    for size in sizes:
        shape = tuple(size if d == dim % len(full) else n for d, n in enumerate(full))
        parts.append(builder.add("slice", aten.slice.Tensor, value, dim, start, start + size, shape=shape))
        start += size
    return tuple(parts)


@rule(aten.split.Tensor, aten.unsafe_split.Tensor)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Ref, ...]:
    value, step = args[0], args[1]
    dim = args[2] if len(args) > 2 else 0
    full = builder.shape(value)[dim]
    return _pieces(builder, value, dim, [min(step, full - start) for start in range(0, full, step)])


@rule(aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Ref, ...]:
    return _pieces(builder, args[0], args[2] if len(args) > 2 else 0, list(args[1]))


@rule(aten.unbind.int)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Ref, ...]:
    value = args[0]
    dim = (args[1] if len(args) > 1 else 0) % len(builder.shape(value))
    shape = tuple(n for d, n in enumerate(builder.shape(value)) if d != dim)
    count = builder.shape(value)[dim]
    return tuple(builder.add("select", aten.select.int, value, dim, i, shape=shape) for i in range(count))
