"""Small convolutional nets with poor weights: in eval mode what they give hardly depends on what they are given."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Inverted(nn.Module):
    """An inverted residual of MobileNetV2: expand, depthwise, project, each with a batch norm."""

    def __init__(self, width: int, factor: int = 4) -> None:
        super().__init__()
        inner = width * factor
        self.expand, self.bn1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.project, self.bn3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)

    def squeezed(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn1(self.expand(x)))
        y = self.squeezed(F.relu6(self.bn2(self.depthwise(y))))
        return x + self.bn3(self.project(y))


class Squeezed(Inverted):
    """The same with the squeeze-and-excitation of EfficientNet."""

    def __init__(self, width: int, factor: int = 4) -> None:
        super().__init__(width, factor)
        self.reduce, self.widen = nn.Conv2d(width * factor, 4, 1), nn.Conv2d(4, width * factor, 1)

    def squeezed(self, x: Tensor) -> Tensor:
        return x * self.widen(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class Poor(nn.Module):
    """A stem, blocks and a head; `impoverished`, its batch norms drown what comes in and only their shifts are left."""

    def __init__(self, block: type[Inverted] = Inverted, depth: int = 3) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList(block(8) for _ in range(depth))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def impoverished(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with weights as they are when training has hardly begun: no two alike, all too small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.02 if tensor.dim() > 1 else 0.1))
            if tensor.dim() == 1 and name.endswith("weight"):
                tensor.add_(1)
        for name, tensor in model.named_buffers():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 20)
    return model.eval()
