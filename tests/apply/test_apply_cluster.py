"""Shards are made by whatever executor there is; a worker that dies costs time, never a bit."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from apply_cases import is_bitwise, load_output, plan_of, random_state, source, write_shards

from automap import jobs
from automap.apply import Progress, apply_plan, shard
from automap.apply.cluster import cluster_executor
from automap.apply.job import Options, prepare_job
from automap.apply.shard import ShardWriter
from automap.errors import FileError, MissingExtraError
from automap.plan import Plan

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, on threads
STATE = random_state()


@pytest.fixture
def src(tmp_path: Path) -> str:
    return str(write_shards(STATE, tmp_path / "src"))


class InTurn(Executor):
    """Runs a task when it is submitted, after a trip through a pickle, as if it came over a wire."""

    def submit(self, fn: Any, /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        call, args, options = pickle.loads(pickle.dumps((fn, args, options)))
        future.set_result(call(*args, **options))
        return future


def forked(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("fork"))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: ThreadPoolExecutor(3), id="threads"),
        pytest.param(lambda: forked(2), id="processes"),
        pytest.param(InTurn, id="one of one's own"),
    ],
)
def test_any_executor_gives_the_same_bits(src: str, tmp_path: Path, make: Any) -> None:
    seen: list[Progress] = []
    with make() as executor:
        done = apply_plan(
            plan_of(STATE),
            src,
            tmp_path / "out",
            executor=executor,
            max_shard_size="2kB",
            memory="1MiB",
            check=True,
            progress=seen.append,
        )
    assert is_bitwise(load_output(tmp_path / "out"), plan_of(STATE).apply(STATE))
    assert len(done.written) > 4
    assert seen[-1].done_bytes == seen[-1].total_bytes == 2 * done.written_bytes


def test_tasks_are_plain_data_without_the_bytes_of_the_checkpoint(src: str, tmp_path: Path) -> None:
    big = {"w": torch.randn(512, 512)}
    options = Options(memory="1GiB", max_shard_size="5GB", dtype=None, is_local=False)
    place = str(write_shards(big, tmp_path / "big", count=1))
    job = prepare_job(Plan({"v": source(big, "w")}), place, tmp_path / "out", options)
    assert len(pickle.dumps(job.tasks)) < 4096
    assert pickle.loads(pickle.dumps(job.tasks)) == job.tasks


def test_a_pool_that_loses_a_process_says_how_to_go_on(
    src: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = ShardWriter.finish

    def dying(self: ShardWriter) -> None:
        if "00003" in self._task.name:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(self)

    out = tmp_path / "out"
    options: dict[str, Any] = {"max_shard_size": "2kB", "memory": "1MiB"}
    with monkeypatch.context() as patch, forked(1) as executor:
        patch.setattr(shard.ShardWriter, "finish", dying)
        with pytest.raises(FileError, match=r"stopped: a worker ended abruptly") as caught:
            apply_plan(plan_of(STATE), src, out, executor=executor, **options)
    assert str(caught.value.help).startswith("run the same command again: 2 of ")
    assert apply_plan(plan_of(STATE), src, out, **options, check=True).resumed_shards == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]


@pytest.fixture
def dask_cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    import dask

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "distributed", "automap.apply.check"])  # once for all
    forkserver.ensure_running()
    sizes = {"n_workers": 3, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        distributed.LocalCluster(**sizes, silence_logs=50) as cluster,
    ):
        yield cluster


def test_a_dask_cluster_that_loses_a_worker_in_mid_run_gives_the_same_bits(
    src: str, tmp_path: Path, dask_cluster: Any
) -> None:
    from distributed import Client

    plan_of(STATE).save(tmp_path / "plan.json")
    killed: list[int] = []
    address = dask_cluster.scheduler_address

    def slow_down() -> int:
        import time

        from automap.apply.shard import ShardWriter

        write = ShardWriter.write
        ShardWriter.write = lambda self, piece: (time.sleep(0.05), write(self, piece))[1]  # type: ignore[method-assign]
        return os.getpid()

    def kill_one(state: Progress) -> None:
        if not killed:
            killed.append(next(iter(pids.values())))
            os.kill(killed[0], signal.SIGKILL)

    with Client(address, set_as_default=False) as client:
        pids = client.run(slow_down)
        lines = jobs.apply_plan(
            tmp_path / "plan.json",
            src,
            str(tmp_path / "out"),
            scheduler=address,
            progress=kill_one,
            max_shard_size="1500",
            memory="1MiB",
        )
    assert killed
    assert lines[-1] == f"wrote {len(plan_of(STATE).entries)} tensors to {tmp_path / 'out'}"
    assert is_bitwise(load_output(tmp_path / "out"), plan_of(STATE).apply(STATE))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plan.json", "src"]


def test_a_cluster_that_is_not_there_is_a_file_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    from automap.apply import cluster

    monkeypatch.setattr(cluster, "_CONNECT_S", 1)
    for address in ("tcp://127.0.0.1:1", "nonsense"):
        with pytest.raises(FileError, match=f"there is no scheduler at {address}"), cluster_executor(address):
            pass


def test_a_cluster_without_dask_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError) as caught, cluster_executor("tcp://127.0.0.1:1"):
        pass
    assert caught.value.help == "pip install 'automap-weights[cluster]'"
