"""The folder of a run: `.OUT.partial` beside OUT. It holds what is finished, for an interrupted run to go on from.

    job.json   what the run is for: a digest of the plan, the checkpoint and the layout; and, once the output is put
               in its place, the sizes and checksums of its files
    out/       finished shards, each whole      done/  their sizes and checksums
    tmp/       shards that are being written    former the output that is replaced
    lock       held while the run lives

OUT appears in one step at the very end; then the folder vanishes. At every moment either OUT or the folder is complete
enough to go on from. That holds however the process ends; as with `cp`, the system decides when bytes reach the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from automap.apply.places import Place
from automap.errors import CheckpointError, FileError


@dataclass(frozen=True, slots=True)
class Work:
    """The folder of the run that writes `out`, a file or a folder."""

    out: Place
    is_file: bool

    @property
    def place(self) -> Place:
        """The folder."""
        return self.out.parent.child(f".{self.out.name}.partial")

    @property
    def result(self) -> Place:
        """What becomes `out`."""
        shards = self.place.child("out")
        return shards.child(self.out.name) if self.is_file else shards

    def is_for(self, digest: str) -> bool:
        """Whether the folder is there, and of a run with this digest."""
        return self._job().get("digest") == digest

    def prepare(self, digest: str, *, resume: bool) -> None:
        """Make the folder ready for a run with this digest; what is there of another run is deleted."""
        if not (resume and self.is_for(digest)):
            self.clear()
        self.place.child("tmp").remove()
        for name in ("out", "done", "tmp"):
            self.place.child(name).make_dir()
        if not self.is_for(digest):
            self._note({"digest": digest})

    def clear(self) -> None:
        """Delete all that is in the folder, but not the lock; what the folder is for goes last."""
        for name in sorted(self.place.names(), key=lambda name: name == "job.json"):
            if name != "lock":
                self.place.child(name).remove()

    def recover(self) -> None:
        """Put a former output back that a run had moved aside and not replaced; drop what is of no use.

        Raises:
            FileError: another process is writing the output.
        """
        if not self.out.is_local or not self.place.exists():
            return
        with self.locked():
            former = self.place.child("former")
            if former.exists() and not self.out.exists():
                former.move_to(self.out)

    def finished_count(self) -> int:
        """How many shards are finished."""
        return sum(not name.startswith(".") for name in self.place.child("done").names())

    def add_file(self, name: str, content: bytes) -> None:
        """Put a small file beside the finished shards."""
        first = self.place.child("tmp").child(name)
        first.write(content)
        first.move_to(self.place.child("out").child(name))

    def published(self, digest: str) -> Mapping[str, Any] | None:
        """What was noted of each shard by a run with this digest that put its result in place, but came no further."""
        job = self._job()
        is_in_place = job.get("digest") == digest and not self.result.exists() and self.out.exists()
        shards = job.get("shards")
        return shards if is_in_place and isinstance(shards, dict) else None

    def is_publishing(self, digest: str) -> bool:
        """Whether a run with this digest began to put its result in place."""
        return self.is_for(digest) and "shards" in self._job()

    def publish(self, digest: str, shards: Mapping[str, Any], *, index_name: str) -> None:
        """Give the result the place of `out`, then delete the folder. A former output is replaced as a whole.

        In a store, which cannot rename, files move one by one, the index last.
        """
        self._note({"digest": digest, "shards": dict(shards)})
        if not self.out.is_local:
            self._publish_remotely(index_name)
        elif self.is_file:
            self.result.move_to(self.out)
        else:
            if self.out.exists():
                self.place.child("former").remove()
                self.out.move_to(self.place.child("former"))
            self.result.move_to(self.out)
        self.close()

    def close(self) -> None:
        """Delete the folder, so that at every moment it is still known what it was for."""
        self.clear()
        self.place.remove()

    def _publish_remotely(self, index_name: str) -> None:
        if self.is_file:
            self.result.move_to(self.out)
            return
        self.out.make_dir()
        former, names = self.out.names(), self.result.names()
        self.out.child(index_name).remove()
        for name in sorted(names, key=lambda name: name == index_name):
            self.result.child(name).move_to(self.out.child(name))
        for name in former:
            if name not in self._shard_names(index_name):
                self.out.child(name).remove()

    def _shard_names(self, index_name: str) -> set[str]:
        return {*self._job()["shards"], index_name}

    def _job(self) -> dict[str, Any]:
        """What job.json says, or nothing where it is missing or makes no sense."""
        place = self.place.child("job.json")
        try:
            job = json.loads(place.read(limit=2**26)) if place.is_file() else {}
        except (ValueError, RecursionError, CheckpointError):
            return {}
        return job if isinstance(job, dict) else {}

    def _note(self, job: Mapping[str, Any]) -> None:
        self.place.child("job.json").write(json.dumps(job).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the system lets go when the process ends, however it does.

        Raises:
            FileError: another process holds it.
        """
        if not self.out.is_local:
            yield
            return
        self.place.make_dir()
        descriptor = os.open(self.place.child("lock").text, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _is_locked_now(descriptor):
                raise FileError(f"another run is writing {self.out}", help="wait for its end, or name another place")
            try:
                yield
            finally:
                self._remove_if_empty()
        finally:
            os.close(descriptor)

    def _remove_if_empty(self) -> None:
        """Delete the folder where it holds nothing to go on from."""
        is_used = self.finished_count() or self.place.child("former").exists() or "shards" in self._job()
        if self.place.is_dir() and not is_used:
            self.close()


def _is_locked_now(descriptor: int) -> bool:
    """Whether this process got the lock. Children do not inherit it, so that none can keep it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
