"""Expression and src state in, tensor out. Elements are moved bitwise; nothing in the state is modified.

Arithmetic rule: whatever is below an arithmetic node is computed in float64 (complex128 where it is complex), and the
outermost one's value is converted to its own dtype, once; casts between floats on the way have no effect but on that
dtype. Dtype rule: a plan is about elements, so a state in another dtype than the plan was made with (a bf16 checkpoint,
a float64 test) keeps its own dtype throughout; a `Cast` converts only what has the dtype it was written for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from automap.errors import PlanError
from automap.plan.dtypes import dtype_of, torch_dtype, voting_args
from automap.plan.expr import (
    Add,
    Affine,
    Arithmetic,
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
    Move,
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
    with_args,
)
from automap.plan.shapes import shape_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def evaluate(expr: Expr, state: Mapping[str, Tensor]) -> Tensor:
    """The value of `expr` where src's tensors are those of `state`; it may share memory with them.

    Raises:
        PlanError: a src tensor is missing or has another shape, or the expression does not fit together.

    Example:
        >>> import torch
        >>> evaluate(Permute(Source("w", (2, 3)), (1, 0)), {"w": torch.arange(6.0).view(2, 3)}).shape
        torch.Size([3, 2])
    """
    shape_of(expr)
    return _value(_retyped(expr, state), state)


def _retyped(expr: Expr, state: Mapping[str, Tensor]) -> Expr:
    """The expression written for the dtypes of `state`: without the casts of what has another dtype there."""
    if isinstance(expr, Source):
        return replace(expr, dtype=str(_source_value(expr, state).dtype).removeprefix("torch."))
    args = tuple(_retyped(arg, state) for arg in args_of(expr))
    if isinstance(expr, Cast) and dtype_of(args[0]) != dtype_of(expr.arg):
        return args[0]
    return with_args(expr, args)


def _value(expr: Expr, state: Mapping[str, Tensor]) -> Tensor:
    """The value in its own dtype."""
    match expr:
        case Source():
            return _source_value(expr, state)
        case Fill(value, shape, dtype):
            return _fill_value(value, shape, torch_dtype(dtype))
        case Cast(arg, dtype):
            return _value(arg, state).to(torch_dtype(dtype))
        case Slice() | Concat() | Permute() | Reshape() | Gather() | Pad() | Expand():
            return _moved(expr, [_value(arg, state) for arg in args_of(expr)])
        case Affine() | Add() | Subtract() | Multiply() | Divide() | MatMul() | Sqrt() | Norm() | Mean():
            return _exact_value(expr, state).to(torch_dtype(dtype_of(expr)))
        case Pointwise() | MatrixFunction() | Tril():
            return _exact_value(expr, state).to(torch_dtype(dtype_of(expr)))
        case _:
            assert_never(expr)


def _exact_value(expr: Expr, state: Mapping[str, Tensor]) -> Tensor:
    """The value in float64 or complex128, nothing rounded to narrower floats on the way."""
    import torch

    match expr:
        case Source():
            value = _source_value(expr, state)
            return value.to(_widest(value.dtype))
        case Fill(value, shape, dtype):
            return _exactly_cast(_fill_value(value, shape, torch.float64), torch_dtype(dtype))
        case Cast(arg, dtype):
            return _exactly_cast(_exact_value(arg, state), torch_dtype(dtype))
        case Slice() | Concat() | Permute() | Reshape() | Gather() | Pad() | Expand():
            return _moved(expr, [_exact_value(arg, state) for arg in args_of(expr)])
        case Affine() | Add() | Subtract() | Multiply() | Divide() | MatMul() | Sqrt() | Norm() | Mean():
            return _computed(expr, [_exact_value(arg, state) for arg in args_of(expr)])
        case Pointwise() | MatrixFunction() | Tril():
            return _computed(expr, [_exact_value(arg, state) for arg in args_of(expr)])
        case _:
            assert_never(expr)


def _widest(dtype: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic on `dtype` is done in."""
    import torch

    return torch.complex128 if dtype.is_complex else torch.float64


