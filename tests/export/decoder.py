"""A small Llama and Mixtral in another spelling than transformers': fused qkv, or neighbours as rotary pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, WIDTH, HEADS, GROUPS, DIM, INNER, EXPERTS = 24, 32, 4, 2, 8, 48, 4
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": DIM,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def linear(width: int, out: int) -> nn.Linear:
    return nn.Linear(width, out, bias=False)


def turned(x: Tensor, is_interleaved: bool) -> Tensor:
    """Rotary positions on `(B, H, S, D)`: pairs are neighbours, or the halves of a head."""
    rates = 1.0 / (10000.0 ** (torch.arange(0, DIM, 2).float() / DIM))
    angle = torch.outer(torch.arange(x.shape[2]).float(), rates)
    if is_interleaved:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    cos, sin = (torch.cat((table, table), -1) for table in (angle.cos(), angle.sin()))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Norm(nn.Module):
    """Root mean square, computed in float32 as transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, is_fused: bool, is_interleaved: bool) -> None:
        super().__init__()
        self.is_fused, self.is_interleaved = is_fused, is_interleaved
        if is_fused:
            self.qkv = linear(WIDTH, (HEADS + 2 * GROUPS) * DIM)
        else:
            self.wq, self.wk, self.wv = (linear(WIDTH, count * DIM) for count in (HEADS, GROUPS, GROUPS))
        self.wo = linear(HEADS * DIM, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        sizes = [HEADS * DIM, GROUPS * DIM, GROUPS * DIM]
        parts = self.qkv(x).split(sizes, -1) if self.is_fused else (self.wq(x), self.wk(x), self.wv(x))
        q, k, v = (part.view(*x.shape[:2], -1, DIM).transpose(1, 2) for part in parts)
        q, k = turned(q, self.is_interleaved), turned(k, self.is_interleaved)
        k, v = (part.repeat_interleave(HEADS // GROUPS, 1) for part in (k, v))
        scores = (q @ k.mT) * DIM**-0.5
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        out = scores.masked_fill(~causal, float("-inf")).softmax(-1) @ v
        return self.wo(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = linear(WIDTH, INNER), linear(INNER, WIDTH), linear(WIDTH, INNER)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Experts(nn.Module):
    """Each token goes to the best two."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(Mlp() for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        weight, chosen = self.gate(flat).topk(2)
        weight = weight.softmax(1)
        result = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == number)
            result[token] += weight[token, rank, None] * expert(flat[token])
        return result.view_as(x)


class Layer(nn.Module):
    def __init__(self, is_fused: bool, is_interleaved: bool, has_experts: bool) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = Norm(), Norm()
        self.attention = Attention(is_fused, is_interleaved)
        self.feed_forward = Experts() if has_experts else Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Decoder(nn.Module):
    """Tokens `(B, S)` in, logits out."""

    def __init__(self, *, is_fused: bool = False, is_interleaved: bool = False, has_experts: bool = False) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer(is_fused, is_interleaved, has_experts) for _ in range(2))
        self.norm = Norm()
        self.output = linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))
