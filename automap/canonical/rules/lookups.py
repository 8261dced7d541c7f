"""Fused ops over tables and pairs: bags of rows are a lookup and a mean, a bilinear form is two products."""

from __future__ import annotations

import math
from typing import Any

import torch

from automap.canonical.flow import Ref
from automap.canonical.lower import Builder, aten, rule
from automap.canonical.rules.linear import laid_out, lookup, matmul

#: how a bag's rows become one: name, op
_REDUCED = {0: ("sum", aten.sum.dim_IntList), 1: ("mean", aten.mean.dim), 2: ("amax", aten.amax.default)}


@rule(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Bags of one size each: rows looked up, weighted perhaps, and reduced; others stay as they are."""
    table, index, offsets, _, mode, _, factors, *rest = (*args, None)[: max(len(args), 7)]
    size = _bag_size(builder, index, offsets)
    is_padded = len(rest) > 1 and rest[1] is not None and rest[1] >= 0
    if size is None or is_padded:
        return builder.add("_embedding_bag", aten._embedding_bag.default, *args, **kwargs)
    count, width = builder.shape(index)[0] // size, builder.shape(table)[1]
    rows = laid_out(builder, lookup(builder, table, index), (), (count, size, width))
    if factors is not None:
        column = laid_out(builder, factors, (), (count, size, 1))
        rows = builder.add("mul", torch.mul, rows, column, shape=(count, size, width))
    name, function = _REDUCED[mode]
    wide = {} if name == "amax" else {"dtype": torch.float64}
    return (builder.add(name, function, rows, [1], shape=(count, width), **wide),)


def _bag_size(builder: Builder, index: Ref, offsets: Ref) -> int | None:
    """How many rows each bag has, where all have as many."""
    origin = builder.nodes[offsets.index].origin
    starts = origin.meta.get("value") if origin is not None else None
    total = math.prod(builder.shape(index))
    if starts is None or len(builder.shape(index)) != 1 or not len(starts) or total % len(starts):
        return None
    size = total // len(starts)
    return size if size > 0 and torch.equal(starts, torch.arange(0, total, size, dtype=starts.dtype)) else None


@rule(aten._trilinear.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    """`sum(x[n, i] * w[o, i, j] * y[n, j])` as a product with a weight, then one of data."""
    left, weight, right, *spread = args
    shape = tuple(builder.origin.meta["shape"]) if builder.origin is not None else ()
    if [list(dims) for dims in spread[:4]] != [[1, 3], [0], [1, 2], [2, 3]]:
        return builder.add("_trilinear", aten._trilinear.default, *args, shape=shape, **kwargs)
    out, inner, other = builder.shape(weight)
    count = builder.shape(left)[0]
    wide = laid_out(builder, weight, (1, 0, 2), (inner, out * other))
    half = laid_out(builder, matmul(builder, left, wide), (), (count, out, other))
    column = laid_out(builder, right, (), (count, other, 1))
    return laid_out(builder, matmul(builder, half, column), (), (count, out))
