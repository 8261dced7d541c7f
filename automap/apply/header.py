"""The header of a safetensors file: bytes in, entries out, and the reverse. What does not add up is refused.

Layout of a file: 8 bytes with the header's length, little-endian; the header, a JSON object; the tensors' bytes,
without gaps. Source: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from automap.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_PREFIX_BYTES = 8
_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_CODES = {name: code for code, name in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: its bytes are `start` to `stop`, counted from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a file in the order of their bytes, and its metadata."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]


def item_bytes(dtype: str) -> int:
    """The number of bytes of one element.

    Example:
        >>> item_bytes("bfloat16"), item_bytes("float8_e4m3fn"), item_bytes("complex128")
        (2, 1, 16)
    """
    if dtype == "bool" or dtype.startswith("float8"):
        return 1
    return int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8


def is_writable(dtype: str) -> bool:
    """Whether safetensors has this dtype."""
    return dtype in _CODES


def header_length(prefix: bytes, size_bytes: int, place: object) -> int:
    """The length of the header of a file of `size_bytes` that begins with `prefix`.

    Raises:
        CheckpointError: the file is truncated, or no safetensors file.
    """
    length = int.from_bytes(prefix[:_PREFIX_BYTES], "little")
    if len(prefix) < _PREFIX_BYTES or _PREFIX_BYTES + length > size_bytes:
        raise _problem(place, "it is truncated or no safetensors file")
    if length > MAX_HEADER_BYTES:
        raise _problem(place, f"its header of {length} bytes is longer than the format allows")
    return length


def parse_header(text: bytes, size_bytes: int, place: object) -> Header:
    """The header whose JSON is `text`, of a file of `size_bytes`.

    Raises:
        CheckpointError: it is malformed, lies about sizes, or its tensors overlap or leave the file.
    """
    fields = _parsed(text, place)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _problem(place, "its metadata is not text")
    begin = _PREFIX_BYTES + len(text)
    entries = [_entry(name, fields[name], begin, place) for name in fields]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _check_order(entries, begin, size_bytes, place)
    return Header(tuple(entries), metadata)


def _parsed(text: bytes, place: object) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for index, name in enumerate(names) if name in names[:index])
            raise _problem(place, f"its header has `{twice}` twice")
        return dict(pairs)

    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as problem:
        raise _problem(place, "its header is not JSON") from problem
    if not isinstance(fields, dict) or text[:1] != b"{":
        raise _problem(place, "its header is no JSON object")
    return fields


def _entry(name: str, fields: object, begin: int, place: object) -> Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise _problem(place, f"`{name}` should have a dtype, a shape and data_offsets, and nothing else")
    code, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    dtype = _NAMES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise _problem(place, f"`{name}` has the dtype {code!r}, which automap does not know")
    if not _are_sizes(shape):
        raise _problem(place, f"`{name}` has a shape that is none")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _problem(place, f"`{name}` has offsets that are none")
    start, stop = offsets
    wanted = math.prod(shape) * item_bytes(dtype)
    if stop - start != wanted:
        raise _problem(place, f"`{name}` needs {wanted} bytes for {dtype}{shape}, its offsets span {stop - start}")
    return Entry(name, dtype, tuple(shape), begin + start, begin + stop)


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_order(entries: Sequence[Entry], begin: int, size_bytes: int, place: object) -> None:
    """The tensors follow each other without gap or overlap, from the header to the end of the file."""
    for one, two in pairwise(entries):
        if two.start != one.stop:
            how = "overlap" if two.start < one.stop else "have a gap between them"
            raise _problem(place, f"`{one.name}` and `{two.name}` {how}")
    first, end = (entries[0].start, entries[-1].stop) if entries else (begin, begin)
    if end > size_bytes:
        raise _problem(place, f"it is truncated: its header lists {end - begin} bytes, it has {size_bytes - begin}")
    if first != begin or end < size_bytes:
        raise _problem(place, "it has bytes that belong to no tensor")


def build_header(tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """What a file begins with whose tensors (name, dtype, shape) follow in this order.

    Raises:
        CheckpointError: safetensors lacks a dtype, a name is no text, or the header would be too long.
    """
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        if name == "__metadata__" or not is_writable(dtype):
            raise CheckpointError(f"`{name}` cannot be written to safetensors, which has no {dtype} of that name")
        start, end = end, end + math.prod(shape) * item_bytes(dtype)
        fields[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    try:
        text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as problem:
        raise CheckpointError("a tensor's name is no text that a file could hold") from problem
    text += b" " * (-len(text) % _PREFIX_BYTES)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(f"{len(tensors)} tensors are too many for one file", help="write smaller shards")
    return len(text).to_bytes(_PREFIX_BYTES, "little") + text


def _problem(place: object, what: str) -> CheckpointError:
    return CheckpointError(f"{place} cannot be read: {what}", help="is it complete?" if "truncated" in what else None)
