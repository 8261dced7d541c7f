from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from models import HEADS, WIDTH, randomized
from models import language as lm
from models import transformer as tf
from models import vision as cv
from models.pairs import HIDDEN, IMAGE, SEQUENCE, WORDS
from torch import Tensor, nn
from torch.nn import functional as F

import automap
from automap import Match

Made = Callable[[], nn.Module]
T = tf.Tower


class Headed(nn.Module):
    """Attention over as many heads, whatever the width of one."""

    def __init__(self, heads: int, scale: float = 0.3) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.heads, self.scale = heads, scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = (q * self.scale) @ (k * self.scale).mT
        return self.o(scores.softmax(-1).matmul(v).transpose(1, 2).flatten(2))


class Activated(nn.Module):
    """An activation between two linears, or none."""

    def __init__(self, act: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x if self.act is None else self.act(x))


class Padded(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, **options), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.conv(x)).mean((2, 3)))


def refusal(src: Made, dest: Made, codes: str, words: str, *, id: str, sample: Any = SEQUENCE) -> Any:
    """A row: two models with one difference, the codes that name it, and words that the first error must have."""
    return pytest.param(src, dest, sample, set(codes.split()), words.split(), id=id)


norm = tf.layer_norm
REFUSALS = [
    refusal(T, partial(T, depth=3), "op-extra unmatched-weight op-missing", "blocks", id="dest-is-deeper"),
    refusal(T, partial(T, depth=1), "unused-source op-missing", "blocks", id="dest-is-shallower"),
    refusal(T, partial(T, norm=partial(norm, 1e-3)), "attribute-differs", "eps 1e-05 0.001", id="eps"),
    refusal(
        partial(T, norm=tf.HandNorm),
        partial(T, norm=partial(norm, 1e-3)),
        "attribute-differs rewired op-extra",
        "layer_norm",
        id="eps-against-a-norm-by-hand",
    ),
    refusal(
        cv.ConvNet,
        partial(cv.ConvNet, eps=1e-3),
        "attribute-differs",
        "eps 1e-05 0.001 running_var",
        id="batch-norm-eps",
        sample=IMAGE,
    ),
    refusal(T, partial(T, mlp=partial(tf.Mlp, nn.GELU("tanh"))), "attribute-differs", "gelu tanh", id="gelu-variant"),
    refusal(T, partial(T, mlp=partial(tf.Mlp, nn.ReLU())), "op-extra op-missing", "relu gelu", id="another-activation"),
    refusal(
        partial(Activated, F.relu),
        partial(Activated, None),
        "op-missing",
        "relu",
        id="missing-activation",
        sample=HIDDEN,
    ),
    refusal(
        partial(Activated, None), partial(Activated, F.relu), "op-extra", "relu", id="extra-activation", sample=HIDDEN
    ),
    refusal(
        cv.ConvNet,
        partial(cv.ConvNet, at=1),
        "attribute-differs",
        "stride (2, 2) (1, 1)",
        id="stride-placement",
        sample=IMAGE,
    ),
    refusal(
        partial(Padded, padding=1),
        partial(Padded, padding=2, dilation=2),
        "attribute-differs",
        "convolution (1, 1) (2, 2)",
        id="dilation",
        sample=IMAGE,
    ),
    refusal(
        partial(Padded, padding=1),
        partial(Padded, padding=1, padding_mode="reflect"),
        "op-extra",
        "pad",
        id="padding-mode",
        sample=IMAGE,
    ),
    refusal(T, partial(T, final=nn.Identity), "op-missing", "layer_norm norm", id="missing-norm"),
    refusal(partial(T, final=nn.Identity), T, "op-extra", "layer_norm norm", id="extra-norm"),
    refusal(
        partial(Headed, HEADS),
        partial(Headed, 2 * HEADS),
        "shape-differs attribute-differs",
        "head",
        id="head-count",
        sample=HIDDEN,
    ),
    refusal(T, partial(T, partial(tf.Split, tf.causal)), "op-extra", "causal mask", id="causal"),
    refusal(
        partial(T, partial(tf.Split, tf.causal)),
        T,
        "op-extra op-missing constant-differs",
        "attn softmax add",
        id="causal-in-src",
    ),
    refusal(T, partial(T, block=tf.PostBlock), "op-missing rewired", "norm", id="norm-position"),
    refusal(
        T,
        partial(T, block=tf.SwappedBlock),
        "shape-differs rewired op-extra",
        "matmul blocks.0.mlp.fc1.weight norm2",
        id="swapped-residual-order",
    ),
    refusal(partial(lm.Tokens, is_tied=False), lm.Tokens, "rewired", "tied words.weight", id="tied", sample=WORDS),
    refusal(T, partial(T, partial(tf.Split, bias=False)), "unused-source", "bias", id="missing-bias"),
    refusal(
        T, partial(T, mlp=partial(tf.Mlp, bias=False)), "unused-source", "bias fc2", id="missing-bias-before-a-sum"
    ),
    refusal(
        partial(Headed, 2, 8**-0.25),
        partial(Headed, 4, 4**-0.25),
        "shape-differs",
        "head scale",
        id="head-count-and-its-scale",
        sample=HIDDEN,
    ),
]


