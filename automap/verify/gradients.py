"""Products and convolutions whose weight is only asked whether it moves anything: the gradient itself is never formed.

The gradient of a product's weight is `g^T x`, as much work as the product. What it does to one random direction `r` of
the weight's columns is `g^T (x r)`, two products with a vector, and a row of the gradient is zero exactly where that is
(but for chance, which has measure zero).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from automap.canonical.flow import Flow, Node, Ref, Role

Told = Callable[[Tensor], None]
_MOVED = {"transpose", "t", "permute"}


def sketched_uses(flow: Flow, order: tuple[int, ...], exact: set[int]) -> Mapping[int, int]:
    """Return the ops whose weight can be asked in this way, with the weight: stored matrices and kernels, used once.

    Args:
        flow: the computation.
        order: the nodes that are computed.
        exact: the weights whose gradient is needed in full.
    """
    computed = set(order)
    found = {}
    for index in order:
        leaf = _stored(flow, flow[index], computed)
        if leaf is not None and leaf not in exact:
            found[index] = leaf
    return found


def _stored(flow: Flow, node: Node, computed: set[int]) -> int | None:
    """The weight that a product or convolution takes as it is stored or transposed, if nothing else takes it."""
    if node.op not in ("matmul", "convolution") or not all(isinstance(a, Ref) for a in node.args[:2]):
        return None
    data: int = node.args[0].index
    taken: int = node.args[1].index
    if flow[data].role is not Role.ACTIVATION or flow[taken].role is not Role.WEIGHT:
        return None
    if len(flow[taken].shape) != 2 if node.op == "matmul" else not _is_plain(node):
        return None
    while sum(reader in computed for reader in flow.readers.get(taken, ())) == 1:
        if taken in flow.weights:
            return taken
        if flow[taken].op not in _MOVED:
            return None
        (taken,) = flow[taken].operands
    return None


def _is_plain(node: Node) -> bool:
    """Whether a convolution is neither transposed nor in groups: data, weight, bias, stride, padding, dilation, ..."""
    return len(node.args) == 9 and node.args[2] is None and not node.args[6] and node.args[8] == 1


def felt(node: Node, data: Tensor, weight: Tensor, told: Told) -> Tensor:
    """Return what a product or convolution gives; what its weight's rows do to outputs is told on the way back."""
    geometry = node.args[3:] if node.op == "convolution" else ()
    result: Tensor = _Felt.apply(data, weight, geometry, told)
    return result


class _Felt(torch.autograd.Function):
    """`data @ weight`, or a convolution where there is a geometry; only data gets a gradient."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, weight: Tensor, geometry: tuple[Any, ...], told: Told) -> Tensor:
        ctx.save_for_backward(data, weight)
        ctx.geometry, ctx.told = geometry, told
        return torch.ops.aten.convolution(data, weight, None, *geometry) if geometry else data @ weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        data, weight = ctx.saved_tensors
        (gradient,) = gradients
        return (_convolved if ctx.geometry else _multiplied)(ctx, data, weight, gradient), None, None, None


def _multiplied(ctx: Any, data: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    direction = _direction((len(weight), 1))
    ctx.told(gradient.reshape(-1, gradient.shape[-1]).T @ (data.detach() @ direction).reshape(-1))
    return gradient @ weight.T


def _convolved(ctx: Any, data: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    direction = _direction((1, *weight.shape[1:]))
    seen = torch.ops.aten.convolution(data.detach(), direction, None, *ctx.geometry)
    ctx.told((gradient * seen).transpose(0, 1).flatten(1).sum(1))
    wanted: Tensor = torch.ops.aten.convolution_backward(
        gradient, data, weight, None, *ctx.geometry, [True, False, False]
    )[0]
    return wanted


def _direction(shape: tuple[int, ...]) -> Tensor:
    """A direction of length one, always the same."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.div_(torch.linalg.vector_norm(drawn))
