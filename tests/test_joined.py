"""A product of joined values, or a convolution of each channel, against a sum of products, in loops too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import noise, randomized
from models.nets import IMAGE, ROWS, WIDTH, Net, conv, table
from torch import Tensor, nn
from torch.nn import functional as F

import automap


def fused(is_joined: bool) -> nn.Module:
    """Two streams and what they are made of, projected together or apart and added up."""

    def forward(net: Any, x: Tensor) -> Tensor:
        streams = F.relu(net.a(x)), torch.tanh(net.b(x)), x
        if is_joined:
            return net.out(F.gelu(net.all(torch.cat(streams, -1))))
        return net.out(F.gelu(sum(part(stream) for part, stream in zip(net.each, streams, strict=True))))

    parts: dict[str, Any] = {"a": nn.Linear(WIDTH, 5), "b": nn.Linear(WIDTH, 6), "out": nn.Linear(8, 3)}
    if is_joined:
        return Net(forward, **parts, all=nn.Linear(11 + WIDTH, 8))
    return Net(forward, **parts, each=nn.ModuleList(nn.Linear(n, 8, bias=n == 6) for n in (5, 6, WIDTH)))


def skipped(is_joined: bool, ops: bool = False) -> nn.Module:
    """A U-Net's skip: joined with what comes from below, then perhaps a norm and a relu, then a convolution."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        below = F.interpolate(F.silu(net.down(F.max_pool2d(x, 2))), scale_factor=2)
        if is_joined:
            joined = torch.cat([x, below], 1)
            return net.out(F.relu(net.both(F.relu(net.norm(joined)) if ops else joined)))
        left, right = (F.relu(net.n1(x)), F.relu(net.n2(below))) if ops else (x, below)
        return net.out(F.relu(net.one(left) + net.other(right)))

    parts: dict[str, Any] = {"stem": conv(), "down": nn.Conv2d(8, 6, 3, padding=1), "out": nn.Conv2d(4, 2, 1)}
    norms = {"norm": nn.BatchNorm2d(14)} if is_joined else {"n1": nn.BatchNorm2d(8), "n2": nn.BatchNorm2d(6)}
    both = {"both": nn.Conv2d(14, 4, 3, padding=1)}
    apart = {"one": nn.Conv2d(8, 4, 3, padding=1), "other": nn.Conv2d(6, 4, 3, padding=1, bias=False)}
    return Net(forward, **parts, **(both if is_joined else apart), **(norms if ops else {}))


