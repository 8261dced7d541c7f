"""Models of timm and small ones of our own, their counterparts in transformers, and the plans between them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from decoder import CONFIG, EXPERTS, VOCABULARY, Decoder
from models import drawn
from torch import Tensor, nn

import automap
from automap.plan import Expr, Permute, Plan, Slice, Source

IMAGE = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


def image() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(5))


def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """The model in eval mode with all floats of its state drawn anew; tables that are not in the state stay."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(drawn(tuple(tensor.shape), generator, is_positive=name.endswith("var")))
    return model.eval()


@dataclass(frozen=True)
class Case:
    """`by_hand` makes the plan from both states' shapes; without it the plan is found by matching."""

    make_src: Callable[[], nn.Module]
    make_dest: Callable[[], nn.Module]
    sample: Callable[[], Tensor]
    by_hand: Callable[[nn.Module, nn.Module], dict[str, Expr]] | None = None

    def src(self) -> nn.Module:
        return redrawn(self.make_src(), 1)

    def dest(self) -> nn.Module:
        return redrawn(self.make_dest(), 2)

    def plan(self) -> Plan:
        src, dest = self.src(), self.dest()
        if self.by_hand is not None:
            return Plan(self.by_hand(src, dest), src=type(src).__name__, dest=type(dest).__name__)
        found = automap.match(src, dest, self.sample())
        said = {finding.code for finding in found.findings if finding.severity == "error"}
        assert said <= {"output-differs"}, found.findings  # by 1e-8, where norms are computed in float32
        return found.plan


def timm_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=5)


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**IMAGE, intermediate_size=96, num_labels=5, layer_norm_eps=1e-6)
    return ViTForImageClassification(config)


def timm_beit() -> nn.Module:
    from timm.models.beit import Beit

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
    return Beit(**sizes, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1)


def hf_beit() -> nn.Module:
    from transformers import BeitConfig, BeitForImageClassification

    config = BeitConfig(
        **IMAGE,
        intermediate_size=96,
        num_labels=5,
        layer_norm_eps=1e-6,
        use_relative_position_bias=True,
        use_mean_pooling=True,
    )
    return BeitForImageClassification(config)


def timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    sizes = {"embed_dim": 16, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 4, "num_classes": 7}
    return SwinTransformer(img_size=32, patch_size=2, **sizes)


def hf_swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    sizes = {"embed_dim": 16, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 4, "num_labels": 7}
    return SwinForImageClassification(SwinConfig(image_size=32, patch_size=2, **sizes))


def timm_resnet() -> nn.Module:
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, (1, 2, 1, 1), channels=(8, 16, 16, 16), num_classes=5)


def hf_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[32, 64, 64, 64], depths=[1, 2, 1, 1], layer_type="bottleneck", num_labels=5
    )
    return ResNetForImageClassification(config)


def hf_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**CONFIG, tie_word_embeddings=False))


def hf_mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**CONFIG, num_local_experts=EXPERTS, num_experts_per_tok=2, tie_word_embeddings=False)
    config._experts_implementation = "eager"
    return MixtralForCausalLM(config)


SWIN_NAMES = (
    (r"^swin\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^swin\.embeddings\.norm\.", "patch_embed.norm."),
    (r"^swin\.encoder\.layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
    (r"^swin\.encoder\.layers\.", "layers."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.relative_position_bias\.", "attn."),
    (r"attention\.o_proj", "attn.proj"),
    (r"^swin\.layernorm\.", "norm."),
    (r"^classifier\.", "head.fc."),
)


def swin_by_hand(src: nn.Module, dest: nn.Module) -> dict[str, Expr]:
    """The fused qkv is cut in three; the downsampling of a stage is the one of the stage before."""
    state = src.state_dict()
    entries: dict[str, Expr] = {}
    for name in dest.state_dict():
        fused = re.sub(r"attention\.([qkv])_proj", "attn.qkv", name)
        for pattern, text in SWIN_NAMES:
            fused = re.sub(pattern, text, fused)
        source = Source(fused, tuple(state[fused].shape))
        part = re.search(r"([qkv])_proj", name)
        entries[name] = source if part is None else rows(source, "qkv".index(part[1]), 3)
    return entries


def rows(source: Source, number: int, count: int) -> Expr:
    """The rows of part `number` of `count` equal ones."""
    size = source.shape[0] // count
    rest = source.shape[1:]
    start = (number * size, *(0 for _ in rest))
    return Slice(source, start, ((number + 1) * size, *rest), (1,) * len(source.shape))


def decoder(**options: Any) -> Callable[[], nn.Module]:
    return lambda: Decoder(**options)


CASES = {
    "vit": Case(timm_vit, hf_vit, image),
    "beit": Case(timm_beit, hf_beit, image),
    "swin": Case(timm_swin, hf_swin, image, swin_by_hand),
    "resnet": Case(timm_resnet, hf_resnet, image),
    "llama with fused grouped queries": Case(decoder(is_fused=True), hf_llama, tokens),
    "llama with interleaved rotary": Case(decoder(is_interleaved=True), hf_llama, tokens),
    "mixture of experts": Case(decoder(is_interleaved=True, has_experts=True), hf_mixtral, tokens),
}
ALL_CASES = [pytest.param(name, id=name) for name in CASES]


@cache
def plan_of(name: str) -> Plan:
    """The plan of a case, made once."""
    return CASES[name].plan()


def transposed(name: str, *shape: int) -> Expr:
    """The src tensor of that name, transposed."""
    return Permute(Source(name, shape), (1, 0))
