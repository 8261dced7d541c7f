"""One planted fault at a time, and several: each is found at its own op, once, with what it does there."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from models import WIDTH, noise, randomized
from models import transformer as tf
from models import vision as cv
from models.pairs import HIDDEN, IMAGE, PAIRS, SEQUENCE
from torch import Tensor, nn
from torch.nn import functional as F

import automap
from automap import Explanation
from automap.errors import InputError

Made = Callable[[], nn.Module]
norm = tf.layer_norm


def explained(src: Made, dest: Made, sample: Any = SEQUENCE, **options: Any) -> Explanation:
    return automap.explain(randomized(src(), 1), randomized(dest(), 2), sample(), **options)


def told(found: Explanation) -> list[tuple[str, str, int]]:
    """(code, dest module, number of places) of every departure that matters, in order."""
    return [
        (d.finding.code, d.finding.dest.name if d.finding.dest else "", d.count)
        for d in found.departures
        if d.finding.severity == "error"
    ]


class Conv(nn.Module):
    """Three convolutions; options are those of the second."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, **{"padding": 1, **options})
        self.three, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.three(F.gelu(self.two(F.gelu(self.one(x))))))
        return self.head(x.mean((2, 3)))


class Masked(tf.Split):
    """Attention whose scores are masked by hand."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (tf.heads_of(f(x)) for f in (self.q, self.k, self.v))
        scores = q @ k.mT * tf.DIM**-0.5
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        return self.o(tf.joined((scores + mask).softmax(-1) @ v))


T = tf.Tower
GELUS = partial(T, mlp=partial(tf.Mlp, nn.GELU("tanh")))
FAULTS = [
    pytest.param(T, partial(T, norm=partial(norm, 1e-3)), SEQUENCE, "attribute-differs", "blocks.0.norm1", 5,
                 "layer_norm eps 1e-05 in src, 0.001 in dest", id="eps"),
    pytest.param(partial(T, norm=partial(norm, 1e-6)), partial(T, norm=partial(norm, 1e-12)), SEQUENCE,
                 "attribute-differs", "blocks.0.norm1", 5, "layer_norm eps 1e-06 in src, 1e-12 in dest", id="tiny-eps"),
    pytest.param(cv.ConvNet, partial(cv.ConvNet, eps=1e-3), IMAGE, "attribute-differs", "block.bn1", 2,
                 "eps 1e-05 in src, 0.001 in dest, in what becomes of `block.bn1.running_var`", id="batch-norm-eps"),
    pytest.param(T, GELUS, SEQUENCE, "attribute-differs", "blocks.0.mlp.act", 2, "gelu approximate", id="approximate"),
    pytest.param(T, partial(T, partial(tf.Split, tf.wrongly_scaled)), SEQUENCE, "attribute-differs", "blocks.0.attn", 4,
                 "mul scale 0.5946035575013605 in src, 0.3535533905932738 in dest", id="attention-scale"),
    pytest.param(T, partial(T, partial(tf.Split, tf.causal)), SEQUENCE, "op-extra", "blocks.0.attn", 2,
                 "dest applies a causal mask", id="causal"),
    pytest.param(T, partial(T, Masked), SEQUENCE, "op-extra", "blocks.0.attn", 2, "causal mask", id="masked-by-hand"),
    pytest.param(Conv, partial(Conv, padding=2, dilation=2), IMAGE, "attribute-differs", "two", 1,
                 "convolution padding (1, 1) in src, (2, 2) in dest", id="dilation"),
    pytest.param(Conv, partial(Conv, padding=0), IMAGE, "attribute-differs", "two", 1,
                 "convolution padding (1, 1) in src, (0, 0) in dest", id="padding"),
    pytest.param(Conv, partial(Conv, stride=2), IMAGE, "attribute-differs", "two", 1,
                 "convolution stride (1, 1) in src, (2, 2) in dest", id="stride"),
    pytest.param(Conv, partial(Conv, padding_mode="reflect"), IMAGE, "op-extra", "two", 1, "reflection_pad2d",
                 id="padding-mode"),
    pytest.param(T, partial(T, final=nn.Identity), SEQUENCE, "op-missing", "head", 1, "src applies `layer_norm`",
                 id="missing-norm"),
    pytest.param(partial(T, final=nn.Identity), T, SEQUENCE, "op-extra", "norm", 1, "dest applies `layer_norm` in norm",
                 id="extra-norm"),
    pytest.param(T, partial(T, mlp=partial(tf.Mlp, nn.ReLU())), SEQUENCE, "op-extra", "blocks.0.mlp.act", 2,
                 "dest applies `relu`", id="another-activation"),
]  # fmt: skip


@pytest.mark.parametrize(("src", "dest", "sample", "code", "module", "count", "words"), FAULTS)
def test_a_planted_fault_is_the_only_departure_and_found_at_its_op(
    src: Made, dest: Made, sample: Any, code: str, module: str, count: int, words: str
) -> None:
    found = explained(src, dest, sample)
    assert told(found) == [(code, module, count)]
    assert found.first is not None
    assert words in found.first.finding.message
    assert all("make up for all of this" in note for note in found.notes)  # all that lies behind was looked at
    assert not found.is_equal


@pytest.mark.parametrize(("src", "dest", "sample", "code", "module", "count", "words"), FAULTS)
def test_an_explanation_shows_both_lines_shapes_and_numbers(
    src: Made, dest: Made, sample: Any, code: str, module: str, count: int, words: str
) -> None:
    found = explained(src, dest, sample)
    assert found.first is not None
    finding = found.first.finding
    assert finding.dest is not None
    assert finding.dest.file
    assert finding.dest.line
    assert finding.dest.shape is not None
    assert f"error[{code}]: {finding.message}" in found.text
    assert f"--> dest  {module} ({finding.dest.kind})" in found.text
    if found.first.gap is not None:
        assert f"is off by {found.first.gap.max_abs:.1e}" in found.text
        assert found.first.gap.max_abs > 0


def test_the_numbers_are_those_of_the_op_on_src_s_own_values() -> None:
    src, dest = randomized(T(), 1), randomized(GELUS(), 2)
    found = automap.explain(src, dest, SEQUENCE()).first
    assert found is not None
    assert found.gap is not None
    gap = found.gap
    value = torch.tensor(gap.src_value, dtype=torch.float64)
    assert abs(gap.src_value - gap.dest_value) == pytest.approx(gap.max_abs)
    assert gap.max_abs < 5e-4  # no two spellings of gelu are farther apart: nothing has piled up
    assert len(gap.where) == 3
    assert gap.max_rel == pytest.approx(gap.max_abs / abs(float(value)), rel=10)


def test_equal_models_have_no_departure() -> None:
    found = explained(T, partial(T, tf.Fused))
    assert found.departures == ()
    assert found.first is None
    assert found.is_equal
    assert "dest leaves src nowhere" in found.text


SCALED = partial(T, partial(tf.Split, tf.wrongly_scaled))


def test_a_scale_that_loaded_weights_make_up_for_is_a_warning() -> None:
    src, dest = randomized(T(), 1), randomized(SCALED(), 2)
    automap.transfer(src, dest, SEQUENCE())
    found = automap.explain(src, dest, SEQUENCE(), loaded=True)
    assert found.is_equal
    (scale,) = found.departures
    assert scale.finding.message == "mul scale 0.5946035575013605 in src, 0.3535533905932738 in dest"
    assert (scale.finding.severity, scale.count) == ("warning", 4)
    assert "weights that are computed from src's make up for it" in found.text
    assert scale.gap is not None
    assert scale.gap.dest_value == pytest.approx(scale.gap.src_value * 0.3535533905932738 / 0.5946035575013605)


def test_a_scale_is_the_fault_where_src_s_weights_were_loaded_as_they_are() -> None:
    src, dest = randomized(T(), 1), randomized(SCALED(), 2)
    dest.load_state_dict(src.state_dict())
    found = automap.explain(src, dest, SEQUENCE(), loaded=True)
    assert told(found) == [("attribute-differs", "blocks.0.attn", 4)]
    assert not found.is_equal


# ---------------------------------------------------------------- several faults
class Two(nn.Module):
    """An epsilon early, an activation late."""

    def __init__(self, eps: float = 1e-5, act: Callable[[Tensor], Tensor] = F.gelu, scale: float = 1.0) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(6, 16), nn.LayerNorm(16, eps), nn.Linear(16, 16), nn.Linear(16, 4)
        self.act, self.scale = act, scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.norm(self.a(x)))
        return self.c(self.act(x) * self.scale)


def test_independent_faults_are_all_found_in_order() -> None:
    found = explained(Two, partial(Two, 1e-2, F.relu))
    assert told(found) == [("attribute-differs", "norm", 1), ("op-extra", "", 1)]
    assert found.first is not None
    assert "eps" in found.first.finding.message
    late = found.departures[1]
    assert "relu" in late.finding.message
    assert late.gap is not None
    assert late.gap.max_abs == pytest.approx(0.17, abs=0.01)  # the least of gelu: what relu cuts off, and no more


def test_a_fault_in_one_block_of_several_is_not_said_of_the_others() -> None:
    def odd() -> nn.Module:
        model = T(depth=4)
        model.blocks[2].norm2.eps = 1e-2
        return model

    found = explained(partial(T, depth=4), odd)
    assert told(found) == [("attribute-differs", "blocks.2.norm2", 1)]
    assert found.notes == ()


def test_a_fault_in_more_blocks_than_there_are_rounds_is_found_in_all() -> None:
    def without_activation() -> nn.Module:
        return T(depth=10, mlp=partial(tf.Mlp, nn.Identity()))

    found = explained(partial(T, depth=10), without_activation)
    assert told(found) == [("op-missing", "blocks.0.mlp.fc2", 10)]
    assert "same for blocks.{1..9}.mlp.fc2" in found.text
    assert found.notes == ()


class Turned(nn.Module):
    """Rotary positions, as complex numbers or by hand."""

    def __init__(self, base: float = 100.0, is_complex: bool = False) -> None:
        super().__init__()
        self.q, self.o, self.base, self.is_complex = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), base, is_complex

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, 2))
        rate = self.base ** -(torch.arange(WIDTH // 2).double() / WIDTH)
        angle = torch.outer(torch.arange(x.shape[1]).double(), rate)
        if self.is_complex:
            turned = torch.view_as_real(torch.view_as_complex(q.double()) * torch.polar(torch.ones_like(angle), angle))
        else:
            a, b, cos, sin = q[..., 0], q[..., 1], angle.cos(), angle.sin()
            turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1)
        return self.o(turned.flatten(-2).to(x.dtype).softmax(-1))


@pytest.mark.parametrize("is_complex", [pytest.param(True, id="complex-to-real"), pytest.param(False, id="to-complex")])
def test_repairs_that_do_not_fit_end_the_walk_and_no_more(is_complex: bool) -> None:
    found = explained(partial(Turned, 100.0, is_complex), partial(Turned, 500.0, not is_complex), HIDDEN)
    assert not found.is_equal
    assert found.first is not None
    assert found.first.finding.code in ("constant-differs", "op-extra", "op-missing", "rewired")


def test_equal_faults_are_told_once_with_all_places() -> None:
    found = explained(partial(T, depth=4), partial(T, depth=4, norm=partial(norm, 1e-3)))
    assert found.first is not None
    assert found.first.count == 9
    assert "same for blocks.{0..3}.norm2, blocks.{1..3}.norm1, norm" in found.text


def test_strides_exchanged_between_two_convolutions_are_both_told() -> None:
    found = explained(cv.ConvNet, partial(cv.ConvNet, at=1), IMAGE)
    assert told(found) == [("attribute-differs", "block.conv1", 1), ("attribute-differs", "block.conv2", 1)]
    assert found.first is not None
    assert found.first.gap is None  # different shapes
    assert found.first.finding.src is not None
    assert found.first.finding.dest is not None
    assert (found.first.finding.src.shape, found.first.finding.dest.shape) == ((2, 8, 4, 4), (2, 8, 8, 8))


def test_a_norm_after_the_sum_is_told_at_what_it_should_feed() -> None:
    found = explained(T, partial(T, block=tf.PostBlock))
    assert told(found) == [
        ("op-missing", "blocks.0.attn.q", 3),
        ("rewired", "blocks.0", 2),
        ("op-extra", "norm", 1),
    ]
    assert found.first is not None
    assert "src applies `layer_norm` in blocks.0.norm1" in found.first.finding.message
    assert "same for blocks.0.attn.k, blocks.0.attn.v" in found.text


@pytest.mark.parametrize(
    ("dest", "weights"),
    [
        pytest.param(partial(T, partial(tf.Split, bias=False)), "attn.q attn.k attn.v", id="attention"),
        pytest.param(partial(T, mlp=partial(tf.Mlp, bias=False)), "mlp.fc2", id="before-a-sum"),
    ],
)
def test_biases_that_dest_does_not_have_are_told_one_by_one(dest: Made, weights: str) -> None:
    found = explained(T, dest)
    assert {code for code, _, _ in told(found)} == {"unused-source"}
    assert sum(count for _, _, count in told(found)) == 2 * len(weights.split())
    for name in weights.split():
        assert re.search(rf"`blocks\.0\.{name}\.bias`|blocks\.\{{0\.\.1\}}\.{name}\.bias", found.text)


def test_another_number_of_blocks_is_told_as_such_and_nothing_that_follows_from_it() -> None:
    found = explained(T, partial(T, depth=3))
    assert len(found.departures) == 1
    assert "dest has 1 block more than src" in found.text
    assert found.notes == ("what lies behind the last place could not be looked at",)


class Alone(nn.Module):
    """Has an op that nothing in the other model is like, before one that is."""

    def __init__(self, is_odd: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.is_odd = nn.Linear(6, 16), nn.Linear(8 if is_odd else 16, 4), is_odd

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x[..., :8] * x[..., 8:] if self.is_odd else F.gelu(x))


def test_a_partial_match_is_explained_as_far_as_it_goes() -> None:
    found = explained(Alone, partial(Alone, is_odd=True))
    assert found.first is not None
    assert not found.is_equal
    assert found.match.verdict == "impossible"
    assert "a.weight" in found.match.plan.entries


# ---------------------------------------------------------------- train mode
class Dropping(nn.Module):
    """Dropout in blocks and on attention, a batch norm."""

    def __init__(self, p: float = 0.25, attention: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, attention, batch_first=True)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(p), nn.ReLU()) for _ in range(3))
        self.norm, self.head = nn.BatchNorm1d(WIDTH, eps), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.inner(x, x, x, need_weights=False)[0]
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x.mT).mT)


@pytest.mark.parametrize(
    ("options", "code", "module", "words"),
    [
        pytest.param({"p": 0.5}, "attribute-differs", "blocks.0.1", "dropout p 0.25 in src, 0.5 in dest", id="rate"),
        pytest.param({"p": 0.0}, "op-missing", "blocks.0", "src applies `dropout` in blocks.0.1", id="none"),
        pytest.param({"attention": 0.0}, "op-missing", "inner", "src applies `dropout` in inner", id="attention"),
        pytest.param({"eps": 1e-2}, "attribute-differs", "norm", "batch_norm eps 1e-05 in src, 0.01", id="batch-norm"),
    ],
)
def test_what_differs_in_train_mode_alone_is_found_there(
    options: dict[str, float], code: str, module: str, words: str
) -> None:
    found = explained(Dropping, partial(Dropping, **options), HIDDEN, train=True)
    assert found.first is not None
    assert found.first.finding.code == code
    assert words in found.first.finding.message
    assert found.first.finding.dest is not None
    assert found.first.finding.dest.name.startswith(module)
    assert "in train mode" in found.text


def test_dropout_of_one_rate_is_equal_whatever_noise_was_drawn() -> None:
    assert explained(Dropping, Dropping, HIDDEN, train=True).is_equal
    assert explained(Dropping, partial(Dropping, p=0.5), HIDDEN).is_equal  # in eval mode


def test_active_dropout_in_dest_alone_is_found() -> None:
    found = explained(partial(Dropping, p=0.0), Dropping, HIDDEN, train=True)
    assert found.first is not None
    assert found.first.finding.message.startswith("dest applies `dropout` in blocks.0.1 (p 0.25)")
    assert found.first.count == 3


def test_train_mode_is_recorded_by_dispatch_only() -> None:
    with pytest.raises(InputError, match="a forward in train mode is not recorded by 'hooks'"):
        explained(Dropping, Dropping, HIDDEN, train=True, capture="hooks")


@pytest.mark.parametrize("options", [{}, {"train": True}, {"loaded": True}, {"train": True, "loaded": True}])
def test_explaining_changes_neither_model(options: dict[str, bool]) -> None:
    src, dest = randomized(Dropping(), 1).train(), randomized(Dropping(p=0.5), 2).train()
    dest.blocks[1].eval()
    before = [{n: t.clone() for n, t in model.state_dict().items()} for model in (src, dest)]
    modes = [[module.training for module in model.modules()] for model in (src, dest)]
    generator = torch.get_rng_state()
    automap.explain(src, dest, HIDDEN(), **options)
    after = [model.state_dict() for model in (src, dest)]
    assert all(torch.equal(b[name], a[name]) for b, a in zip(before, after, strict=True) for name in b)
    assert modes == [[module.training for module in model.modules()] for model in (src, dest)]
    assert torch.equal(generator, torch.get_rng_state())


# ---------------------------------------------------------------- the walk
def test_every_use_of_a_weight_is_compared_and_departures_stand_in_their_place() -> None:
    found = explained(T, GELUS)
    bad = [op for op in found.op_parity if not op.is_equal]
    assert [op.dest.kind for op in bad] == ["gelu", "gelu"]
    assert len(found.op_parity) > 30
    assert all(op.max_rel < 1e-12 for op in found.op_parity if op.is_equal)


def test_ops_are_compared_across_layouts() -> None:
    pair = PAIRS["linear-to-1x1-conv"]
    found = automap.explain(pair.src(), pair.dest(), pair.sample())
    kinds = {(op.src.kind, op.dest.kind) for op in found.op_parity}
    assert ("matmul", "convolution") in kinds
    assert found.is_equal


def test_a_hooks_capture_is_explained_by_modules() -> None:
    src, dest = (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8, eps), nn.Linear(8, 4)) for eps in (1e-5, 1e-2))
    found = automap.explain(randomized(src, 1), randomized(dest, 2), noise(5, 8), capture="hooks")
    assert not found.is_equal


def test_a_difference_that_weights_can_make_up_for_is_told_with_that() -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.first, self.last, self.factor = nn.Linear(6, 6), nn.Linear(6, 3), factor

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x) * self.factor))

    src, dest = randomized(Scaled(2.0), 1), randomized(Scaled(1.0), 2)
    explanation = automap.explain(src, dest, noise(4, 6))
    assert explanation.departures
    assert any("weights that are computed from src's make up for all of this" in note for note in explanation.notes)
