"""Small hand-written models shared by the tests: width 16, two heads, two blocks, always with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, HEADS, TOKENS, BATCH = 16, 2, 5, 2
DIM = WIDTH // HEADS


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with every parameter and buffer drawn anew; variances and scales stay away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and not name.endswith("fixed"):
                tensor.copy_(drawn(tuple(tensor.shape), generator, is_positive=name.endswith("var")))
    return model.eval()


def drawn(shape: tuple[int, ...], generator: torch.Generator, *, is_positive: bool = False) -> Tensor:
    """Random numbers of a size that keeps activations near one."""
    fan = max(1, torch.Size(shape[1:]).numel())
    if is_positive:
        return torch.rand(shape, generator=generator) + 0.5
    return torch.randn(shape, generator=generator) * fan**-0.5


def noise(*shape: int, seed: int = 7) -> Tensor:
    """A random input."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(*shape: int, below: int = 20, seed: int = 7) -> Tensor:
    """Random token numbers."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))
