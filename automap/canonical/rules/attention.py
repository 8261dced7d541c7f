"""Softmax in its several spellings. Attention itself is recorded as its steps, the fused kernels being off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from automap.canonical.flow import Ref
from automap.canonical.lower import Builder, aten, rule


def safe_softmax(value: Tensor, dim: int) -> Tensor:
    """Return the softmax over dim, zero where every entry is minus infinity."""
    masked = (value == -torch.inf).all(dim, keepdim=True)
    return torch.where(masked, torch.zeros_like(value), torch.softmax(value, dim))


@rule(aten._softmax.default, aten.softmax.int)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    return builder.add("softmax", torch.softmax, args[0], args[1], shape=builder.shape(args[0]))


@rule(aten._safe_softmax.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    return builder.add("softmax", safe_softmax, args[0], args[1], shape=builder.shape(args[0]))


@rule(aten._log_softmax.default)
def _(builder: Builder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ref:
    return builder.add("log_softmax", torch.log_softmax, args[0], args[1], shape=builder.shape(args[0]))
