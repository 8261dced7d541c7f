"""Pairs of spellings of one model, each with the map made by hand: what every dest weight is of src's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import BATCH, DIM, HEADS, TOKENS, WIDTH, ids, noise, randomized
from models import language as lm
from models import transformer as tf
from models import vision as cv

State = Mapping[str, Tensor]
Gold = Callable[[State], dict[str, Tensor]]


@dataclass(frozen=True)
class Pair:
    """`gold` gives dest's state from src's; `free` are the dest names that no output fixes."""

    make_src: Callable[[], nn.Module]
    make_dest: Callable[[], nn.Module]
    sample: Callable[[], Any]
    gold: Gold
    dest_sample: Callable[[], Any] | None = None
    free: tuple[str, ...] = ()

    def src(self, seed: int = 1) -> nn.Module:
        return randomized(self.make_src(), seed)

    def dest(self, seed: int = 2) -> nn.Module:
        return randomized(self.make_dest(), seed)

    @property
    def dest_input(self) -> Any:
        return None if self.dest_sample is None else self.dest_sample()


def renamed(*rules: tuple[str, str]) -> Gold:
    """Names changed by regular expressions, tensors as they are."""

    def gold(state: State) -> dict[str, Tensor]:
        found = {}
        for name, tensor in state.items():
            for pattern, text in rules:
                name = re.sub(pattern, text, name)
            found[name] = tensor
        return found

    return gold


def replaced(pattern: str, function: Callable[[str, State], dict[str, Tensor]]) -> Gold:
    """Everything under a module whose name matches pattern is made by function(its name, what it holds)."""

    def gold(state: State) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            hit = re.match(rf"({pattern})\.(.*)", name)
            if hit is None:
                found[name] = tensor
            else:
                groups.setdefault(hit[1], {})[hit.groups()[-1]] = tensor
        for prefix, held in groups.items():
            found |= {f"{prefix}.{name}": tensor for name, tensor in function(prefix, held).items()}
        return found

    return gold


def at(pattern: str, function: Callable[[State], dict[str, Tensor]]) -> Gold:
    return replaced(pattern, lambda _, held: function(held))


def then(*golds: Gold) -> Gold:
    def gold(state: State) -> dict[str, Tensor]:
        for step in golds:
            state = step(state)
        return dict(state)

    return gold


ATTENTION = r"blocks\.\d+\.attn"
MLP = r"blocks\.\d+\.mlp"


def fuse(s: State) -> dict[str, Tensor]:
    both = {f"qkv.{kind}": torch.cat([s[f"{n}.{kind}"] for n in "qkv"]) for kind in ("weight", "bias")}
    return both | {"proj.weight": s["o.weight"], "proj.bias": s["o.bias"]}


def split(s: State) -> dict[str, Tensor]:
    found = {
        f"{n}.{kind}": part
        for kind in ("weight", "bias")
        for n, part in zip("qkv", s[f"qkv.{kind}"].chunk(3), strict=True)
    }
    return found | {"o.weight": s["proj.weight"], "o.bias": s["proj.bias"]}


def per_head(s: State) -> dict[str, Tensor]:
    """Rows `(3, H, D)` as `(H, 3, D)`."""
    rows = {
        k: v.unflatten(0, (3, HEADS, DIM)).transpose(0, 1).flatten(0, 2) for k, v in s.items() if k.startswith("qkv")
    }
    return {**s, **rows}


def from_per_head(s: State) -> dict[str, Tensor]:
    rows = {
        k: v.unflatten(0, (HEADS, 3, DIM)).transpose(0, 1).flatten(0, 2) for k, v in s.items() if k.startswith("qkv")
    }
    return {**s, **rows}


def to_packed(s: State) -> dict[str, Tensor]:
    f = fuse(s)
    return {
        "inner.in_proj_weight": f["qkv.weight"],
        "inner.in_proj_bias": f["qkv.bias"],
        "inner.out_proj.weight": f["proj.weight"],
        "inner.out_proj.bias": f["proj.bias"],
    }


def to_transposed(s: State) -> dict[str, Tensor]:
    f = fuse(s)
    return {
        "c_attn.weight": f["qkv.weight"].T,
        "c_attn.bias": f["qkv.bias"],
        "c_proj.weight": f["proj.weight"].T,
        "c_proj.bias": f["proj.bias"],
    }


def from_chunked(s: State) -> dict[str, Tensor]:
    bias = torch.cat([s["q_bias"], torch.zeros(WIDTH), s["v_bias"]])
    return split(
        {"qkv.weight": s["qkv.weight"], "qkv.bias": bias, "proj.weight": s["proj.weight"], "proj.bias": s["proj.bias"]}
    )


def to_chunked(s: State) -> dict[str, Tensor]:
    f = fuse(s | {"k.bias": torch.zeros(WIDTH)})
    return {
        "qkv.weight": f["qkv.weight"],
        "q_bias": s["q.bias"],
        "v_bias": s["v.bias"],
        "proj.weight": f["proj.weight"],
        "proj.bias": f["proj.bias"],
    }


def zero_biases(*names: str) -> Callable[[State], dict[str, Tensor]]:
    return lambda s: {**s, **{f"{n}.bias": torch.zeros(len(s[f"{n}.weight"])) for n in names}}


def interleave(s: State) -> dict[str, Tensor]:
    """Rows of q and k: dest row 2i is src row i of the first half, dest row 2i + 1 of the second."""
    order = torch.stack([torch.arange(DIM // 2), torch.arange(DIM // 2) + DIM // 2], 1).flatten()
    turned = {n: s[n].unflatten(0, (HEADS, DIM))[:, order].flatten(0, 1) for n in ("q.weight", "k.weight")}
    return {**s, **turned}


def halve(s: State) -> dict[str, Tensor]:
    order = torch.cat([torch.arange(0, DIM, 2), torch.arange(1, DIM, 2)])
    turned = {n: s[n].unflatten(0, (HEADS, DIM))[:, order].flatten(0, 1) for n in ("q.weight", "k.weight")}
    return {**s, **turned}


def fuse_grouped(s: State) -> dict[str, Tensor]:
    q, k, v = (s[f"{n}.weight"].unflatten(0, (HEADS, -1, DIM)) for n in "qkv")
    return {"qkv.weight": torch.cat([q, k, v], 1).flatten(0, 2), "o.weight": s["o.weight"]}


def fuse_gate(is_gate_last: bool) -> Callable[[State], dict[str, Tensor]]:
    order = ("up", "gate") if is_gate_last else ("gate", "up")
    return lambda s: {"w12.weight": torch.cat([s[f"{n}.weight"] for n in order]), "w3.weight": s["down.weight"]}


def split_gate(s: State) -> dict[str, Tensor]:
    gate, up = s["w12.weight"].chunk(2)
    return {"gate.weight": gate, "up.weight": up, "down.weight": s["w3.weight"]}


def gate_first(s: State) -> dict[str, Tensor]:
    return {**s, "w12.weight": s["w12.weight"].roll(2 * WIDTH, 0)}


def as_kernels(s: State) -> dict[str, Tensor]:
    return {k: v[:, :, None, None] if v.dim() == 2 else v for k, v in s.items()}


def as_matrices(s: State) -> dict[str, Tensor]:
    return {k: v.flatten(1) if v.dim() == 4 else v for k, v in s.items()}


def patch_rows(s: State) -> dict[str, Tensor]:
    """`(out, 3, P, P)` as `(out, P * P * 3)`."""
    return {"proj.weight": s["proj.weight"].permute(0, 2, 3, 1).flatten(1), "proj.bias": s["proj.bias"]}


def patch_kernels(s: State) -> dict[str, Tensor]:
    rows = s["proj.weight"].view(WIDTH, cv.PATCH, cv.PATCH, 3)
    return {"proj.weight": rows.permute(0, 3, 1, 2), "proj.bias": s["proj.bias"]}


def channels_last(s: State) -> dict[str, Tensor]:
    head = s["head.weight"].view(4, 6, cv.SIZE, cv.SIZE).permute(0, 2, 3, 1).flatten(1)
    return {**s, "head.weight": head}


def positions_to_after(s: State) -> dict[str, Tensor]:
    return {**s, "positions": torch.cat([torch.zeros(1, 1, WIDTH), s["positions"]], 1)}


def untied(s: State) -> dict[str, Tensor]:
    return {**s, "out.weight": s["words.weight"]}


def pack_experts(s: State) -> dict[str, Tensor]:
    return {
        "gate": s["router.weight"],
        "up": torch.stack([s[f"up.{n}.weight"].T for n in range(4)]),
        "down": torch.stack([s[f"down.{n}.weight"].T for n in range(4)]),
    }


def list_experts(s: State) -> dict[str, Tensor]:
    found = {"router.weight": s["gate"]}
    return found | {f"{kind}.{n}.weight": s[kind][n].T for kind in ("up", "down") for n in range(4)}


def prefixed(s: State) -> dict[str, Tensor]:
    return {f"module.{k}": v for k, v in s.items()}


class Wrapped(nn.Module):
    """A model under another module's name, as DataParallel has it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


