"""`automap apply` against `cp -r` and against transformers: throughput and peak memory on generated checkpoints.

    python benchmarks/apply.py --gib 2 8 16 --memory 1GiB --transformers

Each size is a bf16 checkpoint in shards, fused qkv and gate_up projections on one side, one matrix each on the other.
Every timed command is a process of its own, its start included; before it, dirty pages are written and the checkpoint
is dropped from the page cache, so that all read from disk. Bytecode is there, as after an installation.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # nothing heavy in this process: what it holds would count as its children's peak
    import torch

    from automap.plan import Expr, Plan, Slice, Source

HIDDEN, INNER, HEADS, VOCABULARY = 4096, 11008, 32, 32000
LAYER_BYTES = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER + 2 * HIDDEN)
OUTER_BYTES = 2 * (2 * VOCABULARY * HIDDEN + HIDDEN)


@dataclass(frozen=True, slots=True)
class Measured:
    """A command's wall time, the time until all of it was on disk, and the most memory that it held."""

    elapsed_s: float
    synced_s: float
    peak_bytes: int

    def text(self, size_bytes: int) -> str:
        speed = size_bytes / self.elapsed_s / 2**30
        on_disk = f"on disk after {self.synced_s:7.2f} s"
        return f"{self.elapsed_s:7.2f} s  {speed:5.2f} GiB/s  {on_disk}  peak {self.peak_bytes / 2**20:6.0f} MiB"


def fused_shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        name = f"model.layers.{layer}"
        yield f"{name}.self_attn.qkv_proj.weight", (3 * HIDDEN, HIDDEN)
        yield f"{name}.self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield f"{name}.mlp.gate_up_proj.weight", (2 * INNER, HIDDEN)
        yield f"{name}.mlp.down_proj.weight", (HIDDEN, INNER)
        yield f"{name}.input_layernorm.weight", (HIDDEN,)
        yield f"{name}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def generate(folder: Path, layers: int, *, shard_bytes: int = 2 * 10**9) -> int:
    """Write the fused checkpoint, every tensor with other values, and return its bytes."""
    import torch

    from automap.apply.index import index_text

    folder.mkdir()
    noise = torch.randint(-(2**15), 2**15, (2 * INNER * HIDDEN,), dtype=torch.int16)
    shard: dict[str, torch.Tensor] = {}
    placed: dict[str, str] = {}
    size = total = 0
    for number, (name, shape) in enumerate(fused_shapes(layers)):
        count = torch.Size(shape).numel()
        shard[name] = (noise if count <= len(noise) else noise.repeat(2))[:count].bitwise_xor(number * 7919 % 2**15)
        shard[name] = shard[name].view(torch.bfloat16).view(shape)
        size += 2 * count
        if size > shard_bytes:
            total += write_shard(folder, shard, placed)
            shard, size = {}, 0
    total += write_shard(folder, shard, placed)
    (folder / "model.safetensors.index.json").write_text(index_text(placed, {"total_size": total}))
    return total


def write_shard(folder: Path, shard: dict[str, torch.Tensor], placed: dict[str, str]) -> int:
    from safetensors.torch import save_file

    name = f"model-{len(set(placed.values())) + 1:05}.safetensors"
    save_file(shard, folder / name, metadata={"format": "pt"})
    placed |= dict.fromkeys(shard, name)
    return (folder / name).stat().st_size


def rows(source: Source, start: int, stop: int) -> Slice:
    from automap.plan import Slice

    return Slice(source, (start, 0), (stop, source.shape[1]), (1, 1))


def split_plan(layers: int, *, interleaved: bool) -> Plan:
    """One matrix for each part of the fused ones; `interleaved` takes q, k and v from every head's rows in turn."""
    from automap.plan import Plan, Source

    entries: dict[str, Expr] = {}
    for name, shape in fused_shapes(layers):
        source = Source(name, shape, "bfloat16")
        if "qkv_proj" in name:
            for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
                entries[name.replace("qkv_proj", part)] = (
                    head_rows(source, number) if interleaved else rows(source, number * HIDDEN, (number + 1) * HIDDEN)
                )
        elif "gate_up_proj" in name:
            entries[name.replace("gate_up_proj", "gate_proj")] = rows(source, 0, INNER)
            entries[name.replace("gate_up_proj", "up_proj")] = rows(source, INNER, 2 * INNER)
        else:
            entries[name] = source
    return Plan(entries, src="fused", dest="split")


