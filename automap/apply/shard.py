"""One output shard: from the recipes of its tensors to a finished file, independent of all other shards.

A task is plain data, so that it can go to a thread, a process or another machine. Whatever happens to the worker, a
file under the shard's own name is whole, and its record says what its bytes were.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import xxhash

from automap.apply.places import Files, Place
from automap.apply.recipe import Recipe
from automap.apply.steps import Block, Run, steps_of
from automap.apply.views import Leaves, View, bytes_of, read_bytes, read_view
from automap.errors import CheckpointError, PlanError
from automap.plan import evaluate
from automap.plan.dtypes import torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

Report = Callable[[int], None]
_LOCAL_BUFFER_BYTES = 2**19  # stays in the processor's cache between reading, checksum and writing
_REMOTE_BUFFER_BYTES = 2**25


@dataclass(frozen=True, slots=True)
class ShardTask:
    """The file `name`: `header`, then the tensors of `recipes`. `work` is the folder of the run."""

    name: str
    header: bytes
    recipes: tuple[Recipe, ...]
    work: Place
    memory_bytes: int

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return len(self.header) + sum(recipe.size_bytes for recipe in self.recipes)

    @property
    def place(self) -> Place:
        """Where the finished file lies until all are."""
        return self.work.child("out").child(self.name)

    @property
    def record(self) -> Place:
        """Where it is noted that the file is finished."""
        return self.work.child("done").child(f"{self.name}.json")


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A finished shard: its size and checksum, and the bytes that were read for it."""

    name: str
    size_bytes: int
    checksum: str
    read_bytes: int
    is_resumed: bool = False

    @property
    def record(self) -> dict[str, object]:
        """What is noted of it."""
        return {"size_bytes": self.size_bytes, "xxh3_128": self.checksum}


def run_shard(task: ShardTask, report: Report | None = None) -> ShardDone:
    """The shard, written; one that is finished and still has its checksum is left as it is.

    Args:
        task: what to write, and where.
        report: called with the number of bytes that were written or verified since the last call.

    Raises:
        CheckpointError: a file of the checkpoint is shorter than it was.
        OSError: something cannot be read or written.
    """
    tell = report or tell_nobody
    return finished_shard(task, task.place, _read_record(task.record), tell) or _write_shard(task, tell)


def finished_shard(task: ShardTask, place: Place, record: object, report: Report) -> ShardDone | None:
    """The shard, if what was noted of it is still true of the file at `place`."""
    size_bytes, checksum = _fields_of(record)
    if not place.is_file() or place.size() != size_bytes:
        return None
    found = xxhash.xxh3_128()
    with Files() as files:
        buffer = memoryview(bytearray(_buffer_bytes(place, task.memory_bytes)))
        for start in range(0, size_bytes, len(buffer)):
            piece = buffer[: min(len(buffer), size_bytes - start)]
            files.read_into(place, start, piece)
            found.update(piece)
            report(len(piece))
    return ShardDone(task.name, size_bytes, checksum, 0, is_resumed=True) if found.hexdigest() == checksum else None


def _read_record(place: Place) -> object:
    if not place.is_file():
        return None
    try:
        return json.loads(place.read(limit=2**16))
    except (ValueError, RecursionError, CheckpointError):
        return None


def _fields_of(record: object) -> tuple[int, str]:
    """Size and checksum in a record; a size that no file has where it makes no sense."""
    match record:
        case {"size_bytes": int(size_bytes), "xxh3_128": str(checksum)}:
            return size_bytes, checksum
        case _:
            return -1, ""


def _write_shard(task: ShardTask, report: Report) -> ShardDone:
    with Files() as files, ShardWriter(task) as writer:
        writer.write(memoryview(task.header))
        report(len(task.header))
        for piece in ShardBytes(task, files).pieces():
            writer.write(piece)
            report(len(piece))
            del piece  # two large ones at a time would be one too many
        writer.finish()
    done = ShardDone(task.name, writer.size_bytes, writer.checksum, files.read_bytes)
    task.record.write(json.dumps(done.record).encode())
    return done


def tell_nobody(_: int) -> None:
    """The Report of those whom nobody asks."""


