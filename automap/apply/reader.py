"""Reading checkpoints: a spec in, all tensors with the places of their bytes out; the bytes stay where they are.

A spec is a file, shard index or folder, local, `hf://ORG/NAME[@REVISION]` or any fsspec URL, with `:key.path` behind it
where a file of torch.save holds more than one state dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from automap.apply.header import Header, header_length, parse_header
from automap.apply.hub import hub_place
from automap.apply.index import METADATA, file_in_folder, read_index, split_spec
from automap.apply.places import Files, Place, shard_place
from automap.apply.stored import Checkpoint, StoredTensor, whole
from automap.apply.unwrap import some, strip_prefixes
from automap.errors import CheckpointError

_State = dict[str, StoredTensor]


def open_checkpoint(spec: str, *, memory_bytes: int = 2**31) -> Checkpoint:
    """The tensors of a checkpoint without their bytes.

    Args:
        spec: see above.
        memory_bytes: what a file may take that can only be read whole (torch's format before 1.6).

    Raises:
        FileError: there is no such file.
        CheckpointError: it is truncated, lies about sizes, names files outside of its folder, or holds no weights.
    """
    place, key_path = split_spec(hub_place(spec))
    if place.child(METADATA).is_file():
        from automap.apply.dcp import distributed_state

        state, files, notes = distributed_state(place, key_path)
        found = Checkpoint(spec, state, (place.child(METADATA), *files), {}, notes=notes)
    else:
        found = _opened(spec, file_in_folder(place) if place.is_dir() else place, key_path, memory_bytes)
    if not found.tensors:
        raise CheckpointError(f"{spec} holds no weights")
    state, notes = strip_prefixes(found.tensors)
    return replace(found, tensors=state, notes=found.notes + notes)


def read_safetensors_header(place: Place, files: Files) -> Header:
    """The header of one `.safetensors` file.

    Raises:
        CheckpointError: it is malformed, or the file truncated.
    """
    size_bytes = place.size()
    prefix = bytearray(min(8, size_bytes))
    files.read_into(place, 0, memoryview(prefix))
    text = bytearray(header_length(bytes(prefix), size_bytes, place))
    files.read_into(place, 8, memoryview(text))
    return parse_header(bytes(text), size_bytes, place)


def _opened(spec: str, place: Place, key_path: tuple[str, ...], memory_bytes: int) -> Checkpoint:
    if place.name.endswith(".index.json"):
        return _opened_shards(spec, place, memory_bytes)
    state, metadata, notes = _file_state(place, key_path, memory_bytes)
    return Checkpoint(spec, state, (place,), metadata, notes=notes)


def _file_state(
    place: Place, key_path: tuple[str, ...], memory_bytes: int
) -> tuple[_State, dict[str, str], tuple[str, ...]]:
    if not place.name.endswith(".safetensors"):
        from automap.apply.torch_files import stored_state

        state, notes = stored_state(place, key_path, memory_bytes=memory_bytes)
        return state, {}, notes
    if key_path:
        raise CheckpointError(f"{place} has no `{key_path[0]}`: a safetensors file holds one state dict")
    with Files() as files:
        header = read_safetensors_header(place, files)
    entries = {entry.name: whole(entry.dtype, entry.shape, place, entry.start) for entry in header.entries}
    return entries, dict(header.metadata), ()


def _opened_shards(spec: str, index: Place, memory_bytes: int) -> Checkpoint:
    found = read_index(index)
    placed = found.weight_map
    shards = {name: shard_place(index.parent, name, str(index)) for name in sorted(set(placed.values()))}
    state: _State = {}
    twice: list[str] = []
    metadatas = []
    for shard, place in shards.items():
        held, metadata, _ = _file_state(place, (), memory_bytes)
        _check_held(index, shard, placed, held)
        metadatas.append(metadata)
        twice += [name for name in held if placed.get(name, shard) != shard or name in state]
        state |= {name: stored for name, stored in held.items() if placed.get(name, shard) == shard}
    undecided = sorted(set(twice) - set(placed))
    if undecided:
        raise CheckpointError(f"{index} has shards that both hold {some(undecided)}, and does not say whose to take")
    notes = _shard_notes(state, placed, twice)
    return Checkpoint(spec, state, (index, *shards.values()), _common(metadatas), found.metadata, notes)


def _check_held(index: Place, shard: str, placed: Mapping[str, str], held: _State) -> None:
    lost = sorted(name for name, place in placed.items() if place == shard and name not in held)
    if lost:
        raise CheckpointError(f"{index} lists tensors that its shards do not hold: {some(lost)}")


def _shard_notes(state: _State, placed: Mapping[str, str], twice: list[str]) -> tuple[str, ...]:
    extra = sorted(set(state) - set(placed))
    notes = []
    if twice:
        notes.append(f"{len(twice)} in more than one shard, taken from where the index has them: {some(twice)}")
    if extra:
        notes.append(f"{len(extra)} in the shards but not in the index, read too: {some(extra)}")
    return tuple(notes)


def _common(metadatas: list[dict[str, str]]) -> dict[str, str]:
    """What all shards agree on where they say it."""
    keys = dict.fromkeys(key for metadata in metadatas for key in metadata)
    values = {key: {metadata[key] for metadata in metadatas if key in metadata} for key in keys}
    return {key: found.pop() for key, found in values.items() if len(found) == 1}
