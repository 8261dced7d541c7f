"""Random expressions, element maps and plans, and the plainest possible way to evaluate each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from automap.plan import (
    Add,
    Affine,
    Cast,
    Concat,
    Divide,
    ElementMap,
    Expand,
    Expr,
    Fill,
    Gather,
    MatMul,
    MatrixFunction,
    Mean,
    Multiply,
    Norm,
    Pad,
    Permute,
    Pointwise,
    Reshape,
    Slice,
    Source,
    SourceTensor,
    Sqrt,
    Subtract,
    Tril,
    evaluate,
    shape_of,
    sources_of,
)
from automap.plan.expr import args_of, with_args

sizes = st.integers(1, 4)
shapes = st.lists(sizes, min_size=1, max_size=3).map(tuple)
floats = st.floats(width=32, allow_nan=False)  # the bits of a converted NaN depend on its place in the tensor
DTYPE_OF_LETTER = {"a": "float32", "b": "bfloat16", "c": "float32"}


def random_state(sources: Iterable[Source], seed: int = 0) -> dict[str, Tensor]:
    """Distinct random values for every source."""
    generator = torch.Generator().manual_seed(seed)
    return {s.name: torch.randn(s.shape, generator=generator).to(getattr(torch, s.dtype)) for s in sources}


def bits(value: Tensor) -> Tensor:
    """The tensor's bits, so that NaN compares equal to NaN and 0.0 differs from -0.0."""
    return value.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def close_numbers(left: Tensor, right: Tensor) -> bool:
    """Equal but for the signs of zeros and NaNs, and for one rounding of float64 that may tip a coarser one."""
    values = [value.double().nan_to_num(math.pi, math.inf, -math.inf) for value in (left, right)]
    tolerance = 2**-7 if left.dtype != torch.float64 else 1e-12
    same_kind = left.dtype == right.dtype and left.shape == right.shape
    return same_kind and torch.allclose(*values, rtol=tolerance, atol=1e-40)


def same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(bits(left), bits(right))


def rows(arg: Expr, start: int, stop: int) -> Expr:
    """`arg[start:stop]`."""
    shape = shape_of(arg)
    rest = len(shape) - 1
    return Slice(arg, (start, *(0,) * rest), (stop, *shape[1:]), (1,) * (rest + 1))


@st.composite
def leaves(draw: st.DrawFn, shape: tuple[int, ...]) -> Expr:
    letter = draw(st.sampled_from("abcf"))
    if letter == "f":
        return Fill(draw(floats), shape, draw(st.sampled_from(["float32", "bfloat16"])))
    return Source(f"{letter}.{'x'.join(map(str, shape))}.w", shape, DTYPE_OF_LETTER[letter])