def paired(is_joined: bool) -> nn.Module:
    """Attention over a graph: a score for every pair of nodes, of both joined or of each."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x, count = net.stem(x), x.shape[1]
        if is_joined:
            pairs = (x[:, :, None].expand(-1, -1, count, -1), x[:, None].expand(-1, count, -1, -1))
            scores = net.both(torch.cat(pairs, -1))[..., 0]
        else:
            scores = net.left(x) + net.right(x).mT
        return net.out(F.leaky_relu(scores, 0.2).softmax(-1) @ x)

    parts = {"stem": nn.Linear(WIDTH, 8), "out": nn.Linear(8, 3)}
    if is_joined:
        return Net(forward, **parts, both=nn.Linear(16, 1, bias=False))
    return Net(forward, **parts, left=nn.Linear(8, 1, bias=False), right=nn.Linear(8, 1, bias=False))


def lstm(make: str, shown: Callable[[Tensor], Tensor] = torch.tanh) -> nn.Module:
    """The last state of an LSTM: the op, a cell, or a loop over gates of state and step joined, fused or not."""

    def forward(net: Any, x: Tensor) -> Tensor:
        if make == "op":
            return net.out(net.rnn(x)[1][0][0])
        h = c = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            if make == "cell":
                h, c = net.rnn(step, (h, c))
                continue
            joined = torch.cat([h, step], -1)
            f, i, o, g = net.rnn(joined).chunk(4, -1) if make == "fused" else (gate(joined) for gate in net.rnn)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * shown(c)
        return net.out(h)

    rnn = {
        "op": lambda: nn.LSTM(WIDTH, 6, batch_first=True),
        "cell": lambda: nn.LSTMCell(WIDTH, 6),
        "fused": lambda: nn.Linear(6 + WIDTH, 24),
        "apart": lambda: nn.ModuleList(nn.Linear(6 + WIDTH, 6) for _ in range(4)),
    }[make]()
    return Net(forward, rnn=rnn, out=nn.Linear(6, 3))


def gru(make: str) -> nn.Module:
    """The last state of a GRU: the op, or a loop over gates of step and state, joined where that can be or not."""

    def forward(net: Any, x: Tensor) -> Tensor:
        if make == "op":
            return net.out(net.rnn(x)[1][0])
        h = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            if make == "joined":
                z, r = (gate(torch.cat([step, h], -1)).sigmoid() for gate in net.gates)
            else:
                z, r = ((a(step) + b(h)).sigmoid() for a, b in zip(net.steps, net.states, strict=True))
            h = (1 - z) * torch.tanh(net.step(step) + r * net.state(h)) + z * h
        return net.out(h)

    def both(width: int) -> nn.Module:
        return nn.ModuleList(nn.Linear(width, 6) for _ in range(2))

    if make == "op":
        return Net(forward, rnn=nn.GRU(WIDTH, 6, batch_first=True), out=nn.Linear(6, 3))
    gates = {"gates": both(WIDTH + 6)} if make == "joined" else {"steps": both(WIDTH), "states": both(6)}
    return Net(forward, **gates, step=nn.Linear(WIDTH, 6), state=nn.Linear(6, 6), out=nn.Linear(6, 3))


def causal(make: str) -> nn.Module:
    """A convolution over the past of each channel, padded and cut, padded before, or as shifted values added up."""

    def forward(net: Any, x: Tensor) -> Tensor:
        steps = x.shape[1]
        if make == "cut":
            x = net.taps(x.mT)[..., :steps].mT
        elif make == "padded":
            x = net.taps(F.pad(x.mT, (2, 0))).mT
        else:
            x = sum(F.pad(x, (0, 0, 2 - tap, 0))[:, :steps] * net.taps[tap] for tap in range(3)) + net.shift
        return net.out(F.silu(x))

    if make == "loop":
        return Net(forward, taps=table(3, WIDTH), shift=table(WIDTH), out=nn.Linear(WIDTH, 3))
    taps = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH, padding=2 if make == "cut" else 0)
    return Net(forward, taps=taps, out=nn.Linear(WIDTH, 3))


BOTH_WAYS = [
    pytest.param(lambda: fused(True), lambda: fused(False), ROWS, id="streams"),
    pytest.param(lambda: skipped(True), lambda: skipped(False), IMAGE, id="skip"),
    pytest.param(lambda: skipped(True, ops=True), lambda: skipped(False, ops=True), IMAGE, id="norm-behind-the-join"),
    pytest.param(lambda: paired(True), lambda: paired(False), ROWS, id="pairs"),
    pytest.param(lambda: causal("cut"), lambda: causal("loop"), ROWS, id="taps-of-what-is-cut"),
    pytest.param(lambda: causal("padded"), lambda: causal("loop"), ROWS, id="taps-of-what-is-padded"),
    pytest.param(lambda: lstm("op"), lambda: lstm("fused"), noise(3, 4, WIDTH), id="lstm"),
    pytest.param(lambda: lstm("op"), lambda: lstm("apart"), noise(3, 4, WIDTH), id="lstm-gates-apart"),
    pytest.param(lambda: lstm("cell"), lambda: lstm("fused"), noise(3, 4, WIDTH), id="lstm-cell"),
    pytest.param(lambda: gru("op"), lambda: gru("joined"), noise(3, 4, WIDTH), id="gru"),
    pytest.param(lambda: gru("op"), lambda: gru("apart"), noise(3, 4, WIDTH), id="gru-gates-apart"),
]


@pytest.mark.parametrize("is_reverse", [False, True], ids=["there", "back"])
@pytest.mark.parametrize(("make_src", "make_dest", "sample"), BOTH_WAYS)
def test_a_product_of_joined_values_is_a_sum(make_src: Any, make_dest: Any, sample: Tensor, is_reverse: bool) -> None:
    src, dest = (make_dest(), make_src()) if is_reverse else (make_src(), make_dest())
    done = automap.transfer(randomized(src, 1), randomized(dest, 2), sample)
    assert done.match.verdict == "complete"
    with torch.no_grad():
        torch.testing.assert_close(dest(sample), src(sample), rtol=1e-4, atol=1e-5)


def test_a_difference_in_one_part_of_a_join_is_named() -> None:
    src, dest = randomized(skipped(True), 1), randomized(skipped(False), 2)
    dest.other = nn.Conv2d(6, 4, 3, padding=2, dilation=2, bias=False)
    found = automap.match(src, dest, IMAGE)
    assert found.verdict != "complete"
    assert found.findings[0].message == "convolution padding (1, 1) in src, (2, 2) in dest"


def test_a_difference_inside_a_loop_is_named_and_not_its_spelling() -> None:
    src, dest = randomized(lstm("op"), 1), randomized(lstm("fused", shown=lambda state: state), 2)
    found = automap.match(src, dest, noise(3, 4, WIDTH))
    assert found.verdict != "complete"
    assert found.findings[0].message.startswith("src applies `tanh` in rnn")
