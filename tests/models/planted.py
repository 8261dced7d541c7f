"""A decoder of tokens and a net of images, with a switch for each thing that implementations differ in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, WORDS = 16, 4, 20


@dataclass(frozen=True)
class Text:
    """What a decoder does; a test changes one thing."""

    eps: float = 1e-5
    rms: bool = True
    act: Callable[[Tensor], Tensor] = F.silu
    is_gated: bool = True
    scale: float = (WIDTH // HEADS) ** -0.5
    score_scale: float = 1.0
    soft_cap: float | None = None
    final_cap: float | None = None
    window: int | None = None
    is_causal: bool = True
    theta: float = 10000.0
    part: float = 1.0
    is_interleaved: bool = False
    position_shift: int = 0
    kv_heads: int = 2
    is_kv_tiled: bool = False
    softmax_dim: int = -1
    has_qk_norm: bool = False
    norm_first: bool = True
    is_parallel: bool = False
    has_final_norm: bool = True
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    mask_value: float = float("-inf")
    head_token: int | None = None
    has_residual: bool = True
    has_embed_norm: bool = False
    alibi: float = 0.0
    sink: bool = False
    is_mean: bool = False
    logit_scale: float = 1.0
    swap_gate: bool = False
    clamp: float | None = None
    rope_scale: float = 1.0
    value_act: Callable[[Tensor], Tensor] | None = None
    is_log: bool = False


class Norm(nn.Module):
    def __init__(self, o: Text, width: int = WIDTH) -> None:
        super().__init__()
        self.weight, self.o = nn.Parameter(torch.ones(width)), o

    def forward(self, x: Tensor) -> Tensor:
        if not self.o.rms:
            return F.layer_norm(x, x.shape[-1:], self.weight, None, self.o.eps)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.o.eps) * self.weight


def turned(x: Tensor, o: Text) -> Tensor:
    """Rotary positions on the first part of each head."""
    width = int(x.shape[-1] * o.part)
    x, rest = x[..., :width], x[..., width:]
    places = (torch.arange(x.shape[-2]) + o.position_shift) * o.rope_scale
    angles = places[:, None] * o.theta ** (-torch.arange(0, width, 2) / width)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., ::2], x[..., 1::2]) if o.is_interleaved else x.chunk(2, -1)
    parts = (a * cos - b * sin, b * cos + a * sin)
    x = torch.stack(parts, -1).flatten(-2) if o.is_interleaved else torch.cat(parts, -1)
    return torch.cat([x, rest], -1)


class Attention(nn.Module):
    def __init__(self, o: Text) -> None:
        super().__init__()
        dim = WIDTH // HEADS
        self.q, self.o_proj = nn.Linear(WIDTH, WIDTH, False), nn.Linear(WIDTH, WIDTH, False)
        self.k, self.v = (nn.Linear(WIDTH, dim * o.kv_heads, False) for _ in range(2))
        self.o, self.dim = o, dim
        if o.has_qk_norm:
            self.q_norm, self.k_norm = Norm(o, dim), Norm(o, dim)

    def forward(self, x: Tensor) -> Tensor:
        o = self.o
        q, k, v = (f(x).unflatten(-1, (-1, self.dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if o.has_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = turned(q, o), turned(k, o)
        count = HEADS // o.kv_heads
        k, v = ((t.repeat(1, count, 1, 1) if o.is_kv_tiled else t.repeat_interleave(count, 1)) for t in (k, v))
        v = v if o.value_act is None else o.value_act(v)
        scores = q @ k.mT * o.scale * o.score_scale
        if o.soft_cap is not None:
            scores = torch.tanh(scores / o.soft_cap) * o.soft_cap
        length = x.shape[1]
        gaps = torch.arange(length)[:, None] - torch.arange(length)
        if o.alibi:
            scores = scores - o.alibi * gaps.abs()
        blocked = gaps < 0 if o.is_causal else torch.zeros_like(gaps, dtype=torch.bool)
        blocked = blocked | (gaps >= o.window) if o.window is not None else blocked
        if o.is_causal or o.window is not None:
            scores = scores.masked_fill(blocked, o.mask_value)
        if o.sink:
            weights = F.pad(scores, (0, 1)).softmax(-1)[..., :-1]
        else:
            weights = scores.log_softmax(-1) if o.is_log else scores.softmax(o.softmax_dim)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, o: Text) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH, False), nn.Linear(3 * WIDTH, WIDTH, False)
        self.o = o
        if o.is_gated:
            self.gate = nn.Linear(WIDTH, 3 * WIDTH, False)

    def forward(self, x: Tensor) -> Tensor:
        o, up = self.o, self.up(x)
        if not o.is_gated:
            return self.down(o.act(up))
        gate = self.gate(x)
        if o.clamp is not None:
            gate, up = gate.clamp(max=o.clamp), up.clamp(-o.clamp, o.clamp)
        return self.down(gate * o.act(up) if o.swap_gate else o.act(gate) * up)


class Block(nn.Module):
    def __init__(self, o: Text) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(o), Mlp(o)
        self.norm1, self.norm2, self.o = Norm(o), Norm(o), o

    def forward(self, x: Tensor) -> Tensor:
        o = self.o
        if o.is_parallel:
            return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))
        if not o.norm_first:
            x = self.norm1(x + self.attn(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.attn(self.norm1(x)) * o.residual_scale
        more = self.mlp(self.norm2(x)) * o.residual_scale
        return x + more if o.has_residual else more


class Decoder(nn.Module):
    """Tokens to scores of words (or one head's choice of a token)."""

    def __init__(self, depth: int = 2, **options: Any) -> None:
        super().__init__()
        o = Text(**options)
        self.o = o
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Block(o) for _ in range(depth))
        self.head = nn.Linear(WIDTH, WORDS, False)
        if o.has_final_norm:
            self.norm = Norm(o)
        if o.has_embed_norm:
            self.embed_norm = Norm(o)

    def forward(self, ids: Tensor) -> Tensor:
        o, x = self.o, self.words(ids)
        x = x * o.embed_scale if o.embed_scale != 1 else x
        x = self.embed_norm(x) if o.has_embed_norm else x
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x) if o.has_final_norm else x
        x = x if o.head_token is None else x[:, o.head_token]
        x = x.mean(1) if o.is_mean else x
        x = self.head(x) * o.logit_scale
        return x if o.final_cap is None else torch.tanh(x / o.final_cap) * o.final_cap


