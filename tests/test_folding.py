"""What is folded into a kernel, a projection or a table: each case found and proved, near misses refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import randomized
from models.nets import IMAGE, ROWS, WIDTH, Net, conv, table, words
from torch import Tensor, nn
from torch.nn import functional as F

import automap


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
]


@pytest.mark.parametrize(("make_src", "make_dest", "sample"), CASES)
def test_what_is_folded_is_found_and_proved(
    make_src: Callable[[], nn.Module], make_dest: Callable[[], nn.Module], sample: Tensor
) -> None:
    src, dest = randomized(make_src(), 1), randomized(make_dest(), 2)
    done = automap.transfer(src, dest, sample)
    assert done.match.verdict == "complete"
    assert set(done.evidence.values()) == {"proved"}
    with torch.no_grad():
        torch.testing.assert_close(dest(sample), src(sample), rtol=1e-4, atol=1e-5)


def test_products_with_a_cut_between_them_are_two() -> None:
    def twice(net: Any, x: Tensor) -> Tensor:
        return net.last(F.gelu(net.second(net.first(x)[..., :4])))

    def cut() -> nn.Module:
        return Net(twice, first=nn.Linear(WIDTH, 8), second=nn.Linear(4, 4), last=nn.Linear(4, 3))

    assert automap.match(randomized(cut(), 1), randomized(cut(), 2), ROWS).is_complete


def test_a_norm_before_padding_is_not_folded() -> None:
    src, dest = affine_before(nn.BatchNorm2d(8), conv(6, 8)), affine_before(nn.Identity(), conv(6, 8))
    assert automap.match(randomized(src, 1), randomized(dest, 2), IMAGE).verdict == "impossible"
