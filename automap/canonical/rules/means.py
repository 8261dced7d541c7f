"""Means over some dims: in whatever order the dims lie, it is the same mean."""

from __future__ import annotations

from typing import Any

import torch

from automap.canonical.flow import Ref
from automap.canonical.lower import Builder, aten, rule
from automap.canonical.rules.casts import made_wide


@rule(aten.mean.dim)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    """Dims are counted from the front; of data whose dims were put into another order, those before that."""
    value, dims = args[0], args[1]
    if not dims:
        return made_wide(builder, aten.mean.dim, args, kwargs)
    before, order = _ordered(builder, value)
    over = sorted({order[dim] for dim in dims})
    kept = [dim for dim in order if dim not in over]
    if before == value or [d for d in kept if builder.shape(before)[d] != 1] != _wide(builder, before, kept):
        over = sorted(dim % len(order) for dim in dims)
        return made_wide(builder, aten.mean.dim, (value, over, *args[2:]), kwargs)
    shape = tuple(builder.shape(before)[dim] for dim in sorted(kept))
    found = made_wide(builder, aten.mean.dim, (before, over), kwargs, shape)
    wanted = tuple(builder.origin.meta["shape"]) if builder.origin is not None else shape
    return found if shape == wanted else builder.add("reshape", torch.reshape, found, wanted, shape=wanted)


def _ordered(builder: Builder, value: Ref) -> tuple[Ref, list[int]]:
    """A value before its dims were put into another order, and which of its dims each of value's is."""
    order = list(range(len(builder.shape(value))))
    while (node := builder.nodes[value.index]).op in ("permute", "transpose"):
        if node.op == "permute":
            moved = [dim % len(order) for dim in node.args[1]]
        else:
            a, b = (dim % len(order) for dim in node.args[1:3])
            moved = [b if dim == a else a if dim == b else dim for dim in range(len(order))]
        value, order = node.args[0], [moved[dim] for dim in order]
    return value, order


def _wide(builder: Builder, value: Ref, dims: list[int]) -> list[int]:
    """The dims among some that have more than one element, in order."""
    return [dim for dim in sorted(dims) if builder.shape(value)[dim] != 1]
