"""Pieces of sequence models in other spellings, each of which a walk that goes back has to get right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import noise, randomized
from models.nets import WIDTH, Net, table, words
from torch import Tensor, nn
from torch.nn import functional as F

import automap


def embedded(is_apart: bool) -> nn.Module:
    """Attention over words, types and positions, added in two orders; queries and keys laid out once or apart."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.word(x) + net.kind[0] + net.place if not is_apart else net.word(x) + net.place + net.kind[0]
        x = F.layer_norm(x, (WIDTH,))
        one = x.transpose(0, 1)
        other = x.transpose(0, 1) if is_apart else one
        k, q, v = net.k(one), net.q(one), net.v(other)
        q, k, v = (part.unflatten(-1, (3, 4)).permute(1, 2, 0, 3) for part in (q, k, v))
        return net.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    names = ("q", "k", "v", "out")
    parts = {name: nn.Linear(WIDTH, WIDTH) for name in names}
    return Net(forward, word=nn.Embedding(20, WIDTH), place=table(7, WIDTH), kind=table(2, WIDTH), **parts)


def translated(scale: float, is_shifted: bool = False) -> nn.Module:
    """One table for the words that are read and those that are written, scaled by a number; zeros may be added last."""

    def forward(net: Any, x: Tensor) -> Tensor:
        def read(words: Tensor, places: Tensor) -> Tensor:
            return F.layer_norm(net.word(words) * scale + places, (WIDTH,))

        y = net.out(torch.tanh(net.a(read(x, net.theirs)).mean(1, keepdim=True)) + net.b(read(x.flip(0), net.ours)))
        return y + net.shift if is_shifted else y

    parts = {"a": nn.Linear(WIDTH, 8), "b": nn.Linear(WIDTH, 8), "out": nn.Linear(8, 5, bias=False)}
    net = Net(forward, word=nn.Embedding(20, WIDTH), theirs=table(7, WIDTH), ours=table(7, WIDTH), **parts)
    if is_shifted:
        net.register_buffer("shift", torch.zeros(1, 5))
    return net


def headed(scale: float) -> nn.Module:
    """A head that reads a norm's result times a number."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = F.rms_norm(net.word(x) + net.fc(torch.tanh(net.word(x))), (WIDTH,), net.gain)
        return net.head((x * scale).transpose(0, 1)).transpose(0, 1)

    parts = {"fc": nn.Linear(WIDTH, WIDTH), "gain": table(WIDTH), "head": nn.Linear(WIDTH, 5)}
    return Net(forward, word=nn.Embedding(20, WIDTH), **parts)


def normed(how: str) -> nn.Module:
    """A convolution whose kernel is a direction and a length, spelled in several ways."""

    def kernel(v: Tensor, g: Tensor) -> Tensor:
        if how == "factors":
            return v / v.pow(2).sum((1, 2), keepdim=True).sqrt() * g
        if how == "factor":
            return v * (g / v.norm(dim=(1, 2), keepdim=True))
        return g * F.normalize(v.flatten(1), dim=1).view_as(v)

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.conv(x) if how in ("plain", "module") else F.conv1d(x, kernel(net.v, net.g), net.bias)
        return net.out(F.relu(y))

    conv, out = nn.Conv1d(5, 6, 3), nn.Conv1d(6, 2, 1)
    if how == "module":
        return Net(forward, conv=nn.utils.parametrizations.weight_norm(conv), out=out)
    if how == "plain":
        return Net(forward, conv=conv, out=out)
    return Net(forward, g=table(6, 1, 1), v=table(6, 5, 3), bias=table(6), out=out)


def test_what_is_scaled_and_nowhere_in_src_is_refused() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.out(torch.tanh(net.fc(x)) * 0.3)

    def squared(net: Any, x: Tensor) -> Tensor:
        return net.out(net.fc(x).square() * 0.3)

    models = [Net(f, fc=nn.Linear(WIDTH, 8), out=nn.Linear(8, 3)) for f in (forward, squared)]
    found = automap.match(randomized(models[0], 1), randomized(models[1], 2), noise(2, 5, WIDTH))
    assert found.verdict != "complete"


KERNELS = ("plain", "module", "factors", "factor", "direction")
BOTH_WAYS = [
    pytest.param(lambda: embedded(False), lambda: embedded(True), words(), id="laid-out-apart"),
    pytest.param(lambda: headed(0.3), lambda: headed(1.0), words(), id="scaled-before-the-head"),
]


@pytest.mark.parametrize("is_reverse", [False, True], ids=["there", "back"])
@pytest.mark.parametrize(("make_src", "make_dest", "sample"), BOTH_WAYS)
def test_another_spelling_is_found_and_proved(make_src: Any, make_dest: Any, sample: Tensor, is_reverse: bool) -> None:
    src, dest = (make_dest(), make_src()) if is_reverse else (make_src(), make_dest())
    found = automap.transfer(randomized(src, 1), randomized(dest, 2), sample)
    assert found.match.verdict == "complete"


@pytest.mark.parametrize("is_shifted", [False, True], ids=["", "and-zeros-added-last"])
def test_a_scale_of_the_words_goes_into_their_table(is_shifted: bool) -> None:
    src, dest = randomized(translated(3.5, is_shifted), 1), randomized(translated(1.0), 2)
    if is_shifted:
        src.shift.zero_()
    assert automap.transfer(src, dest, words()).match.verdict == "complete"


@pytest.mark.parametrize("to", KERNELS)
@pytest.mark.parametrize("start", KERNELS)
def test_a_kernel_takes_its_direction_and_length_from_any_spelling(start: str, to: str) -> None:
    src, dest = randomized(normed(start), 1), randomized(normed(to), 2)
    assert automap.transfer(src, dest, noise(2, 5, 9)).match.verdict == "complete"
