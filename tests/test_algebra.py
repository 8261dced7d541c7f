"""Relations that compute: what dest stores is arithmetic on what src stores, found and proved like any move."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import randomized
from models.nets import IMAGE, ROWS, WIDTH, Net, conv, table, words
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import automap
from automap.errors import InputError


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


CASES = [
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
            return net.fc(torch.tanh(net.words(x) * scale)) @ net.words.weight.T

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