def _buffer_bytes(place: Place, memory_bytes: int) -> int:
    most = _LOCAL_BUFFER_BYTES if place.is_local else _REMOTE_BUFFER_BYTES
    return max(2**12, min(most, memory_bytes // 8))


class ShardWriter:
    """Writes a shard from its beginning to its end; under the shard's name is nothing before `finish`."""

    def __init__(self, task: ShardTask) -> None:
        self.size_bytes = 0
        self._hash = xxhash.xxh3_128()
        self._task = task
        own = task.work.child("tmp").child(f"{task.name}.{secrets.token_hex(4)}")
        self._place = own if own.is_local else task.place  # what a store gets is there when it is closed
        self._file = self._place.open("xb" if own.is_local else "wb")

    @property
    def checksum(self) -> str:
        """The checksum of what is written so far."""
        return self._hash.hexdigest()

    def write(self, piece: memoryview) -> None:
        """Append piece."""
        done = 0
        while done < len(piece):
            done += self._file.write(piece[done:]) or 0
        self._hash.update(piece)
        self.size_bytes += len(piece)

    def finish(self) -> None:
        """Close the file and give it the shard's name."""
        assert self.size_bytes == self._task.size_bytes, f"{self._task.name} came out with another size than planned"
        self._file.close()
        if self._place != self._task.place:
            self._place.move_to(self._task.place)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if problem is None:
            return
        if self._place.is_local:
            self._file.close()
            self._place.remove()
        else:
            getattr(self._file, "discard", self._file.close)()


class ShardBytes(Mapping[str, "Tensor"]):
    """The bytes of a shard's tensors, made piece by piece; also the state that a block's expression is evaluated on."""

    def __init__(self, task: ShardTask, files: Files) -> None:
        self._task, self._files = task, files
        self._kept: dict[View, bytearray] = {}
        self._last_use = worth_keeping(task.recipes, most_bytes=task.memory_bytes // 4)
        self._leaves = Leaves()
        self._values: dict[str, Tensor] = {}
        self._buffer = memoryview(b"")

    def pieces(self) -> Iterator[memoryview]:
        """The bytes of all tensors; a piece is to be used before the next is asked for."""
        waiting: Run | None = None
        for step in self._steps():
            if isinstance(step, Run) and waiting is not None and self._follows(waiting, step):
                step = Run(waiting.base, waiting.offset, waiting.size_bytes + step.size_bytes)
                waiting = None
            if waiting is not None:
                yield from self._copied(waiting)
            waiting = step if isinstance(step, Run) else None
            if isinstance(step, memoryview):
                yield step
            del step
        if waiting is not None:
            yield from self._copied(waiting)

    def _steps(self) -> Iterator[Run | memoryview]:
        """Runs, and the bytes of blocks; what is kept is dropped once the last tensor that needs it is written."""
        for number, recipe in enumerate(self._task.recipes):
            for step in steps_of(recipe, memory_bytes=self._task.memory_bytes // 2):
                yield step if isinstance(step, Run) else self._computed(step, recipe)
            for base in [base for base in self._kept if self._last_use[base] < number]:
                del self._kept[base]

    def _follows(self, first: Run, second: Run) -> bool:
        """Whether second goes on in the file where first ends."""
        parts = (first.base.part, second.base.part)
        is_read = parts[0].place == parts[1].place and all(part.held is None for part in parts)
        is_next = is_read and first.offset + first.size_bytes == second.offset
        return is_next and not (first.base in self._last_use or second.base in self._last_use)

    def _computed(self, block: Block, recipe: Recipe) -> memoryview:
        import torch

        self._leaves, self._values = block.leaves, {}
        try:
            with torch.no_grad():
                value = evaluate(block.expr, self)
                self._values = {}
                value = value.to(torch_dtype(recipe.made_dtype)).to(torch_dtype(recipe.dtype))
        except (RuntimeError, TypeError) as problem:
            reason = " ".join(str(problem).split())[:200]
            raise PlanError(f"`{recipe.name}` cannot be computed: {reason}") from problem
        return bytes_of(value.contiguous())

    def _copied(self, run: Run) -> Iterator[memoryview]:
        part = run.base.part
        if run.base in self._last_use:
            start = run.offset - run.base.offset
            yield memoryview(self._base_bytes(run.base))[start : start + run.size_bytes]
            return
        if not self._buffer:
            self._buffer = memoryview(bytearray(_buffer_bytes(part.place, self._task.memory_bytes)))
        for start in range(0, run.size_bytes, len(self._buffer)):
            piece = self._buffer[: min(len(self._buffer), run.size_bytes - start)]
            read_bytes(part, run.offset + start, piece, self._files)
            yield piece

    def _base_bytes(self, base: View) -> bytearray:
        if base not in self._kept:
            self._kept[base] = bytearray(base.size_bytes)
            read_bytes(base.part, base.offset, memoryview(self._kept[base]), self._files)
        return self._kept[base]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._values:
            self._values[name] = self._read(self._leaves.views[int(name)])
        return self._values[name]

    def __len__(self) -> int:
        return len(self._leaves.views)

    def __iter__(self) -> Iterator[str]:
        return map(str, range(len(self)))

    def _read(self, view: View) -> Tensor:
        if view.base not in self._last_use:
            return read_view(view, self._files)
        import torch

        kept = torch.frombuffer(self._base_bytes(view.base), dtype=torch_dtype(view.dtype))
        return kept.as_strided(view.sizes, view.strides, (view.offset - view.base.offset) // kept.element_size())


def worth_keeping(recipes: tuple[Recipe, ...], *, most_bytes: int) -> dict[View, int]:
    """Bases that are read once and kept, as their views together would read more, and the last recipe that needs each.

    At no time do they take more than most_bytes.
    """
    views = [(view, number) for number, recipe in enumerate(recipes) for view in recipe.views]
    views = [(view, number) for view, number in views if view.part.held is None and view.size_bytes]
    read: Counter[View] = Counter()
    uses: dict[View, list[int]] = {}
    for view, number in views:
        read[view.base] += view.read_bytes
        uses.setdefault(view.base, []).append(number)
    held = [0] * len(recipes)
    last_use = {}
    for base, numbers in sorted(uses.items(), key=lambda use: (use[1][0], use[0].offset)):
        span = range(numbers[0], min(numbers[-1] + 2, len(recipes)))  # a run may wait until the next tensor
        is_worth = len(numbers) > 1 and read[base] > base.size_bytes
        if is_worth and max(held[number] for number in span) + base.size_bytes <= most_bytes:
            last_use[base] = numbers[-1]
            for number in span:
                held[number] += base.size_bytes
    return last_use
