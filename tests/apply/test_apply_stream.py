"""A checkpoint through a plan, streaming, gives bitwise what the plan gives in memory, in little of it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from apply_cases import entries, is_bitwise, load_output, plan_of, random_state, rows, source, write_shards
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from automap.apply import Progress, apply_plan
from automap.apply.memory import read_size, size_text
from automap.errors import FileError, InputError, PlanError
from automap.plan import Affine, Concat, Expr, Fill, Permute, Plan, Reshape, Slice, Source


@pytest.mark.parametrize("memory", ["1GiB", "40kB", 8000])
@pytest.mark.parametrize("out", ["new.safetensors", "new"])
def test_the_output_is_bitwise_what_the_plan_gives_in_memory(tmp_path: Path, memory: str | int, out: str) -> None:
    state = random_state()
    checkpoint = write_shards(state, tmp_path / "src")
    done = apply_plan(plan_of(state), str(checkpoint), tmp_path / out, memory=memory, max_shard_size="3kB", check=True)
    assert is_bitwise(load_output(tmp_path / out), plan_of(state).apply(state))
    assert done.tensor_count == len(plan_of(state).entries)
    assert done.is_checked
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out, "src"])


@pytest.mark.parametrize("name", list(entries(random_state())))
def test_each_expression_is_right_in_the_least_memory_it_can_have(tmp_path: Path, name: str) -> None:
    state = random_state()
    plan, out = Plan({name: entries(state)[name]}), tmp_path / "out.safetensors"
    save_file(state, tmp_path / "src.safetensors")
    refusals = []
    for memory in (2**40, 2**14, 2**12, 2**11, 2**10):
        try:
            apply_plan(plan, f"{tmp_path}/src.safetensors", out, memory=memory, overwrite=True, check=True)
        except PlanError as problem:
            refusals.append(str(problem))
        assert is_bitwise(load_output(out), plan.apply(state))
    assert all("cannot be made in smaller pieces" in text for text in refusals)
    assert len(refusals) < 4


def test_shards_are_within_their_size_and_the_index_is_whole(tmp_path: Path) -> None:
    state = {f"layers.{i}.w": torch.randn(16, 16) for i in range(10)}
    plan = Plan({f"blocks.{i}.w": source(state, f"layers.{i}.w") for i in range(10)})
    checkpoint = write_shards(state, tmp_path / "src")
    done = apply_plan(plan, str(checkpoint), tmp_path / "out", max_shard_size="4KiB")
    sizes = [
        sum(v.nbytes for v in load_file(path).values()) for path in sorted((tmp_path / "out").glob("*.safetensors"))
    ]
    assert sizes == [3072, 4096, 3072]
    assert [name for name, _ in done.written] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 10240, "license": "mit"}
    assert set(index["weight_map"]) == set(plan.entries)


def test_metadata_of_the_checkpoint_is_kept(tmp_path: Path) -> None:
    state = random_state()
    checkpoint = write_shards(state, tmp_path / "src")
    apply_plan(plan_of(state), str(checkpoint), tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "made_by": "test"}


def test_every_tensor_begins_at_a_multiple_of_its_items(tmp_path: Path) -> None:
    state = {"a": torch.randn(3).to(torch.float8_e5m2), "b": torch.randn(3), "c": torch.randn(3).half()}
    plan = Plan({name: source(state, name) for name in state})
    save_file(state, tmp_path / "src.safetensors")
    apply_plan(plan, f"{tmp_path}/src.safetensors", tmp_path / "out.safetensors")
    data = (tmp_path / "out.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert [fields[name]["data_offsets"][0] for name in "bca"] == [0, 12, 18]


def test_floats_are_cast_on_request_and_nothing_else_is(tmp_path: Path) -> None:
    state = {"w": torch.randn(6, 4), "steps": torch.arange(3), "h": torch.randn(4).half()}
    plan = Plan({name: source(state, name) for name in state})
    save_file(state, tmp_path / "src.safetensors")
    apply_plan(plan, f"{tmp_path}/src.safetensors", tmp_path / "out.safetensors", dtype="bfloat16", check=True)
    wanted = {"w": state["w"].bfloat16(), "steps": state["steps"], "h": state["h"].bfloat16()}
    assert is_bitwise(load_output(tmp_path / "out.safetensors"), wanted)


def test_a_plan_made_for_another_dtype_keeps_that_of_the_checkpoint(tmp_path: Path) -> None:
    state = {"w": torch.randn(4, 4).bfloat16(), "b": torch.randn(4).bfloat16()}
    plan = Plan({"x": Concat((Source("w", (4, 4)), Fill(0.3, (1, 4))), 0), "b": Source("b", (4,))})
    save_file(state, tmp_path / "src.safetensors")
    apply_plan(plan, f"{tmp_path}/src.safetensors", tmp_path / "out.safetensors")
    assert is_bitwise(load_output(tmp_path / "out.safetensors"), plan.apply(state))


def interleaved(state: dict[str, torch.Tensor]) -> dict[str, Expr]:
    """q, k and v of heads that lie side by side, rotary pairs split: runs far too short to be read one by one."""
    heads = Reshape(source(state, "qkv"), (4, 3, 2, 2, 16))
    one = {n: Slice(heads, (0, n, 0, 0, 0), (4, n + 1, 2, 2, 16), (1,) * 5) for n in range(3)}
    return {name: Reshape(Permute(one[n], (0, 1, 3, 2, 4)), (16, 16)) for n, name in enumerate("qkv")}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda s: {n: rows(source(s, "qkv"), (48, 16), 16 * i, 16 * i + 16) for i, n in enumerate("qkv")},
            id="split",
        ),
        pytest.param(
            lambda s: {"all": Concat((source(s, "up"), source(s, "up2")), 0), "qkv": source(s, "qkv")}, id="fused"
        ),
        pytest.param(interleaved, id="interleaved"),
        pytest.param(lambda s: {"embed": source(s, "qkv"), "head": source(s, "qkv")}, id="tied"),
        pytest.param(lambda s: {"t": Permute(source(s, "qkv"), (1, 0))}, id="transposed"),
    ],
)
def test_each_source_is_read_once(tmp_path: Path, make: object) -> None:
    assert callable(make)
    state = random_state() | {"up2": torch.randn(10, 6)}
    plan = Plan(make(state))
    save_file(state, tmp_path / "src.safetensors")
    done = apply_plan(plan, f"{tmp_path}/src.safetensors", tmp_path / "out.safetensors", memory="1GiB")
    assert is_bitwise(load_output(tmp_path / "out.safetensors"), plan.apply(state))
    assert done.read_bytes == sum(state[name.name].nbytes for name in plan.sources)


MEASURED = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from automap.apply import apply_plan
from automap.apply.memory import resident_bytes

with ThreadPoolExecutor(1) as pool:
    for name in ("few", "some", "many"):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident_bytes()
        apply_plan(f"{name}.json", name, f"{name}-out", memory="32MiB", executor=pool)
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) * 1024 - before)
"""


