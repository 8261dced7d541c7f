"""Preparing a run: a plan, a checkpoint and what is asked for in, independent shard tasks out. Nothing is written.

Whatever can be refused is refused here, before the long work.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from automap.apply.check import CheckTask
from automap.apply.layout import OutputFile, in_file_order, index_of, output_files
from automap.apply.memory import free_bytes, read_size, resident_bytes, size_text
from automap.apply.places import place_of
from automap.apply.reader import open_checkpoint
from automap.apply.recipe import Recipe, recipe_of
from automap.apply.save import check_file, check_folder
from automap.apply.shard import ShardTask
from automap.apply.steps import is_copied, least_bytes
from automap.apply.stored import Checkpoint
from automap.apply.unwrap import some
from automap.apply.work import Work
from automap.errors import FileError, InputError, PlanError
from automap.plan import Plan
from automap.plan.dtypes import DTYPES

_MOST_WORKERS = 4  # more do not make a disk faster
_FREE_SHARE = 4
_ELSEWHERE_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked for; see `apply_plan`."""

    memory: str | int | None
    max_shard_size: str | int
    dtype: str | None
    is_local: bool


@dataclass(frozen=True, slots=True)
class ApplyJob:
    """A run: its tasks, where they work, how many at once, the index that is written, the bytes read of each file."""

    tasks: tuple[ShardTask, ...]
    work: Work
    worker_count: int
    index: str | None
    digest: str
    reads: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]
    plan: Plan
    checkpoint: Checkpoint

    def check_tasks(self) -> tuple[CheckTask, ...]:
        """The tasks that compare the output with what the plan says."""
        return tuple(CheckTask.of(task, self.plan.entries, self.checkpoint.tensors) for task in self.tasks)

    def check_out(self, *, overwrite: bool) -> None:
        """Raise FileError where the output cannot be written: something is in the way, or there is no room."""
        out, is_going_on = self.work.out, self.work.is_publishing(self.digest)
        if any(f"{file}/".startswith(f"{out}/") for file in self.checkpoint.files):
            raise FileError(f"{out} is or holds the checkpoint that is read", help="name another place")
        if not out.is_local:
            if not (overwrite or is_going_on) and (out.is_file() or out.names()):
                raise FileError(f"{out} is there already", help="name another, or add --overwrite")
            return
        if self.work.is_file:
            check_file(out.path, overwrite=overwrite)
        else:
            check_folder(out.path, overwrite=overwrite)
        wanted = sum(task.size_bytes for task in self.tasks if not task.place.exists())
        free = shutil.disk_usage(out.parent.text).free
        if wanted > free:
            raise FileError(f"{out} needs {size_text(wanted)}, the disk has {size_text(free)} free")


