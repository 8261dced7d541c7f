"""What benchmarks/speed.py measures, each case in a process of its own: a name and numbers in, figures as a dict out.

Calls that are compared run in turn within one process, so that a ratio is of two figures taken next to each other.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from large_models import Shape, experts, llama, llama_70b
from peer_tools import Refusal, Side, hook_order
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import automap
from automap.capture import record
from automap.collector import only_new_garbage
from automap.inputs import Inputs
from automap.models import build_model

Figures = dict[str, Any]
MODELS = {
    "ResNet-50": ("timm:resnet50", "hf:ResNetForImageClassification"),
    "ViT-B/16": ("timm:vit_base_patch16_224", "hf:ViTForImageClassification?layer_norm_eps=1e-6"),
    "Swin-T": ("timm:swin_tiny_patch4_window7_224", "torchvision:swin_t"),
    "ConvNeXt-T": ("timm:convnext_tiny", "torchvision:convnext_tiny"),
}


def peak_mb() -> float:
    """Return the largest resident size that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@dataclass
class Models:
    """A pair of full-size models, one image, and dest's first weights."""

    src: nn.Module
    dest: nn.Module
    image: Tensor
    first: dict[str, Tensor]

    def reset(self) -> None:
        self.dest.load_state_dict(self.first)

    def forwards(self, count: int) -> None:
        with torch.no_grad():
            for _ in range(count):
                self.src(self.image)

    def by_hook_order(self) -> float:
        """Carry the weights over in the order of the modules' calls and return how far the outputs are apart."""
        sides = [Side(model, (self.image,), {}, logits) for model in (self.src, self.dest)]
        self.dest.load_state_dict(hook_order(*sides), strict=False)
        with torch.no_grad():
            wanted, found = logits(self.src(self.image)), logits(self.dest(self.image))
        return float((wanted - found).abs().max() / wanted.abs().max())

    def by_automap(self, verify: Any) -> Any:
        return automap.transfer(self.src, self.dest, self.image, verify=verify, strict=False)