SEQUENCE = partial(noise, BATCH, TOKENS, 6)
HIDDEN = partial(noise, BATCH, TOKENS, WIDTH)
IMAGE = partial(noise, BATCH, 3, cv.SIZE, cv.SIZE)
WORDS = partial(ids, BATCH, 7)


def same(state: State) -> dict[str, Tensor]:
    return dict(state)


def towers(
    src: tf.Made, dest: tf.Made, function: Callable[[State], dict[str, Tensor]] = dict, free: tuple[str, ...] = ()
) -> Pair:
    """Two towers that differ in how attention is written."""
    names = tuple(f"blocks.{n}.attn.{name}" for n in range(2) for name in free)
    return Pair(partial(tf.Tower, src), partial(tf.Tower, dest), SEQUENCE, at(ATTENTION, function), free=names)


def mlps(src: tf.Made, dest: tf.Made, function: Callable[[State], dict[str, Tensor]] = dict) -> Pair:
    return Pair(partial(tf.Tower, mlp=src), partial(tf.Tower, mlp=dest), SEQUENCE, at(MLP, function))


def images(src: dict[str, Any], dest: dict[str, Any], gold: Gold, free: tuple[str, ...] = ()) -> Pair:
    return Pair(partial(cv.Image, **src), partial(cv.Image, **dest), IMAGE, gold, free=free)