def refused(src: Made, dest: Made, sample: Any) -> Match:
    return automap.match(randomized(src(), 1), randomized(dest(), 2), sample())


@pytest.mark.parametrize(("src", "dest", "sample", "codes", "words"), REFUSALS)
def test_one_difference_is_refused_and_named_first(
    src: Made, dest: Made, sample: Any, codes: set[str], words: list[str]
) -> None:
    found = refused(src, dest, sample)
    assert found.verdict in ("differs", "impossible")
    first = found.findings[0]
    assert (first.severity, first.code in codes) == ("error", True), first
    text = f"{first.message} {first.src} {first.dest}"
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(("src", "dest", "sample", "codes", "words"), REFUSALS)
def test_nothing_is_claimed_proved_where_models_differ(
    src: Made, dest: Made, sample: Any, codes: set[str], words: list[str]
) -> None:
    found = refused(src, dest, sample)
    assert "proved" not in set(found.evidence.values()) or any(f.code == "output-differs" for f in found.findings)


def test_a_finding_points_at_both_models_source_lines() -> None:
    found = refused(partial(Activated, F.relu), partial(Activated, torch.sigmoid), HIDDEN)
    first = found.findings[0]
    assert first.dest is not None
    assert (first.dest.file, first.dest.code) == (
        "test_diagnose.py",
        "return self.b(x if self.act is None else self.act(x))",
    )
    assert first.src is not None
    assert first.src.file == "test_diagnose.py"


def test_what_lies_before_a_difference_is_placed_all_the_same() -> None:
    found = refused(T, partial(T, final=nn.Identity), SEQUENCE)
    assert {name.split(".")[0] for name in found.plan.entries} >= {"embed", "blocks"}
    assert found.evidence["blocks.1.mlp.fc2.weight"] == "aligned"


def test_a_difference_behind_another_output_does_not_matter() -> None:
    src, dest = randomized(lm.ManyOutputs(is_rich=True), 1), lm.ManyOutputs(is_rich=True)
    dest.pooler = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
    randomized(dest, 2)
    assert automap.match(src, dest, HIDDEN()).verdict == "differs"
    assert automap.match(src, dest, HIDDEN(), src_output="logits", dest_output="logits").verdict == "complete"


def test_a_tiny_difference_is_told_with_its_size() -> None:
    found = refused(partial(T, norm=partial(norm, 1e-6)), partial(T, norm=partial(norm, 1e-12)), SEQUENCE)
    assert found.verdict == "differs"
    assert set(found.plan.entries) == set(T().state_dict())


def test_equal_models_have_no_error() -> None:
    assert refused(T, T, SEQUENCE).findings == ()