def _exactly_cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Only what is no float is converted: `value` is one already."""
    wide = _widest(dtype)
    return value.to(wide) if dtype.is_floating_point or dtype.is_complex else value.to(dtype).to(wide)


def _source_value(source: Source, state: Mapping[str, Tensor]) -> Tensor:
    try:
        value = state[source.name]
    except KeyError:
        raise PlanError(f"src has no tensor `{source.name}`") from None
    if tuple(value.shape) != source.shape:
        raise PlanError(f"`{source.name}` has shape {tuple(value.shape)}, the plan was made for {source.shape}")
    return value


def _fill_value(value: float, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Any NaN is the one NaN, as equality and JSON know no other."""
    import torch

    one_nan = math.nan if math.isnan(value) else value
    return torch.tensor(one_nan, dtype=torch.float64).to(dtype).expand(shape).contiguous()


def _moved(expr: Move, values: list[Tensor]) -> Tensor:
    """The elements of the arguments' values where a node moves them to."""
    match expr:
        case Slice(_, start, stop, step):
            return values[0][tuple(map(slice, start, stop, step))]
        case Concat(_, dim):
            return _concat_value(_joined(expr, values), dim)
        case Permute(_, dims):
            return values[0].permute(dims)
        case Reshape(_, shape):
            return values[0].reshape(shape)
        case Gather(_, dim, indices):
            return _gather_value(values[0], dim, indices)
        case Pad(_, before, after):
            return _pad_value(values[0], before, after)
        case Expand(_, shape):
            return values[0].expand(shape)
        case _:
            assert_never(expr)


def _joined(expr: Concat | Binary, values: list[Tensor]) -> list[Tensor]:
    """The arguments' values, constants in the dtype and on the device of the weights they join."""
    voters = voting_args(expr)
    if len(voters) == len(values):
        return values
    import torch

    decisive = [value for arg, value in zip(args_of(expr), values, strict=True) if arg in voters]
    dtype = decisive[0].dtype
    for value in decisive:
        dtype = torch.promote_types(dtype, value.dtype)
    device = decisive[0].device
    return [
        value if arg in voters else value.to(device=device, dtype=dtype)
        for arg, value in zip(args_of(expr), values, strict=True)
    ]


def _concat_value(values: list[Tensor], dim: int) -> Tensor:
    import torch

    return torch.cat(values, dim)


def _gather_value(value: Tensor, dim: int, indices: tuple[int, ...]) -> Tensor:
    import torch

    return value.index_select(dim, torch.tensor(indices, dtype=torch.int64, device=value.device))


def _pad_value(value: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    import torch

    shape = [sum(sizes) for sizes in zip(before, value.shape, after, strict=True)]
    padded = torch.zeros(shape, dtype=value.dtype, device=value.device)
    inside = tuple(slice(start, start + size) for start, size in zip(before, value.shape, strict=True))
    padded[inside] = value
    return padded


def _computed(expr: Arithmetic, values: list[Tensor]) -> Tensor:
    """What a node computes from its arguments' values."""
    import torch

    match expr:
        case Affine(_, scale, shift):
            return _affine_value(values[0], scale, shift)
        case Sqrt():
            return values[0].sqrt()
        case Pointwise(_, function):
            return _pointwise_value(values[0], function)
        case MatrixFunction(_, function):
            of_matrix: Tensor = getattr(torch, function)(values[0])
            return of_matrix
        case Tril(_, diagonal):
            return values[0].tril(diagonal)
        case Norm(_, dims):
            norm: Tensor = torch.linalg.vector_norm(values[0], dim=dims, keepdim=True)
            return norm
        case Mean(_, dims):
            return values[0].mean(dims, keepdim=True)
        case Add() | Subtract() | Multiply() | Divide() | MatMul():
            return _combined(expr, *_joined(expr, values))
        case _:
            assert_never(expr)


def _pointwise_value(value: Tensor, function: str) -> Tensor:
    result: Tensor = getattr(value, function)()
    return result


def _affine_value(value: Tensor, scale: float, shift: float) -> Tensor:
    """Factors of 1 and shifts of 0 are left out: they would turn -0.0 into 0.0."""
    if scale != 1:
        value = value * scale
    if shift != 0:
        value = value + shift
    return value


def _combined(expr: Binary, left: Tensor, right: Tensor) -> Tensor:
    import torch

    match expr:
        case Add():
            return left + right
        case Subtract():
            return left - right
        case Multiply():
            return left * right
        case Divide():
            return left / right
        case MatMul():
            return torch.matmul(left, right)
        case _:
            assert_never(expr)
