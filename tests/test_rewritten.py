"""One function written in two ways that share no op for op spelling: each found and proved, in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import ids, noise, randomized
from test_folding import IMAGE, ROWS, WIDTH, Net, conv, table
from torch import Tensor, nn
from torch.nn import functional as F

import automap


def enlarged(make: str) -> nn.Module:
    """A small image model that doubles its size: transposed convolution, pixel shuffle, or a projection laid out."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.stem(x))
        if make == "shuffle":
            x = F.pixel_shuffle(net.up(x), 2)
        elif make == "linear":
            y = net.up(x.permute(0, 2, 3, 1)).unflatten(-1, (2, 2, 5))
            x = y.permute(0, 5, 1, 3, 2, 4).reshape(len(x), 5, 2 * x.shape[2], 2 * x.shape[3])
        else:
            x = net.up(x)
        return net.out(F.relu(x))

    up = {
        "transposed": lambda: nn.ConvTranspose2d(8, 5, 2, 2, bias=False),
        "biased": lambda: nn.ConvTranspose2d(8, 5, 2, 2),
        "linear": lambda: nn.Linear(8, 20, bias=False),
        "shuffle": lambda: nn.Conv2d(8, 20, 1),
    }[make]()
    return Net(forward, stem=conv(), up=up, out=conv(2, 5))