@dataclass(frozen=True)
class Image:
    """What a net of images does; a test changes one thing."""

    eps: float = 1e-5
    act: Callable[[Tensor], Tensor] = F.relu
    padding: int = 1
    padding_mode: str = "zeros"
    dilation: int = 1
    groups: int = 1
    strides: tuple[int, int] = (1, 2)
    pool: Callable[[Tensor], Tensor] = lambda x: F.max_pool2d(x, 3, 2, 1)
    resize: Callable[[Tensor], Tensor] = lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")
    norm: str = "batch"
    norm_groups: int = 4
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    has_norm: bool = False
    head: Callable[[Tensor], Tensor] = lambda x: x.mean((2, 3))
    has_residual: bool = True
    has_gate: bool = True
    gate: Callable[[Tensor], Tensor] = torch.sigmoid
    is_norm_last: bool = False
    shuffle: int = 1
    shift: int = 0
    dropout: float = 0.0
    is_relu_after: bool = True
    unit: Callable[[Tensor], Tensor] = lambda x: x
    head_norm: bool = False
    asymmetric: bool = False


class ImageBlock(nn.Module):
    def __init__(self, width: int, o: Image) -> None:
        super().__init__()
        self.one = nn.Conv2d(
            width, width, 3, o.strides[0], o.padding * o.dilation, o.dilation, o.groups, False, o.padding_mode
        )
        self.two = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = self.made(width, o), self.made(width, o)
        self.squeeze, self.excite, self.o = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1), o

    @staticmethod
    def made(width: int, o: Image) -> nn.Module:
        if o.norm == "batch":
            return nn.BatchNorm2d(width, o.eps)
        return (
            nn.GroupNorm(o.norm_groups, width, o.eps)
            if o.norm == "group"
            else nn.InstanceNorm2d(width, o.eps, affine=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        o = self.o
        y = torch.roll(x, (o.shift, o.shift), (2, 3)) if o.shift else x
        y = self.norm1(o.act(self.one(y))) if o.is_norm_last else o.act(self.norm1(self.one(y)))
        if o.shuffle > 1:
            y = y.unflatten(1, (o.shuffle, -1)).transpose(1, 2).flatten(1, 2)
        y = F.dropout(y, o.dropout, True) if o.dropout else y
        y = self.norm2(self.two(y))
        if o.has_gate:
            y = y * o.gate(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = y + x if o.has_residual else y
        return o.act(y) if o.is_relu_after else y


class Net(nn.Module):
    """Images to scores of classes."""

    def __init__(self, depth: int = 2, **options: Any) -> None:
        super().__init__()
        o = Image(**options)
        self.o = o
        self.stem = nn.Conv2d(3, 8, 3, 2, 0 if o.asymmetric else 1)
        self.blocks = nn.ModuleList(ImageBlock(8, o) for _ in range(depth))
        self.lateral, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        if o.head_norm:
            self.head_normed = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        o = self.o
        if o.has_norm:
            x = (x - torch.tensor(o.mean).view(-1, 1, 1)) / torch.tensor(o.std).view(-1, 1, 1)
        x = o.act(self.stem(F.pad(x, (0, 1, 0, 1)) if o.asymmetric else x))
        x = o.pool(x)
        for block in self.blocks:
            x = block(x)
        x = o.resize(self.lateral(x))
        x = o.unit(o.head(x))
        x = self.head_normed(x) if o.head_norm else x
        return self.head(x)
