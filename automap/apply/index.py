"""Shard indexes: the JSON file that says which shard holds which tensor, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from automap.apply.places import Place
from automap.errors import CheckpointError

MAX_INDEX_BYTES = 2**28
IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
)
METADATA = ".metadata"  # what torch.distributed.checkpoint calls its index
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Index:
    """`weight_map` gives the shard of each tensor by name; `metadata` is whatever else was noted."""

    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]


def read_index(place: Place) -> Index:
    """The index in a file.

    Raises:
        CheckpointError: it is none, or has a tensor twice.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for position, name in enumerate(names) if name in names[:position])
            raise CheckpointError(f"{place} is no shard index: it has `{twice}` twice")
        return fields

    try:
        fields = json.loads(place.read(limit=MAX_INDEX_BYTES).decode("utf-8"), object_pairs_hook=unique)
        placed, metadata = fields["weight_map"], fields.get("metadata")
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise CheckpointError(f"{place} is no shard index: it has no `weight_map`") from problem
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(f"{place} is no shard index: `weight_map` should map names to file names")
    return Index(placed, metadata if isinstance(metadata, dict) else {})


def index_text(weight_map: Mapping[str, str], metadata: Mapping[str, Any]) -> str:
    """The JSON of an index, as transformers writes it."""
    return json.dumps({"metadata": dict(metadata), "weight_map": dict(weight_map)}, indent=2, sort_keys=True) + "\n"


def file_in_folder(folder: Place) -> Place:
    """The index or the one file that makes a folder a checkpoint.

    Raises:
        CheckpointError: the folder holds none, or several.
    """
    from automap.apply.unwrap import some

    names = folder.names()
    for name in IN_FOLDER:
        if name in names and folder.child(name).is_file():
            return folder.child(name)
    files = [name for name in names if name.endswith(SUFFIXES)]
    if len(files) == 1:
        return folder.child(files[0])
    found = f"more than one: {some(files)}" if files else "none"
    raise CheckpointError(f"the folder {folder} should hold one checkpoint, it holds {found}", help="name the file")


def split_spec(spec: str) -> tuple[Place, tuple[str, ...]]:
    """The file or folder that a spec names, and the path of keys behind its last colon.

    Raises:
        FileError: there is no such file.
    """
    from automap.apply.places import place_of
    from automap.errors import FileError

    if place_of(spec).exists():
        return place_of(spec), ()
    place, colon, keys = spec.rpartition(":")
    if colon and "/" not in keys and place and place_of(place).exists():
        return place_of(place), tuple(keys.split("."))
    raise FileError(f"there is no checkpoint {spec}")
