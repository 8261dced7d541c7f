"""What a dest tensor is made of: a closed union of frozen nodes over src tensors, and what can be read off a node.

Every interpreter (`shape_of`, `dtype_of`, evaluate, simplify, format, JSON, invert) is one `match` over `Expr`. Nodes
hold plain data only, so that an expression can be hashed, compared, saved and sent to another process.

Dtypes are names ("float32"). Layout nodes keep the dtype; `Cast` changes it; constants follow the weights they are
joined with (see `dtype_of`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from automap.errors import PlanError

Shape: TypeAlias = tuple[int, ...]

DTYPES = frozenset(
    {
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    }
)


@dataclass(frozen=True, slots=True)
class Source:
    """The src tensor called `name`."""

    name: str
    shape: Shape
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Slice:
    """`arg[start:stop:step]`, one entry for each dim of arg; steps are positive."""

    arg: Expr
    start: tuple[int, ...]
    stop: tuple[int, ...]
    step: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """All `args` one after the other along `dim`; they agree in every other dim."""

    args: tuple[Expr, ...]
    dim: int


@dataclass(frozen=True, slots=True)
class Permute:
    """Dim `k` of the result is dim `dims[k]` of arg."""

    arg: Expr
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reshape:
    """The elements of arg in row-major order, in another shape."""

    arg: Expr
    shape: Shape


@dataclass(frozen=True, slots=True)
class Gather:
    """`arg.index_select(dim, indices)`."""

    arg: Expr
    dim: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Fill:
    """A constant tensor: nothing in src computes it. Equal where the bits are: any NaN is the same, 0.0 is not -0.0."""

    value: float
    shape: Shape
    dtype: str = "float32"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fill) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, Shape, str]:
        return repr(float(self.value)), self.shape, self.dtype


@dataclass(frozen=True, slots=True)
class Cast:
    """arg in another dtype."""

    arg: Expr
    dtype: str


@dataclass(frozen=True, slots=True)
class Affine:
    """`arg * scale + shift` with two constants, in arg's dtype."""

    arg: Expr
    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Add:
    """`left + right` with broadcasting."""

    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Multiply:
    """`left * right` with broadcasting."""

    left: Expr
    right: Expr


Expr: TypeAlias = Source | Slice | Concat | Permute | Reshape | Gather | Fill | Cast | Affine | Add | Multiply


def args_of(expr: Expr) -> tuple[Expr, ...]:
    """The expressions that `expr` is directly made of, in order."""
    match expr:
        case Source() | Fill():
            return ()
        case Slice(arg) | Permute(arg) | Reshape(arg) | Gather(arg) | Cast(arg) | Affine(arg):
            return (arg,)
        case Concat(args):
            return args
        case Add(left, right) | Multiply(left, right):
            return (left, right)
        case _:
            assert_never(expr)


def with_args(expr: Expr, args: tuple[Expr, ...]) -> Expr:
    """The same node over other arguments (as many as `args_of` gives)."""
    match expr:
        case Source() | Fill():
            return expr
        case Slice() | Permute() | Reshape() | Gather() | Cast() | Affine():
            return replace(expr, arg=args[0])
        case Concat():
            return replace(expr, args=args)
        case Add() | Multiply():
            return replace(expr, left=args[0], right=args[1])
        case _:
            assert_never(expr)


def depth_of(expr: Expr) -> int:
    """The number of nodes on the longest way from `expr` to a leaf."""
    return 1 + max((depth_of(arg) for arg in args_of(expr)), default=0)


def walk_sources(expr: Expr) -> Iterator[Source]:
    """Every Source leaf from left to right, repeated where it is used more than once."""
    if isinstance(expr, Source):
        yield expr
    for arg in args_of(expr):
        yield from walk_sources(arg)


def sources_of(expr: Expr) -> tuple[Source, ...]:
    """The src tensors that `expr` reads, each once, in the order of first use.

    Example:
        >>> [source.name for source in sources_of(Add(Source("a", (2,)), Source("b", (2,))))]
        ['a', 'b']
    """
    return tuple(dict.fromkeys(walk_sources(expr)))


def shape_of(expr: Expr) -> Shape:
    """The shape that `expr` evaluates to.

    Raises:
        PlanError: a node does not fit its arguments (out of range, not a permutation, other number of elements).

    Example:
        >>> shape_of(Slice(Source("qkv", (2304, 768)), (0, 0), (768, 768), (1, 1)))
        (768, 768)
    """
    return node_shape(expr, tuple(shape_of(arg) for arg in args_of(expr)))


