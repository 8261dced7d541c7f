"""Weights that one side computes before data meets them, and products that the other side takes apart or together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from models import noise, randomized
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

import automap

WIDTH = 12
ROWS = noise(2, 5, WIDTH)


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


class Heads(nn.Module):
    """Attention with a projection for each head, or one for all of them."""

    def __init__(self, is_fused: bool) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH)
        parts = {"fused": nn.Linear(WIDTH, 3 * WIDTH)} if is_fused else {}
        single = {} if is_fused else {n: nn.ModuleList(nn.Linear(WIDTH, 4, n != "k") for _ in range(3)) for n in "qkv"}
        self.parts = nn.ModuleDict({**parts, **single})

    def forward(self, x: Tensor) -> Tensor:
        if "fused" in self.parts:
            q, k, v = self.parts["fused"](x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.5
            return self.out(torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), v).flatten(2))
        heads = zip(*(self.parts[name] for name in "qkv"), strict=True)
        return self.out(torch.cat([(q(x) @ k(x).mT / 2).softmax(-1) @ v(x) for q, k, v in heads], -1))


@pytest.mark.parametrize("is_fused", [True, False])
def test_heads_in_a_loop_meet_one_projection(is_fused: bool) -> None:
    src, dest = randomized(Heads(is_fused), 1), randomized(Heads(not is_fused), 2)
    assert automap.transfer(src, dest, ROWS).match.is_complete


class Cells(nn.Module):
    """Two gated recurrent layers, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.GRUCell(WIDTH, 8), nn.GRUCell(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        for cell in self.cells:
            state, states = x.new_zeros(x.shape[0], 8), []
            for step in x.unbind(1):
                state = cell(step, state)
                states.append(state)
            x = torch.stack(states, 1)
        return x


class Stack(nn.GRU):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]  # type: ignore[no-any-return]


def test_what_src_computes_for_all_steps_at_once_meets_cells() -> None:
    src = nn.Sequential(Stack(WIDTH, 8, 2, batch_first=True), nn.Linear(8, 3))
    dest = nn.Sequential(Cells(), nn.Linear(8, 3))
    assert automap.match(randomized(src, 1), randomized(dest, 2), ROWS).is_complete


def parametrised(parametrise: Callable[[nn.Module], nn.Module], width: int = WIDTH) -> nn.Module:
    """A layer that computes its weight, between two that store theirs."""
    layer = parametrise(nn.Linear(WIDTH, width))
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), layer, nn.GELU(), nn.Linear(width, 3))


class Updated(nn.Module):
    """A weight with a low-rank update, added up before the data comes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, WIDTH)), nn.Parameter(torch.randn(8))
        self.down, self.up = nn.Parameter(torch.randn(2, WIDTH)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 0.5 * self.up @ self.down, self.bias)


class Magnitude(Updated):
    """The updated weight in another length for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.length = nn.Parameter(torch.rand(8, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.up @ self.down
        return F.linear(x, self.length * weight / weight.norm(dim=1, keepdim=True), self.bias)


PARAMETRISED = [
    pytest.param(lambda _: Magnitude(), 8, id="low-rank-update-and-magnitude"),
    *(
        pytest.param(partial(orthogonal, orthogonal_map=name, use_trivialization=based), 12, id=f"{name}-{based}")
        for name in ("cayley", "matrix_exp", "householder")
        for based in (True, False)
    ),
    pytest.param(partial(orthogonal, orthogonal_map="matrix_exp"), 20, id="orthogonal-columns"),
    pytest.param(partial(orthogonal, orthogonal_map="householder"), 8, id="orthogonal-rows"),
    pytest.param(spectral_norm, 8, id="spectral-norm"),
    pytest.param(nn.utils.spectral_norm, 8, id="spectral-norm-by-hook"),
    pytest.param(partial(weight_norm, dim=None), 8, id="one-norm-for-all"),
    pytest.param(lambda _: Updated(), 8, id="low-rank-update-of-the-weight"),
]


@pytest.mark.parametrize(("parametrise", "width"), PARAMETRISED)
def test_a_weight_that_src_computes_is_stored_in_dest(
    parametrise: Callable[[nn.Module], nn.Module], width: int
) -> None:
    torch.manual_seed(1)
    src, dest = parametrised(parametrise, width).eval(), randomized(parametrised(lambda layer: layer, width), 2)
    found = automap.match(src, dest, ROWS)
    assert found.is_complete
    assert set(found.evidence.values()) == {"proved"}
    dest.load_state_dict(found.plan.apply(src.state_dict()))
    assert torch.allclose(dest(ROWS), src(ROWS), rtol=1e-5, atol=1e-6)


class Warped(nn.Module):
    """A weight under a function that plans have not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = table(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.erf(self.weight))


def test_a_weight_that_no_plan_can_compute_is_named() -> None:
    src = nn.Sequential(Warped(), nn.GELU(), nn.Linear(WIDTH, 3))
    dest = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.GELU(), nn.Linear(WIDTH, 3))
    found = automap.match(randomized(src, 1), randomized(dest, 2), ROWS)
    assert found.verdict == "impossible"
    assert [f.message for f in found.findings if f.severity == "error"] == [
        "`0.weight` is computed from src's weights in a way that no plan can hold: `erf` of weights has no counterpart "
        "in a plan"
    ]