F, S = tf.Fused, tf.Split


def split_gate_biases() -> list[str]:
    """The two biases of each gate act through their sum alone."""
    return [f"cells.{c}.{g}_{s}.bias" for c in range(4) for g in "ofgi" for s in ("in", "back")]


def split_gates(state: State) -> dict[str, Tensor]:
    found = {}
    for cell in range(4):
        suffix = f"l{cell // 2}" + ("_reverse" if cell % 2 else "")
        for ours, theirs in (("in", "ih"), ("back", "hh")):
            for kind in ("weight", "bias"):
                parts = state[f"lstm.{kind}_{theirs}_{suffix}"].chunk(4)
                found |= {f"cells.{cell}.{g}_{ours}.{kind}": part for g, part in zip("ifgo", parts, strict=True)}
    return found


PAIRS: dict[str, Pair] = {
    "same-class": towers(S, S),
    "split-to-fused": towers(S, F, fuse),
    "fused-to-split": towers(F, S, split),
    "fused-to-per-head": towers(F, partial(F, is_per_head=True), per_head),
    "per-head-to-fused": towers(partial(F, is_per_head=True), F, from_per_head),
    "per-head-to-split": towers(partial(F, is_per_head=True), S, lambda s: split(from_per_head(s))),
    "split-to-packed": towers(S, tf.Packed, to_packed),
    "split-to-transposed": towers(S, tf.Transposed, to_transposed),
    "eager-to-sdpa": towers(partial(S, tf.eager), S),
    "einsum-to-scaled-query": towers(partial(S, tf.einsum), partial(S, tf.scaled_query)),
    "sdpa-to-head-loop": towers(S, partial(S, tf.loop)),
    "head-loop-to-fused": towers(partial(S, tf.loop), F, fuse),
    "no-key-bias-in-src": towers(partial(S, key_bias=False), S, zero_biases("k")),
    "q-bias-and-v-bias-to-split": towers(tf.Chunked, S, from_chunked),
    "split-to-q-bias-and-v-bias": towers(S, tf.Chunked, to_chunked),
    "no-bias-to-bias": towers(partial(S, bias=False), S, zero_biases("q", "k", "v")),
    "half-to-interleaved-rotary": towers(tf.Rotary, partial(tf.Rotary, is_interleaved=True), interleave),
    "interleaved-to-half-rotary": towers(partial(tf.Rotary, is_interleaved=True), tf.Rotary, halve),
    "grouped-queries": towers(tf.Grouped, partial(tf.Grouped, is_expanded=True)),
    "grouped-queries-to-fused": towers(tf.Grouped, tf.GroupedFused, fuse_grouped),
    "bias-table-by-head": towers(
        partial(tf.Biased, TOKENS), partial(tf.Biased, TOKENS, is_by_head=True), lambda s: {**s, "table": s["table"].T}
    ),
    "gelu-by-hand": mlps(tf.Mlp, tf.HandMlp),
    "linear-to-1x1-conv": mlps(tf.Mlp, tf.PointwiseMlp, as_kernels),
    "1x1-conv-to-linear": mlps(tf.PointwiseMlp, tf.Mlp, as_matrices),
    "no-mlp-bias-to-bias": mlps(partial(tf.Mlp, bias=False), tf.Mlp, zero_biases("fc2")),
    "gate-and-up-to-fused": mlps(tf.Gated, tf.GatedFused, fuse_gate(False)),
    "gate-and-up-to-fused-gate-last": mlps(tf.Gated, partial(tf.GatedFused, is_gate_last=True), fuse_gate(True)),
    "gate-last-to-gate-first": mlps(partial(tf.GatedFused, is_gate_last=True), tf.GatedFused, gate_first),
    "fused-gate-to-gate-and-up": mlps(tf.GatedFused, tf.Gated, split_gate),
    "norm-by-hand": Pair(
        partial(tf.Tower, norm=tf.layer_norm),
        partial(tf.Tower, norm=tf.HandNorm),
        SEQUENCE,
        renamed((r"(norm\d?)\.weight", r"\1.scale"), (r"(norm\d?)\.bias", r"\1.shift")),
    ),
    "shared-block-to-shared-block": Pair(
        partial(tf.Tower, S, is_shared=True), partial(tf.Tower, F, is_shared=True), SEQUENCE, at(ATTENTION, fuse)
    ),
    "shared-block-to-unrolled": Pair(
        partial(tf.Tower, is_shared=True),
        tf.Tower,
        SEQUENCE,
        lambda s: {**s, **{k.replace("blocks.0", "blocks.1"): v for k, v in s.items() if "blocks" in k}},
    ),
    "module-prefix": Pair(tf.Tower, lambda: Wrapped(tf.Tower()), SEQUENCE, prefixed),
    "patch-conv-to-linear": images({}, {"patches": cv.PatchLinear}, at("patches", patch_rows)),
    "patch-linear-to-conv": images({"patches": cv.PatchLinear}, {}, at("patches", patch_kernels)),
    "patch-conv-to-unfold": images({}, {"patches": cv.PatchUnfold}, at("patches", as_matrices)),
    "flat-channels-first-to-last": Pair(cv.Flat, partial(cv.Flat, is_channels_last=True), IMAGE, channels_last),
    "batch-norms": Pair(cv.ConvNet, cv.ConvNet, IMAGE, same),
    "batch-norms-by-hand": Pair(
        cv.ConvNet,
        partial(cv.ConvNet, cv.HandResidual),
        IMAGE,
        renamed((r"(bn\d)\.weight", r"\1.gain"), (r"(bn\d)\.bias", r"\1.offset"), (r"running_", "")),
    ),
    "depthwise": Pair(cv.Depthwise, cv.Depthwise, IMAGE, same),
    "depthwise-to-unfolded": Pair(
        cv.Depthwise,
        partial(cv.Depthwise, True),
        IMAGE,
        lambda s: {
            re.sub(r"^(first|second)\.weight", r"\1.kernel", k): v[:, 0] if k.startswith(("first", "second")) else v
            for k, v in s.items()
        },
    ),
    "lstm-to-gate-loop": Pair(
        lm.Recurrent, lm.GateLoop, partial(noise, 2, 5, WIDTH), split_gates, free=tuple(split_gate_biases())
    ),
    "positions-before-to-after": images(
        {"where": "before"}, {"where": "after"}, positions_to_after, free=("token", "positions")
    ),
    "positions-split": images({}, {"where": "apart"}, same, free=("token", "positions")),
    "tied-to-untied": Pair(lm.Tokens, partial(lm.Tokens, is_tied=False), WORDS, untied),
    "tied-to-tied-by-hand": Pair(lm.Tokens, lm.TokensByHand, WORDS, same),
    "positions-with-offset": Pair(
        lm.Tokens,
        partial(lm.Tokens, offset=2),
        WORDS,
        lambda s: {**s, "places.weight": torch.cat([torch.zeros(2, WIDTH), s["places.weight"]])},
        free=("places.weight",),
    ),
    "learned-queries": Pair(
        lm.Queries, partial(lm.Queries, is_flat=True), HIDDEN, lambda s: {**s, "queries": s["queries"][0]}
    ),
    "experts-to-packed": Pair(lm.Experts, lm.PackedExperts, partial(noise, 4, 16, WIDTH), pack_experts),
    "packed-to-experts": Pair(lm.PackedExperts, lm.Experts, partial(noise, 4, 16, WIDTH), list_experts),
    "two-equal-heads": Pair(lm.TwoHeads, lm.TwoHeads, HIDDEN, same),
    "two-equal-heads-swapped": Pair(
        lm.TwoHeads,
        partial(lm.TwoHeads, is_swapped=True),
        HIDDEN,
        lambda s: {
            **s,
            **{
                f"{a}.{k}": s[f"{b}.{k}"]
                for a, b in (("head", "head_dist"), ("head_dist", "head"))
                for k in ("weight", "bias")
            },
        },
    ),
    "more-outputs-in-src": Pair(
        partial(lm.ManyOutputs, is_rich=True),
        lm.ManyOutputs,
        HIDDEN,
        lambda s: {k: v for k, v in s.items() if "pooler" not in k},
    ),
}

ALL_PAIRS = [pytest.param(pair, id=name) for name, pair in PAIRS.items()]
