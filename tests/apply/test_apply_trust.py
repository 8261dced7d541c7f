"""Whatever a checkpoint or plan says, the outcome is right or a clear error; nothing in them is executed."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from apply_cases import bits, is_bitwise, load_output, plan_of, random_state, source, write_shards
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from automap.apply import apply_plan
from automap.apply.header import parse_header
from automap.apply.reader import open_checkpoint
from automap.errors import AutomapError, CheckpointError, PlanError
from automap.plan import Fill, Plan, Source
from automap.plan.dtypes import DTYPES


def raw_file(header: object, data: bytes, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def f32(start: int, stop: int, *shape: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "it is truncated or no safetensors file", id="empty"),
        pytest.param(b"\x07\0\0", "it is truncated or no safetensors file", id="no length"),
        pytest.param(raw_file({}, b"", length=2**63), "it is truncated or no safetensors file", id="endless header"),
        pytest.param(raw_file({"a": f32(0, 8, 2)}, b"\0" * 4), "lists 8 bytes, it has 4", id="truncated"),
        pytest.param(
            raw_file({"a": f32(0, 8, 2), "b": f32(4, 12, 2)}, b"\0" * 12), "`a` and `b` overlap", id="overlap"
        ),
        pytest.param(raw_file({"a": f32(0, 8, 2), "b": f32(0, 8, 2)}, b"\0" * 8), "`a` and `b` overlap", id="the same"),
        pytest.param(raw_file({"a": f32(0, 4, 1), "b": f32(8, 12, 1)}, b"\0" * 12), "have a gap between", id="gap"),
        pytest.param(raw_file({"a": f32(0, 4, 1)}, b"\0" * 9), "bytes that belong to no tensor", id="behind the end"),
        pytest.param(raw_file({"a": f32(4, 8, 1)}, b"\0" * 8), "bytes that belong to no tensor", id="in front"),
        pytest.param(raw_file({"a": f32(0, 8, 3)}, b"\0" * 8), r"needs 12 bytes for float32\[3\]", id="lying shape"),
        pytest.param(raw_file({"a": f32(8, 0, 2)}, b"\0" * 8), "its offsets span -8", id="backwards"),
        pytest.param(raw_file({"a": f32(0, 4, -1, -1)}, b"\0" * 4), "a shape that is none", id="negative"),
        pytest.param(raw_file({"a": f32(0, 4, True)}, b"\0" * 4), "a shape that is none", id="a bool as size"),
        pytest.param(raw_file({"a": f32(0, 4, 2**62, 2**62)}, b"\0" * 4), "its offsets span 4", id="overflow"),
        pytest.param(
            raw_file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b""), "offsets", id="one end"
        ),
        pytest.param(
            raw_file({"a": {"dtype": "F32"}}, b""), "should have a dtype, a shape and data_offsets", id="bare"
        ),
        pytest.param(raw_file({"a": 3}, b""), "should have a dtype, a shape and data_offsets", id="a number"),
        pytest.param(
            raw_file({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"\0"), "'F4'", id="unknown dtype"
        ),
        pytest.param(
            raw_file({"a": {"dtype": [], "shape": [], "data_offsets": [0, 1]}}, b"\0"), r"the dtype \[\]", id="no dtype"
        ),
        pytest.param(raw_file(b'{"a":1,"a":2}', b""), "its header has `a` twice", id="twice"),
        pytest.param(raw_file({"__metadata__": {"a": 1}}, b""), "its metadata is not text", id="metadata"),
        pytest.param(raw_file(b"[]", b""), "no JSON object", id="a list"),
        pytest.param(raw_file(b'{"a": \xff}', b""), "its header is not JSON", id="no text"),
        pytest.param(raw_file(b"[" * 100_000, b""), "its header is not JSON", id="deep"),
        pytest.param(raw_file(b'{"a":' + b"9" * 5000 + b"}", b""), "its header is not JSON", id="a huge number"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"w\.safetensors cannot be read: .*" + message):
        open_checkpoint(f"{tmp_path}/w.safetensors")


def test_a_header_longer_than_the_format_allows_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes((200_000_000).to_bytes(8, "little"))
    os.truncate(path, 300_000_000)
    with pytest.raises(CheckpointError, match="longer than the format allows"):
        open_checkpoint(str(path))


def outcome(plan: Plan, path: Path) -> dict[str, Tensor] | None:
    """What apply writes, or None where it refuses clearly and leaves nothing."""
    out = path.with_name("out.safetensors")
    out.unlink(missing_ok=True)
    with contextlib.suppress(AutomapError):
        apply_plan(plan, str(path), out, memory="1MiB")
        return load_output(out)
    assert {entry.name for entry in path.parent.iterdir()} == {path.name}
    return None


names = st.sampled_from(["a", "b", "", "é", "a.b", "../x", "__metadata__"])
numbers = st.one_of(st.integers(-3, 40), st.sampled_from([2**31, 2**63, 2**64, 1.5, True, None, "1"]))
entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "X", 7]),
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, min_size=2, max_size=2),
    }
)
plain = st.tuples(st.integers(0, 3), st.integers(0, 3))


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Headers that are nearly right: tensors in a row, with something changed in one place or none."""
    fields: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(names, unique=True, max_size=3)):
        shape = draw(plain)
        fields[name] = f32(end, end + 4 * shape[0] * shape[1], *shape)
        end += 4 * shape[0] * shape[1]
    size = end
    if fields and draw(st.booleans()):
        name = draw(st.sampled_from(list(fields)))
        fields[name] = draw(st.one_of(entry, st.just(fields[name] | {"extra": 1}), numbers))
    if draw(st.booleans()):
        size = max(0, size + draw(st.integers(-5, 5)))
    text = json.dumps(fields).encode() + b" " * draw(st.integers(0, 9))
    return raw_file(text, bytes(range(size)), length=draw(st.sampled_from([None] * 9 + [len(text) + 1, 0, 2**40])))


