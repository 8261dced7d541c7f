"""Checkpoints and plans for the tests of apply, and the plain way to do what it does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from automap.plan import (
    Add,
    Affine,
    Cast,
    Concat,
    Expand,
    Expr,
    Fill,
    Gather,
    Mean,
    Multiply,
    Norm,
    Pad,
    Permute,
    Plan,
    Reshape,
    Slice,
    Source,
    Sqrt,
)

State = dict[str, Tensor]


def random_state(seed: int = 0) -> State:
    """Tensors of several dtypes, with a NaN's payload, -0.0, a scalar and an empty one among them."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    state = {
        "qkv": randn(48, 16),
        "up": randn(10, 6),
        "half": randn(12, 8).bfloat16(),
        "scalar": randn(),
        "empty": torch.zeros(0, 4),
        "steps": torch.arange(5),
        "mask": torch.tensor([True, False, True]),
        "small": randn(6, 4).to(torch.float8_e4m3fn),
        "conv": randn(4, 3, 2, 2),
        "wide": randn(3, 5).double(),
    }
    state["qkv"].view(torch.int32)[3, 4] = 0x7FC12345
    state["half"].view(torch.int16)[1, 1] = 0x7FA1
    state["up"][0, 0] = -0.0
    return state


def source(state: Mapping[str, Tensor], name: str) -> Source:
    return Source(name, tuple(state[name].shape), str(state[name].dtype).removeprefix("torch."))


def rows(arg: Expr, shape: tuple[int, ...], start: int, stop: int) -> Slice:
    return Slice(arg, (start, *(0 for _ in shape[1:])), (stop, *shape[1:]), (1,) * len(shape))


def entries(state: Mapping[str, Tensor]) -> dict[str, Expr]:
    """One dest tensor for each thing that a plan can do."""
    qkv, up, half, conv = (source(state, name) for name in ("qkv", "up", "half", "conv"))
    heads = Reshape(qkv, (4, 3, 4, 16))
    column = Slice(up, (0, 0), (10, 1), (1, 1))
    return {
        "q": rows(qkv, qkv.shape, 0, 16),
        "k": rows(qkv, qkv.shape, 16, 32),
        "v": rows(qkv, qkv.shape, 32, 48),
        "up.t": Permute(up, (1, 0)),
        "half": half,
        "half.again": half,
        "scalar": Reshape(source(state, "scalar"), (1, 1)),
        **{name: source(state, name) for name in ("empty", "steps", "mask", "small", "wide")},
        "by_head": Reshape(Permute(heads, (1, 0, 2, 3)), (48, 16)),
        "head_q": Reshape(Slice(heads, (0, 1, 0, 0), (4, 2, 4, 16), (1, 1, 1, 1)), (16, 16)),
        "pairs": Concat((Slice(qkv, (0, 0), (48, 16), (2, 1)), Slice(qkv, (1, 0), (48, 16), (2, 1))), 0),
        "beside": Concat((up, Fill(0.1, (10, 2))), 1),
        "mixed": Concat((rows(half, half.shape, 0, 3), Fill(0.1, (2, 8)), rows(half, half.shape, 9, 12)), 0),
        "wider": Concat((source(state, "wide"), Slice(up, (0, 0), (3, 5), (1, 1))), 0),
        "picked": Gather(up, 0, (3, 1, 1, 9)),
        "linear": Reshape(conv, (4, 12)),
        "padded": Pad(up, (1, 0), (2, 1)),
        "spread": Expand(Slice(up, (2, 0), (3, 6), (1, 1)), (4, 6)),
        "shifted": Affine(up, 1.0, 1.0),
        "cast": Cast(up, "float16"),
        "normed": Multiply(column, Norm(up, (1,))),
        "sum": Add(up, Sqrt(Multiply(up, up))),
        "mean": Mean(conv, (2, 3)),
        "zeros": Fill(0.0, (4, 4), "float16"),
    }


def plan_of(state: Mapping[str, Tensor]) -> Plan:
    return Plan(entries(state))


def write_shards(state: Mapping[str, Tensor], folder: Path, count: int = 3) -> Path:
    """The state as a folder of safetensors shards with an index."""
    folder.mkdir(exist_ok=True)
    placed = {}
    names = list(state)
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        own = names[number::count]
        save_file({name: state[name] for name in own}, folder / file, metadata={"format": "pt", "made_by": "test"})
        placed |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 1, "license": "mit"}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def load_output(out: Path) -> State:
    """All tensors of a file or folder that apply wrote, read by safetensors itself."""
    if out.is_file():
        return load_file(out)
    state: State = {}
    for file in sorted(out.glob("*.safetensors")):
        shard = load_file(file)
        assert not state.keys() & shard.keys()
        state |= shard
    index = out / "model.safetensors.index.json"
    if index.exists():
        placed = json.loads(index.read_text())["weight_map"]
        assert {name: name in load_file(out / file) for name, file in placed.items()} == dict.fromkeys(state, True)
    return state


def bits(value: Tensor) -> Tensor:
    return value.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def is_bitwise(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    def is_same(one: Tensor, two: Tensor) -> bool:
        return (one.dtype, one.shape) == (two.dtype, two.shape) and torch.equal(bits(one), bits(two))

    return found.keys() == wanted.keys() and all(is_same(found[name], wanted[name]) for name in wanted)
