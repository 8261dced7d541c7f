"""Elementwise arithmetic: differences are sums with a negative, quotients by weights products with a reciprocal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from automap.canonical.flow import Ref, Role
from automap.canonical.lower import Builder, aten, rule
from automap.canonical.rules.linear import scaled


def _out(builder: Builder) -> tuple[int, ...]:
    return tuple(builder.origin.meta.get("shape", ())) if builder.origin is not None else ()


@rule(aten.add.Tensor, aten.add.Scalar)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    factor = args[2] if len(args) > 2 else kwargs.get("alpha", 1)
    other = args[1] * factor if not isinstance(args[1], Ref) else scaled(builder, args[1], factor)
    return total(builder, args[0], other)


def _unchanged(builder: Builder, left: Any, right: Any, neutral: float) -> Ref | None:
    """The operand that the other one, a plain number that is neutral, leaves as it is, or None."""
    for value, number in ((left, right), (right, left)):
        origin = builder.nodes[value.index].origin if isinstance(value, Ref) else None
        dtype = origin.meta.get("dtype") if origin is not None else None
        if dtype is not None and dtype.is_floating_point and isinstance(number, (int, float)) and number == neutral:
            return value  # type: ignore[no-any-return]
    return None


def product(builder: Builder, left: Any, right: Any) -> Ref:
    """`left * right`, a weight among the factors last: `x * (s * w)` is `(x * s) * w`."""
    same = _unchanged(builder, left, right, 1)
    if same is not None:
        return same
    for data, scaled_data in ((left, right), (right, left)):
        inner = weighted(builder, scaled_data)
        if inner is not None and builder.role(data) is Role.ACTIVATION:
            left, right = product(builder, data, inner[0]), inner[1]
            break
    for data, weight in ((left, right), (right, left)):
        inside = _stacked_product(builder, data, weight)
        if inside is not None:
            return inside
    return builder.add("mul", torch.mul, left, right, shape=_broadcast(builder, left, right))


def _stacked_product(builder: Builder, value: Any, weight: Any) -> Ref | None:
    """`(a @ b) * w` with one number of w for each matrix of the stack, as `(a * w) @ b`; None for other values."""
    shape = builder.shape(weight)
    is_per_matrix = len(shape) > 2 and shape[-2:] == (1, 1) and any(size > 1 for size in shape)
    if not is_per_matrix or builder.role(weight) is not Role.WEIGHT or builder.role(value) is not Role.ACTIVATION:
        return None
    size, node = builder.shape(value), builder.nodes[value.index]
    inner = builder.nodes[node.args[0].index] if node.op == "reshape" else node
    if inner.op != "matmul" or inner.shape[-2:] != size[-2:] or len(shape) > len(size):
        return None
    left, right = inner.args
    before = builder.nodes[left.index]
    if inner is not node and before.op == "reshape" and isinstance(before.args[0], Ref):
        left = before.args[0]
    if builder.shape(left)[:-2] != size[:-2] or builder.role(left) is not Role.ACTIVATION:
        return None
    scaled_left = builder.add("mul", torch.mul, left, weight, shape=builder.shape(left))
    if inner is node:
        return builder.add("matmul", torch.matmul, scaled_left, right, shape=size)
    flat = builder.add("reshape", torch.reshape, scaled_left, before.shape, shape=before.shape)
    found = builder.add("matmul", torch.matmul, flat, right, shape=inner.shape)
    return builder.add("reshape", torch.reshape, found, size, shape=size)


def weighted(builder: Builder, value: Any) -> tuple[Ref, Ref] | None:
    """The factors `(s, w)` of a product of narrow data `s` (one number a row) with a weight `w`, or None."""
    node = builder.nodes[value.index] if isinstance(value, Ref) else None
    if (
        node is None
        or node.op != "mul"
        or node.role is not Role.ACTIVATION
        or not all(isinstance(a, Ref) for a in node.args)
    ):
        return None
    for data, weight in (node.args, reversed(node.args)):
        if (
            builder.role(weight) is Role.WEIGHT
            and builder.role(data) is Role.ACTIVATION
            and builder.shape(data)[-1:] == (1,)
        ):
            return data, weight
    return None


def total(builder: Builder, left: Any, right: Any) -> Ref:
    """`left + right`, a weight that multiplies both taken out: `x * w + (b + y * w)` is `(x + y) * w + b`."""
    same = _unchanged(builder, left, right, 0)
    if same is not None:
        return same
    for whole, rest in ((left, right), (right, left)):
        spread = _over_parts(builder, whole, rest)
        if spread is not None:
            return spread
        factors = _factors(builder, whole)
        for term, others in _terms(builder, rest) if factors is not None else ():
            mine = _factors(builder, term)
            if factors is not None and mine is not None and mine[1] == factors[1]:
                common = product(builder, total(builder, factors[0], mine[0]), factors[1])
                return common if others is None else total(builder, common, others)
    return builder.add("add", torch.add, left, right, shape=_broadcast(builder, left, right))


def _over_parts(builder: Builder, joined: Any, table: Any) -> Ref | None:
    """A table added to tokens and data joined together, as what it adds to each: `cat(t, x) + p` is `cat(t + p', x +
    p'')`.
    """
    node = builder.nodes[joined.index] if isinstance(joined, Ref) else None
    if node is None or node.op != "cat" or node.role is not Role.ACTIVATION or builder.role(table) is not Role.WEIGHT:
        return None
    parts, dim = node.args[0], (node.args[1] if len(node.args) > 1 else 0) % len(node.shape)
    place = dim - len(node.shape) + len(builder.shape(table))
    if (
        not any(builder.role(p) is Role.WEIGHT for p in parts)
        or place < 0
        or builder.shape(table)[place] != node.shape[dim]
    ):
        return None
    start, moved = 0, []
    for part in parts:
        size = builder.shape(part)[dim]
        shape = tuple(size if d == place else n for d, n in enumerate(builder.shape(table)))
        piece = builder.add("slice", aten.slice.Tensor, table, place, start, start + size, shape=shape)
        moved.append(builder.add("add", torch.add, part, piece, shape=builder.shape(part)))
        start += size
    return builder.add("cat", torch.cat, moved, dim, shape=node.shape)


def _factors(builder: Builder, value: Any) -> tuple[Ref, Ref] | None:
    node = builder.nodes[value.index] if isinstance(value, Ref) else None
    if node is None or node.role is not Role.ACTIVATION or not all(isinstance(a, Ref) for a in node.args):
        return None
    if node.op == "neg":
        inner = _factors(builder, node.args[0])
        return (
            None
            if inner is None
            else (builder.add("neg", torch.neg, inner[0], shape=builder.shape(inner[0])), inner[1])
        )
    if node.op == "mul" and builder.role(node.args[1]) is Role.WEIGHT and builder.role(node.args[0]) is Role.ACTIVATION:
        return node.args[0], node.args[1]
    return None


def _terms(builder: Builder, value: Any) -> list[tuple[Any, Any]]:
    """The terms of a sum, each with what is left of it."""
    node = builder.nodes[value.index] if isinstance(value, Ref) else None
    if node is None or node.role is not Role.ACTIVATION:
        return []
    inner = [(node.args[0], node.args[1]), (node.args[1], node.args[0])] if node.op == "add" else []
    return [(value, None), *inner]


def _broadcast(builder: Builder, left: Any, right: Any) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(builder.shape(left), builder.shape(right)))


@rule(aten.sub.Tensor, aten.sub.Scalar)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    factor = args[2] if len(args) > 2 else kwargs.get("alpha", 1)
    return total(builder, args[0], _negative(builder, args[1], factor))


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    factor = args[2] if len(args) > 2 else kwargs.get("alpha", 1)
    return builder.add("add", torch.add, _negative(builder, args[0], factor), args[1], shape=_out(builder))


def _negative(builder: Builder, value: Any, factor: float = 1) -> Any:
    if not isinstance(value, Ref):
        return -value * factor
    if factor != 1:
        return scaled(builder, value, -factor)
    return builder.add("neg", torch.neg, value, shape=builder.shape(value))


@rule(aten.mul.Tensor, aten.mul.Scalar)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    return product(builder, args[0], args[1])


@rule(aten.div.Tensor, aten.div.Scalar)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    value, divisor = args
    same = _unchanged(builder, value, divisor, 1) if isinstance(value, Ref) else None
    if same is not None:
        return same
    if isinstance(divisor, Ref) and builder.role(divisor) is Role.WEIGHT:
        divisor = builder.add("reciprocal", torch.reciprocal, divisor, shape=builder.shape(divisor))
        return builder.add("mul", torch.mul, value, divisor, shape=_out(builder))
    return builder.add("div", torch.div, value, divisor, shape=_out(builder))


@rule(aten.addcmul.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    product = builder.add("mul", torch.mul, args[1], args[2], shape=_out(builder))
    return builder.add("add", torch.add, scaled(builder, product, kwargs.get("value", 1)), args[0], shape=_out(builder))


@rule(aten.glu.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    dim = args[1] if len(args) > 1 else -1
    size = builder.shape(args[0])[dim] // 2
    value = builder.add("slice", aten.slice.Tensor, args[0], dim, 0, size, shape=_out(builder))
    gate = builder.add("slice", aten.slice.Tensor, args[0], dim, size, 2 * size, shape=_out(builder))
    opened = builder.add("sigmoid", torch.sigmoid, gate, shape=_out(builder))
    return builder.add("mul", torch.mul, value, opened, shape=_out(builder))


@rule(aten.silu.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    return builder.add("silu", torch.nn.functional.silu, args[0], shape=_out(builder))
