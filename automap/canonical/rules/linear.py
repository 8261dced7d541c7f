"""Projections and convolutions: a product with one weight, then a shift by the bias."""

from __future__ import annotations

import math
from typing import Any

import torch

from automap.canonical.flow import Ref, Role
from automap.canonical.lower import Builder, aten, rule
from automap.canonical.rules.casts import made_wide
from automap.canonical.rules.joins import over_parts, spread_product
from automap.canonical.rules.taps import over_taps


def matmul(builder: Builder, left: Any, right: Any) -> Ref:
    """`left @ right` for two matrices or two stacks; a matrix that meets a stack of weights is in one product."""
    shape = (*builder.shape(left)[:-1], builder.shape(right)[-1])
    once = _unrepeated(builder, left) if builder.role(right) is Role.WEIGHT and len(shape) == 3 else None
    if once is None:
        return _over_rows(builder, left, right)
    count, rows, columns = shape
    inner = builder.shape(right)[1]
    rows_first = laid_out(builder, once, (), (rows, inner))
    weights = laid_out(builder, right, (1, 0, 2), (inner, count * columns))
    product = builder.add("matmul", torch.matmul, rows_first, weights, shape=(rows, count * columns))
    return laid_out(builder, laid_out(builder, product, (), (rows, count, columns)), (1, 0, 2), ())


def _over_rows(builder: Builder, left: Any, right: Any) -> Ref:
    """`left @ right`, where left is joined of several along its columns as the sum of their products, if wanted."""

    def product(rows: Any, weight: Any) -> Ref:
        shape = (*builder.shape(rows)[:-1], builder.shape(weight)[-1])
        return builder.add("matmul", torch.matmul, rows, weight, shape=shape)

    def once(rows: Ref, weight: Ref) -> Ref:
        return spread_product(builder, rows, weight, product)

    parted = over_parts(builder, left, -1, right, 0, once) if len(builder.shape(right)) == 2 else None
    return product(left, right) if parted is None else parted


def _unrepeated(builder: Builder, value: Ref) -> Ref | None:
    """What a stack of matrices repeats, where it is data expanded along its first dim; None where it is not."""
    node, count = builder.nodes[value.index], builder.shape(value)[0]
    while node.op in ("reshape", "unsqueeze") and node.shape[:1] == (count,) and count > 1:
        node = builder.nodes[node.operands[0]]
    if node.op != "expand" or node.role is not Role.ACTIVATION or node.shape[0] != count or count == 1:
        return None
    below = builder.nodes[node.operands[0]]
    is_repeated = len(below.shape) < len(node.shape) or below.shape[0] == 1
    is_rest_kept = math.prod(below.shape) * count == math.prod(node.shape)
    return Ref(below.index) if is_repeated and is_rest_kept else None


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


@rule(aten.sum.dim_IntList)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    """`(x * w).sum(d)` with one weight for each place along d is a product of matrices, one for each row of w."""
    origin = builder.origin
    shape = tuple(origin.meta["shape"]) if origin is not None else ()
    dims = args[1] if len(args) > 1 else None
    found = _contracted(builder, args[0], dims, shape) or _over_stack(builder, args[0], dims, shape)
    return found if found is not None else made_wide(builder, aten.sum.dim_IntList, args, kwargs)


def _contracted(builder: Builder, value: Ref, dims: Any, shape: tuple[int, ...]) -> Ref | None:
    node = builder.nodes[value.index]
    pair = _data_and_weight(builder, value)
    if pair is None or not dims or len(dims) != 1:
        return None
    data, weight = pair
    sizes, rank = node.shape, len(node.shape)
    dim, spread = dims[0] % rank, (1,) * (rank - len(builder.shape(weight))) + builder.shape(weight)
    if builder.shape(data) != sizes or spread[dim] == 1:
        return None
    stacked = [d for d in range(rank) if spread[d] > 1 and d != dim]
    free = [d for d in range(rank) if spread[d] == 1 and d != dim]
    order = (*stacked, *free, dim)
    count, inner = math.prod(sizes[d] for d in stacked), sizes[dim]
    rows = laid_out(builder, data, order, (count, -1, inner))
    columns = laid_out(builder, weight, (), spread)
    columns = laid_out(builder, columns, (*stacked, dim, *free), (count, inner, 1))
    result = laid_out(builder, matmul(builder, rows, columns), (), tuple(sizes[d] for d in (*stacked, *free)))
    back = tuple((*stacked, *free).index(d) for d in range(rank) if d != dim)
    return laid_out(builder, laid_out(builder, result, back, ()), (), shape)


def _over_stack(builder: Builder, value: Ref, dims: Any, shape: tuple[int, ...]) -> Ref | None:
    """The sum of a stack of products, each with a weight of its own, as one product over all their inputs."""
    node = builder.nodes[value.index]
    is_stack = node.op == "matmul" and len(node.shape) == 3 and builder.role(node.args[1]) is Role.WEIGHT
    if not is_stack or not dims or list(dims) != [0] or builder.role(node.args[0]) is not Role.ACTIVATION:
        return None
    count, rows, columns = node.shape
    inner = builder.shape(node.args[1])[1]
    joined = laid_out(builder, node.args[0], (1, 0, 2), (rows, count * inner))
    weights = laid_out(builder, node.args[1], (), (count * inner, columns))
    return laid_out(builder, matmul(builder, joined, weights), (), shape)


