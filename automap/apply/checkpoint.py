"""Checkpoints: a file, shard index or folder becomes one state dict, with notes on what was unwrapped or dropped.

Nothing is unpickled but tensors and plain data, and no index can name a file outside of its own folder.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from automap.errors import CheckpointError, FileError

State = dict[str, Tensor]
_IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
)
_NOT_WEIGHTS = ("optim", "scheduler", "lr_sched", "scaler", "amp")
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def load_checkpoint(spec: str) -> tuple[State, tuple[str, ...]]:
    """Return the tensors of a checkpoint by name, and notes on what was unwrapped, renamed or left out.

    Args:
        spec: a `.safetensors`, `.bin`, `.pt` or `.pth` file, a shard index, or a folder with one of them; behind a
            colon the path of keys to the state dict inside, as in `run7.pth:ema.state_dict`.

    Raises:
        FileError: there is no such file.
        CheckpointError: it is truncated, holds no weights, or more than one set of them.
    """
    path, key_path = _split_spec(spec)
    if path.is_dir():
        path = _file_in_folder(path)
    if path.name.endswith(".index.json"):
        content: Any = _load_shards(path)
    else:
        content = _load_file(path)
    state, notes = _unwrap(content, key_path, path)
    state, prefix_notes = _strip_prefixes(state)
    return state, notes + prefix_notes


def load_into(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy state into model and return notes on what was left out: tensors the model lacks, counters it keeps.

    Raises:
        CheckpointError: weights of the model are missing from state, or have another shape there; model is unchanged.
    """
    own = model.state_dict(keep_vars=True)
    missing = _missing(own, state)
    counters = [name for name in missing if not own[name].is_floating_point()]
    missing = [name for name in missing if own[name].is_floating_point()]
    unexpected = [name for name in state if name not in own]
    mismatched = [
        f"{name} {_size(value)} instead of {_size(own[name])}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if missing or mismatched:
        parts = (("missing", missing), ("of another shape", mismatched), ("unknown to the model", unexpected))
        lines = [f"{len(names)} {what}: {_some(names)}" for what, names in parts if names]
        raise CheckpointError(
            f"the checkpoint does not fit {type(model).__name__}: " + "; ".join(lines),
            help="is it a checkpoint of this very model, with the same options? a part of it is named FILE:key.path",
        )
    fitting = OrderedDict((name, value) for name, value in state.items() if name in own)
    vars(fitting)["_metadata"] = getattr(own, "_metadata", None)  # some models refuse a state without their version
    with torch.no_grad():
        model.load_state_dict(fitting, strict=False)
    notes = [("not in the model, dropped", unexpected), ("not in the checkpoint, kept", counters)]
    return tuple(f"{len(names)} {what}: {_some(names)}" for what, names in notes if names)


def _missing(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the names that state lacks, but for those tied to one it has."""
    given = {id(own[name]) for name in state if name in own}
    return [name for name, tensor in own.items() if name not in state and id(tensor) not in given]


# finding and reading files


def _split_spec(spec: str) -> tuple[Path, tuple[str, ...]]:
    path = Path(spec).expanduser()
    if path.exists():
        return path, ()
    place, colon, keys = spec.rpartition(":")
    if colon and Path(place).expanduser().exists():
        return Path(place).expanduser(), tuple(keys.split("."))
    raise FileError(f"there is no checkpoint {spec}")


def _file_in_folder(folder: Path) -> Path:
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if len(files) == 1:
        return files[0]
    found = f"more than one: {_some([path.name for path in files])}" if files else "none"
    raise CheckpointError(f"the folder {folder} should hold one checkpoint, it holds {found}", help="name the file")


def _load_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as problem:
        reason = " ".join(str(problem).split())
        is_code = "weights_only" in reason or "Unsupported" in reason
        raise CheckpointError(
            f"{path} cannot be read: " + ("it holds objects other than tensors" if is_code else reason[:200]),
            help="save its state dict alone, in the program that wrote it" if is_code else "is it complete?",
        ) from problem


def _load_shards(index: Path) -> State:
    state: State = {}
    placed = _weight_map(index)
    for name in sorted(set(placed.values())):
        shard = index.parent / name
        if Path(name).name != name or not shard.is_file():
            why = "there is no such file" if Path(name).name == name else "it lies outside of the index's folder"
            raise CheckpointError(f"{index} names the shard {name}: {why}")
        state |= _load_file(shard)
    lost = sorted(set(placed) - set(state))
    if lost:
        raise CheckpointError(f"{index} lists tensors that its shards do not hold: {_some(lost)}")
    return state


def _weight_map(index: Path) -> dict[str, str]:
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as problem:
        raise CheckpointError(f"{index} is no shard index: it has no `weight_map`") from problem
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(f"{index} is no shard index: `weight_map` should map names to file names")
    return placed


# unwrapping


def _unwrap(content: Any, key_path: tuple[str, ...], path: Path) -> tuple[State, tuple[str, ...]]:
    """Return the one state dict inside content, and notes on where it was and what lay beside it."""
    notes = []
    for depth, key in enumerate(key_path):
        if not isinstance(content, Mapping) or key not in content:
            keys = _some(list(map(str, content))) if isinstance(content, Mapping) else type(content).__name__
            raise CheckpointError(f"{path} has no `{'.'.join(key_path[: depth + 1])}`; it has {keys}")
        content = content[key]
    found = list(_states(content, ()))
    if not found:
        raise CheckpointError(
            f"{path} holds no weights", help="is it a checkpoint of an optimizer or of settings alone?"
        )
    if len(found) > 1:
        places = [".".join((*key_path, *keys)) for keys, _ in found]
        raise CheckpointError(
            f"{path} holds more than one set of weights: {_some(places)}", help=f"name one: {path.name}:{places[0]}"
        )
    inner, state = found[0]
    if inner:
        beside = [key for key in content if key != inner[0]]
        notes.append(f"read `{'.'.join(inner)}`" + (f", beside {_some(list(map(str, beside)))}" if beside else ""))
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    others = [name for name in state if name not in tensors]
    if others:
        notes.append(f"{len(others)} that are no tensors, dropped: {_some(others)}")
    return tensors, tuple(notes)


def _states(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield each mapping of names to tensors inside content with the keys that lead to it, outermost only."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content) or len(keys) > 3:
        return
    if any(isinstance(value, Tensor) for value in content.values()):
        yield keys, content
        return
    for key, value in content.items():
        if not key.lower().startswith(_NOT_WEIGHTS):
            yield from _states(value, (*keys, key))


def _strip_prefixes(state: State) -> tuple[State, tuple[str, ...]]:
    """Drop what wrappers of modules add to names: `module.` in front of all, and those of torch.compile and FSDP."""
    notes: list[str] = []
    for wrapper in _WRAPPERS:
        renamed = {
            ".".join(part for part in name.split(".") if part != wrapper): value for name, value in state.items()
        }
        if len(renamed) == len(state) and renamed.keys() != state.keys():
            state, notes = renamed, [*notes, f"dropped `{wrapper}.` from the names"]
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
        notes.append("dropped the prefix `module.`")
    return state, tuple(notes)


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _size(tensor: Tensor) -> str:
    return f"[{','.join(map(str, tensor.shape))}]"