def node_shape(expr: Expr, shapes: tuple[Shape, ...]) -> Shape:
    """The shape of one node given its arguments' shapes.

    Raises:
        PlanError: the node does not fit its arguments.
    """
    match expr:
        case Source(shape=shape) | Fill(shape=shape):
            return _checked_shape(shape)
        case Slice():
            return _slice_shape(expr, shapes[0])
        case Concat(dim=dim):
            return _concat_shape(shapes, dim)
        case Permute(dims=dims):
            return _permute_shape(dims, shapes[0])
        case Reshape(shape=shape):
            return _reshape_shape(shape, shapes[0])
        case Gather():
            return _gather_shape(expr, shapes[0])
        case Cast() | Affine():
            return shapes[0]
        case Add() | Multiply():
            return _broadcast_shape(*shapes)
        case _:
            assert_never(expr)


def _checked_shape(shape: Shape) -> Shape:
    if any(size < 0 for size in shape):
        raise PlanError(f"shape {shape} has a negative size")
    return shape


def _slice_shape(expr: Slice, shape: Shape) -> Shape:
    if not len(expr.start) == len(expr.stop) == len(expr.step) == len(shape):
        raise PlanError(f"a slice of {len(expr.start)} dims does not fit shape {shape}")
    sizes = []
    for dim, (start, stop, step, size) in enumerate(zip(expr.start, expr.stop, expr.step, shape, strict=True)):
        if not (0 <= start <= stop <= size and step >= 1):
            raise PlanError(f"slice {start}:{stop}:{step} leaves dim {dim} of shape {shape}")
        sizes.append(len(range(start, stop, step)))
    return tuple(sizes)


def _concat_shape(shapes: tuple[Shape, ...], dim: int) -> Shape:
    if not shapes or not 0 <= dim < len(shapes[0]):
        raise PlanError(f"concat along dim {dim} of {len(shapes)} tensors{f' of shape {shapes[0]}' if shapes else ''}")
    first = shapes[0]
    for shape in shapes:
        if len(shape) != len(first) or shape[:dim] + shape[dim + 1 :] != first[:dim] + first[dim + 1 :]:
            raise PlanError(f"concat along dim {dim} of shapes {first} and {shape}, which differ elsewhere")
    return (*first[:dim], sum(shape[dim] for shape in shapes), *first[dim + 1 :])


def _permute_shape(dims: tuple[int, ...], shape: Shape) -> Shape:
    if sorted(dims) != list(range(len(shape))):
        raise PlanError(f"dims {dims} are not a permutation of the dims of shape {shape}")
    return tuple(shape[dim] for dim in dims)


def _reshape_shape(shape: Shape, arg_shape: Shape) -> Shape:
    if math.prod(_checked_shape(shape)) != math.prod(arg_shape):
        raise PlanError(f"shape {arg_shape} cannot be reshaped to {shape}: other number of elements")
    return shape


def _gather_shape(expr: Gather, shape: Shape) -> Shape:
    if not 0 <= expr.dim < len(shape):
        raise PlanError(f"gather along dim {expr.dim} of shape {shape}")
    if expr.indices and not (min(expr.indices) >= 0 and max(expr.indices) < shape[expr.dim]):
        raise PlanError(f"gather indices leave dim {expr.dim} of shape {shape}")
    return (*shape[: expr.dim], len(expr.indices), *shape[expr.dim + 1 :])


def _broadcast_shape(left: Shape, right: Shape) -> Shape:
    rank = max(len(left), len(right))
    sizes = []
    for a, b in zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True):
        if a != b and 1 not in (a, b):
            raise PlanError(f"shapes {left} and {right} do not broadcast")
        sizes.append(b if a == 1 else a)
    return tuple(sizes)


def dtype_of(expr: Expr) -> str:
    """The name of the dtype that `expr` evaluates to where src tensors have the dtypes of their Source nodes.

    Layout nodes and Affine keep their argument's. Concat, Add and Multiply promote as torch does, except that
    arguments without any source (constants) have no say as long as another argument has one.

    Raises:
        PlanError: two dtypes have no common one.
    """
    match expr:
        case Source(dtype=dtype) | Fill(dtype=dtype) | Cast(dtype=dtype):
            return dtype
        case Slice(arg) | Permute(arg) | Reshape(arg) | Gather(arg) | Affine(arg):
            return dtype_of(arg)
        case Concat() | Add() | Multiply():
            return _promoted({dtype_of(arg) for arg in voting_args(expr)})
        case _:
            assert_never(expr)


def voting_args(expr: Concat | Add | Multiply) -> tuple[Expr, ...]:
    """The arguments that decide the dtype: those that read a source, or all where none does."""
    args = args_of(expr)
    return tuple(arg for arg in args if next(walk_sources(arg), None) is not None) or args


def _promoted(dtypes: set[str]) -> str:
    """The dtype that torch promotes all of `dtypes` to."""
    first, *others = sorted(dtypes)
    if not others:
        return first
    import torch

    try:
        common: torch.dtype = getattr(torch, first)
        for other in others:
            common = torch.promote_types(common, getattr(torch, other))
    except (AttributeError, RuntimeError) as error:
        raise PlanError(f"dtypes {', '.join(sorted(dtypes))} have no common dtype: {error}") from error
    return str(common).removeprefix("torch.")
