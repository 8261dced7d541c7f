"""A run that ends early, however it ends, goes on where it stopped; nothing half-done is where the output belongs."""

from __future__ import annotations

import _thread
import contextlib
import errno
import itertools
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from apply_cases import is_bitwise, load_output, rows, source, write_shards

from automap.apply import apply_plan, job, shard
from automap.apply.places import Files, Place
from automap.apply.shard import ShardWriter
from automap.apply.stored import Part
from automap.apply.work import Work
from automap.errors import CheckpointError, FileError
from automap.plan import Plan

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, on threads
STATE = {f"{layer}.qkv": torch.randn(96, 64) for layer in range(8)}
PLAN = Plan(
    {
        f"{n}.{part}": rows(source(STATE, n), (96, 64), 32 * i, 32 * i + 32)
        for n in STATE
        for i, part in enumerate("qkv")
    }
)
WANTED = PLAN.apply(STATE)
OPTIONS = {"max_shard_size": "64kB", "memory": "1GiB"}


@pytest.fixture
def src(tmp_path: Path) -> str:
    return str(write_shards(STATE, tmp_path / "src", count=2))


def run(src: str, out: Path, **options: object) -> int:
    """Apply, and return how many shards an earlier run had finished."""
    return apply_plan(PLAN, src, out, **(OPTIONS | options)).resumed_shards  # type: ignore[arg-type]


