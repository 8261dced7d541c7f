"""One decoder in two spellings, of any depth and width: a narrow twin of two blocks, and siblings as large as wanted.

`Fused` has qkv in one matrix, group by group of query heads, and gate and up row by row in turn; `Split` has one matrix
for each, as Llama does. Both take tokens `(B, S)` and give logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Sizes:
    """Each group has `queries` query heads, one key head and one value head, all of size `head`."""

    blocks: int = 2
    groups: int = 2
    queries: int = 3
    head: int = 10
    width: int = 28
    inner: int = 44
    words: int = 52


TWIN = Sizes()


def twins(sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    """Src and dest; on whatever device is the default, so also without memory (`meta`)."""
    return Fused(sizes).eval(), Split(sizes).eval()


def linear(width: int, out: int) -> nn.Linear:
    return nn.Linear(width, out, bias=False)


def turned(x: Tensor) -> Tensor:
    """Rotary positions on `(B, H, S, D)`, halves of a head as pairs."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angle = torch.outer(torch.arange(x.shape[2], device=x.device).double(), rates).to(x.dtype)
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def attended(q: Tensor, k: Tensor, v: Tensor, queries: int) -> Tensor:
    """Grouped causal attention on `(B, H, S, D)`, heads joined."""
    k, v = (part.repeat_interleave(queries, 1) for part in (turned(k), v))
    out = F.scaled_dot_product_attention(turned(q), k, v, is_causal=True)
    return out.transpose(1, 2).flatten(2)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class FusedBlock(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.ln_1, self.ln_2 = Norm(sizes.width), Norm(sizes.width)
        self.qkv = linear(sizes.width, sizes.groups * (sizes.queries + 2) * sizes.head)
        self.out = linear(sizes.groups * sizes.queries * sizes.head, sizes.width)
        self.gate_up = linear(sizes.width, 2 * sizes.inner)
        self.down = linear(sizes.inner, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        sizes = self.sizes
        parts = self.qkv(self.ln_1(x)).view(*x.shape[:2], sizes.groups, sizes.queries + 2, sizes.head)
        q, k, v = parts.split((sizes.queries, 1, 1), 3)
        q, k, v = (part.flatten(2, 3).transpose(1, 2) for part in (q, k, v))
        x = x + self.out(attended(q, k, v, sizes.queries))
        gate, up = self.gate_up(self.ln_2(x)).unflatten(-1, (-1, 2)).unbind(-1)
        return x + self.down(F.silu(gate) * up)


class Fused(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.wte = nn.Embedding(sizes.words, sizes.width)
        self.h = nn.ModuleList(FusedBlock(sizes) for _ in range(sizes.blocks))
        self.ln_f = Norm(sizes.width)
        self.head = linear(sizes.width, sizes.words)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens)
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


class SplitBlock(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.input_norm, self.post_norm = Norm(sizes.width), Norm(sizes.width)
        self.q_proj = linear(sizes.width, sizes.groups * sizes.queries * sizes.head)
        self.k_proj, self.v_proj = (linear(sizes.width, sizes.groups * sizes.head) for _ in range(2))
        self.o_proj = linear(sizes.groups * sizes.queries * sizes.head, sizes.width)
        self.gate_proj, self.up_proj = (linear(sizes.width, sizes.inner) for _ in range(2))
        self.down_proj = linear(sizes.inner, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.input_norm(x)
        parts = (self.q_proj(normed), self.k_proj(normed), self.v_proj(normed))
        q, k, v = (part.view(*x.shape[:2], -1, self.sizes.head).transpose(1, 2) for part in parts)
        x = x + self.o_proj(attended(q, k, v, self.sizes.queries))
        normed = self.post_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))


class Split(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.words, sizes.width)
        self.layers = nn.ModuleList(SplitBlock(sizes) for _ in range(sizes.blocks))
        self.norm = Norm(sizes.width)
        self.lm_head = linear(sizes.width, sizes.words)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))
