"""Small nets put together from named parts and a function, and what they are called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models import noise

WIDTH = 12
IMAGE, ROWS = noise(2, 3, 8, 8), noise(2, 5, WIDTH)


def words() -> Tensor:
    return torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Named parts and a function that computes with them."""

    def __init__(self, forward: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


def conv(out: int = 8, inner: int = 3, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inner, out, size, padding=size // 2, **options)
