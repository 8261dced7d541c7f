"""Runs ops as they are, or in outline: of those that take long on large values the result has its looks, and zeros.

A forward in outline makes the same calls on values of the same shapes and strides. What Python reads of it, and goes
another way for, has to be run as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from mmap import mmap
from typing import Any, TypeAlias

import torch
from torch import Tensor

aten = torch.ops.aten
#: shape and strides
Look: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
_LARGE_PRODUCT = 2_000_000  # multiplications
_LARGE = 50_000  # elements


def run_plainly(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an op as it is; a convolution by oneDNN, which is off so that recurrent layers fall apart into steps."""
    if func is not aten.convolution.default or not torch._C._has_mkldnn:
        return func(*args, **kwargs)
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(True)
    try:
        return func(*args, **kwargs)
    finally:
        torch._C._set_mkldnn_enabled(before)


def run_sketched(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an op as it is; of one that takes long only what its result looks like, filled with zeros."""
    outline = _OUTLINES.get(func)
    found = outline(*args, **kwargs) if outline is not None else None
    return run_plainly(func, args, kwargs) if found is None else found


def _zeros(like: Tensor, look: Look) -> Tensor:
    """Zeros of some look; of large ones the system gives no page before it is touched."""
    shape, stride = look
    count = math.prod(shape)
    if count < _LARGE or like.device.type != "cpu":
        return torch.empty_strided(shape, stride, dtype=like.dtype, device=like.device).zero_()
    flat = torch.frombuffer(mmap(-1, count * like.dtype.itemsize), dtype=like.dtype)
    return flat.as_strided(shape, stride)


def _rows(shape: tuple[int, ...]) -> Look:
    """The look of a tensor that lies row by row."""
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return shape, tuple(reversed(stride))


def _in_rows(data: Tensor) -> Tensor:
    """Zeros of data's shape, row by row."""
    return _zeros(data, _rows(tuple(data.shape)))


def _is_large(data: Tensor) -> bool:
    return data.numel() >= _LARGE and data.is_floating_point()


def _is_plain(data: Tensor) -> bool:
    """Whether data is large and lies row by row: then so do results of its shape."""
    return _is_large(data) and data.is_contiguous()


# ---------------------------------------------------------------- each gives None where the op is run as it is
def _product(left: Tensor, right: Tensor) -> Tensor | None:
    if left.numel() * right.shape[-1] < _LARGE_PRODUCT:
        return None
    return _zeros(left, _rows((*left.shape[:-1], right.shape[-1])))


def _product_and_sum(shift: Tensor, left: Tensor, right: Tensor, **options: Any) -> Tensor | None:
    return None if options else _product(left, right)


def _convolution(data: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor | None:
    if data.numel() * (weight.numel() // max(data.shape[1], 1)) < _LARGE_PRODUCT:
        return None
    return _zeros(data, _looks_of(aten.convolution.default, (data, weight), (None, *geometry))[0])


def _max_pool(data: Tensor, *geometry: Any) -> tuple[Tensor, Tensor] | None:
    if not _is_plain(data):
        return None
    looks = _looks_of(aten.max_pool2d_with_indices.default, (data,), geometry)
    return _zeros(data, looks[0]), torch.empty_strided(*looks[1], dtype=torch.int64, device=data.device).zero_()


def _looks_of(func: Any, operands: tuple[Tensor, ...], others: tuple[Any, ...]) -> tuple[Look, ...]:
    """What the results of an op look like that is called with operands and with numbers and lists of these."""
    frozen = tuple(tuple(other) if isinstance(other, list) else other for other in others)
    return _looks(func, tuple((tuple(t.shape), t.stride()) for t in operands), frozen)


@lru_cache(4096)
def _looks(func: Any, looks: tuple[Look, ...], others: tuple[Any, ...]) -> tuple[Look, ...]:
    """What an op's results look like, from what its operands do."""
    found = func(*(torch.empty_strided(*look, device="meta") for look in looks), *others)
    return tuple((tuple(t.shape), t.stride()) for t in (found if isinstance(found, tuple) else (found,)))


def _elementwise(data: Tensor, *options: Any, **others: Any) -> Tensor | None:
    if options and isinstance(options[0], Tensor):
        other = options[0]
        if other.numel() > data.numel():
            data, other = other, data
        if not _goes_into(other, data):
            return None
    if not _is_large(data) or any(isinstance(option, complex) for option in options):
        return None
    look = torch.empty_like(data, device="meta")  # dims keep their order in memory, without gaps between them
    return _zeros(data, (tuple(look.shape), look.stride()))


def _goes_into(other: Tensor, data: Tensor) -> bool:
    """Whether a second operand leaves the result's look that of the first."""
    sizes = zip(reversed(other.shape), reversed(data.shape), strict=False)
    is_within = other.dim() <= data.dim() and all(mine in (1, theirs) for mine, theirs in sizes)
    return is_within and other.dtype == data.dtype and 0 not in data.stride()


def _softmax(data: Tensor, dim: int, is_cast: bool = False, *, dtype: Any = None) -> Tensor | None:
    return _in_rows(data) if _is_plain(data) and not is_cast and dtype is None else None


def _rolled(data: Tensor, *options: Any) -> Tensor | None:
    return _in_rows(data) if _is_plain(data) else None


def _padded(data: Tensor, widths: list[int], *value: Any) -> Tensor | None:
    return None if any(widths) else _rolled(data)


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor | None:
    if not all(_is_plain(part) and part.dim() == parts[0].dim() and part.dtype == parts[0].dtype for part in parts):
        return None
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return _zeros(parts[0], _rows(tuple(shape)))


def _in_place(data: Tensor, *options: Any, **others: Any) -> Tensor | None:
    """Data as it is: what is in it does not matter."""
    return data if _is_large(data) else None


def _norm(data: Tensor, shape: list[int], *options: Any) -> tuple[Tensor, ...] | None:
    if not _is_large(data):
        return None
    lead = (*data.shape[: data.dim() - len(shape)], *[1] * len(shape))
    return _in_rows(data), data.new_zeros(lead), data.new_zeros(lead)


def _batch_norm(data: Tensor, *options: Any) -> tuple[Tensor, ...] | None:
    if not _is_plain(data) or options[4]:  # in training there are statistics of the batch as well
        return None
    return _in_rows(data), data.new_zeros(0), data.new_zeros(0)


def _copy(data: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor | None:
    is_row_by_row = memory_format is torch.contiguous_format
    return _in_rows(data) if _is_large(data) and is_row_by_row else None


_OUTLINES: dict[Any, Callable[..., Any]] = {
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _product_and_sum,
    aten.baddbmm.default: _product_and_sum,
    aten.convolution.default: _convolution,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.native_layer_norm.default: _norm,
    aten.native_batch_norm.default: _batch_norm,
    aten._softmax.default: _softmax,
    aten._safe_softmax.default: _softmax,
    aten.roll.default: _rolled,
    aten.constant_pad_nd.default: _padded,
    aten.cat.default: _joined,
    aten.clone.default: _copy,
    **dict.fromkeys((aten.gelu.default, aten.relu.default, aten.silu.default, aten.hardtanh.default), _elementwise),
    **dict.fromkeys((aten.sigmoid.default, aten.tanh.default, aten.exp.default), _elementwise),
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.mul.Scalar), _elementwise),
    **dict.fromkeys((aten.relu_.default, aten.silu_.default, aten.hardtanh_.default, aten.add_.Tensor), _in_place),
}