@given(data=headers())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_header_is_read_as_safetensors_does_or_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    try:
        found = open_checkpoint(str(path))
    except CheckpointError:
        return
    state = load(data)  # what we read, safetensors reads
    assert {name: stored.shape for name, stored in found.tensors.items()} == {
        n: tuple(v.shape) for n, v in state.items()
    }
    made = outcome(Plan({f"new.{name}": source(state, name) for name in state}), path)
    assert made is not None
    assert is_bitwise(made, {f"new.{name}": value for name, value in state.items()})
    (tmp_path / "out.safetensors").unlink()


VALID = save({"a": torch.randn(2, 3), "b": torch.arange(4).bfloat16()}, metadata={"k": "v"})


@given(place=st.integers(0, len(VALID) - 1), value=st.integers(0, 255), cut=st.integers(0, 12))
@settings(max_examples=200)
def test_a_flipped_byte_never_crashes_and_never_adds_a_tensor(place: int, value: int, cut: int) -> None:
    data = bytearray(VALID)[: len(VALID) - (cut if cut < 6 else 0)]
    data[min(place, len(data) - 1)] = value
    length = int.from_bytes(data[:8], "little")
    if 8 + length > len(data):
        return
    try:
        header = parse_header(bytes(data[8 : 8 + length]), len(data), "w")
    except CheckpointError:
        return
    try:
        state = load(bytes(data))
    except SafetensorError as problem:
        pytest.fail(f"we read what safetensors refuses: {problem}")
    assert {one.name for one in header.entries} == set(state)
    for one in header.entries:
        assert bytes(data[one.start : one.stop]) == bits(state[one.name]).numpy().tobytes()


STATE = random_state()
PLAN_TEXT = json.loads(plan_of(STATE)._text())
values = st.one_of(
    *(st.integers(-2, 20), st.sampled_from([2**31, 2**62, 10**30, 1.5, None, True, "", "x", "float16", "qkv", "up"])),
    *(st.lists(st.integers(0, 9), max_size=3), st.sampled_from([[], {}, [[]], {"node": "source"}])),
)


