"""Draws weights for a match: near the given ones, but with no two alike, so that equal values mean equal weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from automap.canonical.flow import Flow

_SPREAD = 0.2


def draw_weights(flow: Flow, seed: int) -> Mapping[int, Tensor]:
    """Return float64 values for flow's weights: each near its own value, zeros and ones told apart, signs kept."""
    generator = torch.Generator().manual_seed(seed)
    return {index: _drawn(weight.tensor.detach(), generator) for index, weight in flow.weights.items()}


def own_weights(flow: Flow) -> Mapping[int, Tensor]:
    """Return float64 copies of flow's weights as they are."""
    return {index: weight.tensor.detach().double() for index, weight in flow.weights.items()}


def _drawn(value: Tensor, generator: torch.Generator) -> Tensor:
    shape, count = value.shape, value.numel()
    if not count:
        return value.double()
    if not any(value.stride()):  # one number throughout, which stays one
        value = value[(slice(1),) * value.dim()]
    value = value.double()
    noise = torch.rand(shape, generator=generator, dtype=torch.float32).double().mul_(3.0).sub_(1.5)
    if bool((value >= 0).all()) and bool((value > 0).any()):
        return value * (1 + _SPREAD * noise) + 1e-3 * noise.abs() * value.mean()
    scale = float(torch.linalg.vector_norm(value)) * value.numel() ** -0.5
    if scale == 0:
        scale = 1.0 if len(shape) < 2 else (count / shape[0]) ** -0.5
    return noise.mul_(_SPREAD * scale).add_(value)
