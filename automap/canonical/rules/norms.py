"""Normalisations: normalise, then scale, then shift; a batch norm in eval mode is one scale and one shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from automap.canonical.flow import Ref
from automap.canonical.lower import Builder, aten, rule
from automap.canonical.rules.linear import shift


def _scale(builder: Builder, value: Ref, weight: Any) -> Ref:
    return value if weight is None else builder.add("mul", torch.mul, value, weight, shape=builder.shape(value))


def _column(builder: Builder, vector: Any, dims: int) -> Any:
    """A per-channel vector shaped to meet `(batch, channel, *spatial)` of `dims` dimensions."""
    if vector is None:
        return None
    size = (-1, *[1] * (dims - 2))
    return builder.add("reshape", torch.reshape, vector, size, shape=(builder.shape(vector)[0], *size[1:]))


def layer_normalise(value: Tensor, shape: list[int], eps: float) -> Tensor:
    """Return value with mean 0 and variance 1 over the last dims."""
    return torch.nn.functional.layer_norm(value, shape, None, None, eps)


def group_normalise(value: Tensor, groups: int, eps: float) -> Tensor:
    """Return value with mean 0 and variance 1 over each group of channels."""
    return torch.nn.functional.group_norm(value, groups, None, None, eps)


def batch_normalise(value: Tensor, eps: float) -> Tensor:
    """Return value with mean 0 and variance 1 over all but the channel dim."""
    return torch.nn.functional.batch_norm(value, None, None, None, None, True, 0.0, eps)


def rms_normalise(value: Tensor, shape: list[int], eps: float | None) -> Tensor:
    """Return value divided by its root mean square over the last dims."""
    return torch.nn.functional.rms_norm(value, shape, None, eps)


@rule(aten.native_layer_norm.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Ref, ...]:
    value, shape, weight, bias, eps = args
    normal = builder.add("layer_norm", layer_normalise, value, shape, eps, shape=builder.shape(value))
    return (shift(builder, _scale(builder, normal, weight), bias),)


@rule(aten.native_group_norm.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Ref, ...]:
    value, weight, bias, _, _, _, groups, eps = args
    dims = len(builder.shape(value))
    normal = builder.add("group_norm", group_normalise, value, groups, eps, shape=builder.shape(value))
    return (shift(builder, _scale(builder, normal, _column(builder, weight, dims)), _column(builder, bias, dims)),)


@rule(aten._fused_rms_norm.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Ref, ...]:
    value, shape, weight, eps = args
    normal = builder.add("rms_norm", rms_normalise, value, shape, eps, shape=builder.shape(value))
    return (_scale(builder, normal, weight),)


@rule(aten.native_batch_norm.default, aten._native_batch_norm_legit.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Ref, ...]:
    value, weight, bias, mean, variance, training, _, eps = args
    return (_batch_norm(builder, value, weight, bias, None if training else (mean, variance), eps),)


@rule(aten._native_batch_norm_legit.no_stats)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Ref, ...]:
    value, weight, bias, _, _, eps = args
    return (_batch_norm(builder, value, weight, bias, None, eps),)


@rule(aten._native_batch_norm_legit_no_training.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Ref, ...]:
    value, weight, bias, mean, variance, _, eps = args
    return (_batch_norm(builder, value, weight, bias, (mean, variance), eps),)


def _batch_norm(builder: Builder, value: Ref, weight: Any, bias: Any, statistics: Any, eps: float) -> Ref:
    dims = len(builder.shape(value))
    weight, bias = _column(builder, weight, dims), _column(builder, bias, dims)
    if statistics is None or statistics[0] is None:
        normal = builder.add("batch_norm", batch_normalise, value, eps, shape=builder.shape(value))
        return shift(builder, _scale(builder, normal, weight), bias)
    mean, variance = (_column(builder, s, dims) for s in statistics)
    size = builder.shape(mean)
    factor = builder.add("rsqrt", torch.rsqrt, builder.add("add", torch.add, variance, eps, shape=size), shape=size)
    scale = factor if weight is None else builder.add("mul", torch.mul, weight, factor, shape=size)
    moved = builder.add("mul", torch.mul, mean, scale, shape=size)
    offset = builder.add("neg", torch.neg, moved, shape=size)
    offset = offset if bias is None else builder.add("add", torch.add, bias, offset, shape=size)
    return shift(builder, _scale(builder, value, scale), offset)


def norm_except(value: Tensor, dim: int) -> Tensor:
    """Return the Euclidean norm of value over all dims but dim, those dims kept with size one."""
    return torch.norm_except_dim(value, 2, dim)


@rule(aten._weight_norm_interface.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Ref, ...]:
    direction, magnitude = args[0], args[1]
    dim = args[2] if len(args) > 2 else 0
    size = builder.shape(magnitude)
    norm = builder.add("norm_except", norm_except, direction, dim, shape=size)
    factor = builder.add(
        "mul", torch.mul, magnitude, builder.add("reciprocal", torch.reciprocal, norm, shape=size), shape=size
    )
    return (builder.add("mul", torch.mul, direction, factor, shape=builder.shape(direction)),)
