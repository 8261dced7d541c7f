"""Files of torch.save: where their tensors lie, without reading them. Nothing but tensors and plain data is unpickled.

The zip format keeps each storage uncompressed, so that loading under a fake mode yields the byte offset of every
tensor. Older files have no such table: they are loaded whole, and their tensors held.
"""

from __future__ import annotations

import argparse
import bisect
import io
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from automap.apply.checkpoint import unreadable
from automap.apply.places import Place
from automap.apply.stored import Part, StoredTensor, span_of
from automap.apply.unwrap import unwrap
from automap.errors import CheckpointError
from automap.plan.dtypes import DTYPES


@dataclass(frozen=True, slots=True)
class _Window:
    """Bytes `start` to `stop` of a file, and where the zip entries in them end."""

    place: Place
    start: int
    stop: int


def stored_state(
    place: Place, key_path: tuple[str, ...], *, memory_bytes: int
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors of one state dict in a file of torch.save, and notes on what lay beside it.

    Raises:
        CheckpointError: it is truncated, lies about sizes, holds objects, or is of the old format and over the memory.
    """
    size_bytes = place.size()
    with place.open() as file:
        content, ends = _content(file, place, size_bytes, memory_bytes)
    state, notes = unwrap(content, key_path, place)
    dense = {name: value for name, value in state.items() if _is_dense(value)}
    if len(dense) < len(state):
        others = [name for name in state if name not in dense]
        notes += (f"{len(others)} that are not dense, dropped: {', '.join(others[:4])}",)
    return {name: _stored(name, value, _Window(place, 0, size_bytes), ends) for name, value in dense.items()}, notes


def stored_item(place: Place, start: int, length: int, name: str) -> StoredTensor:
    """The one tensor in `length` bytes of a file from `start` on, which torch.save wrote.

    Raises:
        CheckpointError: there is something else, or the file ends before.
    """
    if start < 0 or length < 0 or start + length > place.size():
        raise CheckpointError(f"{place} is truncated: `{name}` would be its bytes {start} to {start + length}")
    with place.open() as file:
        file.seek(start)
        content, ends = _fake_content(io.BufferedReader(_Slice(file, start, length)), place)
    if not isinstance(content, Tensor) or not _is_dense(content):
        raise CheckpointError(f"{place} holds no dense tensor where `{name}` should be")
    return _stored(name, content, _Window(place, start, start + length), ends)


def _content(file: IO[bytes], place: Place, size_bytes: int, memory_bytes: int) -> tuple[Any, tuple[int, ...]]:
    """What a file holds, without values where that can be, and where the entries of a zip file begin or end."""
    if zipfile.is_zipfile(file):
        try:
            return _fake_content(file, place)
        except CheckpointError:  # some tensors, such as sparse ones, cannot be had without values
            if size_bytes > memory_bytes:
                raise
    return _held_content(file, place, size_bytes, memory_bytes), ()


def _fake_content(file: IO[bytes] | io.BufferedReader, place: Place) -> tuple[Any, tuple[int, ...]]:
    """What a zip file holds, its tensors without values, and where its entries begin or the last one ends."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            ends = tuple(sorted({entry.header_offset for entry in entries} | {archive.start_dir}))
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            order = next((archive.read(entry) for entry in entries if _is_byte_order(entry)), b"")
        if packed or (order and order.decode() != sys.byteorder):
            raise ValueError("its storages are " + ("compressed" if packed else f"{order!r}-endian"))
        file.seek(0)
        with _loading_safely(), FakeTensorMode():
            return torch.load(file, map_location="cpu", weights_only=True), ends
    except Exception as problem:
        raise unreadable(place, problem) from problem


@contextmanager
def _loading_safely() -> Iterator[None]:
    """Besides tensors and plain data, let in what argparse made; keep torch's remarks to itself."""
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_byte_order(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.endswith("/byteorder") and entry.file_size < 16


def _held_content(file: IO[bytes], place: Place, size_bytes: int, memory_bytes: int) -> Any:
    """What a file of the old format holds, its tensors in memory."""
    if size_bytes > memory_bytes:
        raise CheckpointError(
            f"{place} has the format of torch before 1.6, which is read whole: {size_bytes} bytes of memory",
            help="load and save it once with a newer torch, or give more --memory",
        )
    try:
        file.seek(0)
        with _loading_safely():
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as problem:
        raise unreadable(place, problem) from problem


def _is_dense(value: Tensor) -> bool:
    plain = value.layout is torch.strided and not value.is_conj() and not value.is_neg()
    return plain and str(value.dtype).removeprefix("torch.") in DTYPES


def _stored(name: str, value: Tensor, window: _Window, ends: tuple[int, ...]) -> StoredTensor:
    storage = value.untyped_storage()
    sizes, strides = tuple(value.shape), tuple(value.stride())
    offset: int | None = getattr(storage, "_checkpoint_offset", None)
    held = None
    first = int(value.storage_offset()) * value.element_size()
    if offset is None:
        held = torch.empty(0, dtype=torch.uint8).set_(storage)
    else:
        after = bisect.bisect_right(ends, offset)
        end = ends[after] if after < len(ends) else 0
        if offset + first + span_of(sizes, strides) * value.element_size() > end:
            raise CheckpointError(f"{window.place} is truncated: it does not hold all of `{name}`")
        first += window.start + offset
    part = Part(window.place, first, (0,) * len(sizes), sizes, strides, held)
    return StoredTensor(str(value.dtype).removeprefix("torch."), sizes, (part,))


class _Slice(io.RawIOBase):
    """A range of a file as a file."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file, self._start, self._length, self._position = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._position))
        self._file.seek(self._start + self._position)
        found = self._file.read(count)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)