def in_child(work: Callable[[], object], kill_after_s: float | None = None) -> int:
    """Run in a process of its own, killed after a time; return its wait status."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def finished(out: Path) -> int:
    return len(list(out.with_name(f".{out.name}.partial").glob("done/*.json")))


def is_clean(folder: Path) -> bool:
    """Whether there is nothing but the checkpoint and the output."""
    return sorted(path.name for path in folder.iterdir()) == ["out", "src"]


@contextlib.contextmanager
def killed_at_write(number: int) -> Iterator[None]:
    """Kill the process that runs this at its so-manieth write into a shard."""
    count, write = itertools.count(), ShardWriter.write

    def counted(self: ShardWriter, piece: Any) -> Any:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, piece)

    with mock.patch.object(ShardWriter, "write", counted):
        yield


def resumes_bitwise(src: str, out: Path) -> None:
    before = finished(out)
    assert run(src, out, overwrite=not before) >= before
    assert is_bitwise(load_output(out), WANTED)
    assert is_clean(out.parent)
    shutil.rmtree(out)


def test_kill_9_at_any_write_then_resume_is_bitwise_right(src: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counted = itertools.count()
    write = ShardWriter.write
    with mock.patch.object(ShardWriter, "write", lambda self, piece: (next(counted), write(self, piece))[1]):
        run(src, out)
    shutil.rmtree(out)
    for number in random.Random(0).sample(range(next(counted)), 8):

        def dying(number: int = number) -> None:
            with killed_at_write(number):
                run(src, out)

        assert os.WIFSIGNALED(in_child(dying))
        resumes_bitwise(src, out)


def test_kill_9_at_any_moment_then_resume_is_bitwise_right(src: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    began = time.perf_counter()
    assert in_child(lambda: run(src, out)) == 0
    lasted_s = time.perf_counter() - began
    shutil.rmtree(out)
    moments = random.Random(0)
    for _ in range(10):  # some die before their end, and some after, as the machine has it
        in_child(lambda: run(src, out), kill_after_s=moments.uniform(0, lasted_s))
        resumes_bitwise(src, out)


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """Count what changes files, and die by SIGKILL at the given count: n before the nth, n + 0.5 right after it."""
    state = {"count": 0.0, "at": -1.0}

    def wrapped(call: Callable[..., object]) -> Callable[..., object]:
        def counting(*args: object, **options: object) -> object:
            state["count"] += 1
            number = state["count"]
            if state["at"] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **options)
            if state["at"] == number + 0.5:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counting

    calls: tuple[tuple[Any, str], ...] = tuple((Place, name) for name in ("move_to", "remove", "make_dir", "write"))
    for owner, name in (*calls, (Path, "write_bytes"), (Path, "replace")):
        monkeypatch.setattr(owner, name, wrapped(getattr(owner, name)))
    monkeypatch.setattr(ShardWriter, "finish", wrapped(ShardWriter.finish))
    monkeypatch.setattr(job, "_MOST_WORKERS", 1)  # so that steps have an order
    return state


@pytest.mark.parametrize(("name", "is_replacing"), [("out", False), ("out", True), ("out.safetensors", True)])
def test_a_crash_around_every_step_is_survived(
    src: str, tmp_path: Path, crashing: dict[str, float], name: str, is_replacing: bool
) -> None:

    out, former = tmp_path / name, {"former": torch.randn(3)}
    options = {"overwrite": is_replacing, "max_shard_size": "120kB", "memory": "1GiB"}

    def begin() -> None:
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
        if is_replacing:
            apply_plan(Plan({"former": source(former, "former")}), str(tmp_path / "former.pt"), out)
        crashing["count"] = 0

    torch.save(former, tmp_path / "former.pt")
    begin()
    run(src, out, **options)
    steps = int(crashing["count"])
    assert steps > 10
    for at in (*range(1, steps + 1, 1 if is_replacing else 2), steps + 0.5):
        begin()
        crashing["at"] = at
        status = in_child(lambda: run(src, out, **options))
        crashing["at"] = -1
        assert os.WIFSIGNALED(status), at
        if out.exists():  # what is there is whole: the former model or the new one
            found = load_output(out)
            assert is_bitwise(found, WANTED) or is_bitwise(found, former)
        is_over = out.exists() and not is_replacing and not list(tmp_path.glob(".*/job.json"))
        with pytest.raises(FileError) if is_over else contextlib.nullcontext():  # nothing is left to tell of the run
            run(src, out, **options)
        assert is_bitwise(load_output(out), WANTED), at
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "src", "former.pt"]), at
        assert not list(tmp_path.glob("out/.*")), at


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch, problem: BaseException) -> None:
    """Let the disk fail once `count` shards are finished."""
    finish = ShardWriter.finish
    left, lock = [1] * count, threading.Lock()

    def failing(self: ShardWriter) -> None:
        with lock:
            if not left:
                raise problem
            left.pop()
        finish(self)

    monkeypatch.setattr(ShardWriter, "finish", failing)


def test_a_full_disk_says_how_to_go_on_and_keeps_what_is_finished(
    src: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(1, patch, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(FileError) as caught:
            run(src, out)
    assert str(caught.value) == f"writing {out} stopped: [Errno 28] No space left on device"
    assert caught.value.help == "run the same command again: 1 of 4 files are finished and will not be redone"
    assert not out.exists()
    assert run(src, out) == 1
    assert is_bitwise(load_output(out), WANTED)
    assert is_clean(tmp_path)


def test_a_run_that_fails_before_anything_is_finished_leaves_nothing(
    src: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(0, monkeypatch, OSError("no"))
    with pytest.raises(FileError, match="stopped: no"):
        run(src, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.fixture
def partial(src: str, tmp_path: Path) -> Path:
    """The folder of a run that was interrupted after two of four shards."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(2, patch, OSError("pulled the plug"))
        with pytest.raises(FileError):
            run(src, tmp_path / "out")
    assert finished(tmp_path / "out") == 2
    return tmp_path / ".out.partial"


