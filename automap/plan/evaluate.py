"""Expression and src state in, tensor out. Elements are moved bitwise; nothing in the state is modified.

Dtype rule: a plan is about elements, so a state in another dtype than the plan was made with (a bf16 checkpoint, a
float64 test) keeps its own dtype throughout; a `Cast` converts only what has the dtype it was written for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, assert_never

from automap.errors import PlanError
from automap.plan.expr import (
    DTYPES,
    Add,
    Affine,
    Cast,
    Concat,
    Expr,
    Fill,
    Gather,
    Multiply,
    Permute,
    Reshape,
    Slice,
    Source,
    args_of,
    dtype_of,
    shape_of,
    voting_args,
)

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
    return _value(expr, state)


def _value(expr: Expr, state: Mapping[str, Tensor]) -> Tensor:
    match expr:
        case Source():
            return _source_value(expr, state)
        case Slice(arg, start, stop, step):
            return _value(arg, state)[tuple(map(slice, start, stop, step))]
        case Concat(_, dim):
            return _concat_value(_joined(expr, state), dim)
        case Permute(arg, dims):
            return _value(arg, state).permute(dims)
        case Reshape(arg, shape):
            return _value(arg, state).reshape(shape)
        case Gather(arg, dim, indices):
            return _gather_value(_value(arg, state), dim, indices)
        case Fill(value, shape, dtype):
            return _fill_value(value, shape, dtype)
        case Cast(arg, dtype):
            return _cast_value(_value(arg, state), written_for=dtype_of(arg), dtype=dtype)
        case Affine(arg, scale, shift):
            return _affine_value(_value(arg, state), scale, shift)
        case Add():
            left, right = _joined(expr, state)
            return left + right
        case Multiply():
            left, right = _joined(expr, state)
            return left * right
        case _:
            assert_never(expr)


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


def _source_value(source: Source, state: Mapping[str, Tensor]) -> Tensor:
    try:
        value = state[source.name]
    except KeyError:
        raise PlanError(f"src has no tensor `{source.name}`") from None
    if tuple(value.shape) != source.shape:
        raise PlanError(f"`{source.name}` has shape {tuple(value.shape)}, the plan was made for {source.shape}")
    return value


def _joined(expr: Concat | Add | Multiply, state: Mapping[str, Tensor]) -> list[Tensor]:
    """The arguments' values, constants in the dtype and on the device of the weights they join."""
    values = [_value(arg, state) for arg in args_of(expr)]
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


def _fill_value(value: float, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Any NaN is the one NaN, as equality and JSON know no other."""
    import torch

    one_nan = math.nan if math.isnan(value) else value
    return torch.tensor(one_nan, dtype=torch.float64).to(torch_dtype(dtype)).expand(shape).contiguous()


def _cast_value(value: Tensor, *, written_for: str, dtype: str) -> Tensor:
    return value.to(torch_dtype(dtype)) if value.dtype == torch_dtype(written_for) else value


def _affine_value(value: Tensor, scale: float, shift: float) -> Tensor:
    """Factors of 1 and shifts of 0 are left out: they would turn -0.0 into 0.0."""
    dtype = value.dtype
    if scale != 1:
        value = value * scale
    if shift != 0:
        value = value + shift
    return value.to(dtype)
