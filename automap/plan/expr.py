"""What a dest tensor is made of: a closed union of frozen nodes over src tensors, and what can be read off a node.

Every interpreter (`shape_of`, `dtype_of`, evaluate, simplify, format, JSON, invert) is one `match` over `Expr`. Nodes
hold plain data only, so that an expression can be hashed, compared, saved and sent to another process.

Dtypes are names ("float32"). Leaves are Source and Fill. Move nodes (Slice to Expand) move elements and constants
and keep the dtype, `Cast` changes it. Arithmetic nodes (Affine to Tril) compute in float64 and round once (see
evaluate); constants follow the weights they are joined with (see dtypes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

Shape: TypeAlias = tuple[int, ...]


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


@dataclass(frozen=True, slots=True)
class Pad:
    """arg with `before[k]` zeros in front of dim `k` and `after[k]` behind it."""

    arg: Expr
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Expand:
    """arg broadcast to `shape`: dims of size 1 are repeated, new dims come in front."""

    arg: Expr
    shape: Shape


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
    """`arg * scale + shift` with two constants."""

    arg: Expr
    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Add:
    """`left + right` with broadcasting."""

    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Subtract:
    """`left - right` with broadcasting."""

    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Multiply:
    """`left * right` with broadcasting."""

    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Divide:
    """`left / right` with broadcasting."""

    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class MatMul:
    """`left @ right`, the matrix product as `torch.matmul` has it: of vectors, matrices and batches of them."""

    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Sqrt:
    """The square root of every element; `sqrt(var + eps)` is `Sqrt(Affine(var, shift=eps))`."""

    arg: Expr


@dataclass(frozen=True, slots=True)
class Norm:
    """The square root of the sum of squares over `dims`, which keep the size 1."""

    arg: Expr
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean over `dims`, which keep the size 1."""

    arg: Expr
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pointwise:
    """`function` of every element: one of POINTWISE, each as torch has it."""

    arg: Expr
    function: str


@dataclass(frozen=True, slots=True)
class MatrixFunction:
    """`function` of the square matrices in the last two dims: one of MATRIX_FUNCTIONS."""

    arg: Expr
    function: str


@dataclass(frozen=True, slots=True)
class Tril:
    """The matrices in the last two dims with zeros above a diagonal: 0 is the main one, 1 the one above it."""

    arg: Expr
    diagonal: int = 0


POINTWISE = (
    *("abs", "atanh", "cos", "exp", "expm1", "log", "log1p", "logit", "relu"),
    *("sigmoid", "sign", "sin", "tanh", "trunc"),
)
#: the inverse and the exponential of a matrix
MATRIX_FUNCTIONS = ("inverse", "matrix_exp")

Move: TypeAlias = Slice | Concat | Permute | Reshape | Gather | Pad | Expand
Elementwise: TypeAlias = Add | Subtract | Multiply | Divide
Binary: TypeAlias = Elementwise | MatMul
Arithmetic: TypeAlias = Affine | Binary | Sqrt | Norm | Mean | Pointwise | MatrixFunction | Tril
Expr: TypeAlias = Source | Fill | Move | Cast | Arithmetic


def args_of(expr: Expr) -> tuple[Expr, ...]:
    """The expressions that `expr` is directly made of, in order."""
    match expr:
        case Source() | Fill():
            return ()
        case Slice(arg) | Permute(arg) | Reshape(arg) | Gather(arg) | Pad(arg) | Expand(arg) | Cast(arg):
            return (arg,)
        case Affine(arg) | Sqrt(arg) | Norm(arg) | Mean(arg) | Pointwise(arg) | MatrixFunction(arg) | Tril(arg):
            return (arg,)
        case Concat(args):
            return args
        case Add() | Subtract() | Multiply() | Divide() | MatMul():
            return (expr.left, expr.right)
        case _:
            assert_never(expr)


def with_args(expr: Expr, args: tuple[Expr, ...]) -> Expr:
    """The same node over other arguments (as many as `args_of` gives)."""
    match expr:
        case Source() | Fill():
            return expr
        case Slice() | Permute() | Reshape() | Gather() | Pad() | Expand() | Cast():
            return replace(expr, arg=args[0])
        case Affine() | Sqrt() | Norm() | Mean() | Pointwise() | MatrixFunction() | Tril():
            return replace(expr, arg=args[0])
        case Concat():
            return replace(expr, args=args)
        case Add() | Subtract() | Multiply() | Divide() | MatMul():
            return replace(expr, left=args[0], right=args[1])
        case _:
            assert_never(expr)


def is_computed(expr: Expr) -> bool:
    """Whether arithmetic is part of `expr`; if not, its elements are moved and cast only."""
    return isinstance(expr, Arithmetic) or any(map(is_computed, args_of(expr)))


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
