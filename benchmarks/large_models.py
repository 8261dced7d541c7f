"""Decoders as large as wanted, in two implementations: what `speed.py --section large` matches without their weights.

The first is written as in Meta's repository (rotary positions as complex numbers, pairs of neighbours); the other is
transformers' Llama (halves). With experts, both sides are ours: 64 experts packed in one tensor, laid out differently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXPERTS, CHOSEN = 64, 6


@dataclass(frozen=True)
class Shape:
    """A decoder's configuration, in transformers' words."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rms_norm_eps: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


def llama_70b(blocks: int) -> Shape:
    """Return the shape of Llama 3 70B (80 blocks), or of one as wide with more or fewer."""
    return Shape(8192, 28672, blocks, 64, 8, 128256)


def linear(width: int, out: int) -> nn.Linear:
    return nn.Linear(width, out, bias=False)


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions on `(B, S, H, D)`: neighbours are the parts of one complex number."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * angles[None, :, None]).flatten(3).type_as(x)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, heads, groups = shape.hidden_size, shape.num_attention_heads, shape.num_key_value_heads
        self.wq, self.wo = linear(width, heads * shape.head_size), linear(heads * shape.head_size, width)
        self.wk, self.wv = linear(width, groups * shape.head_size), linear(width, groups * shape.head_size)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
        size = (*x.shape[:2], -1, self.shape.head_size)
        q, k, v = (project(x).view(size) for project in (self.wq, self.wk, self.wv))
        q, k = turned(q, angles), turned(k, angles)
        times = self.shape.num_attention_heads // self.shape.num_key_value_heads
        k, v = (part.repeat_interleave(times, 2) for part in (k, v))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(2, 3) / math.sqrt(self.shape.head_size) + mask
        return self.wo((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.w1, self.w3 = (linear(shape.hidden_size, shape.intermediate_size) for _ in range(2))
        self.w2 = linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def shares(scores: Tensor) -> Tensor:
    """How much each expert counts for each token, `(B, S, E)`: the best few, in proportion."""
    best, which = scores.softmax(-1).topk(CHOSEN, -1)
    return torch.zeros_like(scores).scatter(-1, which, best / best.sum(-1, keepdim=True))


class PackedExperts(nn.Module):
    """Experts as `(E, out, in)`, gate and up in one."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, inner = shape.hidden_size, shape.intermediate_size
        self.router = linear(width, EXPERTS)
        self.gate_up = nn.Parameter(torch.empty(EXPERTS, 2 * inner, width))
        self.down = nn.Parameter(torch.empty(EXPERTS, width, inner))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.einsum("bsd,eid->ebsi", x, self.gate_up).chunk(2, -1)
        made = torch.einsum("ebsi,edi->ebsd", F.silu(gate) * up, self.down)
        return torch.einsum("ebsd,bse->bsd", made, shares(self.router(x)))


class StackedExperts(nn.Module):
    """The same experts as `(E, in, out)`, gate and up apart."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, inner = shape.hidden_size, shape.intermediate_size
        self.gate = linear(width, EXPERTS)
        self.w1, self.w3 = (nn.Parameter(torch.empty(EXPERTS, width, inner)) for _ in range(2))
        self.w2 = nn.Parameter(torch.empty(EXPERTS, inner, width))

    def forward(self, x: Tensor) -> Tensor:
        each = x.expand(EXPERTS, *x.shape).flatten(1, 2)
        made = (F.silu(each @ self.w1) * (each @ self.w3)) @ self.w2
        return (made.unflatten(1, x.shape[:2]) * shares(self.gate(x)).permute(2, 0, 1).unsqueeze(-1)).sum(0)


class Block(nn.Module):
    def __init__(self, shape: Shape, feed_forward: type[nn.Module]) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(shape), feed_forward(shape)
        self.attention_norm, self.ffn_norm = (Norm(shape.hidden_size, shape.rms_norm_eps) for _ in range(2))

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles, mask)
        return x + self.feed_forward(self.ffn_norm(x))


class Decoder(nn.Module):
    """Takes tokens `(B, S)`, gives logits."""

    def __init__(self, shape: Shape, feed_forward: type[nn.Module] = FeedForward) -> None:
        super().__init__()
        self.shape = shape
        self.tok_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape, feed_forward) for _ in range(shape.num_hidden_layers))
        self.norm, self.output = (
            Norm(shape.hidden_size, shape.rms_norm_eps),
            linear(shape.hidden_size, shape.vocab_size),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        length, size = tokens.shape[1], self.shape.head_size
        rates = 1.0 / (10000.0 ** (torch.arange(0, size, 2, device=tokens.device).float() / size))
        turns = torch.outer(torch.arange(length, device=tokens.device).float(), rates)
        angles = torch.polar(torch.ones_like(turns), turns)
        mask = torch.full((length, length), -torch.inf, device=tokens.device).triu(1)
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, angles, mask)
        return self.output(self.norm(x))


def llama(shape: Shape) -> tuple[nn.Module, nn.Module]:
    """Return Meta's spelling and transformers', on whatever device is the default."""
    from dataclasses import asdict

    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**asdict(shape), tie_word_embeddings=False, use_cache=False)
    return Decoder(shape).eval(), LlamaForCausalLM(config).eval()


def experts(shape: Shape) -> tuple[nn.Module, nn.Module]:
    """Return two spellings of a decoder with 64 experts a block."""
    return Decoder(shape, PackedExperts).eval(), Decoder(shape, StackedExperts).eval()