def _data_and_weight(builder: Builder, value: Ref) -> tuple[Ref, Ref] | None:
    node = builder.nodes[value.index]
    if node.op != "mul" or not all(isinstance(a, Ref) for a in node.args):
        return None
    roles = [builder.role(a) for a in node.args]
    if sorted(roles, key=str) != sorted([Role.ACTIVATION, Role.WEIGHT], key=str):
        return None
    return (node.args[0], node.args[1]) if roles[0] is Role.ACTIVATION else (node.args[1], node.args[0])


def laid_out(builder: Builder, value: Ref, order: tuple[int, ...], shape: tuple[int, ...]) -> Ref:
    """Return value with its dims in another order (if one is given), then in another shape (if one is given)."""
    sizes = builder.shape(value)
    if order:
        sizes = tuple(sizes[d] for d in order)
        value = builder.add("permute", torch.permute, value, order, shape=sizes)
    if not shape or shape == sizes:
        return value
    known = math.prod(n for n in shape if n != -1)
    full = tuple(math.prod(sizes) // known if n == -1 else n for n in shape)
    return builder.add("reshape", torch.reshape, value, full, shape=full)


@rule(aten.convolution.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    data, weight, bias, *geometry = args
    origin = builder.origin
    shape = tuple(origin.meta["shape"]) if origin is not None else ()
    if _is_tiling(builder, data, weight, geometry):
        product = _tiles(builder, data, weight, shape)
    else:
        product = _convolution(builder, data, weight, geometry, shape)
    if bias is None:
        return product
    spatial = [1] * (len(shape) - 2)
    size = (-1, *spatial)
    column = builder.add("reshape", torch.reshape, bias, size, shape=(builder.shape(bias)[0], *spatial))
    return shift(builder, product, column)


def _convolution(builder: Builder, data: Ref, weight: Any, geometry: list[Any], shape: tuple[int, ...]) -> Ref:
    """A convolution; if wanted, as a sum: over what its data is joined from, or over its taps."""

    def product(channels: Ref, kernel: Any) -> Ref:
        return builder.add("convolution", aten.convolution.default, channels, kernel, None, *geometry, shape=shape)

    is_transposed, groups = geometry[3], geometry[5]
    tapped = over_taps(builder, data, weight, geometry, shape)
    if tapped is not None:
        return tapped
    parted = over_parts(builder, data, 1, weight, 0 if is_transposed else 1, product) if groups == 1 else None
    return product(data, weight) if parted is None else parted


def _is_tiling(builder: Builder, data: Ref, weight: Any, geometry: list[Any]) -> bool:
    """Whether a transposed convolution sets the patches that it makes of each place side by side."""
    stride, padding, dilation, is_transposed, extra, groups = geometry
    places, taps = builder.shape(data)[2:], builder.shape(weight)[2:]
    if not is_transposed or groups != 1 or any(padding) or any(extra) or any(d != 1 for d in dilation):
        return False
    return builder.role(data) is Role.ACTIVATION and (tuple(stride) == taps or all(n == 1 for n in places))


def _tiles(builder: Builder, data: Ref, weight: Ref, shape: tuple[int, ...]) -> Ref:
    """A transposed convolution without overlap: one product for each place, laid out as patches."""
    batch, inner, *places = builder.shape(data)
    out, *taps = builder.shape(weight)[1:]
    dims = tuple(range(len(places)))
    rows = laid_out(builder, data, (0, *(2 + d for d in dims), 1), (batch * math.prod(places), inner))
    patches = matmul(builder, rows, laid_out(builder, weight, (), (inner, out * math.prod(taps))))
    patches = laid_out(builder, patches, (), (batch, *places, out, *taps))
    order = (0, 1 + len(dims), *(d for pair in ((1 + i, 2 + len(dims) + i) for i in dims) for d in pair))
    return laid_out(builder, patches, order, shape)


@rule(aten.embedding.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    return lookup(builder, args[0], args[1])


@rule(aten.index_select.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    table, dim, index = args
    if dim == 0:
        return lookup(builder, table, index)
    origin = builder.origin
    shape = tuple(origin.meta["shape"]) if origin is not None else ()
    return builder.add("index_select", torch.index_select, table, dim, index, shape=shape)


def _rows(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return table[index]


def lookup(builder: Builder, table: Any, index: Any) -> Ref:
    """Return rows of a table: a lookup where data chooses them, plain layout where all inputs read the same ones."""
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
        return lookup(builder, table, indices[0])
    origin = builder.origin
    shape = tuple(origin.meta["shape"]) if origin is not None else ()
    return builder.add("index", aten.index.Tensor, table, list(indices), shape=shape)


def _is_integer(builder: Builder, index: Ref) -> bool:
    origin = builder.nodes[index.index].origin
    dtype = origin.meta.get("dtype") if origin is not None else None
    return dtype is not None and not dtype.is_floating_point and dtype != torch.bool
