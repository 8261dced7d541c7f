"""Folders of torch.distributed.checkpoint: the tensors in them, sharded in whatever way, and where their parts lie.

The metadata is a pickle. It is read by an unpickler that knows the classes of such metadata and nothing else, so that
no code in it runs.
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from automap.apply.index import METADATA
from automap.apply.places import Place, shard_place
from automap.apply.stored import Part, StoredTensor
from automap.apply.torch_files import stored_item
from automap.apply.unwrap import unwrap
from automap.errors import CheckpointError

_MAX_METADATA_BYTES = 2**30
_ALLOWED = {
    "torch": {
        *("Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
        *("uint16", "uint32", "uint64", "complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
        *("float8_e5m2fnuz", "float8_e8m0fnu"),
    },
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
        *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no metadata needs")
        return getattr(importlib.import_module(module), name)


def distributed_state(
    folder: Place, key_path: tuple[str, ...]
) -> tuple[dict[str, StoredTensor], tuple[Place, ...], tuple[str, ...]]:
    """The tensors of one state dict in the folder, the files they lie in, and notes on what lay beside it.

    Raises:
        CheckpointError: the metadata is none, or names files that are missing or outside of the folder.
    """
    metadata = read_metadata(folder)
    content: dict[str, Any] = {}
    try:
        for name, described in metadata.state_dict_metadata.items():
            keys = (metadata.planner_data or {}).get(name, (name,))
            _put(content, tuple(map(str, keys)), _described(name, described))
        state, notes = unwrap(content, key_path, folder)
        places = dict(metadata.storage_data)
        located = {name: _located(stored, places, folder) for name, stored in state.items()}
    except (AttributeError, TypeError, ValueError, KeyError) as problem:
        raise CheckpointError(f"{folder.child(METADATA)} cannot be read: it is not what torch writes") from problem
    files = {part.place: None for stored in located.values() for part in stored.parts}
    return located, tuple(files), notes


def read_metadata(folder: Place) -> Any:
    """The Metadata of a folder.

    Raises:
        CheckpointError: it is truncated, or names anything but the classes of metadata.
    """
    place = folder.child(METADATA)
    try:
        metadata = _MetadataUnpickler(io.BytesIO(place.read(limit=_MAX_METADATA_BYTES))).load()
    except CheckpointError:
        raise
    except Exception as problem:
        raise CheckpointError(f"{place} cannot be read: {problem}", help="is it complete?") from problem
    if type(metadata).__name__ != "Metadata":
        raise CheckpointError(f"{place} cannot be read: it is not what torch writes")
    return metadata


def _put(content: dict[str, Any], keys: tuple[str, ...], value: object) -> None:
    for key in keys[:-1]:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ValueError("a tensor with tensors in it")
        content = inner
    content[keys[-1]] = value


def _described(name: str, described: Any) -> object:
    """A tensor whose parts are known by their boxes only; their `place` is the name they are stored by."""
    if not hasattr(described, "chunks"):
        return None
    dtype = str(described.properties.dtype).removeprefix("torch.")
    parts = tuple(
        Part(Place(name), 0, tuple(map(int, chunk.offsets)), tuple(map(int, chunk.sizes)), ())
        for chunk in described.chunks
    )
    return StoredTensor(dtype, tuple(map(int, described.size)), parts)


def _located(stored: StoredTensor, places: Mapping[Any, Any], folder: Place) -> StoredTensor:
    from torch import Size
    from torch.distributed.checkpoint.metadata import MetadataIndex

    parts = []
    for part in stored.parts:
        name = part.place.text
        info = places[MetadataIndex(name, Size(part.starts))]
        if info.transform_descriptors:
            raise CheckpointError(f"{folder} holds `{name}` packed, which automap does not read")
        place = shard_place(folder, info.relative_path, str(folder.child(METADATA)))
        item = stored_item(place, int(info.offset), int(info.length), name)
        if (item.dtype, item.shape) != (stored.dtype, part.sizes):
            raise CheckpointError(f"{place} holds `{name}` as {item.dtype}{list(item.shape)}, unlike its metadata")
        parts.append(replace(item.parts[0], starts=part.starts))
    return replace(stored, parts=tuple(parts))
