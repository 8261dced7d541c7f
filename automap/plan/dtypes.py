"""Expression in, the name of its dtype out. Constants follow the weights that they are joined with."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from automap.errors import PlanError
from automap.plan.expr import (
    Add,
    Affine,
    Binary,
    Cast,
    Concat,
    Divide,
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
    Sqrt,
    Subtract,
    Tril,
    args_of,
    walk_sources,
)

if TYPE_CHECKING:
    import torch

DTYPES = frozenset(
    {
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    }
)


def dtype_of(expr: Expr) -> str:
    """The name of the dtype that `expr` evaluates to where src tensors have the dtypes of their Source nodes.

    Nodes with one argument keep its dtype. Those with several promote as torch does, except that arguments without any
    source (constants) have no say as long as another argument has one.

    Raises:
        PlanError: two dtypes have no common one.
    """
    match expr:
        case Source(dtype=dtype) | Fill(dtype=dtype) | Cast(dtype=dtype):
            return dtype
        case Slice(arg) | Permute(arg) | Reshape(arg) | Gather(arg) | Pad(arg) | Expand(arg):
            return dtype_of(arg)
        case Affine(arg) | Sqrt(arg) | Norm(arg) | Mean(arg) | Pointwise(arg) | MatrixFunction(arg) | Tril(arg):
            return dtype_of(arg)
        case Concat() | Add() | Subtract() | Multiply() | Divide() | MatMul():
            return _promoted({dtype_of(arg) for arg in voting_args(expr)})
        case _:
            assert_never(expr)


def voting_args(expr: Concat | Binary) -> tuple[Expr, ...]:
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


def is_float(dtype: str) -> bool:
    """Whether the dtype of that name holds real or complex floating point numbers."""
    return dtype.startswith(("float", "bfloat", "complex"))


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`.

    Raises:
        PlanError: there is none.
    """
    import torch

    found = getattr(torch, name, None) if name in DTYPES else None
    if not isinstance(found, torch.dtype):
        raise PlanError(f"`{name}` is no dtype")
    return found