def logits(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result.logits


def prepared(name: str) -> Models:
    """Return the models of a case; src gets weights of which each moves the output, unlike those it is built with."""
    src, dest = (build_model(spec, seed=seed) for seed, spec in enumerate(MODELS[name]))
    torch.manual_seed(2)
    with torch.no_grad():
        for key, weight in src.named_parameters():
            if weight.ndim == 1 and not key.endswith("bias"):  # norms, and layer scales that start near zero
                weight.uniform_(0.5, 1.5)
            else:
                weight += 0.02 * torch.randn_like(weight)
    first = {key: value.clone() for key, value in dest.state_dict().items()}
    return Models(src, dest, torch.randn(1, 3, 224, 224), first)


def transfer(name: str, repeats: int) -> Figures:
    """Return seconds of every call, one of each a round, the stages of the default transfer, and peaks of memory."""
    models = prepared(name)
    logits(models.dest(models.image))
    models.forwards(1)
    built_mb = peak_mb()
    found = models.by_automap("default")
    figures = {"verdict": found.match.verdict if found.is_equal else f"{found.match.verdict}, not equal"}
    sizes = sum(w.numel() * w.element_size() for m in (models.src, models.dest) for w in m.state_dict().values())
    memory = {"built_mb": built_mb, "transferred_mb": peak_mb(), "weights_mb": sizes / 2**20}
    figures["hook_order"] = hook_order_works(models)
    rounds = [one_round(models, figures["hook_order"] == "works") for _ in range(repeats)]
    return figures | memory | {"rounds": rounds}


def hook_order_works(models: Models) -> str:
    models.reset()
    try:
        apart = models.by_hook_order()
    except Refusal as refusal:
        return f"refuses: {refusal}"
    return "works" if apart < 1e-4 else f"is wrong by {apart:.1e}, unawares"


def one_round(models: Models, with_hook_order: bool) -> Figures:
    """Return the seconds of each call made once, and those of the default transfer's stages."""
    figures: Figures = {"forwards": seconds(lambda: models.forwards(4))}
    if with_hook_order:
        models.reset()
        figures["hook_order"] = seconds(models.by_hook_order)
    models.reset()
    figures["quick"] = seconds(lambda: models.by_automap("quick"))
    models.reset()
    started = time.perf_counter()
    found = models.by_automap("default")
    figures["default"] = time.perf_counter() - started
    return figures | {"stages": dict(found.timings_s)}


def capture(name: str, repeats: int) -> Figures:
    """Return seconds of a forward, of recording it, and of recording it in outline, one of each a round."""
    models = prepared(name)
    inputs = Inputs.of(models.image)
    models.forwards(1)
    ops = record(models.src, inputs).op_count
    calls = {
        "forward": lambda: models.forwards(1),
        "recorded": lambda: record(models.src, inputs),
        "outline": lambda: record(models.src, inputs, is_sketched=True),
    }
    with only_new_garbage():
        rounds = [{kind: seconds(call) for kind, call in calls.items()} for _ in range(repeats)]
    return {"ops": ops, "rounds": rounds}


def fake_capture(side: int, repeats: int) -> Figures:
    """Return seconds of a Llama's forward under fake tensors and of recording it, for two depths; side is 0 or 1.

    What grows with depth is what an op takes; the rest is done once.
    """
    depths: list[Figures] = []
    tokens = torch.zeros((1, 8), dtype=torch.long)
    for blocks in (10, 40):
        with torch.device("meta"):
            model = llama(llama_70b(blocks))[side]
        plain = faked_forward(model, tokens)
        plain()
        ops = record(model, Inputs.of(tokens), mode="fake").op_count
        with only_new_garbage():
            rounds = [
                {
                    "forward": seconds(plain),
                    "recorded": seconds(lambda m=model: record(m, Inputs.of(tokens), mode="fake")),
                }
                for _ in range(repeats)
            ]
        depths.append({"ops": ops, "rounds": rounds, "name": type(model).__name__})
    return {"depths": depths}


def faked_forward(model: nn.Module, tokens: Tensor) -> Callable[[], object]:
    """Return what runs a model on `meta` under fake tensors, its weights being fakes already, on the same kernels as
    are recorded.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        state = {
            name: torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }

    def run() -> object:
        with mode, torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
            return functional_call(model, state, (tokens,))

    return run


class Joined(nn.Module):
    """A residual block of two layers, spelled with modules."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Apart(nn.Module):
    """The same block spelled with matrices that lie the other way round, registered in another order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.second = nn.Parameter(torch.randn(2 * width, width) / width)
        self.first = nn.Parameter(torch.randn(width, 2 * width) / width)
        self.first_shift = nn.Parameter(torch.randn(2 * width))
        self.second_shift = nn.Parameter(torch.randn(width))
        self.before = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.before(x) @ self.first + self.first_shift)
        return hidden @ self.second + self.second_shift + x


def chain(block: Callable[[int], nn.Module], depth: int) -> nn.Module:
    return nn.Sequential(*(block(8) for _ in range(depth))).eval()


def matching(ops: int) -> Figures:
    """Return what a match of two residual networks of about this many recorded ops takes."""
    torch.manual_seed(0)
    sample = torch.randn(4, 8)
    each = automap.match(chain(Joined, 20), chain(Apart, 20), sample).src_capture.op_count / 20
    src, dest = (chain(block, round(ops / each)) for block in (Joined, Apart))
    found = automap.match(src, dest, sample)
    sides = {"src_ops": found.src_capture.op_count, "dest_ops": found.dest_capture.op_count}
    return sides | {"verdict": found.verdict, "stages": dict(found.timings_s), "peak_mb": peak_mb()}


LARGE = {
    "Llama 70B, 20 of 80 blocks": (llama, llama_70b(20)),
    "Llama 70B, 40 of 80 blocks": (llama, llama_70b(40)),
    "Llama 70B": (llama, llama_70b(80)),
    "twice as deep, 160 blocks": (llama, llama_70b(160)),
    "64 experts a block, 16 blocks": (experts, Shape(4096, 1536, 16, 32, 8, 102400)),
    "64 experts a block, 32 blocks": (experts, Shape(4096, 1536, 32, 32, 8, 102400)),
}


def large(name: str) -> Figures:
    """Return what matching two implementations takes, none of whose weights has values."""
    make, shape = LARGE[name]
    started = time.perf_counter()
    with torch.device("meta"):
        models = make(shape)
    figures: Figures = {"build_s": time.perf_counter() - started, "built_mb": peak_mb()}
    figures["parameters"] = sum(weight.numel() for weight in models[0].parameters())
    started = time.perf_counter()
    found = automap.match(*models, torch.randint(shape.vocab_size, (1, 8)))
    figures |= {"match_s": time.perf_counter() - started, "stages": dict(found.timings_s), "peak_mb": peak_mb()}
    return figures | {"verdict": found.verdict, "ops": found.src_capture.op_count + found.dest_capture.op_count}