def prepare_job(plan: Plan | str | Path, checkpoint: str, out: str | Path, options: Options) -> ApplyJob:
    """The run that sends a checkpoint through a plan.

    Raises:
        FileError, InputError, CheckpointError, PlanError: see `apply_plan`.
    """
    if options.dtype is not None and options.dtype not in DTYPES:
        raise InputError(f"`{options.dtype}` is no dtype", help="write float32, bfloat16, float16, ...")
    work = _work_for(out)
    loaded = plan if isinstance(plan, Plan) else _load_plan(Path(plan))
    memory_bytes = _memory_bytes(options)
    found = open_checkpoint(checkpoint, memory_bytes=memory_bytes // 2)
    _check_fits(loaded, found)
    recipes = _recipes_of(loaded, found, options)
    metadata, name = {"format": "pt", **found.metadata}, work.out.name if work.is_file else None
    files = output_files(recipes, metadata, max_bytes=read_size(options.max_shard_size), file_name=name)
    workers, task_bytes = _share(recipes, memory_bytes, len(files), is_local=options.is_local)
    return ApplyJob(
        tasks=tuple(ShardTask(file.name, file.header, file.recipes, work.place, task_bytes) for file in files),
        work=work,
        worker_count=workers,
        index=index_of(files, found.index_metadata),
        digest=_digest(files, found),
        reads=_reads(recipes),
        notes=(*found.notes, *_unread(loaded, found), *_exceeded(options)),
        plan=loaded,
        checkpoint=found,
    )


def _memory_bytes(options: Options) -> int:
    """What is asked for, or a quarter of what is free; for a task somewhere else not more than its usual share."""
    if options.memory is not None:
        return read_size(options.memory)
    return min(free_bytes() // _FREE_SHARE, 2**62 if options.is_local else _ELSEWHERE_BYTES)


def _exceeded(options: Options) -> tuple[str, ...]:
    """A note where the process itself takes more than the memory that is asked for."""
    own, asked = resident_bytes(), _memory_bytes(options)
    if own <= asked or not options.is_local:
        return ()
    return (f"{size_text(own)} are held before a byte is read, more than the {size_text(asked)} that may be",)


def _work_for(out: str | Path) -> Work:
    place = place_of(out)
    if place.text.startswith("hf://"):
        raise FileError(f"{place} cannot be written to", help="write a folder, then `hf upload` it")
    if place.name.endswith((".bin", ".pt", ".pth", ".ckpt")):
        raise FileError(f"{place} is not the name of a safetensors file", help="name a .safetensors file or a folder")
    return Work(place, place.name.endswith(".safetensors"))


def _recipes_of(plan: Plan, checkpoint: Checkpoint, options: Options) -> list[Recipe]:
    """The recipe of every dest tensor, in the order of the checkpoint's bytes."""
    numbers = {file.text: number for number, file in enumerate(checkpoint.files)}
    recipes = [recipe_of(name, expr, checkpoint.tensors, dtype=options.dtype) for name, expr in plan.entries.items()]
    return in_file_order(recipes, numbers)


def _load_plan(path: Path) -> Plan:
    if not path.is_file():
        raise FileError(f"there is no plan {path}")
    return Plan.load(path)


def _check_fits(plan: Plan, checkpoint: Checkpoint) -> None:
    """Raise PlanError where src tensors are missing or have other shapes."""
    if not plan.entries:
        raise PlanError("the plan is empty: it makes no tensor")
    missing = [source.name for source in plan.sources if source.name not in checkpoint.tensors]
    if missing:
        raise PlanError(
            f"src has no tensor {some([f'`{name}`' for name in missing], 5)}",
            help="was the plan made for another model, or do the names have another prefix?",
        )
    for source in plan.sources:
        shape = checkpoint.tensors[source.name].shape
        if shape != source.shape:
            raise PlanError(f"`{source.name}` has shape {shape}, the plan was made for {source.shape}")


def _share(recipes: list[Recipe], memory_bytes: int, file_count: int, *, is_local: bool) -> tuple[int, int]:
    """How many tasks run at once, and the memory of each. With an executor given, each has all of it.

    Raises:
        PlanError: a tensor takes more than all of it, and cannot be made piece by piece.
    """
    if not all(map(is_copied, recipes)):
        import torch  # noqa: F401  # so that what it takes is known
    own = max(memory_bytes - resident_bytes(), memory_bytes // 4) if is_local else memory_bytes
    needs = {recipe.name: least_bytes(recipe, enough=own // (2 * _MOST_WORKERS)) for recipe in recipes}
    name = max(needs, key=lambda name: needs[name])
    if 2 * needs[name] > own:
        extra = memory_bytes - own
        raise PlanError(
            f"`{name}` takes {size_text(needs[name])} at once and cannot be made in smaller pieces; "
            f"with a memory of {size_text(memory_bytes)} a tensor may take {size_text(own // 2)}",
            help=f"give --memory {size_text(2 * needs[name] + extra + 2**20).replace(' ', '')} or more",
        )
    if not is_local:
        return 1, own
    workers = max(1, min(_MOST_WORKERS, os.cpu_count() or 1, file_count, own // max(1, 2 * needs[name])))
    return workers, own // workers


def _digest(files: tuple[OutputFile, ...], checkpoint: Checkpoint) -> str:
    """Changes when the plan, the layout or a file of the checkpoint does."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.recipes!r}".encode("utf-8", "backslashreplace") + file.header)
    for place in checkpoint.files:
        digest.update(f"{place} {place.stamp()}".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _reads(recipes: list[Recipe]) -> tuple[tuple[str, int], ...]:
    """The bytes of each file that the plan reads."""
    counts: Counter[str] = Counter()
    for recipe in recipes:
        for view in recipe.views:
            counts[view.part.place.text] += view.size_bytes
    return tuple(counts.items())


def _unread(plan: Plan, checkpoint: Checkpoint) -> tuple[str, ...]:
    """A note on tensors that the plan has no use for."""
    used = {source.name for source in plan.sources}
    unread = [name for name in checkpoint.tensors if name not in used]
    return (f"{len(unread)} that the plan does not read: {some(unread)}",) if unread else ()