@st.composite
def changed_plans(draw: st.DrawFn) -> str:
    """The JSON of one entry of a good plan, with a value in it, or a few, replaced or removed."""
    entry = draw(st.sampled_from(list(PLAN_TEXT["entries"])))
    fields = json.loads(json.dumps(PLAN_TEXT | {"entries": {entry: PLAN_TEXT["entries"][entry]}}))
    for _ in range(draw(st.integers(1, 3))):
        inner, key = fields["entries"], entry
        while inner[key] and isinstance(inner[key], dict | list) and draw(st.integers(0, 3)):
            inner = inner[key]
            key = draw(st.sampled_from(list(inner) if isinstance(inner, dict) else list(range(len(inner)))))
        if isinstance(inner, dict) and draw(st.integers(0, 9)) == 0:
            inner.pop(key)
            break
        inner[key] = json.loads(json.dumps(draw(values)))
    return json.dumps(fields)


@given(text=changed_plans())
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_plan_gives_what_it_says_or_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**16))
    path = tmp_path / "w.safetensors"
    save_file(STATE, path)
    try:
        plan = Plan.from_text(text)
    except PlanError:
        return
    made = outcome(plan, path)
    if made is not None:
        assert is_bitwise(made, plan.apply(STATE))
        (tmp_path / "out.safetensors").unlink()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_comes_out_as_it_went_in_or_is_refused(tmp_path: Path, dtype: str) -> None:
    value = torch.randint(-(2**31), 2**31, (6, 8), dtype=torch.int32).view(torch.uint8)[:, :16].clone()
    value = (value % 2).bool() if dtype == "bool" else value.view(getattr(torch, dtype))
    torch.save({"w": value}, tmp_path / "w.pt")
    plan = Plan({"t": Source("w", tuple(value.shape), dtype)})
    out = tmp_path / "out.safetensors"
    if dtype == "complex128":
        with pytest.raises(CheckpointError, match="which has no complex128"):
            apply_plan(plan, f"{tmp_path}/w.pt", out)
    elif dtype == "float8_e8m0fnu":  # the Python side of safetensors cannot load it yet
        apply_plan(plan, f"{tmp_path}/w.pt", out)
        assert out.read_bytes().endswith(bits(value).numpy().tobytes())
    else:
        apply_plan(plan, f"{tmp_path}/w.pt", out, check=True)
        assert is_bitwise(load_file(out), {"t": value})


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.randn(2)}, tmp_path / "w.safetensors")
    for name in ("\ud800", "__metadata__"):
        with pytest.raises(CheckpointError, match="name"):
            apply_plan(Plan({name: Source("a", (2,))}), f"{tmp_path}/w.safetensors", tmp_path / "out")


def test_a_constant_larger_than_any_disk_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.randn(2)}, tmp_path / "w.safetensors")
    for shape in ((2**50,), (2**40, 2**40), (2**62, 2**62)):
        with pytest.raises(AutomapError, match=r"needs .* TiB, the disk has|cannot be computed|too many"):
            apply_plan(Plan({"x": Fill(1.0, shape)}), f"{tmp_path}/w.safetensors", tmp_path / "out")


