"""Places: a local path or any fsspec URL, and the few things that are done there; nothing else knows about storage.

Local bytes are read with `pread` into the caller's buffer, remote ones with range requests. Names that come out of a
checkpoint never leave the folder they were found in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from automap.errors import AutomapError, CheckpointError, FileError

_MOST_OPEN = 64  # files of one task, far below the usual limit of a process
_BUCKETS = ("s3://", "s3a://", "gs://", "gcs://", "az://", "abfs://", "abfss://", "oss://")  # folders are but names


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder: `text` is an absolute local path, or a URL that fsspec knows."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def is_local(self) -> bool:
        """Whether it lies in this machine's file system."""
        return "://" not in self.text

    @property
    def path(self) -> Path:
        """The local path."""
        assert self.is_local
        return Path(self.text)

    @property
    def name(self) -> str:
        """What comes behind the last slash."""
        return self.text.rpartition("://")[2].rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Place:
        """The folder that it lies in."""
        scheme, mark, path = self.text.rpartition("://")
        folder = path.rstrip("/").rpartition("/")[0]
        return Place(f"{scheme}{mark}{folder}" if mark or folder else "/")

    def child(self, name: str) -> Place:
        """The entry called `name` of this folder."""
        return Place(self.text + name if self.text.endswith("/") else f"{self.text}/{name}")

    def exists(self) -> bool:
        """Whether there is anything."""
        return self.path.exists() if self.is_local else bool(self._ask("exists"))

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.path.is_dir() if self.is_local else bool(self._ask("isdir"))

    def is_file(self) -> bool:
        """Whether it is a regular file, or a link to one."""
        return self.path.is_file() if self.is_local else bool(self._ask("isfile"))

    def size(self) -> int:
        """The number of bytes of a file."""
        return self.path.stat().st_size if self.is_local else int(self._ask("size"))

    def names(self) -> list[str]:
        """The entries of a folder, sorted; none where there is no folder."""
        if self.is_local:
            return sorted(os.listdir(self.text)) if self.is_dir() else []
        found = self._ask("ls", detail=False) if self.is_dir() else []
        return sorted({Place(str(path)).name for path in found} - {self.name, ""})

    def stamp(self) -> str:
        """Changes when the file's content is replaced: size and time, or what the store has for it."""
        if self.is_local:
            status = self.path.stat()
            return f"{status.st_size} {status.st_mtime_ns}"
        info = self._ask("info")
        known = ("size", "ETag", "etag", "md5Hash", "blob_id", "LastModified", "mtime", "created")
        return " ".join(f"{key}={info[key]}" for key in known if key in info)

    def read(self, *, limit: int) -> bytes:
        """The whole content of a small file.

        Raises:
            CheckpointError: it has more than `limit` bytes.
        """
        if self.size() > limit:
            raise CheckpointError(f"{self} has {self.size()} bytes, more than any such file needs")
        return self.path.read_bytes() if self.is_local else bytes(self._ask("cat_file"))

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The file, opened; what is written to a store is there when it is closed."""
        if self.is_local:
            return open(self.text, mode, buffering=-1 if "r" in mode else 0)
        file: IO[bytes] = self._ask("open", mode)
        return file

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a remote file."""
        options = {"cache_type": "none"} if self._is_on_hub else {}  # else it reads 5 MB ahead each time
        return bytes(self._ask("cat_file", start=start, end=stop, **options))

    def make_dir(self) -> None:
        """Create the folder and those above it, if they are missing."""
        if self.is_local:
            self.path.mkdir(parents=True, exist_ok=True)
        elif not self.text.startswith(_BUCKETS):
            self._ask("makedirs", exist_ok=True)

    def write(self, content: bytes) -> None:
        """Write a small file that is there whole or not at all."""
        if not self.is_local:
            self._ask("pipe_file", content)
            return
        from automap.apply.save import written_atomically

        with written_atomically(self.path) as partial:
            partial.write_bytes(content)

    def move_to(self, other: Place) -> None:
        """Give a file or folder another place, in one step where the storage can."""
        if self.is_local:
            os.replace(self.text, other.text)
        else:
            self._ask("mv", _filesystem(other)[1], recursive=self.is_dir())

    def remove(self) -> None:
        """Delete the file, or the folder with all that is in it; nothing happens where there is none."""
        if self.is_local:
            _remove_local(self.path)
        elif self.exists():
            self._ask("rm", recursive=True)

    @property
    def _is_on_hub(self) -> bool:
        return self.text.startswith("hf://")

    def _ask(self, method: str, *args: object, **options: object) -> Any:
        """What the store answers; OSError, whatever its driver raises."""
        system, path = _filesystem(self)
        call: Callable[..., Any] = getattr(system, method)
        if not self._is_on_hub:  # a commit does not change, but other processes write into the folder of a run
            system.invalidate_cache(path)
        try:
            return call(path, *args, **options)
        except (OSError, AutomapError):
            raise
        except Exception as problem:  # of a driver, each with its own
            raise OSError(f"{self}: {type(problem).__name__}: {' '.join(str(problem).split())[:200]}") from problem


