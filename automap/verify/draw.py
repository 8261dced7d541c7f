"""Draws weights for a proof: of sizes that let every weight and every input be seen in the outputs.

The given weights may be poor (statistics of a batch norm that drown what comes in, scales that start at zero): only the
signs that they must have are kept, and part of their pattern.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from automap.canonical.flow import Flow, Role

_GAIN = 1.2  # between what keeps the size of activations through a ReLU and what keeps it without one
_PATTERN, _NOISE = 0.5, 0.866  # how much of the drawn numbers is the given ones brought to size, and how much not
_LOW, _HIGH = 0.1, 1.0  # sizes of tables and shifts
_POOL = 1_000_003  # numbers drawn at most; a prime, so that no row of a larger weight, and no weight, is another one


def conditioned_weights(flow: Flow, seed: int, *, is_wide: bool = True) -> dict[int, Tensor]:
    """Return values for flow's weights, well-conditioned and no two alike: float64, or in their own dtypes."""
    noise = _Noise(seed, sum(w.tensor.numel() for w in flow.weights.values()))
    return {
        index: _drawn(flow, index, w.tensor.detach(), noise).to(torch.float64 if is_wide else w.tensor.dtype)
        for index, w in flow.weights.items()
    }


class _Noise:
    """Normal numbers, read one weight after the other; drawing them is dear, so that large models read some again."""

    def __init__(self, seed: int, count: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(min(count, _POOL), generator=generator, dtype=torch.float32)
        self._start = 0

    def of_shape(self, shape: torch.Size) -> Tensor:
        """Return the next numbers as a tensor of float32 that is the caller's."""
        count, size, start = shape.numel(), len(self._pool), self._start
        self._start = (start + count) % size
        rounds = (start + count - 1) // size
        return torch.cat([self._pool[start : start + count], *[self._pool] * rounds])[:count].view(shape)


def _drawn(flow: Flow, index: int, value: Tensor, numbers: _Noise) -> Tensor:
    """Values for one weight, drawn in float32, which is as good as any."""
    if not value.numel():
        return value
    given, low, high = _finite(value)
    noise = numbers.of_shape(value.shape)
    sign = 1.0 if low >= 0 else -1.0 if high <= 0 else 0.0
    size = float(torch.linalg.vector_norm(given)) * given.numel() ** -0.5
    target = _size(flow, index, size, is_signed=sign == 0 or size == 0)
    pattern = _PATTERN * target / size if size else 0.0
    if not (sign and size):
        return noise.mul_(target * _NOISE).add_(given, alpha=pattern)
    spread = noise.clamp_(-2, 2).mul_(0.2).add_(1)
    return spread.mul_(given * pattern + sign * target * (1 - _PATTERN))


def _finite(value: Tensor) -> tuple[Tensor, float, float]:
    """A weight as float32, without NaN and infinities, and its smallest and largest element."""
    given = value.float()
    low, high = (float(x) for x in torch.aminmax(given))
    if not (math.isfinite(low) and math.isfinite(high)):
        given = torch.nan_to_num(given, posinf=0.0, neginf=0.0)
        low, high = (float(x) for x in torch.aminmax(given))
    return given, low, high


def _size(flow: Flow, index: int, size: float, *, is_signed: bool) -> float:
    """The size that a weight's numbers should have, by what it is for."""
    shape = flow[index].shape
    if len(shape) > 1 and _is_matrix(flow, index):
        fan = torch.Size(shape).numel() / shape[0]
        return float(_GAIN * fan**-0.5)
    return min(max(size, _LOW), _HIGH) if is_signed else 1.0


def _is_matrix(flow: Flow, index: int) -> bool:
    """Whether a weight is multiplied into data as a matrix or kernel, directly or after other ops on weights."""
    stack, seen = [index], set[int]()
    while stack:
        step = stack.pop()
        for reader in flow.readers.get(step, ()):
            if flow[reader].op in ("matmul", "convolution"):
                return True
            if flow[reader].role is Role.WEIGHT and reader not in seen:
                seen.add(reader)
                stack.append(reader)
    return False
