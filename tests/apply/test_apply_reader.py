"""Checkpoints of every kind stream: torch files, sharded folders, distributed ones, hub repositories, fsspec URLs."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import fsspec
import pytest
import torch
from apply_cases import bits, is_bitwise, load_output, plan_of, random_state, rows, source, write_shards
from safetensors.torch import load, save, save_file

from automap.apply import apply_plan, load_checkpoint
from automap.apply.hub import hub_place
from automap.apply.reader import open_checkpoint
from automap.apply.stored import Part, StoredTensor
from automap.errors import CheckpointError, FileError, PlanError
from automap.plan import Concat, Plan, Source

STATE = random_state()


def applied(spec: object, tmp_path: Path, **options: object) -> bool:
    """Whether the checkpoint, streamed, gives what the plan gives for STATE."""
    out = tmp_path / "applied.safetensors"
    apply_plan(plan_of(STATE), str(spec), out, overwrite=True, check=True, **options)  # type: ignore[arg-type]
    return is_bitwise(load_output(out), plan_of(STATE).apply(STATE))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "pytorch_model.bin", "w.ckpt"])
def test_each_format_streams(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name) if name.endswith("safetensors") else torch.save(STATE, tmp_path / name)
    assert applied(tmp_path / name, tmp_path)
    assert applied(tmp_path / name, tmp_path, memory=5000)


def test_a_folder_an_index_and_shards_of_torch_stream(tmp_path: Path) -> None:
    assert applied(write_shards(STATE, tmp_path / "src"), tmp_path)
    assert applied(tmp_path / "src" / "model.safetensors.index.json", tmp_path)
    folder = tmp_path / "bins"
    folder.mkdir()
    names = list(STATE)
    for number in (0, 1):
        torch.save({name: STATE[name] for name in names[number::2]}, folder / f"{number}.bin")
    placed = {name: f"{index % 2}.bin" for index, name in enumerate(names)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    assert applied(folder, tmp_path)


def test_containers_and_prefixes_are_unwrapped(tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in STATE.items()}
    torch.save({"ema": {"state_dict": wrapped}, "model": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "run.pt")
    assert applied(f"{tmp_path}/run.pt:ema.state_dict", tmp_path)
    with pytest.raises(CheckpointError, match=r"more than one set of weights: ema\.state_dict, model"):
        open_checkpoint(f"{tmp_path}/run.pt")
    torch.save({"model": wrapped, "lr": 1}, tmp_path / "one.pt")
    assert open_checkpoint(f"{tmp_path}/one.pt").notes == ("read `model`, beside lr", "dropped the prefix `module.`")


def test_views_of_one_storage_are_each_read_where_they_lie(tmp_path: Path) -> None:
    base = torch.randn(10, 6)
    state = {"t": base.T, "part": base[2:5, 1:4], "spread": base[:1].expand(4, 6), "all": base, "none": base[:0]}
    torch.save(state, tmp_path / "views.pt")
    plan = Plan({f"{name}.copy": source(state, name) for name in state})
    apply_plan(plan, f"{tmp_path}/views.pt", tmp_path / "out.safetensors")
    assert is_bitwise(load_output(tmp_path / "out.safetensors"), plan.apply(state))


def test_the_old_torch_format_streams_if_it_fits_into_memory(tmp_path: Path) -> None:
    state = {"a": torch.randn(8, 6), "b": torch.randn(5).half(), "c": torch.randn(3, 4).T}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    plan = Plan({name: source(state, name) for name in state} | {"again": source(state, "a")})
    apply_plan(plan, f"{tmp_path}/old.pt", tmp_path / "out.safetensors", check=True)
    assert is_bitwise(load_output(tmp_path / "out.safetensors"), plan.apply(state))
    with pytest.raises(CheckpointError, match=r"has the format of torch before 1\.6, which is read whole: \d+ bytes"):
        apply_plan(plan, f"{tmp_path}/old.pt", tmp_path / "other", memory=1000)


def test_what_is_not_dense_is_named_and_dropped(tmp_path: Path) -> None:
    torch.save(
        {"w": torch.randn(2), "s": torch.eye(3).to_sparse(), "c": torch.randn(2).cfloat().conj()}, tmp_path / "s.pt"
    )
    found = open_checkpoint(f"{tmp_path}/s.pt")
    assert list(found.tensors) == ["w"]
    assert found.notes == ("2 that are not dense, dropped: s, c",)


def save_distributed(state: object, folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder)  # type: ignore[arg-type]


def test_a_distributed_checkpoint_streams(tmp_path: Path) -> None:
    save_distributed({"model": STATE, "optim": {"step": torch.tensor(3.0)}, "epoch": 7}, tmp_path / "dcp")
    assert applied(f"{tmp_path}/dcp", tmp_path)
    assert applied(f"{tmp_path}/dcp:model", tmp_path)
    loaded, notes = load_checkpoint(f"{tmp_path}/dcp")
    assert is_bitwise(loaded, STATE)
    assert notes == ("read `model`, beside optim, epoch",)


def sharded(value: torch.Tensor, cuts: tuple[int, ...], folder: Path, name: str) -> StoredTensor:
    """A tensor cut into a grid, each box in a file of its own, as ranks of a mesh would write it."""
    import itertools

    edges = [range(0, size, max(1, -(-size // count))) for size, count in zip(value.shape, cuts, strict=True)]
    parts = []
    for number, starts in enumerate(itertools.product(*edges)):
        box = value[tuple(slice(start, start + edge.step) for start, edge in zip(starts, edges, strict=True))]
        path = folder / f"{name}.{number}"
        path.write_bytes(bits(box).numpy().tobytes())
        from automap.apply.places import Place

        strides = tuple(math.prod(box.shape[dim + 1 :]) for dim in range(box.dim()))
        parts.append(Part(Place(str(path)), 0, starts, tuple(box.shape), strides))
    return StoredTensor(str(value.dtype).removeprefix("torch."), tuple(value.shape), tuple(reversed(parts)))


@pytest.mark.parametrize("memory", ["1GiB", 20000])
@pytest.mark.parametrize("cuts", [(4, 1), (1, 2), (3, 2)])
def test_tensors_sharded_in_any_grid_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...], memory: str | int
) -> None:
    from automap.apply import job
    from automap.apply.stored import Checkpoint

    state = {name: STATE[name] for name in ("qkv", "up", "half")}
    tensors = {name: sharded(value, cuts, tmp_path, name) for name, value in state.items()}
    files = tuple(part.place for stored in tensors.values() for part in stored.parts)
    monkeypatch.setattr(job, "open_checkpoint", lambda spec, **_: Checkpoint(spec, tensors, files, {}))
    both = Concat((source(state, "up"), source(state, "up")), 1)
    plan = Plan({"q": rows(source(state, "qkv"), (48, 16), 5, 20), "both": both, "half": source(state, "half")})
    apply_plan(plan, "dcp", tmp_path / "out.safetensors", check=True, memory=memory)
    assert is_bitwise(load_output(tmp_path / "out.safetensors"), plan.apply(state))


def test_parts_with_gaps_or_overlaps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from automap.apply import job
    from automap.apply.stored import Checkpoint

    whole = sharded(STATE["up"], (2, 2), tmp_path, "up")
    for parts in (whole.parts[1:], (*whole.parts, whole.parts[0]), ()):
        tensors = {"up": StoredTensor("float32", (10, 6), parts)}
        monkeypatch.setattr(job, "open_checkpoint", lambda spec, t=tensors, **_: Checkpoint(spec, t, (), {}))
        with pytest.raises(CheckpointError, match="the parts of `up` leave gaps, overlap, or are no grid"):
            apply_plan(Plan({"x": source(STATE, "up")}), "dcp", tmp_path / "out")


def test_any_fsspec_url_is_read_and_written(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/src/model.safetensors", save(STATE))
    assert applied("memory://src", tmp_path)
    assert is_bitwise(load_checkpoint("memory://src/model.safetensors")[0], STATE)
    wanted = plan_of(STATE).apply(STATE)
    apply_plan(plan_of(STATE), "memory://src", "memory://one.safetensors", check=True)
    assert is_bitwise(load(store.cat_file("/one.safetensors")), wanted)
    apply_plan(plan_of(STATE), "memory://src", "memory://many", max_shard_size="4kB", check=True)
    names = [path.rpartition("/")[2] for path in store.ls("/many", detail=False)]
    found = {k: v for name in names if name.endswith("s") for k, v in load(store.cat_file(f"/many/{name}")).items()}
    assert is_bitwise(found, wanted)
    assert json.loads(store.cat_file("/many/model.safetensors.index.json"))["weight_map"].keys() == wanted.keys()
    assert {path.split("/")[1] for path in store.find("/")} == {"src", "one.safetensors", "many"}
    with pytest.raises(FileError, match=r"memory://many is there already"):
        apply_plan(plan_of(STATE), "memory://src", "memory://many")
    store.rm("/", recursive=True)


def test_a_torch_file_in_a_store_is_read_by_ranges(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    torch.save({"state_dict": STATE}, tmp_path / "run.pt")
    store.pipe_file("/run.pt", (tmp_path / "run.pt").read_bytes())
    assert applied("memory://run.pt:state_dict", tmp_path)
    store.rm("/run.pt")


def test_a_repository_in_the_hub_cache_is_read_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "abc"
    blobs = tmp_path / "hub" / "models--org--tiny" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (tmp_path / "hub" / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "hub" / "models--org--tiny" / "refs" / "main").write_text("abc")
    for path in write_shards(STATE, tmp_path / "src").iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert hub_place("hf://org/tiny") == str(snapshot)
    assert applied("hf://org/tiny", tmp_path)
    with pytest.raises(FileError, match="hf://org/none is not in the local cache, and the hub is off-line"):
        open_checkpoint("hf://org/none")
    with pytest.raises(FileError, match="names no repository"):
        open_checkpoint("hf://tiny")
    with pytest.raises(FileError, match="cannot be written to"):
        apply_plan(plan_of(STATE), str(snapshot), "hf://org/new")


def test_tensors_that_an_index_forgot_are_read_and_named(tmp_path: Path) -> None:
    folder = write_shards(STATE, tmp_path / "src")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["up"]
    index.write_text(json.dumps(content))
    assert open_checkpoint(str(folder)).notes == ("1 in the shards but not in the index, read too: up",)
    assert applied(folder, tmp_path)


def test_a_tensor_in_two_shards_is_the_one_that_the_index_names(tmp_path: Path) -> None:
    folder = write_shards({"a": torch.randn(2), "b": torch.randn(3)}, tmp_path / "src", count=2)
    right = torch.randn(2)
    save_file({"a": torch.randn(2), "b": torch.randn(3)}, folder / "model-00002-of-00002.safetensors")
    save_file({"a": right}, folder / "model-00001-of-00002.safetensors")
    found = open_checkpoint(str(folder))
    assert found.notes == ("1 in more than one shard, taken from where the index has them: a",)
    apply_plan(Plan({"a": Source("a", (2,))}), str(folder), tmp_path / "out.safetensors")
    assert is_bitwise(load_output(tmp_path / "out.safetensors"), {"a": right})
    index = folder / "model.safetensors.index.json"
    placed = {"b": "model-00002-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"}
    save_file({"a": right, "c": right + 1}, folder / "model-00001-of-00002.safetensors")
    index.write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(CheckpointError, match="has shards that both hold a, and does not say whose to take"):
        open_checkpoint(str(folder))


def test_a_spec_that_names_nothing_is_refused(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    for spec, error, message in (
        (f"{tmp_path}/none", FileError, "there is no checkpoint"),
        (f"{tmp_path}/w.safetensors:ema", CheckpointError, "has no `ema`: a safetensors file holds one state dict"),
        ("nonsense://x", FileError, "nonsense://x cannot be reached"),
    ):
        with pytest.raises(error, match=message):
            open_checkpoint(spec)
    with pytest.raises(PlanError, match="src has no tensor `v`"):
        apply_plan(Plan({"v": Source("v", (1,))}), f"{tmp_path}/w.safetensors", tmp_path / "out")