# where names and links lead


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/w.safetensors", "..", ".", "", "a\\b", "x::y", "w\0"]
)
def test_an_index_cannot_lead_outside_of_its_folder_by_name(tmp_path: Path, name: str) -> None:
    save_file({"a": torch.randn(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="it lies outside of the index's folder"):
        open_checkpoint(str(folder))


def test_an_index_cannot_lead_outside_of_its_folder_by_a_link(tmp_path: Path) -> None:
    save_file({"a": torch.randn(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "w.safetensors"}}))
    with pytest.raises(CheckpointError, match="it is a link that leads outside of the index's folder"):
        open_checkpoint(str(folder))
    (folder / "w.safetensors").unlink()
    os.mkfifo(folder / "w.safetensors")
    with pytest.raises(CheckpointError, match="there is no such file"):
        open_checkpoint(str(folder))


def test_a_link_inside_of_the_folder_is_followed(tmp_path: Path) -> None:
    state = random_state()
    folder = write_shards(state, tmp_path / "src")
    (folder / "model-00001-of-00003.safetensors").rename(folder / "real.safetensors")
    (folder / "model-00001-of-00003.safetensors").symlink_to("real.safetensors")
    apply_plan(plan_of(state), str(folder), tmp_path / "out.safetensors", check=True)


def test_an_index_with_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x", "a": "y"}}')
    with pytest.raises(CheckpointError, match="is no shard index: it has `a` twice"):
        open_checkpoint(str(tmp_path))


def test_a_missing_shard_and_a_missing_tensor_are_named(tmp_path: Path) -> None:
    state = random_state()
    folder = write_shards(state, tmp_path / "src")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lists tensors that its shards do not hold: ghost"):
        open_checkpoint(str(folder))
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names the shard model-00002-of-00003\.safetensors: there is no such"):
        open_checkpoint(str(folder))


def test_a_checkpoint_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    from automap.apply.job import Options, prepare_job
    from automap.apply.shard import run_shard

    state = {"w": torch.randn(100, 10)}
    save_file(state, tmp_path / "w.safetensors")
    options = Options(memory="1GiB", max_shard_size="5GB", dtype=None, is_local=True)
    job = prepare_job(Plan({"w": source(state, "w")}), f"{tmp_path}/w.safetensors", tmp_path / "out", options)
    os.truncate(tmp_path / "w.safetensors", 2000)
    with job.work.locked():
        job.work.prepare(job.digest, resume=True)
        with pytest.raises(CheckpointError, match=r"w\.safetensors is truncated: it ends before byte \d+"):
            run_shard(job.tasks[0])
        assert list((tmp_path / ".out.partial" / "tmp").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


# what pickles can do


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_code_in_a_torch_file_does_not_run(tmp_path: Path) -> None:
    for number, content in enumerate(({"w": torch.ones(1), "x": Evil(tmp_path / "ran")}, nn.Linear(2, 2))):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(CheckpointError, match="holds objects other than tensors"):
            open_checkpoint(f"{tmp_path}/{number}.pt")
    assert not (tmp_path / "ran").exists()


def test_code_in_the_metadata_of_a_distributed_checkpoint_does_not_run(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"it names posix\.system, which no metadata needs"):
        open_checkpoint(str(tmp_path))
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="it is not what torch writes"):
        open_checkpoint(str(tmp_path))
    (tmp_path / ".metadata").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read"):
        open_checkpoint(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"relative_path": "../x"}, "it lies outside of the index's folder", id="outside"),
        pytest.param({"relative_path": "gone"}, "there is no such file", id="missing"),
        pytest.param({"offset": 10**9}, "is truncated: `w` would be its bytes", id="behind the end"),
        pytest.param({"offset": 3, "length": 900}, "cannot be read", id="elsewhere"),
        pytest.param({"transform_descriptors": ["zstd"]}, "holds `w` packed", id="packed"),
    ],
)
def test_lying_metadata_of_a_distributed_checkpoint_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    import warnings

    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"w": torch.randn(4, 3)}, checkpoint_id=tmp_path / "dcp")
    metadata = pickle.loads((tmp_path / "dcp" / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        vars(info).update(change)
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(tmp_path / "dcp"))


@pytest.mark.parametrize("how", ["short", "packed", "cut"])
def test_a_torch_file_that_lies_about_its_storages_is_refused(tmp_path: Path, how: str) -> None:
    torch.save({"w": torch.randn(64, 64)}, tmp_path / "good.pt")
    if how == "cut":
        (tmp_path / "bad.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:-9000])
    else:
        packing = zipfile.ZIP_DEFLATED if how == "packed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w", packing) as bad:
            for item in good.infolist():
                data = good.read(item)
                bad.writestr(item.filename, data[:100] if item.filename.endswith("data/0") and how == "short" else data)
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        apply_plan(Plan({"x": Source("w", (64, 64))}), f"{tmp_path}/bad.pt", tmp_path / "out", memory=9000)
