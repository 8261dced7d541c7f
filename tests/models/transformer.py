"""One small transformer in many spellings: what differs is how attention and MLP are written, not what they compute."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import DIM, HEADS, WIDTH

Made = Callable[[], nn.Module]


def heads_of(x: Tensor) -> Tensor:
    """`(B, S, H * D)` as `(B, H, S, D)`."""
    return x.view(*x.shape[:2], -1, DIM).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """`(B, H, S, D)` as `(B, S, H * D)`."""
    return x.transpose(1, 2).flatten(2)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(DIM)
    return scores.softmax(-1) @ v


def scaled_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * DIM**-0.5) @ k.mT).softmax(-1) @ v


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * DIM**-0.5
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


def loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.stack([eager(q[:, h], k[:, h], v[:, h]) for h in range(q.shape[1])], 1)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def wrongly_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=1 / DIM)


class Split(nn.Module):
    """Four linears; `compute` is the attention over `(B, H, S, D)`."""

    def __init__(self, compute: Callable[..., Tensor] = sdpa, bias: bool = True, key_bias: bool = True) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.k = nn.Linear(WIDTH, WIDTH, bias=bias and key_bias)
        self.v = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.o = nn.Linear(WIDTH, WIDTH)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.o(joined(self.compute(heads_of(self.q(x)), heads_of(self.k(x)), heads_of(self.v(x)))))


class Fused(nn.Module):
    """One linear for q, k and v: rows `(3, H, D)`, or `(H, 3, D)` where `is_per_head`."""

    def __init__(self, is_per_head: bool = False, compute: Callable[..., Tensor] = sdpa, bias: bool = True) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.is_per_head, self.compute = is_per_head, compute

    def forward(self, x: Tensor) -> Tensor:
        batch, size = x.shape[:2]
        if self.is_per_head:
            q, k, v = self.qkv(x).view(batch, size, HEADS, 3, DIM).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = self.qkv(x).view(batch, size, 3, HEADS, DIM).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(joined(self.compute(q, k, v)))


class Chunked(nn.Module):
    """One linear for q, k and v, cut by chunk; its bias is made of a q and a v bias and zeros for k."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.q_bias = nn.Parameter(torch.empty(WIDTH))
        self.v_bias = nn.Parameter(torch.empty(WIDTH))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, -1)
        return self.proj(joined(eager(heads_of(q), heads_of(k), heads_of(v))))


