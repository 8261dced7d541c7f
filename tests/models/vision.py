"""Small image models in several spellings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import WIDTH
from models.transformer import Block, Mlp, Split, layer_norm

SIZE, PATCH = 8, 4
COUNT = (SIZE // PATCH) ** 2


class PatchConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class PatchLinear(nn.Module):
    """Patches cut out by hand, pixels before channels, through a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3 * PATCH * PATCH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.view(x.shape[0], 3, SIZE // PATCH, PATCH, SIZE // PATCH, PATCH)
        return self.proj(grid.permute(0, 2, 4, 3, 5, 1).reshape(x.shape[0], COUNT, -1))


class PatchUnfold(PatchLinear):
    """Patches by unfold, channels before pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.unfold(x, PATCH, stride=PATCH).transpose(1, 2))


class Image(nn.Module):
    """A class token and positions before one block. `where` tells how positions are added."""

    def __init__(self, patches: type[nn.Module] = PatchConv, where: str = "after") -> None:
        super().__init__()
        self.patches = patches()
        self.token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.empty(1, COUNT + (where != "before"), WIDTH))
        self.block = Block(Split, Mlp, layer_norm)
        self.head = nn.Linear(WIDTH, 4)
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        token = self.token.expand(len(x), -1, -1)
        if self.where == "before":
            x = torch.cat((token, x + self.positions), 1)
        elif self.where == "apart":
            x = torch.cat((token + self.positions[:, :1], x + self.positions[:, 1:]), 1)
        else:
            x = torch.cat((token, x), 1) + self.positions
        return self.head(self.block(x)[:, 0])


class Residual(nn.Module):
    """A convolution, batch norm and ReLU twice, with a shortcut; the stride is in the convolution number `at`."""

    def __init__(self, at: int = 0, eps: float = 1e-5) -> None:
        super().__init__()
        strides = [2 if at == n else 1 for n in range(2)]
        self.conv1 = nn.Conv2d(8, 8, 3, strides[0], 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8, eps)
        self.conv2 = nn.Conv2d(8, 8, 3, strides[1], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8, eps)
        self.down = nn.Conv2d(8, 8, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.down(x))


class HandBatchNorm(nn.Module):
    """Batch norm in eval mode, written out."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.register_buffer("mean", torch.empty(width))
        self.register_buffer("var", torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gain * torch.rsqrt(self.var + self.eps)
        return x * scale.view(1, -1, 1, 1) + (self.offset - self.mean * scale).view(1, -1, 1, 1)


class HandResidual(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2 = HandBatchNorm(8), HandBatchNorm(8)


class ConvNet(nn.Module):
    """A stem, a block, a global pool, a head."""

    def __init__(self, block: type[Residual] = Residual, **options: object) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = block(**options)  # type: ignore[arg-type]
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(F.relu(self.stem(x))).mean((2, 3)))


class Flat(nn.Module):
    """A convolution, its result flattened channels first or last; under ReLU some features are never on."""

    def __init__(self, is_channels_last: bool = False, act: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.act = act
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6 * SIZE * SIZE, 4)
        self.is_channels_last = is_channels_last

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return self.head((x.permute(0, 2, 3, 1) if self.is_channels_last else x).flatten(1))


class UnfoldedDepthwise(nn.Module):
    """A depthwise convolution spelled out: the window around each place, times the kernel, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        return (windows.flatten(-2) * self.kernel.view(8, 1, 1, 9)).sum(-1)


class Depthwise(nn.Module):
    """Two depthwise convolutions of equal shape, between batch norms."""

    def __init__(self, is_unfolded: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1, bias=False)
        self.first = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        if is_unfolded:
            self.first, self.second = UnfoldedDepthwise(), UnfoldedDepthwise()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.first(self.stem(x))))
        return self.head(F.relu(self.bn2(self.second(x))).mean((2, 3)))
