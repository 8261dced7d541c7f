"""Small token models in several spellings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import WIDTH
from models.transformer import Block, Mlp, Split, eager, heads_of, joined, layer_norm

VOCABULARY = 20


class Tokens(nn.Module):
    """Embedding, positions, a block, an output projection: its own, or the embedding where `is_tied`."""

    def __init__(self, is_tied: bool = True, offset: int = 0) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(12 + offset, WIDTH)
        self.block = Block(Split, Mlp, layer_norm)
        self.out = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.offset = offset
        if is_tied:
            self.out.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device) + self.offset
        return self.out(self.block(self.words(tokens) + self.places(place)))


class TokensByHand(Tokens):
    """The same with the rows of the position table taken by a slice."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words.weight[tokens] + self.places.weight[: tokens.shape[1]]
        return self.block(x) @ self.out.weight.T


class Queries(nn.Module):
    """Learned queries look at the input: `is_flat` keeps them without a batch dim."""

    def __init__(self, is_flat: bool = False) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(3, WIDTH) if is_flat else torch.empty(1, 3, WIDTH))
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.is_flat = is_flat

    def forward(self, x: Tensor) -> Tensor:
        own = self.queries
        queries = own.unsqueeze(0).repeat(len(x), 1, 1) if self.is_flat else own.expand(len(x), -1, -1)
        return self.o(joined(eager(heads_of(self.q(queries)), heads_of(self.k(x)), heads_of(self.v(x)))))


class Recurrent(nn.Module):
    """Two layers of an LSTM in both directions, as one op."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, 6, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class GateLoop(nn.Module):
    """The same, step by step: one projection for each gate of what comes in and of what went before."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(
            nn.ModuleDict({f"{g}_{s}": nn.Linear(n, 6) for g in "ofgi" for s, n in (("in", size), ("back", 6))})
            for size in (WIDTH, WIDTH, 12, 12)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(2):
            ahead = self._scan(self.cells[2 * layer], x.unbind(1))
            back = self._scan(self.cells[2 * layer + 1], x.unbind(1)[::-1])[::-1]
            x = torch.cat([torch.stack(ahead, 1), torch.stack(back, 1)], -1)
        return x

    def _scan(self, cell: nn.Module, steps: Sequence[Tensor]) -> list[Tensor]:
        state = memory = steps[0].new_zeros(len(steps[0]), 6)
        found = []
        for step in steps:
            o, f, g, i = (cell[f"{n}_in"](step) + cell[f"{n}_back"](state) for n in "ofgi")
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            state = o.sigmoid() * memory.tanh()
            found.append(state)
        return found


class Experts(nn.Module):
    """Each token goes to the best two of four experts, a list of linears; which ones run depends on the weights."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, count, bias=False)
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(count))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH, bias=False) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weight, chosen = self.router(flat).softmax(-1).topk(2)
        result = torch.zeros_like(flat)
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            token, rank = torch.where(chosen == number)
            if token.numel():
                result.index_add_(0, token, down(F.silu(up(flat[token]))) * weight[token, rank, None])
        return result.view_as(x)


class PackedExperts(nn.Module):
    """The same with the experts' weights packed as `(count, in, out)`; each on its tokens, or all if `is_dense`."""

    def __init__(self, count: int = 4, is_dense: bool = False) -> None:
        super().__init__()
        self.is_dense = is_dense
        self.gate = nn.Parameter(torch.empty(count, WIDTH))
        self.up = nn.Parameter(torch.empty(count, WIDTH, 2 * WIDTH))
        self.down = nn.Parameter(torch.empty(count, 2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weight, chosen = F.linear(flat, self.gate).softmax(-1).topk(2)
        if self.is_dense:
            share = torch.zeros(len(flat), len(self.up), dtype=x.dtype).scatter(1, chosen, weight)
            every = F.silu(flat @ self.up) @ self.down
            return (every * share.T.unsqueeze(-1)).sum(0).view_as(x)
        result = torch.zeros_like(flat)
        for number in chosen.unique().tolist():
            token, rank = torch.where(chosen == number)
            inner = F.silu(flat[token] @ self.up[number]) @ self.down[number]
            result.index_add_(0, token, inner * weight[token, rank].unsqueeze(-1))
        return result.view_as(x)


class TwoHeads(nn.Module):
    """Two heads of one shape: the class head reads token 0, the distillation head token 1."""

    def __init__(self, is_swapped: bool = False) -> None:
        super().__init__()
        self.block = Block(Split, Mlp, layer_norm)
        self.head, self.head_dist = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)
        self.is_swapped = is_swapped

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        first, second = (1, 0) if self.is_swapped else (0, 1)
        return (self.head(x[:, first]) + self.head_dist(x[:, second])) / 2


class ManyOutputs(nn.Module):
    """Returns the hidden state too, and what a pooler of its own makes of it."""

    def __init__(self, is_rich: bool = False) -> None:
        super().__init__()
        self.block = Block(Split, Mlp, layer_norm)
        self.head = nn.Linear(WIDTH, 4)
        self.is_rich = is_rich
        if is_rich:
            self.pooler = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        x = self.block(x)
        logits = self.head(x.mean(1))
        return {"logits": logits, "pooled": torch.tanh(self.pooler(x[:, 0]))} if self.is_rich else logits
