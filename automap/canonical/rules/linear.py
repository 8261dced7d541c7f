"""Projections and convolutions: a product with one weight, then a shift by the bias."""

from __future__ import annotations

from typing import Any

import torch

from automap.canonical.flow import Ref, Role
from automap.canonical.lower import Builder, aten, rule


def matmul(builder: Builder, left: Any, right: Any) -> Ref:
    """`left @ right` for two matrices or two stacks of matrices."""
    shape = (*builder.shape(left)[:-1], builder.shape(right)[-1])
    return builder.add("matmul", torch.matmul, left, right, shape=shape)


def shift(builder: Builder, value: Ref, bias: Any) -> Ref:
    """`value + bias`, or value where there is no bias."""
    return value if bias is None else builder.add("add", torch.add, value, bias, shape=builder.shape(value))


def scaled(builder: Builder, value: Any, factor: float) -> Any:
    """`value * factor`, or value where factor is one."""
    return value if factor == 1 else builder.add("mul", torch.mul, value, factor, shape=builder.shape(value))


@rule(aten.mm.default, aten.bmm.default, aten.mv.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    if len(builder.shape(args[1])) == 1:
        return builder.add("matmul", torch.matmul, *args, shape=builder.shape(args[0])[:-1])
    return matmul(builder, args[0], args[1])


@rule(aten.addmm.default, aten.baddbmm.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    bias, left, right = args
    product = scaled(builder, matmul(builder, left, right), kwargs.get("alpha", 1))
    beta = kwargs.get("beta", 1)
    return product if beta == 0 else shift(builder, product, scaled(builder, bias, beta))


@rule(aten.linear.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    inner, out = builder.shape(args[1])[-1], builder.shape(args[1])[0]
    flipped = builder.add("transpose", torch.transpose, args[1], 0, 1, shape=(inner, out))
    return shift(builder, matmul(builder, args[0], flipped), args[2] if len(args) > 2 else None)


@rule(aten.convolution.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    data, weight, bias, *geometry = args
    origin = builder.origin
    shape = tuple(origin.meta["shape"]) if origin is not None else ()
    product = builder.add("convolution", aten.convolution.default, data, weight, None, *geometry, shape=shape)
    if bias is None:
        return product
    spatial = [1] * (len(shape) - 2)
    size = (-1, *spatial)
    column = builder.add("reshape", torch.reshape, bias, size, shape=(builder.shape(bias)[0], *spatial))
    return shift(builder, product, column)


@rule(aten.embedding.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    return _lookup(builder, args[0], args[1])


@rule(aten.index_select.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    table, dim, index = args
    if dim == 0:
        return _lookup(builder, table, index)
    origin = builder.origin
    shape = tuple(origin.meta["shape"]) if origin is not None else ()
    return builder.add("index_select", torch.index_select, table, dim, index, shape=shape)


def _rows(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return table[index]


def _lookup(builder: Builder, table: Any, index: Any) -> Ref:
    """Rows of a table: a lookup where data chooses the rows, plain layout where every input would read the same
    ones.
    """
    shape = (*builder.shape(index), *builder.shape(table)[1:])
    counted = _counted(builder, index)
    if counted is not None:
        index = builder.constant(counted)
    name = "index" if builder.role(index) is Role.CONSTANT else "lookup"
    return builder.add(name, _rows, table, index, shape=shape)


def _counted(builder: Builder, index: Ref) -> torch.Tensor | None:
    """The row numbers, if they are positions (counted up from one start in every row) or all the same number."""
    origin = builder.nodes[index.index].origin
    value = origin.meta.get("value") if origin is not None else None
    if value is None or value.numel() < 2 or tuple(value.shape) != builder.shape(index):
        return None
    steps = value - value.reshape(-1)[0]
    is_constant = not bool(steps.any())
    is_position = value.shape[-1] > 1 and bool((steps == torch.arange(value.shape[-1])).all())
    return value if is_constant or is_position else None


@rule(aten.index.Tensor)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    table, indices = args
    if len(indices) == 1 and indices[0] is not None and _is_integer(builder, indices[0]):
        return _lookup(builder, table, indices[0])
    origin = builder.origin
    shape = tuple(origin.meta["shape"]) if origin is not None else ()
    return builder.add("index", aten.index.Tensor, table, list(indices), shape=shape)


def _is_integer(builder: Builder, index: Ref) -> bool:
    origin = builder.nodes[index.index].origin
    dtype = origin.meta.get("dtype") if origin is not None else None
    return dtype is not None and not dtype.is_floating_point and dtype != torch.bool