def head_rows(source: Source, number: int) -> Expr:
    """The rows of one projection where each head has its q, k and v, and rotary pairs as halves."""
    from automap.plan import Permute, Reshape, Slice

    width = HIDDEN // HEADS
    heads = Reshape(source, (HEADS, 3, width // 2, 2, HIDDEN))
    own = Slice(heads, (0, number, 0, 0, 0), (HEADS, number + 1, width // 2, 2, HIDDEN), (1,) * 5)
    return Reshape(Permute(own, (0, 1, 3, 2, 4)), (HIDDEN, HIDDEN))


def measured(command: list[str], folder: Path) -> Measured:
    """Run a command with the checkpoint in `folder` on disk only."""
    os.sync()
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=with_bytecode(folder.parent))
    _, status, usage = os.wait4(process.pid, 0)
    elapsed_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[:4]} failed with status {process.returncode}")
    os.sync()
    return Measured(elapsed_s, time.perf_counter() - began, usage.ru_maxrss * 1024)


def with_bytecode(work: Path) -> dict[str, str]:
    """An environment in which a module is compiled once, wherever and however this one runs."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(work / "bytecode")}


def apply_command(plan: Path, checkpoint: Path, out: Path, options: argparse.Namespace) -> list[str]:
    words = ["apply", str(plan), str(checkpoint), "-o", str(out), "--memory", options.memory, "--quiet"]
    return [sys.executable, "-m", "automap", *words]


LOAD_AND_SAVE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model.save_pretrained(sys.argv[2], max_shard_size="5GB")
"""


def add_config(folder: Path, layers: int) -> None:
    """Make a folder of split weights one that transformers loads."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "vocab_size": VOCABULARY}
    config = LlamaConfig(
        **sizes, num_attention_heads=HEADS, num_hidden_layers=layers, architectures=["LlamaForCausalLM"]
    )
    config.save_pretrained(folder)


def bench_size(gib: float, work: Path, options: argparse.Namespace) -> None:
    layers = max(1, round((gib * 2**30 - OUTER_BYTES) / LAYER_BYTES))
    fused, plan, out, copy = work / "fused", work / "plan.json", work / "out", work / "copy"
    made = [sys.executable, __file__, "--make", str(layers), "--folder", str(work)]
    subprocess.run(made + ["--interleaved"] * options.interleaved, check=True)
    shards = [path.stat().st_size for path in fused.glob("*.safetensors")]
    size_bytes = sum(shards)
    print(f"{size_bytes / 2**30:.2f} GiB in {len(shards)} shards, {layers} layers", flush=True)
    subprocess.run([*apply_command(plan, fused, out, options), "--dry-run"], check=True, env=with_bytecode(work))
    ratios = []
    for _ in range(options.rounds):
        copied = measured(["cp", "-r", str(fused), str(copy)], fused)
        shutil.rmtree(copy)
        applied = measured(apply_command(plan, fused, out, options), fused)
        ratios.append(copied.elapsed_s / applied.elapsed_s)
        print(f"  cp -r          {copied.text(size_bytes)}")
        print(f"  automap apply  {applied.text(size_bytes)}   {ratios[-1]:.2f} of cp", flush=True)
        if len(ratios) < options.rounds:
            shutil.rmtree(out)
    print(f"  median of {len(ratios)}: {statistics.median(ratios):.2f} of cp", flush=True)
    if options.transformers:
        shutil.rmtree(fused)
        subprocess.run([sys.executable, __file__, "--add-config", str(layers), "--folder", str(out)], check=True)
        again = measured([sys.executable, "-c", LOAD_AND_SAVE, str(out), str(copy)], out)
        print(f"  transformers   {again.text(size_bytes)}   from_pretrained + save_pretrained", flush=True)
    for folder in (fused, out, copy):
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, nargs="+", default=[1.0], help="sizes of checkpoints")
    parser.add_argument("--memory", default="1GiB", help="what automap may hold")
    parser.add_argument("--rounds", type=int, default=1, help="how often both are measured in turn")
    parser.add_argument("--folder", type=Path, help="where to work; three times the largest size must be free")
    parser.add_argument("--interleaved", action="store_true", help="projections fused head by head, rotary pairs split")
    parser.add_argument("--transformers", action="store_true", help="also measure transformers' load and save")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--add-config", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make is not None:
        generate(options.folder / "fused", options.make)
        split_plan(options.make, interleaved=options.interleaved).save(options.folder / "plan.json")
    elif options.add_config is not None:
        add_config(options.folder, options.add_config)
    else:
        bench(options)


def bench(options: argparse.Namespace) -> None:
    for gib in options.gib:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="automap-bench-") as work:
            free = shutil.disk_usage(work).free
            if free < 2.2 * gib * 2**30:
                sys.exit(f"{gib} GiB need {2.2 * gib:.0f} GiB of disk, {free / 2**30:.0f} are free")
            bench_size(gib, Path(work), options)


if __name__ == "__main__":
    main()