def place_of(spec: str | os.PathLike[str]) -> Place:
    """The place that a path or URL names.

    Example:
        >>> place_of("s3://bucket/run7").child("model.safetensors").text
        's3://bucket/run7/model.safetensors'
    """
    text = os.fspath(spec)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        return Place(text if text.endswith("://") else text.rstrip("/"))
    return Place(os.path.abspath(os.path.expanduser(text)))


def shard_place(folder: Place, name: str, listed_in: str) -> Place:
    """The file of `folder` that a shard index calls `name`.

    Raises:
        CheckpointError: there is none, or it lies outside of the folder, by its name or as a link.
    """
    problem = None
    place = folder.child(name)
    if not name or name in (".", "..") or any(mark in name for mark in ("/", "\\", "::", "\0")):
        problem = "it lies outside of the index's folder"
    elif not place.is_file():
        problem = "there is no such file"
    elif folder.is_local and not _is_inside(place.path, folder.path):
        problem = "it is a link that leads outside of the index's folder"
    if problem:
        raise CheckpointError(f"{listed_in} names the shard {name}: {problem}")
    return place


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether path lies in folder, links followed; a snapshot of the hub's cache may link to the blobs beside it."""
    roots = [folder.resolve()]
    if roots[0].parent.name == "snapshots":
        roots.append(roots[0].parents[1] / "blobs")
    return any(path.resolve().is_relative_to(root) for root in roots)


def _filesystem(place: Place) -> tuple[Any, str]:
    """The fsspec file system of a place, and the path in it."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(place.text)
    except ImportError as problem:
        scheme = place.text.partition("://")[0]
        advice = "install the package that it names"
        raise FileError(f"{scheme}:// cannot be reached: {problem}", help=advice) from problem
    except ValueError as problem:
        raise FileError(f"{place} cannot be reached: {problem}") from problem
    return system, path


def _remove_local(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Files:
    """The files that one task reads: each opened once, all closed in the end; `read_bytes` is what was read so far."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self._open: dict[str, int] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def read_into(self, place: Place, offset: int, buffer: memoryview) -> None:
        """Fill buffer with the bytes of a file from offset on.

        Raises:
            CheckpointError: the file ends before that.
        """
        done, wanted = 0, len(buffer)
        while done < wanted:
            count = self._read_some(place, offset + done, buffer[done:])
            if not count:
                raise CheckpointError(f"{place} is truncated: it ends before byte {offset + wanted}")
            done += count
        self.read_bytes += wanted

    def _read_some(self, place: Place, offset: int, buffer: memoryview) -> int:
        if place.is_local:
            return os.preadv(self._descriptor(place), [buffer], offset)
        found = place.read_range(offset, offset + len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _descriptor(self, place: Place) -> int:
        descriptor = self._open.get(place.text)
        if descriptor is None:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = self._open[place.text] = os.open(place.text, os.O_RDONLY)
            if hasattr(os, "posix_fadvise"):  # the system then reads further ahead
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return descriptor
