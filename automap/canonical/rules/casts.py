"""Number types: every floating-point type is float64 here, so casts between them are nothing, factories make
float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from automap.canonical.flow import Ref
from automap.canonical.lower import Builder, aten, op_name, rule

_WIDE = {torch.complex64: torch.complex128, torch.complex32: torch.complex128}


def widened(dtype: torch.dtype | None) -> torch.dtype | None:
    """Return float64 or complex128 in place of any narrower type of the same kind."""
    if dtype is None:
        return None
    return torch.float64 if dtype.is_floating_point else _WIDE.get(dtype, dtype)


def cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return value as dtype, widened."""
    wide = widened(dtype)
    return value if wide is None else value.to(wide)


@rule(aten._to_copy.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    dtype = kwargs.get("dtype")
    source = builder.nodes[args[0].index].origin
    before = source.meta.get("dtype") if source is not None else None
    if dtype is None or (before is not None and widened(before) == widened(dtype)):
        return args[0]  # type: ignore[no-any-return]
    return builder.add("cast", cast, args[0], dtype, shape=builder.shape(args[0]))


def made_wide(
    builder: Builder, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...] | None = None
) -> Ref:
    """The call as it was recorded, its result in the widest dtype of its kind; shape is another one than recorded."""
    origin = builder.origin
    assert origin is not None
    kept = {k: v for k, v in kwargs.items() if k not in ("device", "layout", "pin_memory", "memory_format")}
    made = origin.meta.get("dtype")
    if made is not None and made != torch.bool:
        kept["dtype"] = widened(made)
    shape = tuple(origin.meta.get("shape", ())) if shape is None else shape
    return builder.add(op_name(target), target, *args, shape=shape, **kept)


def _factory(target: Any) -> None:
    @rule(target)
    def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
        return made_wide(builder, target, args, kwargs)


for _target in (
    aten.zeros.default,
    aten.ones.default,
    aten.full.default,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.scalar_tensor.default,
    aten.eye.default,
    aten.eye.m,
    aten.linspace.default,
    aten.sum.default,
    aten.mean.default,
    aten.cumsum.default,
    aten.linalg_vector_norm.default,
    aten.prod.default,
):
    _factory(_target)


@rule(aten.empty.memory_format, aten.new_empty.default, aten.empty_strided.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    """Uninitialised memory: its content never matters, so zeros."""
    origin = builder.origin
    assert origin is not None
    return builder.constant(torch.zeros(origin.meta["shape"], dtype=widened(origin.meta["dtype"])))


@rule(aten.empty_like.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    origin = builder.origin
    assert origin is not None
    return builder.constant(torch.zeros(origin.meta["shape"], dtype=widened(origin.meta["dtype"])))
