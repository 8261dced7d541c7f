"""Checkpoints are read whole and safely, and what is written is whole or absent."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from automap.apply import load_checkpoint, load_into, save_model, save_state, written_atomically
from automap.errors import CheckpointError, FileError
from automap.models import build_model


def weights(*names: str) -> dict[str, Tensor]:
    return {name: torch.randn(2, 3) for name in names or ("a.weight", "a.bias")}


def is_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "pytorch_model.bin"])
def test_each_format_gives_its_tensors(tmp_path: Path, name: str) -> None:
    state = weights()
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    loaded, notes = load_checkpoint(str(tmp_path / name))
    assert is_same(loaded, state)
    assert notes == ()


def test_the_old_torch_format_is_read_too(tmp_path: Path) -> None:
    state = weights()
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert is_same(load_checkpoint(str(tmp_path / "old.pt"))[0], state)


def test_a_folder_or_index_gives_all_shards(tmp_path: Path) -> None:
    one, two = weights("a", "b"), weights("c")
    save_file(one, tmp_path / "model-1.safetensors")
    save_file(two, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    placed = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
    index.write_text(json.dumps({"weight_map": placed}))
    for spec in (tmp_path, index):
        assert is_same(load_checkpoint(str(spec))[0], one | two)


def test_a_folder_with_one_file_is_that_file_and_with_several_is_refused(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "run.pth")
    assert len(load_checkpoint(str(tmp_path))[0]) == 2
    torch.save(weights(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"more than one: other\.pth, run\.pth"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        pytest.param({"weight_map": {"a": "../secret.safetensors"}}, "a", "lies outside", id="escape"),
        pytest.param({"weight_map": {"a": "gone.safetensors"}}, "a", "there is no such file", id="missing shard"),
        pytest.param({"weight_map": {"z": "here.safetensors"}}, "a", "do not hold: z", id="missing tensor"),
        pytest.param({"weight_map": {"a": 3}}, "a", "should map names to file names", id="no name"),
        pytest.param(["weight_map"], "a", "has no `weight_map`", id="no index"),
    ],
)
def test_a_bad_index_is_refused(tmp_path: Path, content: Any, key: str, message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(weights("a"), folder / "here.safetensors")
    save_file(weights("a"), tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("content", "keys", "note"),
    [
        pytest.param(lambda s: {"state_dict": s, "epoch": 3}, "", "read `state_dict`, beside epoch", id="lightning"),
        pytest.param(lambda s: {"model": {"state_dict": s}}, "", "read `model.state_dict`", id="nested"),
        pytest.param(
            lambda s: {"teacher": s, "optimizer": {"state": {0: s}}}, "", "beside optimizer", id="beside an optimizer"
        ),
        pytest.param(lambda s: {"student": weights(), "teacher": s}, ":teacher", "", id="named"),
        pytest.param(lambda s: {"x": {"y": s, "z": weights()}}, ":x.y", "", id="named deep"),
        pytest.param(lambda s: {**s, "step": 4}, "", "1 that are no tensors, dropped: step", id="settings among them"),
        pytest.param(lambda s: {"model": s, "args": argparse.Namespace(lr=1)}, "", "beside args", id="namespace"),
    ],
)
def test_containers_are_unwrapped_and_named(tmp_path: Path, content: Any, keys: str, note: str) -> None:
    state = weights()
    torch.save(content(state), tmp_path / "run.pt")
    loaded, notes = load_checkpoint(f"{tmp_path}/run.pt{keys}")
    assert is_same(loaded, state)
    assert note in " ".join(notes)


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        pytest.param({"student": {"a": torch.ones(1)}, "teacher": {"a": torch.ones(1)}}, "", "more than one", id="two"),
        pytest.param({"epoch": 3}, "", "holds no weights", id="none"),
        pytest.param([torch.ones(1)], "", "holds no weights", id="a list"),
        pytest.param({"model": {"a": torch.ones(1)}}, ":ema", "has no `ema`; it has model", id="no such key"),
        pytest.param(
            {"model": {"a": torch.ones(1)}}, ":model.a.b", r"has no `model.a.b`; it has Tensor", id="too deep"
        ),
    ],
)
def test_a_checkpoint_without_one_set_of_weights_is_refused(
    tmp_path: Path, content: Any, keys: str, message: str
) -> None:
    torch.save(content, tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(f"{tmp_path}/run.pt{keys}")


@pytest.mark.parametrize(
    ("names", "expected", "note"),
    [
        pytest.param(["module.a", "module.b.c"], ["a", "b.c"], "dropped the prefix `module.`", id="data parallel"),
        pytest.param(["_orig_mod.a", "_orig_mod.b"], ["a", "b"], "dropped `_orig_mod.`", id="compiled"),
        pytest.param(["module._orig_mod.a", "module.b._orig_mod.c"], ["a", "b.c"], "`_orig_mod.`", id="both"),
        pytest.param(["module.a", "b"], ["module.a", "b"], "", id="a module of that name"),
        pytest.param(["_orig_mod.a", "a"], ["_orig_mod.a", "a"], "", id="names that would clash"),
    ],
)
def test_prefixes_of_wrappers_are_dropped(tmp_path: Path, names: list[str], expected: list[str], note: str) -> None:
    save_file(weights(*names), tmp_path / "w.safetensors")
    state, notes = load_checkpoint(f"{tmp_path}/w.safetensors")
    assert sorted(state) == sorted(expected)
    assert note in " ".join(notes)


def test_a_truncated_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "a.safetensors")
    torch.save(weights(), tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"")
    for name in ("a.safetensors", "b.pt"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-20])
    for name in ("a.safetensors", "b.pt", "c.pt"):
        with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
            load_checkpoint(str(tmp_path / name))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="holds objects other than tensors"):
        load_checkpoint(str(tmp_path / "model.pt"))


def test_a_missing_checkpoint_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no checkpoint"):
        load_checkpoint(f"{tmp_path}/nothing.pt:model")


def test_weights_are_loaded_and_extras_named() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = {name: torch.randn(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    notes = load_into(model, state | {"head.weight": torch.ones(1)})
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert notes == (
        "1 not in the model, dropped: head.weight",
        "1 not in the checkpoint, kept: 1.num_batches_tracked",
    )


def test_a_checkpoint_that_does_not_fit_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(model, {"0.weight": torch.ones(2, 4), "0.bias": torch.ones(2), "fc.weight": torch.ones(2, 2)})
    assert str(caught.value) == (
        "the checkpoint does not fit Sequential: 2 missing: 1.weight, 1.bias; "
        "1 of another shape: 0.weight [2,4] instead of [2,3]; 1 unknown to the model: fc.weight"
    )
    assert is_same(dict(model.state_dict()), before)


def test_a_tied_weight_may_be_there_once(model_file: Path) -> None:
    model = build_model(f"{model_file}:Tokens")
    state = {name: torch.randn(value.shape) for name, value in model.state_dict().items() if name != "out.weight"}
    load_into(model, state)
    assert torch.equal(model.get_parameter("out.weight"), state["words.weight"])


def test_a_model_is_saved_with_its_tied_weights(tmp_path: Path, model_file: Path) -> None:
    model = build_model(f"{model_file}:Tokens", seed=1)
    folder = save_model(model, tmp_path / "out")
    other = build_model(f"{model_file}:Tokens", seed=2)
    load_into(other, load_checkpoint(str(folder))[0])
    assert is_same(dict(model.state_dict()), dict(other.state_dict()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny.py"]


@pytest.mark.zoo
def test_a_transformers_model_is_saved_as_it_saves_itself(tmp_path: Path) -> None:
    small = "hidden_size=12&num_attention_heads=2&num_hidden_layers=1&intermediate_size=8&image_size=32&num_labels=3"
    model = build_model(f"hf:ViTForImageClassification?{small}", seed=1)
    save_model(model, tmp_path / "vit")
    assert is_same(dict(build_model(f"hf:{tmp_path}/vit").state_dict()), dict(model.state_dict()))


def test_a_folder_in_use_is_refused_or_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    save_model(nn.Linear(2, 2), folder)
    with pytest.raises(FileError, match="is not empty"):
        save_model(nn.Linear(3, 3), folder)
    (folder / "config.json").write_text("{}")
    save_model(nn.Linear(3, 3), folder, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    assert load_file(folder / "model.safetensors")["weight"].shape == (3, 3)
    (folder / "thesis.tex").touch()
    with pytest.raises(FileError, match=r"more than a model, such as thesis\.tex"):
        save_model(nn.Linear(3, 3), folder, overwrite=True)


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="is a file, not a folder"):
        save_model(nn.Linear(2, 2), tmp_path / "file")
    with pytest.raises(FileError, match="there is no folder"):
        save_model(nn.Linear(2, 2), tmp_path / "no" / "out")


def test_nothing_is_left_of_a_save_that_fails(tmp_path: Path) -> None:
    class Failing(nn.Linear):
        def save_pretrained(self, folder: Path) -> None:
            (folder / "config.json").write_text("{}")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_model(Failing(2, 2), tmp_path / "out")

    def write_half(path: Path) -> None:
        with written_atomically(path) as partial:
            partial.write_text("half")
            raise RuntimeError("stopped")

    (tmp_path / "plan.json").write_text("former")
    with pytest.raises(RuntimeError, match="stopped"):
        write_half(tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert (tmp_path / "plan.json").read_text() == "former"


def test_a_state_with_shared_storage_is_written_whole(tmp_path: Path) -> None:
    base = torch.randn(4, 3)
    save_state({"a": base[:2], "b": base.T, "c": base}, tmp_path / "s.safetensors")
    assert is_same(load_file(tmp_path / "s.safetensors"), {"a": base[:2], "b": base.T, "c": base})
