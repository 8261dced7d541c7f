"""One planted difference in a decoder of tokens or a net of images: it is the first error, by its own name.

Each row is one thing that implementations differ in, with words that the first finding must have. What a weight can
make up for (an embedding scale, a factor on a branch) is no difference and not here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from models import ids, noise, randomized
from models.planted import Decoder, Net
from torch import Tensor
from torch.nn import functional as F

import automap


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def resized(mode: str = "bilinear", factor: float = 2.0, **options: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, scale_factor=factor, mode=mode, **options)


def largest(x: Tensor) -> Tensor:
    return x.amax((2, 3))


def unit(**options: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.normalize(x, **options)


def changed(id: str, codes: str, words: str, *, dest: dict[str, Any] | None = None, **src: Any) -> Any:
    """A row: what src does, and what dest does otherwise."""
    return pytest.param(src, src | (dest or {}), set(codes.split()), words.split(), id=id)


steeper = partial(F.leaky_relu, negative_slope=0.2)
tanh_gelu = partial(F.gelu, approximate="tanh")
avg = partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1)
TEXT = [
    changed("rms-eps", "attribute-differs", "eps 1e-05 1e-06", dest={"eps": 1e-6}),
    changed("layer-norm-eps", "attribute-differs", "layer_norm eps", rms=False, dest={"eps": 1e-6}),
    changed("rms-against-layer-norm", "op-extra", "layer_norm norm1", dest={"rms": False}),
    changed("gelu-variant", "attribute-differs", "gelu none tanh", act=F.gelu, dest={"act": tanh_gelu}),
    changed("silu-against-gelu", "op-extra", "gelu silu mlp", dest={"act": F.gelu}),
    changed("quick-gelu", "op-extra", "1.702 gelu", act=F.gelu, dest={"act": quick_gelu}),
    changed("relu-squared", "op-extra", "pow mlp", act=F.relu, dest={"act": squared}),
    changed("soft-cap-value", "attribute-differs", "5.0 8.0", soft_cap=5.0, dest={"soft_cap": 8.0}),
    changed("soft-cap-in-dest", "op-extra", "tanh soft cap attn", dest={"soft_cap": 5.0}),
    changed("soft-cap-in-src", "op-missing", "tanh soft cap attn", soft_cap=5.0, dest={"soft_cap": None}),
    changed("soft-cap-of-scores", "op-extra", "div 5.0", dest={"final_cap": 5.0}),
    changed("soft-cap-of-scores-in-src", "op-missing", "tanh soft cap", final_cap=5.0, dest={"final_cap": None}),
    changed("sliding-window", "constant-differs", "mask", dest={"window": 2}),
    changed("window-size", "constant-differs", "mask", window=3, dest={"window": 2}),
    changed("causal-in-src", "op-missing", "masked_fill mask attn", dest={"is_causal": False}),
    changed("causal-in-dest", "op-extra", "mask", is_causal=False, dest={"is_causal": True}),
    changed("mask-value", "attribute-differs", "-2.0 -1.0", mask_value=-2.0, dest={"mask_value": -1.0}),
    changed("rope-base", "constant-differs", "rotary table", dest={"theta": 500000.0}),
    changed("rope-scale", "constant-differs", "rotary table", dest={"rope_scale": 0.5}),
    changed("rope-part", "shape-differs", "rotary table part", dest={"part": 0.5}),
    changed("rope-pairs", "constant-differs", "rotary", has_qk_norm=True, dest={"is_interleaved": True}),
    changed("kv-heads", "shape-differs", "heads", dest={"kv_heads": 4}),
    changed("one-kv-head", "shape-differs", "heads", dest={"kv_heads": 1}),
    changed("softmax-dim", "attribute-differs", "softmax dim -1 -2", is_causal=False, dest={"softmax_dim": -2}),
    changed("log-softmax", "op-extra", "log_softmax", is_causal=False, dest={"is_log": True}),
    changed("softmax-sink", "rewired", "softmax constant_pad_nd", dest={"sink": True}),
    changed("query-norm-in-dest", "op-extra", "norm q_norm", dest={"has_qk_norm": True}),
    changed("query-norm-in-src", "op-missing", "q_norm", has_qk_norm=True, dest={"has_qk_norm": False}),
    changed("post-norm", "op-missing", "norm1", dest={"norm_first": False}),
    changed("parallel-branches", "rewired", "mlp.up norm2", dest={"is_parallel": True}),
    changed("no-final-norm", "op-missing", "norm", dest={"has_final_norm": False}),
    changed("final-norm", "op-extra", "norm", has_final_norm=False, dest={"has_final_norm": True}),
    changed("embedding-norm", "op-extra", "pow", dest={"has_embed_norm": True}),
    changed("no-embedding-norm", "op-missing", "norm", has_embed_norm=True, dest={"has_embed_norm": False}),
    changed("no-residual", "op-missing", "add layers.0", dest={"has_residual": False}),
    changed("head-on-another-token", "rewired", "select index 0 -1", head_token=-1, dest={"head_token": 0}),
    changed("mean-of-tokens", "op-extra", "mean", head_token=-1, dest={"head_token": None, "is_mean": True}),
    changed("distance-bias", "constant-differs", "table", dest={"alibi": 0.3}),
    changed("distance-slope", "constant-differs", "table", alibi=0.3, dest={"alibi": 0.5}),
    changed("clamp", "op-extra", "clamp mlp", dest={"clamp": 0.5}),
    changed("clamp-range", "attribute-differs", "clamp 0.5 0.7", clamp=0.5, dest={"clamp": 0.7}),
    changed("activated-values", "op-extra", "tanh attn", dest={"value_act": torch.tanh}),
    changed("no-gate", "op-missing shape-differs unmatched-weight", "mlp", dest={"is_gated": False}),
]
IMAGES = [
    changed("batch-norm-eps", "attribute-differs", "eps 1e-05 0.001", dest={"eps": 1e-3}),
    changed(
        "leaky-slope", "attribute-differs", "slope 0.01 0.2", act=F.leaky_relu, dest={"act": steeper}
    ),
    changed("elu-alpha", "attribute-differs", "alpha 0.5", act=F.elu, dest={"act": partial(F.elu, alpha=0.5)}),
    changed("hard-swish", "op-extra", "hardswish silu", act=F.silu, dest={"act": F.hardswish}),
    changed("no-relu-after-the-sum", "op-missing", "relu", dest={"is_relu_after": False}),
    changed("circular-padding", "attribute-differs op-extra", "padding", dest={"padding_mode": "circular"}),
    changed(
        "replicated-padding", "op-extra", "replication_pad2d reflection_pad2d", padding_mode="reflect",
        dest={"padding_mode": "replicate"},
    ),
    changed("dilation", "attribute-differs", "convolution padding", dest={"dilation": 2}),
    changed("groups", "attribute-differs", "convolution groups 1 2", dest={"groups": 2}),
    changed("max-against-mean-pool", "op-extra", "avg_pool2d max_pool2d", dest={"pool": avg}),
    changed(
        "count-include-pad", "attribute-differs", "count_include_pad True False", pool=avg,
        dest={"pool": partial(avg, count_include_pad=False)},
    ),
    changed(
        "ceil-mode", "attribute-differs", "ceil_mode False True", pool=partial(F.max_pool2d, kernel_size=3, stride=2),
        dest={"pool": partial(F.max_pool2d, kernel_size=3, stride=2, ceil_mode=True)},
    ),
    changed(
        "pool-size", "attribute-differs", "kernel (3, 2", dest={"pool": partial(F.max_pool2d, kernel_size=2, stride=2)}
    ),
    changed("nearest", "op-extra", "upsample_nearest2d bilinear", head=largest, dest={"resize": resized("nearest")}),
    changed("bicubic", "op-extra", "upsample_bicubic2d", head=largest, dest={"resize": resized("bicubic")}),
    changed(
        "align-corners", "attribute-differs", "align_corners False True", head=largest,
        dest={"resize": resized(align_corners=True)},
    ),
    changed(
        "antialias", "op-extra", "bilinear2d_aa", resize=resized(factor=0.5),
        dest={"resize": resized(factor=0.5, antialias=True)},
    ),
    changed("norm-groups", "attribute-differs", "group_norm groups 4 2", norm="group", dest={"norm_groups": 2}),
    changed("group-norm-eps", "attribute-differs", "group_norm eps", norm="group", dest={"eps": 1e-3}),
    changed("instance-norm", "op-extra", "group_norm", norm="group", dest={"norm": "instance"}),
    changed("input-mean", "constant-differs", "table", has_norm=True, mean=(0.5, 0.4, 0.3), dest={"mean": (0.5,) * 3}),
    changed("normalised-input", "constant-differs", "table add", dest={"has_norm": True, "mean": (0.5, 0.4, 0.3)}),
    changed("largest-of-the-map", "op-extra", "amax mean", dest={"head": largest}),
    changed("one-place-of-the-map", "op-missing", "mean", dest={"head": lambda x: x[:, :, 0, 0]}),
    changed("no-residual-of-maps", "op-missing", "add", dest={"has_residual": False}),
    changed("no-squeeze", "op-missing", "mul", dest={"has_gate": False}),
    changed("hard-sigmoid", "op-extra", "hardsigmoid sigmoid", dest={"gate": F.hardsigmoid}),
    changed("norm-after-activation", "unused-source op-missing", "norm1 relu", dest={"is_norm_last": True}),
    changed("rolled-windows", "rewired", "roll shifts (1, 1)", dest={"shift": 1}),
    changed("how-far-rolled", "rewired", "roll (2, (1,", shift=1, dest={"shift": 2}),
    changed("active-dropout", "constant-differs", "dropout 0.2", dest={"dropout": 0.2}),
    changed("unit-length", "op-extra", "linalg_vector_norm", dest={"unit": unit(dim=-1)}),
    changed("unit-dim", "attribute-differs", "norm dim (-1,) (0,)", unit=unit(dim=-1), dest={"unit": unit(dim=0)}),
    changed("unit-eps", "attribute-differs", "clamp_min 10.0", unit=unit(), dest={"unit": unit(eps=10.0)}),
    changed("norm-before-the-head", "op-extra", "layer_norm head_normed", dest={"head_norm": True}),
    changed("padding-on-one-side", "attribute-differs", "padding (1, (0,", dest={"asymmetric": True}),
]  # fmt: skip


def assert_named(src: Any, dest: Any, sample: Tensor, codes: set[str], words: list[str]) -> None:
    found = automap.match(randomized(src, 1), randomized(dest, 2), sample)
    assert found.verdict in ("differs", "impossible")
    first = found.findings[0]
    assert (first.severity, first.code in codes) == ("error", True), first
    text = f"{first.message} {first.src} {first.dest}"
    assert [word for word in words if word not in text] == [], first.message


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_an_attention_scale_is_made_up_for_by_weights_and_explained(scale: float) -> None:
    src, dest = randomized(Decoder(1), 1), randomized(Decoder(1, scale=scale), 2)
    found = automap.match(src, dest, ids(2, 6))
    assert (found.verdict, [finding.code for finding in found.findings]) == ("complete", ["computed"])
    first = automap.explain(src, dest, ids(2, 6)).first
    assert first is not None
    assert ("scale" in first.finding.message, "0.5" in first.finding.message) == (True, True)


def test_units_in_doubt_are_named_with_the_other_maps() -> None:
    def cut(x: Tensor) -> Tensor:
        return x * (x > 0)

    src, dest = Net(has_gate=False, act=cut), Net(has_gate=False, shuffle=2, act=cut)
    found = automap.match(randomized(src, 1), randomized(dest, 2), noise(2, 3, 32, 32))
    assert found.verdict == "ambiguous"
    assert "columns 4, 7 of it may change places: 2 maps, (4, 7), (7, 4)" in found.findings[0].notes


def test_units_that_a_relu_keeps_at_zero_are_no_doubt() -> None:
    src, dest = randomized(Net(has_gate=False), 1), randomized(Net(has_gate=False, shuffle=2), 2)
    found = automap.match(src, dest, noise(2, 3, 32, 32))
    assert found.verdict == "complete"
    dest.load_state_dict(found.plan.apply(src.state_dict()), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(dest(noise(5, 3, 32, 32, seed=9)), src(noise(5, 3, 32, 32, seed=9)))


def test_a_limit_that_no_value_reaches_is_warned_of() -> None:
    src, dest = randomized(Net(1), 1), randomized(Net(1, act=F.relu6), 2)
    found = automap.match(src, dest, noise(2, 3, 32, 32))
    warnings = [finding for finding in found.findings if finding.severity == "warning"]
    assert [(w.code, "hardtanh" in w.message, " 6," in w.message) for w in warnings] == [
        ("attribute-differs", True, True)
    ]
    assert automap.match(dest, randomized(Net(1, act=F.relu6), 3), noise(2, 3, 32, 32)).findings == ()


@pytest.mark.parametrize(("src", "dest", "codes", "words"), TEXT)
def test_a_difference_between_decoders_is_named_first(
    src: dict[str, Any], dest: dict[str, Any], codes: set[str], words: list[str]
) -> None:
    depth = 2 if "is_parallel" in dest or "has_residual" in dest else 1
    assert_named(Decoder(depth, **src), Decoder(depth, **dest), ids(2, 6), codes, words)


@pytest.mark.parametrize(("src", "dest", "codes", "words"), IMAGES)
def test_a_difference_between_nets_of_images_is_named_first(
    src: dict[str, Any], dest: dict[str, Any], codes: set[str], words: list[str]
) -> None:
    assert_named(Net(1, **src), Net(1, **dest), noise(2, 3, 32, 32), codes, words)