class Packed(nn.Module):
    """nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Transposed(nn.Module):
    """Weights kept as `(in, out)`, as in a Conv1D of GPT-2; q, k, v in one."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.ParameterDict({"weight": torch.empty(WIDTH, 3 * WIDTH), "bias": torch.empty(3 * WIDTH)})
        self.c_proj = nn.ParameterDict({"weight": torch.empty(WIDTH, WIDTH), "bias": torch.empty(WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.c_attn["bias"], x.view(-1, WIDTH), self.c_attn["weight"]).view(*x.shape[:2], -1)
        q, k, v = flat.split(WIDTH, 2)
        out = joined(scaled_query(heads_of(q), heads_of(k), heads_of(v)))
        return out @ self.c_proj["weight"] + self.c_proj["bias"]


class Grouped(nn.Module):
    """Four query heads of half the width share two key and value heads."""

    def __init__(self, is_expanded: bool = False) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.v = nn.Linear(WIDTH, WIDTH, bias=False)
        self.o = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.is_expanded = is_expanded

    def _repeated(self, x: Tensor) -> Tensor:
        if self.is_expanded:
            return x[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2)
        return x.repeat_interleave(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_of(f(x)) for f in (self.q, self.k, self.v))
        return self.o(joined(eager(q, self._repeated(k), self._repeated(v))))


class GroupedFused(nn.Module):
    """The same with one linear: for each key head its two queries, then its key and its value."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.o = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, size = x.shape[:2]
        rows = self.qkv(x).view(batch, size, HEADS, 4, DIM)
        q, k, v = rows.split([2, 1, 1], 3)
        k, v = k.expand_as(q), v.expand_as(q)
        q, k, v = (t.reshape(batch, size, -1, DIM).transpose(1, 2) for t in (q, k, v))
        return self.o(joined(sdpa(q, k, v)))


def angles(size: int) -> Tensor:
    rates = 100 ** -(torch.arange(0, DIM, 2).double() / DIM)
    return torch.outer(torch.arange(size).double(), rates)


class Rotary(nn.Module):
    """Rotary positions on q and k: pairs are the halves of a head, or its neighbours where `is_interleaved`."""

    def __init__(self, is_interleaved: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.is_interleaved = is_interleaved

    def _turned(self, x: Tensor) -> Tensor:
        angle = angles(x.shape[2]).to(x.dtype)
        if self.is_interleaved:
            first, second = x[..., ::2], x[..., 1::2]
            turned = (first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos())
            return torch.stack(turned, -1).flatten(-2)
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_of(f(x)) for f in (self.q, self.k, self.v))
        return self.o(joined(eager(self._turned(q), self._turned(k), v)))


class Biased(nn.Module):
    """A learned bias for each head and relative position, added to scores: a table `(2S - 1, H)` or `(H, 2S - 1)`."""

    def __init__(self, size: int, is_by_head: bool = False) -> None:
        super().__init__()
        self.inner = Split()
        self.table = nn.Parameter(torch.empty((HEADS, 2 * size - 1) if is_by_head else (2 * size - 1, HEADS)))
        place = torch.arange(size)
        self.register_buffer("index", place[:, None] - place[None, :] + size - 1)
        self.is_by_head = is_by_head

    def forward(self, x: Tensor) -> Tensor:
        bias = (
            self.table[:, self.index]
            if self.is_by_head
            else self.table[self.index.view(-1)].view(*self.index.shape, -1).permute(2, 0, 1)
        )
        q, k, v = (heads_of(f(x)) for f in (self.inner.q, self.inner.k, self.inner.v))
        if self.is_by_head:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        else:
            mixed = (q @ k.mT * DIM**-0.5 + bias).softmax(-1) @ v
        return self.inner.o(joined(mixed))


class Mlp(nn.Module):
    def __init__(self, act: nn.Module | None = None, bias: bool = True) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH, bias=bias)
        self.act = act or nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class HandMlp(Mlp):
    """The same with the activation written out."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))))


class PointwiseMlp(nn.Module):
    """The same as 1x1 convolutions over `(B, C, 1, S)`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.Conv2d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).unsqueeze(2)
        return self.fc2(F.gelu(self.fc1(x))).squeeze(2).transpose(1, 2)


class Gated(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GatedFused(nn.Module):
    """The same with one linear for both: the gate's rows first, or last where `is_gate_last`."""

    def __init__(self, is_gate_last: bool = False) -> None:
        super().__init__()
        self.w12 = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.w3 = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.is_gate_last = is_gate_last

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w12(x).chunk(2, -1)
        return self.w3(a * (b.sigmoid() * b) if self.is_gate_last else F.silu(a) * b)


class HandNorm(nn.Module):
    """A layer norm written out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.empty(WIDTH)), nn.Parameter(torch.empty(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        spread = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) * torch.rsqrt(spread + 1e-5) * self.scale + self.shift


class Block(nn.Module):
    def __init__(self, attention: Made, mlp: Made, norm: Made) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm(), attention(), norm(), mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostBlock(Block):
    """Norms after the sums."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class SwappedBlock(Block):
    """The MLP first, then attention."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp(self.norm2(x))
        return x + self.attn(self.norm1(x))


def layer_norm(eps: float = 1e-5) -> nn.Module:
    return nn.LayerNorm(WIDTH, eps)


class Tower(nn.Module):
    """Embedding, blocks, norm, head; `depth` blocks, or one block used twice where `is_shared`."""

    def __init__(
        self,
        attention: Made = Split,
        mlp: Made = Mlp,
        norm: Made = layer_norm,
        *,
        depth: int = 2,
        is_shared: bool = False,
        block: type[Block] = Block,
        final: Made | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(6, WIDTH)
        self.blocks = nn.ModuleList(block(attention, mlp, norm) for _ in range(1 if is_shared else depth))
        self.norm = (final or norm)()
        self.head = nn.Linear(WIDTH, 4)
        self.repeats = depth if is_shared else 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in [*self.blocks] * self.repeats:
            x = block(x)
        return self.head(self.norm(x))