def test_a_finished_shard_that_lost_a_bit_is_written_again(src: str, tmp_path: Path, partial: Path) -> None:
    first, _ = sorted((partial / "out").iterdir())
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    assert run(src, tmp_path / "out") == 1
    assert is_bitwise(load_output(tmp_path / "out"), WANTED)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param("", id="nothing"),
        pytest.param("{}", id="no fields"),
        pytest.param("[" * 10**4, id="deep"),
        pytest.param('{"size_bytes": -1, "xxh3_128": null}', id="no checksum"),
        pytest.param("null", id="null"),
        pytest.param("x" * 2**17, id="long"),
    ],
)
def test_a_record_that_makes_no_sense_is_none(src: str, tmp_path: Path, partial: Path, record: str) -> None:
    for path in (partial / "done").iterdir():
        path.write_text(record)
    assert run(src, tmp_path / "out") == 0
    assert is_bitwise(load_output(tmp_path / "out"), WANTED)


@pytest.mark.parametrize("what", ["plan", "checkpoint", "layout", "dtype", "job", "asked"])
def test_what_another_run_left_is_not_used(src: str, tmp_path: Path, partial: Path, what: str) -> None:
    state, plan, options = dict(STATE), PLAN, dict(OPTIONS)
    if what == "plan":
        plan = Plan(PLAN.entries | {"0.qkv.q": PLAN.entries["0.qkv.k"]})
    elif what == "checkpoint":
        state = {name: torch.randn(96, 64) for name in STATE}
        write_shards(state, tmp_path / "src", count=2)
    elif what == "job":
        (partial / "job.json").write_text("{")
    else:
        changed = {"layout": {"max_shard_size": "90kB"}, "dtype": {"dtype": "float16"}, "asked": {"resume": False}}
        options |= changed[what]
    done = apply_plan(plan, src, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert done.resumed_shards == 0
    wanted = plan.apply(state)
    if what == "dtype":
        wanted = {name: value.half() for name, value in wanted.items()}
    assert is_bitwise(load_output(tmp_path / "out"), wanted)
    assert is_clean(tmp_path)


def test_two_runs_do_not_write_one_output(src: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ready, done = os.pipe(), os.pipe()

    def hold() -> None:
        with Work(Place(str(out)), False).locked():
            os.write(ready[1], b"x")
            os.read(done[0], 1)

    pid = os.fork()
    if not pid:
        try:
            hold()
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(FileError, match="another run is writing"):
        run(src, out)
    os.write(done[1], b"x")
    os.waitpid(pid, 0)
    run(src, out)
    for descriptor in (*ready, *done):
        os.close(descriptor)
    assert is_clean(tmp_path)


def test_an_interrupt_stops_all_threads_and_keeps_what_is_finished(
    src: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ShardWriter.write
    interrupted: list[int] = []
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores interrupts

    def slow(self: ShardWriter, piece: memoryview) -> None:
        write(self, piece)
        if finished(tmp_path / "out"):
            interrupted.append(1)
            if len(interrupted) == 1:
                _thread.interrupt_main()
            time.sleep(1.0 if len(interrupted) == 1 else 0.1)  # the main thread may be slow to hear of it

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", slow)
        with pytest.raises(KeyboardInterrupt):
            run(src, tmp_path / "out")
    signal.signal(signal.SIGINT, heard)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / ".out.partial" / "tmp").iterdir()) == []
    assert run(src, tmp_path / "out") >= 1
    assert is_bitwise(load_output(tmp_path / "out"), WANTED)


def test_a_shard_that_was_written_wrong_and_resumed_is_found_by_the_check(
    src: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksum is that of what is wrong, so that only --check can tell."""
    read = shard.read_bytes

    def flipped(part: Part, offset: int, buffer: memoryview, files: Files) -> None:
        read(part, offset, buffer, files)
        buffer[0] ^= 1

    with monkeypatch.context() as patch:
        patch.setattr(shard, "read_bytes", flipped)
        stop_after(2, patch, OSError("pulled the plug"))
        with pytest.raises(FileError):
            run(src, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"\d tensors came out wrong, such as `\d\.qkv\.[qkv]`: nothing was kept"):
        run(src, tmp_path / "out", check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
