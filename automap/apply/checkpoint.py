"""Checkpoints: a file, shard index or folder becomes one state dict, with notes on what was unwrapped or dropped.

Nothing is unpickled but tensors and plain data, and no index can name a file outside of its own folder.
"""

from __future__ import annotations

import argparse
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automap.apply.hub import hub_place
from automap.apply.index import METADATA, file_in_folder, read_index, split_spec
from automap.apply.places import Place, shard_place
from automap.apply.unwrap import some, strip_prefixes, unwrap
from automap.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

    State = dict[str, Tensor]


def load_checkpoint(spec: str) -> tuple[State, tuple[str, ...]]:
    """Return the tensors of a checkpoint by name, and notes on what was unwrapped, renamed or left out.

    Args:
        spec: a `.safetensors`, `.bin`, `.pt` or `.pth` file, a shard index, or a folder with one of them; behind a
            colon the path of keys to the state dict inside, as in `run7.pth:ema.state_dict`.

    Raises:
        FileError: there is no such file.
        CheckpointError: it is truncated, holds no weights, or more than one set of them.
    """
    place, key_path = split_spec(hub_place(spec))
    if not place.is_local or place.child(METADATA).is_file():
        return _load_from_afar(spec)
    if place.is_dir():
        place = file_in_folder(place)
    if place.name.endswith(".index.json"):
        content: Any = _load_shards(place)
    else:
        content = _load_file(place.path)
    state, notes = unwrap(content, key_path, place)
    state, prefix_notes = strip_prefixes(state)
    return state, notes + prefix_notes


def load_into(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy state into model and return notes on what was left out: tensors the model lacks, counters it keeps.

    Raises:
        CheckpointError: weights of the model are missing from state, or have another shape there; model is unchanged.
    """
    import torch

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
        lines = [f"{len(names)} {what}: {some(names)}" for what, names in parts if names]
        raise CheckpointError(
            f"the checkpoint does not fit {type(model).__name__}: " + "; ".join(lines),
            help="is it a checkpoint of this very model, with the same options? a part of it is named FILE:key.path",
        )
    fitting = OrderedDict((name, value) for name, value in state.items() if name in own)
    vars(fitting)["_metadata"] = getattr(own, "_metadata", None)  # some models refuse a state without their version
    with torch.no_grad():
        model.load_state_dict(fitting, strict=False)
    notes = [("not in the model, dropped", unexpected), ("not in the checkpoint, kept", counters)]
    return tuple(f"{len(names)} {what}: {some(names)}" for what, names in notes if names)


def _missing(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the names that state lacks, but for those tied to one it has."""
    given = {id(own[name]) for name in state if name in own}
    return [name for name, tensor in own.items() if name not in state and id(tensor) not in given]


# finding and reading files


def _load_from_afar(spec: str) -> tuple[State, tuple[str, ...]]:
    """Read a checkpoint that is not in local files of one tensor each."""
    from automap.apply.places import Files
    from automap.apply.reader import open_checkpoint
    from automap.apply.views import read_tensor

    found = open_checkpoint(spec)
    with Files() as files:
        return {name: read_tensor(stored, files) for name, stored in found.tensors.items()}, found.notes


def _load_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as problem:
        raise unreadable(path, problem) from problem


def unreadable(place: object, problem: Exception) -> CheckpointError:
    """The error for a file that torch or safetensors cannot read."""
    reason = " ".join(str(problem).split())
    is_code = "weights_only" in reason or "Unsupported" in reason
    return CheckpointError(
        f"{place} cannot be read: " + ("it holds objects other than tensors" if is_code else reason[:200]),
        help="save its state dict alone, in the program that wrote it" if is_code else "is it complete?",
    )


def _load_shards(index: Place) -> State:
    state: State = {}
    placed = read_index(index).weight_map
    for name in sorted(set(placed.values())):
        state |= _load_file(shard_place(index.parent, name, str(index)).path)
    lost = sorted(set(placed) - set(state))
    if lost:
        raise CheckpointError(f"{index} lists tensors that its shards do not hold: {some(lost)}")
    return state


def _size(tensor: Tensor) -> str:
    return f"[{','.join(map(str, tensor.shape))}]"