def generator(is_linear: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.first(x).view(-1, 6, 4, 4) if is_linear else net.first(x[..., None, None])
        return net.last(F.relu(net.norm(x)))

    first = nn.Linear(WIDTH, 96, bias=False) if is_linear else nn.ConvTranspose2d(WIDTH, 6, 4, bias=False)
    return Net(forward, first=first, norm=nn.BatchNorm2d(6), last=nn.ConvTranspose2d(6, 3, 4, 2, 1))


def patched(is_unfolded: bool) -> nn.Module:
    """Attention over the pixels of patches that `unfold` cuts out, or that are cut by hand."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        b, c, h, w = x.shape
        if is_unfolded:
            x = F.unfold(x, 2, stride=2).reshape(b, c, 4, -1)
        else:
            x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c, 4, -1)
        return net.out(F.gelu(x).mean(2).transpose(1, 2))

    return Net(forward, stem=conv(), out=nn.Linear(8, 3))


def rotated(scale: float, is_fused: bool) -> nn.Module:
    """Rotary attention with a scale of its own for the scores."""

    def turned(x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(5.0, dtype=x.dtype), 10.0 ** -torch.arange(2.0, dtype=x.dtype)).repeat(1, 2)
        return x * angles.cos() + torch.cat([-x[..., 2:], x[..., :2]], -1) * angles.sin()

    def forward(net: Any, x: Tensor) -> Tensor:
        parts = net.qkv(x).chunk(3, -1) if is_fused else (net.q(x), net.k(x), net.v(x))
        q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in parts)
        scores = turned(q) @ turned(k).mT * scale
        return net.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    names = ("out",) if is_fused else ("q", "k", "v", "out")
    fused = {"qkv": nn.Linear(WIDTH, 3 * WIDTH)} if is_fused else {}
    return Net(forward, **{name: nn.Linear(WIDTH, WIDTH) for name in names}, **fused)


def gates(biases: str) -> nn.Module:
    """An LSTM as two projections in a loop, `biases` of which have one."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            i, f, g, o = (net.x(step) + net.h(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return net.out(h)

    parts = {"x": nn.Linear(WIDTH, 24, bias="x" in biases), "h": nn.Linear(6, 24, bias="h" in biases)}
    return Net(forward, **parts, out=nn.Linear(6, 3))


def recurrent(steps: slice | int = -1) -> nn.Module:
    rnn = nn.LSTM(WIDTH, 6, batch_first=True)
    return Net(lambda net, x: net.out(net.rnn(x)[0][:, steps]), rnn=rnn, out=nn.Linear(6, 3))


def stacked(is_cells: bool) -> nn.Module:
    """Two GRU layers, each over all steps at once, or each step through both cells."""

    def forward(net: Any, x: Tensor) -> Tensor:
        if not is_cells:
            return net.out(net.rnn(x)[0])
        states, steps = [x.new_zeros(len(x), 6)] * 2, []
        for step in x.unbind(1):
            states = [net.first(step, states[0]), states[1]]
            states[1] = net.second(states[0], states[1])
            steps.append(states[1])
        return net.out(torch.stack(steps, 1))

    if not is_cells:
        return Net(forward, rnn=nn.GRU(WIDTH, 6, 2, batch_first=True), out=nn.Linear(6, 3))
    return Net(forward, first=nn.GRUCell(WIDTH, 6), second=nn.GRUCell(6, 6), out=nn.Linear(6, 3))


def gates_apart() -> nn.Module:
    """An LSTM of a projection for each gate, in an order of its own, in a loop."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 6)
        steps = []
        for step in x.unbind(1):
            f, o, g, i = (a(step) + b(h) for a, b in zip(net.x, net.h, strict=True))
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            steps.append(h)
        return net.out(torch.stack(steps, 1))

    x, h = ([nn.Linear(n, 6, bias=n == WIDTH) for _ in range(4)] for n in (WIDTH, 6))
    return Net(forward, x=nn.ModuleList(x), h=nn.ModuleList(h), out=nn.Linear(6, 3))


def experts(is_packed: bool) -> nn.Module:
    """Each row goes to two of four gated experts, stored in two tensors or in a module each."""

    def gated(net: Any, number: int, rows: Tensor) -> Tensor:
        if is_packed:
            gate, up = F.linear(rows, net.wide[number]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, net.back[number])
        return net.back[number](F.silu(net.gate[number](rows)) * net.up[number](rows))

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        rows = x.flatten(0, 1)
        weights, chosen = net.router(rows).softmax(-1).topk(2, -1)
        result = torch.zeros_like(rows)
        for number in range(4):
            row, rank = torch.where(chosen == number)
            result = result.index_add(0, row, gated(net, number, rows[row]) * weights[row, rank, None])
        return x + result.view_as(x)

    parts: dict[str, Any] = {"stem": nn.Linear(WIDTH, WIDTH), "router": nn.Linear(WIDTH, 4, bias=False)}
    if is_packed:
        return Net(forward, **parts, wide=table(4, 20, WIDTH), back=table(4, WIDTH, 10))
    for name, sizes in (("gate", (WIDTH, 10)), ("up", (WIDTH, 10)), ("back", (10, WIDTH))):
        parts[name] = nn.ModuleList(nn.Linear(*sizes, bias=False) for _ in range(4))
    return Net(forward, **parts)


def experts_on_all(is_packed: bool) -> nn.Module:
    """The same experts, each computed for every row and weighted with zero where it is not chosen."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        rows = x.flatten(0, 1)
        weights, chosen = net.router(rows).softmax(-1).topk(2, -1)
        shares = torch.zeros(len(rows), 4, dtype=x.dtype).scatter(1, chosen, weights)
        if is_packed:
            gate, up = torch.einsum("td,ehd->eth", rows, net.wide).chunk(2, -1)
            each = torch.einsum("eth,edh->etd", F.silu(gate) * up, net.back)
            return x + (each * shares.T[..., None]).sum(0).view_as(x)
        modules = zip(net.gate, net.up, net.back, strict=True)
        each = [back(F.silu(gate(rows)) * up(rows)) for gate, up, back in modules]
        return x + sum(part * shares[:, n, None] for n, part in enumerate(each)).view_as(x)

    parts = experts(is_packed)
    return Net(forward, **dict(parts.named_children()), **dict(parts.named_parameters(recurse=False)))


def branched(biases: str) -> nn.Module:
    """A residual with two branches beside each other, `biases` of which have one."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.out(F.layer_norm(x + net.a(F.silu(x)) + net.b(x.tanh()), (WIDTH,)))

    branches = {name: nn.Linear(WIDTH, WIDTH, bias=name in biases) for name in ("a", "b")}
    return Net(forward, stem=nn.Linear(WIDTH, WIDTH), **branches, out=nn.Linear(WIDTH, 3))


def pooled(is_first: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.stem(x))
        if is_first:
            return net.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return net.head(x).mean((2, 3))

    return Net(forward, stem=conv(), head=nn.Linear(8, 3) if is_first else nn.Conv2d(8, 3, 1))


def neighbours(is_summed_first: bool) -> nn.Module:
    """Two graph convolutions: projected, then summed over neighbours, or the other way round."""

    def forward(net: Any, x: Tensor) -> Tensor:
        near = torch.eye(5, dtype=x.dtype) + torch.ones(5, 5, dtype=x.dtype).tril(-2)
        for part in (net.first, net.second):
            x = F.elu(part(near @ x) if is_summed_first else near @ part(x))
        return x

    return Net(forward, first=nn.Linear(WIDTH, 8, bias=False), second=nn.Linear(8, 3, bias=False))


def bagged(mode: str, is_bag: bool) -> nn.Module:
    """Rows of a table, reduced by a bag or by hand."""

    def forward(net: Any, x: Tensor) -> Tensor:
        rows = net.rows(x)
        return net.out(rows if is_bag else {"mean": rows.mean, "sum": rows.sum, "max": rows.amax}[mode](1))

    rows = nn.EmbeddingBag(20, 6, mode=mode) if is_bag else nn.Embedding(20, 6)
    return Net(forward, rows=rows, out=nn.Linear(6, 3))


def offset_bags() -> nn.Module:
    """Bags of several sizes, told by where each begins."""
    starts = torch.tensor([0, 2, 7])
    return Net(lambda net, x: net.out(net.rows(x.flatten(), starts)), rows=nn.EmbeddingBag(20, 6), out=nn.Linear(6, 3))


def bilinear(is_module: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.stem(x).tanh()
        return net.pair(x, y) if is_module else torch.einsum("bti,oij,btj->bto", x, net.pair, y) + net.shift

    stem = nn.Linear(WIDTH, 6)
    if is_module:
        return Net(forward, stem=stem, pair=nn.Bilinear(WIDTH, 6, 5))
    return Net(forward, stem=stem, pair=table(5, WIDTH, 6), shift=table(5))


def found(src: nn.Module, dest: nn.Module, sample: Tensor) -> None:
    """Find the map, and see it hold on the models."""
    done = automap.transfer(randomized(src, 1), randomized(dest, 2), sample)
    assert done.match.verdict == "complete"
    with torch.no_grad():
        torch.testing.assert_close(dest(sample), src(sample), rtol=1e-4, atol=1e-5)


BOTH_WAYS = [
    pytest.param(lambda: enlarged("transposed"), lambda: enlarged("linear"), IMAGE, id="enlarged-by-a-projection"),
    pytest.param(lambda: generator(True), lambda: generator(False), noise(6, WIDTH), id="image-from-a-vector"),
    pytest.param(lambda: patched(True), lambda: patched(False), IMAGE, id="patches-unfolded"),
    pytest.param(lambda: pooled(True), lambda: pooled(False), IMAGE, id="mean-before-the-head"),
    pytest.param(lambda: neighbours(True), lambda: neighbours(False), ROWS, id="neighbours-before-the-projection"),
    pytest.param(lambda: experts(True), lambda: experts(False), noise(5, 9, WIDTH), id="packed-experts"),
    pytest.param(lambda: experts(True), lambda: experts_on_all(False), noise(5, 9, WIDTH), id="experts-on-all-rows"),
    pytest.param(lambda: experts(False), lambda: experts_on_all(True), noise(5, 9, WIDTH), id="experts-at-once"),
    pytest.param(lambda: experts(True), lambda: experts_on_all(True), noise(5, 9, WIDTH), id="packed-experts-at-once"),
    pytest.param(lambda: recurrent(slice(None)), gates_apart, ROWS, id="gates-as-projections"),
    pytest.param(lambda: stacked(False), lambda: stacked(True), ROWS, id="cells-of-two-layers"),
    pytest.param(lambda: gates("xh"), lambda: gates("x"), ROWS, id="one-bias-of-two-in-a-loop"),
    pytest.param(lambda: bagged("mean", True), lambda: bagged("mean", False), ids(6, 5), id="bags-averaged"),
    pytest.param(lambda: bagged("sum", True), lambda: bagged("sum", False), ids(6, 5), id="bags-summed"),
    pytest.param(lambda: bagged("max", True), lambda: bagged("max", False), ids(6, 5), id="bags-of-the-largest"),
    pytest.param(offset_bags, offset_bags, ids(6, 5), id="bags-of-several-sizes"),
    pytest.param(lambda: bilinear(True), lambda: bilinear(False), ROWS, id="bilinear"),
    pytest.param(lambda: branched("ab"), lambda: branched("b"), ROWS, id="one-bias-of-two-branches"),
    pytest.param(lambda: rotated(0.5, False), lambda: rotated(0.7, True), ROWS, id="scores-scaled-behind-a-rotation"),
]


@pytest.mark.parametrize("is_reverse", [False, True], ids=["there", "back"])
@pytest.mark.parametrize(("make_src", "make_dest", "sample"), BOTH_WAYS)
def test_another_spelling_is_found_and_proved(make_src: Any, make_dest: Any, sample: Tensor, is_reverse: bool) -> None:
    models = (make_dest(), make_src()) if is_reverse else (make_src(), make_dest())
    found(*models, sample)


@pytest.mark.parametrize("biases", ["x", "h", "xh"])
def test_an_lstm_op_becomes_a_loop_with_one_bias_or_two(biases: str) -> None:
    found(recurrent(), gates(biases), ROWS)


def test_experts_that_get_no_row_are_refused() -> None:
    """One row leaves two experts without any: computed for it all the same in src, and routed in dest."""
    src, dest = randomized(experts_on_all(False), 1), randomized(experts(False), 2)
    with pytest.raises(automap.MismatchError):
        automap.transfer(src, dest, noise(1, 1, WIDTH))


def test_bags_reduced_otherwise_are_refused() -> None:
    src, dest = randomized(bagged("sum", True), 1), randomized(bagged("mean", False), 2)
    assert automap.match(src, dest, ids(6, 5)).verdict != "complete"


def test_a_bias_of_images_is_spread_over_the_channels_that_are_shuffled() -> None:
    found(enlarged("biased"), enlarged("shuffle"), IMAGE)


def test_a_bias_of_more_numbers_than_dest_has_is_refused() -> None:
    src, dest = randomized(enlarged("shuffle"), 1), randomized(enlarged("biased"), 2)
    assert automap.match(src, dest, IMAGE).verdict != "complete"
