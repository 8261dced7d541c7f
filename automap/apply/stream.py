"""A checkpoint through a plan, streaming: a Plan and a spec in, a file or folder of shards out, however large they are.

Shards are independent tasks, given to an executor; what is finished survives an interruption. The output is there as a
whole or not at all. Nothing of a checkpoint or plan is executed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from automap.apply.check import CheckTask, check_shard
from automap.apply.job import ApplyJob, Options, prepare_job
from automap.apply.layout import INDEX_NAME
from automap.apply.shard import Report, ShardDone, ShardTask, finished_shard, run_shard
from automap.apply.work import Work
from automap.errors import AutomapError, CheckpointError, FileError
from automap.plan import Plan

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: bytes of the output that are written, or verified where an earlier run wrote them."""

    done_bytes: int
    total_bytes: int
    elapsed_s: float

    @property
    def bytes_per_s(self) -> float:
        """The speed so far."""
        return self.done_bytes / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def left_s(self) -> float:
        """The time that the rest takes at this speed."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s if self.done_bytes else float("inf")


@dataclass(frozen=True, slots=True)
class AppliedSummary:
    """What was done, or with `is_dry` what would be: files with their bytes read and written, and notes."""

    out: str
    tensor_count: int
    written: tuple[tuple[str, int], ...]
    read: tuple[tuple[str, int], ...]
    resumed_shards: int = 0
    read_bytes: int = 0
    elapsed_s: float = 0.0
    is_dry: bool = False
    is_checked: bool = False
    notes: tuple[str, ...] = ()

    @property
    def written_bytes(self) -> int:
        """The bytes of all files of the output, without an index."""
        return sum(size for _, size in self.written)


class _Stopped(Exception):
    """Ends the other tasks of a run that failed."""


def apply_plan(
    plan: Plan | str | Path,
    checkpoint: str,
    out: str | Path,
    *,
    memory: str | int | None = None,
    max_shard_size: str | int = "5GB",
    dtype: str | None = None,
    executor: Executor | None = None,
    resume: bool = True,
    overwrite: bool = False,
    check: bool = False,
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> AppliedSummary:
    """Write what a plan makes of a checkpoint, and say what was read and written.

    Args:
        plan: a Plan, or the file of one.
        checkpoint: a file, shard index or folder, local, `hf://ORG/NAME` or any fsspec URL (see reader).
        out: a `.safetensors` file, or a folder for shards with an index; local or an fsspec URL.
        memory: what this process may hold at most, as bytes or text (`2GiB`), all included: torch takes 0.5 GiB, and is
            loaded only where something is computed. With an executor it is what each task may hold. By default a
            quarter of what is free, and no more than 1 GiB for a task.
        max_shard_size: of a file in a folder, as far as single tensors are smaller.
        dtype: what floats are cast to; by default they keep their own.
        executor: runs the shards: any one of `concurrent.futures`; threads by default.
        resume: whether to go on where an earlier run for the same output was interrupted.
        overwrite: whether a model at `out` is replaced.
        check: whether to read everything again and compare, before the output is put in its place.
        dry_run: whether only to say what would be done.
        progress: called as bytes are written, in whichever thread writes them.

    Raises:
        FileError: something is not there, is in the way, or the disk is full.
        CheckpointError: the checkpoint is truncated, lies, leads outside of its folder, or changes while it is read.
        PlanError: the plan does not fit the checkpoint, or a tensor does not fit into memory.

    Example:
        >>> apply_plan("plan.json", "hf://org/model", "converted", memory="2GiB")  # doctest: +SKIP
    """
    options = Options(memory=memory, max_shard_size=max_shard_size, dtype=dtype, is_local=executor is None)
    began = time.perf_counter()
    with _clear_refusals(checkpoint):
        job = prepare_job(plan, checkpoint, out, options)
    if dry_run:
        return _summary(job, is_dry=True)
    meter = _Meter(job, progress, passes=2 if check else 1)
    with _clear_refusals(out):
        done = _published_before(job, meter) if resume else None
    if done is None:
        with _clear_refusals(out):
            job.work.recover()
            job.check_out(overwrite=overwrite)
        with job.work.locked(), _clear_failures(job), _executor(executor, job) as pool:
            done = _run(job, pool, meter, resume=resume, check=check)
    elapsed_s = time.perf_counter() - began
    return replace(_summary(job, done), elapsed_s=elapsed_s, is_checked=check)


def _run(job: ApplyJob, pool: Executor, meter: _Meter, *, resume: bool, check: bool) -> list[ShardDone]:
    """All shards, written and put in their place."""
    job.work.prepare(job.digest, resume=resume)
    done = _all_of(pool, run_shard, job.tasks, meter)
    if job.index is not None:
        job.work.add_file(INDEX_NAME, job.index.encode())
    if check:
        wrong = [name for names in _all_of(pool, check_shard, job.check_tasks(), meter) for name in names]
        if wrong:
            job.work.clear()
            raise CheckpointError(f"{len(wrong)} tensors came out wrong, such as `{wrong[0]}`: nothing was kept")
    job.work.publish(job.digest, {shard.name: shard.record for shard in done}, index_name=INDEX_NAME)
    return done


Task = TypeVar("Task", ShardTask, CheckTask)


def _all_of(
    pool: Executor, run: Callable[[Task, Report | None], Result], tasks: Sequence[Task], meter: _Meter
) -> list[Result]:
    """What run returns for each task; the first failure stops all."""
    is_same_process = isinstance(pool, ThreadPoolExecutor)
    futures: dict[Future[Result], Task] = {}
    for task in tasks:
        futures[pool.submit(run, task, meter.add if is_same_process else None)] = task
    try:
        for future in as_completed(futures):
            future.result()
            if not is_same_process:
                meter.add(futures[future].size_bytes)
    except BaseException:
        meter.stop()
        for future in futures:
            future.cancel()
        if is_same_process:
            wait(futures)
        raise
    return [future.result() for future in futures]


@contextmanager
def _executor(given: Executor | None, job: ApplyJob) -> Iterator[Executor]:
    if given is not None:
        yield given
        return
    with ThreadPoolExecutor(job.worker_count, thread_name_prefix="automap-apply") as pool:
        yield pool


@contextmanager
def _clear_refusals(place: str | Path) -> Iterator[None]:
    """Turn what the system or a store refuses before the work begins into an error that says where."""
    try:
        yield
    except OSError as problem:
        raise FileError(f"{place} cannot be reached: {problem}") from problem


@contextmanager
def _clear_failures(job: ApplyJob) -> Iterator[None]:
    """Turn what the system refuses into an error that says how to go on."""
    try:
        yield
    except AutomapError:
        raise
    except (OSError, BrokenExecutor) as problem:
        what = "a worker ended abruptly" if isinstance(problem, BrokenExecutor) else str(problem)
        count = job.work.finished_count()
        help = f"run the same command again: {count} of {len(job.tasks)} files are finished and will not be redone"
        raise FileError(f"writing {job.work.out} stopped: {what}", help=help if count else None) from problem


def _published_before(job: ApplyJob, meter: _Meter) -> list[ShardDone] | None:
    """What an earlier run did that was interrupted after its output was in place; the rest of it is deleted."""
    work: Work = job.work
    records = work.published(job.digest)
    if records is None:
        return None
    places = [work.out if work.is_file else work.out.child(task.name) for task in job.tasks]
    with work.locked():
        found = [
            finished_shard(task, place, records.get(task.name), meter.add)
            for task, place in zip(job.tasks, places, strict=True)
        ]
        done = [shard for shard in found if shard is not None]
        if len(done) < len(found):
            return None
        work.close()
    return done


def _summary(job: ApplyJob, done: Sequence[ShardDone] = (), *, is_dry: bool = False) -> AppliedSummary:
    is_single = len(job.tasks) == 1 and not job.work.is_file
    out = job.work.out.child(job.tasks[0].name) if is_single else job.work.out
    return AppliedSummary(
        out=out.text,
        tensor_count=sum(len(task.recipes) for task in job.tasks),
        written=tuple((task.name, task.size_bytes) for task in job.tasks),
        read=job.reads,
        resumed_shards=sum(shard.is_resumed for shard in done),
        read_bytes=sum(shard.read_bytes for shard in done),
        is_dry=is_dry,
        notes=job.notes,
    )


class _Meter:
    """Adds up what all threads report, tells it on, and ends their work once the run is stopped."""

    def __init__(self, job: ApplyJob, tell: Callable[[Progress], None] | None, *, passes: int) -> None:
        self._total_bytes = passes * sum(task.size_bytes for task in job.tasks)
        self._tell = tell
        self._done_bytes = 0
        self._began = time.perf_counter()
        self._lock = threading.Lock()
        self._is_stopped = False

    def add(self, count: int) -> None:
        if self._is_stopped:
            raise _Stopped
        with self._lock:
            self._done_bytes += count
            if self._tell is not None:
                elapsed_s = time.perf_counter() - self._began
                self._tell(Progress(self._done_bytes, self._total_bytes, elapsed_s))

    def stop(self) -> None:
        self._is_stopped = True