def test_what_is_only_moved_needs_no_torch(tmp_path: Path) -> None:
    state = random_state()
    checkpoint = write_shards(state, tmp_path / "src")
    qkv = Reshape(source(state, "qkv"), (3, 16, 16))
    plan = {n: Reshape(Slice(qkv, (i, 0, 0), (i + 1, 16, 16), (1, 1, 1)), (16, 16)) for i, n in enumerate("qkv")}
    half = source(state, "half")
    swapped = Concat((rows(half, half.shape, 6, 12), rows(half, half.shape, 0, 6)), 0)
    Plan(plan | {"swapped": swapped, "scalar": source(state, "scalar")}).save(tmp_path / "plan.json")
    call = f"apply_plan('plan.json', '{checkpoint}', 'out')"
    code = f"import sys; from automap.apply import apply_plan; {call}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert is_bitwise(load_output(tmp_path / "out"), Plan.load(tmp_path / "plan.json").apply(state))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak of memory")
def test_memory_stays_in_its_budget_and_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    for name, layers in (("few", 1), ("some", 2), ("many", 8)):
        state = {f"{i}.{n}": torch.randn(1024, 1024) for i in range(layers) for n in "ab"}
        plan: dict[str, Expr] = {f"{i}.t": Permute(source(state, f"{i}.a"), (1, 0)) for i in range(layers)}
        plan |= {f"{i}.b": source(state, f"{i}.b") for i in range(layers)}
        plan |= {f"{i}.x": Affine(source(state, f"{i}.b"), 1.0, 1.0) for i in range(layers)}
        write_shards(state, tmp_path / name)
        Plan(plan).save(tmp_path / f"{name}.json")
    done = subprocess.run([sys.executable, "-c", MEASURED], cwd=tmp_path, capture_output=True, text=True, check=True)
    _, some, many = map(int, done.stdout.split())  # the first also loads what torch needs
    print("2 layers:", size_text(some), "8 layers:", size_text(many))
    assert max(some, many) < 32 * 2**20


