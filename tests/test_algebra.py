"""Relations that compute: what dest stores is arithmetic on what src stores, found and proved like any move."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from models import noise, randomized
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

import automap
from automap.errors import InputError

WIDTH = 12
IMAGE, ROWS = noise(2, 3, 8, 8), noise(2, 5, WIDTH)


def words() -> Tensor:
    return torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Named parts and a function that computes with them."""

    def __init__(self, forward: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


def conv(out: int = 8, inner: int = 3, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inner, out, size, padding=size // 2, **options)


def convs(norm: bool, bias: bool = True) -> nn.Module:
    """Two convolutions, each followed by a batch norm if asked for."""
    first = [conv(bias=bias), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
    second = [conv(8, 8, groups=2, bias=bias), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(512, 4))


def scaled_layers(is_scaled: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.fc1(x)
        x = x + (y * net.gamma if is_scaled else y)
        return net.fc2(F.gelu(x))

    parts = {"gamma": table(WIDTH)} if is_scaled else {}
    return Net(forward, fc1=nn.Linear(WIDTH, WIDTH), fc2=nn.Linear(WIDTH, 3), **parts)


class Norm(nn.Module):
    def __init__(self, is_offset: bool) -> None:
        super().__init__()
        self.weight, self.is_offset = table(WIDTH), is_offset

    def forward(self, x: Tensor) -> Tensor:
        normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return normal * (1 + self.weight if self.is_offset else self.weight)


def normed(is_offset: bool) -> nn.Module:
    return nn.Sequential(Norm(is_offset), nn.Linear(WIDTH, WIDTH), nn.GELU(), Norm(is_offset), nn.Linear(WIDTH, 3))


def embedded(is_scaled: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        found = net.words(x)
        return net.fc(F.gelu((found * math.sqrt(WIDTH) if is_scaled else found) + net.places.weight[:7]))

    return Net(forward, words=nn.Embedding(20, WIDTH), places=nn.Embedding(7, WIDTH), fc=nn.Linear(WIDTH, 3))


def tables(is_summed: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        found = net.words(x) + net.places.weight
        return net.fc(F.layer_norm(found if is_summed else found + net.kinds.weight[0], (WIDTH,)))

    parts = {} if is_summed else {"kinds": nn.Embedding(2, WIDTH)}
    return Net(forward, words=nn.Embedding(20, WIDTH), places=nn.Embedding(7, WIDTH), fc=nn.Linear(WIDTH, 3), **parts)


def attention(scale: float, kv_heads: int = 3, is_on_query: bool = False, heads: int = 3) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (net.q, net.k, net.v))
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        scores = (q * scale) @ k.mT if is_on_query else q @ k.mT * scale
        return net.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    q, out = nn.Linear(WIDTH, 4 * heads), nn.Linear(4 * heads, WIDTH)
    return Net(forward, q=q, k=nn.Linear(WIDTH, 4 * kv_heads, bias=False), v=nn.Linear(WIDTH, 4 * kv_heads), out=out)


def branches(is_one: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = net.large(x) if is_one else net.bn1(net.large(x)) + net.bn2(net.small(x)) + net.bn3(x)
        return net.fc(F.relu(x).flatten(1))

    parts = {} if is_one else {f"bn{n}": nn.BatchNorm2d(8) for n in (1, 2, 3)} | {"small": conv(8, 8, 1)}
    return Net(forward, stem=conv(), large=conv(8, 8), fc=nn.Linear(512, 4), **parts)


def low_rank(is_merged: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.fc1(x) if is_merged else net.fc1(x) + net.up(net.down(x)) * 2.0
        return net.fc2(F.gelu(y))

    parts = {} if is_merged else {"down": nn.Linear(WIDTH, 2, bias=False), "up": nn.Linear(2, WIDTH, bias=False)}
    return Net(forward, fc1=nn.Linear(WIDTH, WIDTH), fc2=nn.Linear(WIDTH, 3), **parts)


def normalised(is_folded: bool) -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, elementwise_affine=not is_folded), nn.Linear(WIDTH, 8), nn.GELU(),
        nn.LayerNorm(8, elementwise_affine=not is_folded), nn.Linear(8, 3),
    )  # fmt: skip


def plain_linear(is_normed: bool) -> nn.Module:
    fc = nn.Linear(WIDTH, 8)
    return nn.Sequential(weight_norm(fc) if is_normed else fc, nn.ReLU(), nn.Linear(8, 3))


def tempered(shape: tuple[int, ...] | None, function: Callable[[Tensor], Tensor] = torch.exp) -> nn.Module:
    """Attention whose scores are multiplied with a function of a learned table, if there is one."""

    def forward(net: Any, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (net.q, net.k, net.v))
        scores = q @ k.mT if shape is None else q @ k.mT * function(net.temperature)
        return net.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    parts = {} if shape is None else {"temperature": nn.Parameter(torch.empty(shape))}
    return Net(forward, **{name: nn.Linear(WIDTH, WIDTH, bias=name != "k") for name in ("q", "k", "v", "out")}, **parts)


def typed(is_typed: bool) -> nn.Module:
    """Words, all of the first type if types there are, and no positions."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.word(x) + net.kind(torch.zeros_like(x)) if is_typed else net.word(x)
        return net.fc(F.layer_norm(y, (WIDTH,)))

    parts = {"kind": nn.Embedding(2, WIDTH)} if is_typed else {}
    return Net(forward, word=nn.Embedding(20, WIDTH), fc=nn.Linear(WIDTH, 3), **parts)


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


def twice_shifted(is_twice: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.fc2(F.gelu(net.fc1(x) + net.shift if is_twice else net.fc1(x)))

    parts = {"shift": table(8)} if is_twice else {}
    return Net(forward, fc1=nn.Linear(WIDTH, 8), fc2=nn.Linear(8, 3), **parts)


def cosine_head(is_normed: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = F.normalize(net.fc(x), dim=-1)
        return 10 * F.linear(x, F.normalize(net.head, dim=-1)) if is_normed else F.linear(x, net.head)

    return Net(forward, fc=nn.Linear(WIDTH, 8), head=table(5, 8))


def flipped(is_flipped: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        weight = net.weight.flip(-1) if is_flipped else net.weight
        return net.out(F.relu(F.conv1d(x, weight, padding=2)).mean(-1))

    return Net(forward, weight=table(8, 5, 5), out=nn.Linear(8, 3))


def kernels(is_one: bool, *others: tuple[int, int]) -> nn.Module:
    """Depthwise convolutions with kernels of several sizes, each with a norm, added up."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(
            F.relu(net.large(x) if is_one else sum(part(x) for part in (net.large, *net.others))).flatten(1)
        )

    def branch(*size: int) -> nn.Module:
        padding = (size[0] // 2, size[1] // 2)
        return nn.Sequential(nn.Conv2d(8, 8, size, padding=padding, groups=8, bias=False), nn.BatchNorm2d(8))

    large = conv(8, 8, 7, groups=8) if is_one else branch(7, 7)
    parts = {} if is_one else {"others": nn.ModuleList(branch(*size) for size in others)}
    return Net(forward, stem=conv(), large=large, head=nn.Linear(512, 4), **parts)


def chained(first: Callable[[], nn.Module], second: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(conv(), nn.ReLU(), first(), second(), nn.ReLU(), nn.Flatten(), nn.Linear(384, 4))


def affine_before(norm: nn.Module, kernel: nn.Module) -> nn.Module:
    return nn.Sequential(conv(), nn.ReLU(), norm, kernel, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


CASES = [
    pytest.param(
        lambda: kernels(False, (3, 3), (7, 1), (1, 5)), lambda: kernels(True), IMAGE, id="kernels-of-several-sizes"
    ),
    pytest.param(
        lambda: chained(lambda: conv(5, 8, 1, bias=False), lambda: conv(6, 5)),
        lambda: chained(lambda: conv(6, 8), nn.Identity),
        IMAGE,
        id="pointwise-into-the-convolution-behind",
    ),
    pytest.param(
        lambda: chained(lambda: conv(8, 8, groups=8), lambda: conv(6, 8, 1)),
        lambda: chained(lambda: conv(6, 8), nn.Identity),
        IMAGE,
        id="depthwise-and-pointwise-into-one",
    ),
    pytest.param(
        lambda: nn.Sequential(nn.Linear(WIDTH, 5), nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, 3)),
        ROWS,
        id="factors-multiplied",
    ),
    pytest.param(
        lambda: affine_before(nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)),
        lambda: affine_before(nn.Identity(), nn.Conv2d(8, 6, 3)),
        IMAGE,
        id="batch-norm-into-the-convolution-behind",
    ),
    pytest.param(
        lambda: affine_before(nn.GroupNorm(2, 8), conv(6, 8, 1)),
        lambda: affine_before(nn.GroupNorm(2, 8, affine=False), conv(6, 8, 1)),
        IMAGE,
        id="group-norm-into-pointwise",
    ),
    pytest.param(
        lambda: affine_before(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8)),
        lambda: affine_before(nn.Identity(), nn.Conv2d(8, 8, 3, groups=8)),
        IMAGE,
        id="batch-norm-into-depthwise",
    ),
    pytest.param(lambda: tempered((1,)), lambda: tempered(None), ROWS, id="temperature-into-query"),
    pytest.param(lambda: tempered(()), lambda: tempered(None), ROWS, id="scalar-temperature-into-query"),
    pytest.param(lambda: tempered((3, 1, 1)), lambda: tempered(None), ROWS, id="temperatures-of-heads-into-query"),
    pytest.param(lambda: tempered(None), lambda: tempered((3, 1, 1)), ROWS, id="temperatures-of-heads-made"),
    pytest.param(
        lambda: tempered((3, 1, 1)), lambda: tempered((3, 1, 1), F.softplus), ROWS, id="exponential-to-softplus"
    ),
    pytest.param(lambda: typed(True), lambda: typed(False), words(), id="type-into-words"),
    pytest.param(lambda: twice_shifted(True), lambda: twice_shifted(False), ROWS, id="two-biases-summed"),
    pytest.param(lambda: cosine_head(True), lambda: cosine_head(False), ROWS, id="scaled-output-into-head"),
    pytest.param(lambda: flipped(True), lambda: flipped(False), ROWS, id="kernel-flipped"),
    pytest.param(lambda: convs(True), lambda: convs(False), IMAGE, id="batch-norm-into-convolutions"),
    pytest.param(
        lambda: convs(True, False), lambda: convs(False), IMAGE, id="batch-norm-into-convolutions-without-bias"
    ),
    pytest.param(lambda: convs(False), lambda: convs(True), IMAGE, id="convolutions-to-batch-norm"),
    pytest.param(lambda: convs(False), lambda: convs(True, False), IMAGE, id="biases-to-batch-norm"),
    pytest.param(lambda: scaled_layers(True), lambda: scaled_layers(False), ROWS, id="layer-scale-folded"),
    pytest.param(lambda: scaled_layers(False), lambda: scaled_layers(True), ROWS, id="layer-scale-made"),
    pytest.param(lambda: normed(False), lambda: normed(True), ROWS, id="norm-to-one-plus"),
    pytest.param(lambda: normed(True), lambda: normed(False), ROWS, id="one-plus-to-norm"),
    pytest.param(lambda: embedded(True), lambda: embedded(False), words(), id="embedding-scale-folded"),
    pytest.param(lambda: embedded(False), lambda: embedded(True), words(), id="embedding-scale-undone"),
    pytest.param(lambda: tables(False), lambda: tables(True), words(), id="tables-summed"),
    pytest.param(lambda: tables(True), lambda: tables(False), words(), id="tables-apart"),
    pytest.param(lambda: attention(0.5), lambda: attention(0.7), ROWS, id="attention-scale"),
    pytest.param(
        lambda: attention(0.5), lambda: attention(1.0, is_on_query=True), ROWS, id="attention-scale-into-query"
    ),
    pytest.param(lambda: attention(0.5, 1), lambda: attention(0.5), ROWS, id="one-key-head-repeated"),
    pytest.param(lambda: attention(0.5, 2, heads=4), lambda: attention(0.5, 4, heads=4), ROWS, id="key-heads-repeated"),
    pytest.param(lambda: branches(False), lambda: branches(True), IMAGE, id="branches-merged"),
    pytest.param(lambda: low_rank(False), lambda: low_rank(True), ROWS, id="low-rank-update-merged"),
    pytest.param(lambda: normalised(False), lambda: normalised(True), ROWS, id="layer-norm-into-linear"),
    pytest.param(lambda: normalised(True), lambda: normalised(False), ROWS, id="layer-norm-made"),
    pytest.param(lambda: plain_linear(True), lambda: plain_linear(False), ROWS, id="weight-norm-to-plain"),
    pytest.param(lambda: plain_linear(False), lambda: plain_linear(True), ROWS, id="plain-to-weight-norm"),
]


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


PARAMETRISED = [
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


@pytest.mark.parametrize(("make_src", "make_dest", "sample"), CASES)
def test_computed_weights_are_found_and_proved(
    make_src: Callable[[], nn.Module], make_dest: Callable[[], nn.Module], sample: Tensor
) -> None:
    src, dest = randomized(make_src(), 1), randomized(make_dest(), 2)
    done = automap.transfer(src, dest, sample)
    assert done.match.verdict == "complete"
    assert set(done.evidence.values()) == {"proved"}
    with torch.no_grad():
        torch.testing.assert_close(dest(sample), src(sample), rtol=1e-4, atol=1e-5)


def test_what_is_computed_is_said_with_its_formula() -> None:
    src, dest = randomized(scaled_layers(True), 1), randomized(scaled_layers(False), 2)
    found = automap.match(src, dest, ROWS)
    said = {f.dest.name: f for f in found.findings if f.code == "computed" and f.dest is not None}
    assert set(said) == {"fc1.weight", "fc1.bias"}
    assert "gamma" in said["fc1.weight"].message
    assert said["fc1.weight"].severity == "note"


def test_without_algebra_what_would_be_computed_is_missing_and_said() -> None:
    src, dest = randomized(scaled_layers(True), 1), randomized(scaled_layers(False), 2)
    found = automap.match(src, dest, ROWS, algebra=False)
    assert found.verdict == "impossible"
    assert set(found.plan.entries) == {"fc2.weight", "fc2.bias"}
    wanted = [f for f in found.findings if f.code == "unmatched-weight"]
    assert [f.message.split(" would")[0] for f in wanted] == ["`fc1.weight`", "`fc1.bias`"]
    assert all("gamma" in f.message for f in wanted)


def test_without_algebra_a_plan_that_only_moves_is_the_same() -> None:
    src, dest = randomized(convs(True), 1), randomized(convs(True), 2)
    assert automap.match(src, dest, IMAGE, algebra=False).plan == automap.match(src, dest, IMAGE).plan


def test_a_free_choice_is_the_simplest_and_said() -> None:
    src, dest = randomized(scaled_layers(False), 1), randomized(scaled_layers(True), 2)
    found = automap.match(src, dest, ROWS)
    (said,) = [f for f in found.findings if f.code == "neutral-filled"]
    assert "`gamma` is filled with ones" in said.message
    assert torch.equal(found.plan.apply(src.state_dict())["gamma"], torch.ones(WIDTH))


def test_products_with_a_cut_between_them_are_two() -> None:
    def twice(net: Any, x: Tensor) -> Tensor:
        return net.last(F.gelu(net.second(net.first(x)[..., :4])))

    def cut() -> nn.Module:
        return Net(twice, first=nn.Linear(WIDTH, 8), second=nn.Linear(4, 4), last=nn.Linear(4, 3))

    assert automap.match(randomized(cut(), 1), randomized(cut(), 2), ROWS).is_complete


def test_a_norm_before_padding_is_not_folded() -> None:
    src, dest = affine_before(nn.BatchNorm2d(8), conv(6, 8)), affine_before(nn.Identity(), conv(6, 8))
    assert automap.match(randomized(src, 1), randomized(dest, 2), IMAGE).verdict == "impossible"


def deep(blocks: int) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        for block in net.blocks:
            x = x + block(x)
        return net.fc(x)

    layers = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)) for _ in range(blocks))
    return Net(forward, blocks=nn.ModuleList(layers), fc=nn.Linear(WIDTH, 3))


@pytest.mark.parametrize(("ours", "theirs"), [(2, 3), (3, 2)], ids=["one-more", "one-fewer"])
def test_no_block_is_made_to_vanish(ours: int, theirs: int) -> None:
    src, dest = randomized(deep(ours), 1), randomized(deep(theirs), 2)
    assert automap.match(src, dest, ROWS).verdict == "impossible"


def test_a_tied_table_is_not_scaled_for_one_of_its_uses() -> None:
    def tied(scale: float) -> nn.Module:
        def forward(net: Any, x: Tensor) -> Tensor:
            return net.fc(net.words(x) * scale) @ net.words.weight.T

        return Net(forward, words=nn.Embedding(20, WIDTH), fc=nn.Linear(WIDTH, WIDTH, bias=False))

    found = automap.match(randomized(tied(2.0), 1), randomized(tied(1.0), 2), words())
    assert found.verdict != "complete"
    assert not [f for f in found.findings if f.code == "computed" and f.dest and f.dest.name == "words.weight"]


def test_a_pin_decides_between_twins() -> None:
    def twins() -> nn.Module:
        def forward(net: Any, x: Tensor) -> Tensor:
            return F.gelu(net.left(x)) + F.gelu(net.right(x))

        return Net(forward, left=nn.Linear(WIDTH, 5), right=nn.Linear(WIDTH, 5))

    src, dest = randomized(twins(), 1), randomized(twins(), 2)
    for one, other in (("left", "right"), ("right", "left")):
        found = automap.match(src, dest, ROWS, pins=[f"left.weight={one}.weight"])
        assert found.verdict == "complete"
        state = found.plan.apply(src.state_dict())
        assert torch.equal(state["left.weight"], src.state_dict()[f"{one}.weight"])
        assert torch.equal(state["right.bias"], src.state_dict()[f"{other}.bias"])


def test_a_pin_to_rows_decides_between_parts() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Linear(WIDTH, 10)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.both(x).chunk(2, -1)
            return F.gelu(a) + F.gelu(b)

    src = randomized(Parts(), 1)
    src_state = src.state_dict()["both.weight"]

    def split() -> nn.Module:
        def forward(net: Any, x: Tensor) -> Tensor:
            return F.gelu(net.left(x)) + F.gelu(net.right(x))

        return Net(forward, left=nn.Linear(WIDTH, 5), right=nn.Linear(WIDTH, 5))

    dest = randomized(split(), 2)
    found = automap.match(src, dest, ROWS, pins=["left.weight=both.weight[5:10]"])
    assert found.verdict == "complete"
    assert torch.equal(found.plan.apply(src.state_dict())["left.weight"], src_state[5:])


@pytest.mark.parametrize(
    ("pin", "message"),
    [
        pytest.param("left.weight", "has not the form DEST=SRC", id="no-src"),
        pytest.param("left.wieght=both.weight", "dest runs no weight called 'left.wieght'", id="no-such-dest"),
        pytest.param("fc1.weight=nowhere", "src runs no weight called 'nowhere'", id="no-such-src"),
        pytest.param("fc1.weight=fc1.weight[50:60]", "holds nothing", id="no-such-rows"),
        pytest.param("fc1.weight=fc1.weight[0,0,0]", "does not fit shape", id="too-many-dims"),
    ],
)
def test_a_pin_that_names_nothing_is_a_clear_error(pin: str, message: str) -> None:
    src, dest = randomized(scaled_layers(False), 1), randomized(scaled_layers(False), 2)
    with pytest.raises(InputError, match=message):
        automap.match(src, dest, ROWS, pins=[pin])
