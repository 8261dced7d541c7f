"""Computes values of a flow graph in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from automap.canonical.flow import Node, replace_refs


def widen(value: Tensor) -> Tensor:
    """Return value with floating-point numbers as float64 and complex ones as complex128."""
    if value.is_floating_point():
        return value.detach().to(torch.float64)
    return value.detach().to(torch.complex128) if value.is_complex() else value.detach()


def no_value(shape: tuple[int, ...]) -> Tensor:
    """Return what stands for a value of which the shape alone is asked for; it takes no memory."""
    return torch.zeros((), dtype=torch.float64).expand(shape)


def compute(node: Node, value_of: Callable[[int], Any]) -> Any:
    """Return the value of an op node, its operands taken from value_of."""
    assert node.function is not None
    args = replace_refs(node.args, value_of)
    kwargs = replace_refs(node.kwargs, value_of)
    if node.op == "view_as_complex":  # a view of pairs that lie beside each other, which unknown weights do not
        args = tuple(a.contiguous() for a in args)
    return node.function(*args, **kwargs)