@st.composite
def reshapes(draw: st.DrawFn, arg: Expr) -> Expr:
    """`arg` in another shape with the same number of elements, sizes of 1 included."""
    rest = math.prod(shape_of(arg))
    shape = []
    while rest > 1:
        factor = draw(st.sampled_from([d for d in range(2, rest + 1) if rest % d == 0]))
        shape.append(factor)
        rest //= factor
    for _ in range(draw(st.integers(0, 2))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return Reshape(arg, tuple(shape or [1]))


@st.composite
def permutes(draw: st.DrawFn, arg: Expr) -> Expr:
    return Permute(arg, tuple(draw(st.permutations(range(len(shape_of(arg)))))))


@st.composite
def slices(draw: st.DrawFn, arg: Expr) -> Expr:
    entries = []
    for size in shape_of(arg):
        start = draw(st.integers(0, size - 1))
        entries.append((start, draw(st.integers(start + 1, size)), draw(st.integers(1, 3))))
    start, stop, step = (tuple(column) for column in zip(*entries, strict=True))
    return Slice(arg, start, stop, step)


@st.composite
def gathers(draw: st.DrawFn, arg: Expr) -> Expr:
    shape = shape_of(arg)
    dim = draw(st.integers(0, len(shape) - 1))
    return Gather(arg, dim, tuple(draw(st.lists(st.integers(0, shape[dim] - 1), min_size=1, max_size=5))))


@st.composite
def concats(draw: st.DrawFn, arg: Expr) -> Expr:
    shape = shape_of(arg)
    dim = draw(st.integers(0, len(shape) - 1))
    others = [draw(leaves((*shape[:dim], draw(sizes), *shape[dim + 1 :]))) for _ in range(draw(st.integers(0, 2)))]
    return Concat(tuple(draw(st.permutations([arg, *others, *draw(st.lists(st.just(arg), max_size=1))]))), dim)


@st.composite
def pads(draw: st.DrawFn, arg: Expr) -> Expr:
    pairs = [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in shape_of(arg)]
    before, after = zip(*pairs, strict=True)
    return Pad(arg, before, after)


@st.composite
def expands(draw: st.DrawFn, arg: Expr) -> Expr:
    """`arg` with dims of size 1 repeated, and up to one more in front."""
    front = draw(st.lists(sizes, max_size=1))
    return Expand(arg, (*front, *(draw(sizes) if size == 1 else size for size in shape_of(arg))))


@st.composite
def reductions(draw: st.DrawFn, arg: Expr) -> Expr:
    dims = st.lists(st.integers(0, len(shape_of(arg)) - 1), min_size=1, unique=True)
    return draw(st.sampled_from([Norm, Mean]))(arg, tuple(draw(dims)))


@st.composite
def operations(draw: st.DrawFn, arg: Expr) -> Expr:
    """`arg` and another operand that broadcasts; divisors are no constant zeros, whose sign would be seen."""
    shape = shape_of(arg)[draw(st.integers(0, 1)) :] or (1,)
    other = draw(leaves(tuple(draw(st.sampled_from([1, size])) for size in shape)))
    number = Fill(draw(st.sampled_from([0.0, 1.0, -2.0])), shape_of(other), "float32")
    kind = draw(st.sampled_from([Add, Subtract, Multiply, Divide]))
    if kind is Divide:
        return Divide(arg, draw(st.sampled_from([Affine(Norm(other, (0,)), shift=1.0), replace(number, value=1.0)])))
    return kind(*draw(st.permutations([arg, draw(st.sampled_from([other, number]))])))


@st.composite
def products(draw: st.DrawFn, arg: Expr) -> Expr:
    """Matrix products with vectors, matrices and batches on either side."""
    shape = shape_of(arg)
    if draw(st.booleans()):
        product = MatMul(arg, draw(leaves((shape[-1], *draw(st.lists(sizes, max_size=1))))))
    else:
        product = MatMul(draw(leaves((*draw(st.lists(sizes, max_size=1)), shape[-2:][0]))), arg)
    return product if shape_of(product) else Reshape(product, (1,))


@st.composite
def matrices(draw: st.DrawFn, arg: Expr) -> Expr:
    """Functions of the matrices in the last two dims; what is inverted or raised is harmless."""
    rows, columns = shape_of(arg)[-2:]
    if draw(st.booleans()) or rows != columns:
        return Tril(arg, draw(st.integers(-2, 2)))
    small = Affine(Tril(Pointwise(arg, "tanh"), -1), 0.5)
    return MatrixFunction(small, "matrix_exp")


@st.composite
def changes(draw: st.DrawFn, arg: Expr) -> Expr:
    """A node that changes values."""
    kind = draw(st.sampled_from(["cast", "affine", "sqrt", "function", "matrix", "operation", "reduction", "product"]))
    if kind == "affine":
        return Affine(arg, draw(st.sampled_from([1.0, 0.5, -2.0])), draw(st.sampled_from([0.0, 1.0])))
    if kind == "cast":
        return Cast(arg, draw(st.sampled_from(["float32", "bfloat16", "float64"])))
    if kind == "sqrt":
        return Sqrt(arg)
    if kind == "function":
        return Pointwise(arg, draw(st.sampled_from(["abs", "cos", "relu", "sigmoid", "sin", "tanh"])))
    if kind == "matrix":
        return draw(matrices(arg)) if len(shape_of(arg)) > 1 else Sqrt(arg)
    return draw({"operation": operations, "reduction": reductions, "product": products}[kind](arg))


LAYOUTS = (reshapes, permutes, slices, gathers, concats, pads, expands)


@st.composite
def layouts(draw: st.DrawFn, max_steps: int = 5) -> Expr:
    """Expressions that only move elements and constants."""
    expr = draw(leaves(draw(shapes)))
    for _ in range(draw(st.integers(0, max_steps))):
        expr = draw(draw(st.sampled_from(LAYOUTS))(expr))
    return expr


@st.composite
def exprs(draw: st.DrawFn, max_steps: int = 5) -> Expr:
    """Expressions of any nodes."""
    expr = draw(leaves(draw(shapes)))
    for _ in range(draw(st.integers(0, max_steps))):
        expr = draw(draw(st.sampled_from((*LAYOUTS, changes)))(expr))
    return expr


def element_map(shapes: dict[str, tuple[int, ...]], ids: Tensor, fills: tuple[float, ...] = ()) -> ElementMap:
    """A float32 map over float32 sources of these shapes, with ids in this order."""
    sources, offset = [], 0
    for name, shape in shapes.items():
        sources.append(SourceTensor(name, shape, "float32", offset))
        offset += math.prod(shape)
    return ElementMap(tuple(ids.shape), "float32", ids, tuple(sources), fills)


def map_of(expr: Expr) -> ElementMap:
    """The element map of an expression that only moves elements; its constants become fills."""
    sources, state, offset = [], {}, 0
    for source in sources_of(expr):
        sources.append(SourceTensor(source.name, source.shape, "float32", offset))
        state[source.name] = torch.arange(offset, sources[-1].stop).view(source.shape) + 1
        offset = sources[-1].stop
    fills: list[float] = []

    def numbered(expr: Expr) -> Expr:
        if isinstance(expr, Fill):
            fills.append(expr.value)
            return Fill(-len(fills), expr.shape, "int64")
        return with_args(expr, tuple(numbered(arg) for arg in args_of(expr)))

    ids = evaluate(numbered(expr), state) - 1  # counted from 1, as what Pad adds is 0
    return ElementMap(tuple(ids.shape), "float32", ids.contiguous(), tuple(sources), tuple(fills))


def gathered(map: ElementMap, state: dict[str, Tensor]) -> Tensor:
    """What a map says, element by element."""
    dtype = getattr(torch, map.dtype)
    flat = torch.cat([torch.empty(0), *(state[source.name].reshape(-1) for source in map.sources)]).to(dtype)
    constants = torch.tensor([0.0, *map.fills], dtype=torch.float64).to(dtype)
    flat = torch.cat([flat, constants])
    return flat[torch.where(map.source_ids < 0, len(flat) - len(constants) - 1 - map.source_ids, map.source_ids)]