def test_a_tensor_larger_than_the_memory_is_made_in_rows_or_refused(tmp_path: Path) -> None:
    state = {"w": torch.randn(96, 64), "x": torch.randn(96, 64)}
    save_file(state, tmp_path / "src.safetensors")
    where = (f"{tmp_path}/src.safetensors", tmp_path / "out.safetensors")
    w, x = source(state, "w"), source(state, "x")
    cuttable = Plan({"t": Permute(w, (1, 0)), "beside": Concat((w, x), 1)})
    uncuttable = Plan({"m": Reshape(Permute(w, (1, 0)), (48, 128))})
    with ThreadPoolExecutor(1) as pool:
        apply_plan(cuttable, *where, memory="10kB", executor=pool)
        assert is_bitwise(load_output(where[1]), cuttable.apply(state))
        with pytest.raises(PlanError) as caught:
            apply_plan(Plan({"m": Affine(uncuttable.entries["m"], 2.0)}), *where, memory="10kB", executor=pool)
    assert str(caught.value) == (
        "`m` takes 192.0 KiB at once and cannot be made in smaller pieces; "
        "with a memory of 9.8 KiB a tensor may take 4.9 KiB"
    )
    assert caught.value.help == "give --memory 1.4MiB or more"


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    state = random_state()
    checkpoint = write_shards(state, tmp_path / "src")
    before = sorted(tmp_path.rglob("*"))
    done = apply_plan(plan_of(state), str(checkpoint), tmp_path / "out", max_shard_size="6kB", dry_run=True)
    assert done.is_dry
    assert sorted(tmp_path.rglob("*")) == before
    assert len(done.written) > 1
    assert {Path(file).name for file, _ in done.read} == {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    real = apply_plan(plan_of(state), str(checkpoint), tmp_path / "out", max_shard_size="6kB")
    assert real.written == done.written
    assert dict(real.written) == {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")}


def test_progress_ends_at_the_size_of_the_output(tmp_path: Path) -> None:
    state = random_state()
    save_file(state, tmp_path / "src.safetensors")
    seen: list[Progress] = []
    done = apply_plan(
        plan_of(state), f"{tmp_path}/src.safetensors", tmp_path / "out", max_shard_size="4kB", progress=seen.append
    )
    assert [state.done_bytes for state in seen] == sorted(state.done_bytes for state in seen)
    assert seen[-1].done_bytes == seen[-1].total_bytes == done.written_bytes
    assert seen[-1].bytes_per_s > 0
    assert seen[-1].left_s == 0


def test_what_the_plan_does_not_read_is_named(tmp_path: Path) -> None:
    state = random_state()
    save_file(state, tmp_path / "src.safetensors")
    plan = Plan({name: source(state, name) for name in state if name not in ("up", "mask")})
    done = apply_plan(plan, f"{tmp_path}/src.safetensors", tmp_path / "out")
    assert done.notes == ("2 that the plan does not read: up, mask",)


def test_a_check_that_finds_a_wrong_bit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from automap.apply import shard
    from automap.errors import CheckpointError

    state = {"w": torch.randn(8, 8)}
    save_file(state, tmp_path / "src.safetensors")
    write = shard.ShardWriter.write

    def flip(self: shard.ShardWriter, piece: memoryview) -> None:
        changed = bytearray(piece)
        changed[-1] ^= 1
        is_header = bytes(piece[:8]) == bytes(self._task.header[:8])  # one byte of random numbers may be the same
        write(self, piece if is_header else memoryview(changed))

    monkeypatch.setattr(shard.ShardWriter, "write", flip)
    plan = Plan({"v": source(state, "w")})
    with pytest.raises(CheckpointError, match="1 tensors came out wrong, such as `v`: nothing was kept"):
        apply_plan(plan, f"{tmp_path}/src.safetensors", tmp_path / "out", check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["src.safetensors"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({"memory": "lots"}, InputError, "`lots` is no size", id="no size"),
        pytest.param({"max_shard_size": "0"}, InputError, "`0` is no size", id="no bytes"),
        pytest.param({"dtype": "float23"}, InputError, "`float23` is no dtype", id="no dtype"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    tmp_path: Path, options: dict[str, str], error: type[Exception], message: str
) -> None:
    state = random_state()
    save_file(state, tmp_path / "src.safetensors")
    with pytest.raises(error, match=message):
        apply_plan(plan_of(state), f"{tmp_path}/src.safetensors", tmp_path / "out", **options)  # type: ignore[arg-type]


def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.randn(2, 3)}, tmp_path / "src.safetensors")
    for plan, message in (
        (Plan({"x": Source("b", (2, 3))}), r"src has no tensor `b`"),
        (Plan({"x": Source("a", (3, 2))}), r"`a` has shape \(2, 3\), the plan was made for \(3, 2\)"),
        (Plan({}), "the plan is empty"),
    ):
        with pytest.raises(PlanError, match=message):
            apply_plan(plan, f"{tmp_path}/src.safetensors", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["src.safetensors"]


def test_an_output_in_the_way_is_refused_and_replaced_whole_on_request(tmp_path: Path) -> None:
    state = random_state()
    checkpoint = write_shards(state, tmp_path / "src")
    for out in (tmp_path / "out", tmp_path / "out.safetensors"):
        apply_plan(plan_of(state), str(checkpoint), out, max_shard_size="3kB")
        with pytest.raises(FileError, match=r"is not empty|is there already"):
            apply_plan(plan_of(state), str(checkpoint), out)
        other = random_state(seed=1)
        write_shards(other, tmp_path / "src")
        apply_plan(plan_of(other), str(checkpoint), out, overwrite=True)
        assert is_bitwise(load_output(out), plan_of(other).apply(other))
        write_shards(state, tmp_path / "src")
    with pytest.raises(FileError, match="there is no folder"):
        apply_plan(plan_of(state), str(checkpoint), tmp_path / "no" / "out")


def test_the_checkpoint_itself_is_never_the_output(tmp_path: Path) -> None:
    state = random_state()
    checkpoint = write_shards(state, tmp_path / "src")
    save_file(state, tmp_path / "src.safetensors")
    for spec, out in ((checkpoint, tmp_path / "src"), (tmp_path / "src.safetensors", tmp_path / "src.safetensors")):
        with pytest.raises(FileError, match="is or holds the checkpoint that is read"):
            apply_plan(plan_of(state), str(spec), out, overwrite=True)


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from types import SimpleNamespace

    state = random_state()
    save_file(state, tmp_path / "src.safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(FileError, match=r"out needs .* KiB, the disk has 1000 B free"):
        apply_plan(plan_of(state), f"{tmp_path}/src.safetensors", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["src.safetensors"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("500 MB", 500_000_000), ("4096", 4096), ("1.5k", 1500), ("1tib", 2**40), (7, 7)],
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert read_size(text) == size


def test_sizes_are_written_for_people() -> None:
    assert [size_text(size) for size in (0, 1023, 1024, 3 * 2**29, 2**45)] == [
        *("0 B", "1023 B", "1.0 KiB", "1.5 GiB", "32.0 TiB"),
    ]
