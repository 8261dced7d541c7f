"""Checkpoints that lie elsewhere: a hub, a web server and an object store, served by this machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from apply_cases import is_bitwise, load_output, plan_of, random_state, write_shards
from hub_server import COMMIT, HubServer, hub_of

STATE = random_state()
WANTED = plan_of(STATE).apply(STATE)
DRIVERS = {"http": ("aiohttp", "requests"), "s3": ("s3fs", "moto", "flask")}


def needs(scheme: str) -> pytest.MarkDecorator:
    missing = [name for name in DRIVERS[scheme] if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    plan_of(STATE).save(tmp_path / "plan.json")
    with hub_of(write_shards(STATE, tmp_path / "src")) as server:
        yield server


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of a process without a cache, which may ask the hub."""
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return kept | {"HF_HOME": str(folder / "hf-home"), "HF_HUB_DISABLE_TELEMETRY": "1"} | more


def applied(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "automap", "apply", "plan.json", *words]
    return subprocess.run(command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True)


def test_a_repository_without_a_cached_copy_is_read_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    done = applied(tmp_path, "hf://org/tiny", "-o", "out", HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert is_bitwise(load_output(tmp_path / "out"), WANTED)
    read = sum(stop - start for _, start, stop in hub.asked)
    assert read <= sum(path.stat().st_size for path in hub.folder.iterdir())  # nothing twice, nothing ahead
    assert not list(tmp_path.glob("hf-home/hub/*"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param("hf://org/none", "the hub has no repository hf://org/none", id="repository"),
        pytest.param("hf://org/tiny@v9", "hf://org/tiny has no revision v9", id="revision"),
        pytest.param("hf://org/tiny/x.bin", f"there is no checkpoint hf://org/tiny@{COMMIT}/x.bin", id="file"),
    ],
)
def test_what_the_hub_does_not_have_is_one_message(hub: HubServer, tmp_path: Path, spec: str, message: str) -> None:
    done = applied(tmp_path, spec, "-o", "out", HF_ENDPOINT=hub.url)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error[bad-file]: {message}"
    assert not (tmp_path / "out").exists()


def test_a_hub_that_is_not_there_is_one_message(hub: HubServer, tmp_path: Path) -> None:
    done = applied(tmp_path, "hf://org/tiny", "-o", "out", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith("error[bad-file]: hf://org/tiny cannot be reached: ")


@needs("http")
@pytest.mark.parametrize("spec", ["files", "files/model.safetensors.index.json"])
def test_a_web_server_is_read_by_ranges(hub: HubServer, tmp_path: Path, spec: str) -> None:
    done = applied(tmp_path, f"{hub.url}/{spec}", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert is_bitwise(load_output(tmp_path / "out"), WANTED)
    done = applied(tmp_path, f"{hub.url}/none", "-o", "other")
    assert (done.returncode, done.stderr) == (2, f"error[bad-file]: there is no checkpoint {hub.url}/none\n")


S3_SERVER = """
import sys
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
FILL = """
import fsspec
store = fsspec.filesystem("s3")
store.mkdir("bucket")
store.put("src", "bucket/src", recursive=True)
"""
FETCH = """
import fsspec, sys
store = fsspec.filesystem("s3")
print(*store.find("bucket/dest"))
store.get("bucket/dest/out", "fetched", recursive=True)
"""
SLOW = """
import sys, time
from automap.apply.shard import ShardWriter
from automap.cli import main
write = ShardWriter.write
ShardWriter.write = lambda self, piece: (time.sleep(0.2), write(self, piece))[1]
main(["apply", *sys.argv[1:]])
"""
COUNT = 'import fsspec; print(len(fsspec.filesystem("s3").find("bucket/dest/.out.partial/done")))'


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment for an object store that has one bucket, with a checkpoint in `src`."""
    folder = tmp_path_factory.mktemp("s3")
    write_shards(STATE, folder / "src")
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", S3_SERVER], text=True, **quiet) as server:  # type: ignore[call-overload]
        port = server.stdout.readline().strip()
        keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
        found = keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        code = (
            'import fsspec; s = fsspec.filesystem("s3"); s.mkdir("bucket"); s.put("src", "bucket/src", recursive=True)'
        )
        python(code, folder, found)
        yield found
        server.stdin.close()


def python(code: str, folder: Path, more: dict[str, str]) -> str:
    command, env = [sys.executable, "-c", code], environment(folder, **more)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout


@needs("s3")
def test_an_object_store_is_read_and_written_and_a_killed_run_resumed(s3: dict[str, str], tmp_path: Path) -> None:
    plan_of(STATE).save(tmp_path / "plan.json")
    words = ["plan.json", "s3://bucket/src", "-o", "s3://bucket/dest/out", "--max-shard-size", "3kB"]
    env = environment(tmp_path, **s3)
    with subprocess.Popen([sys.executable, "-c", SLOW, *words], cwd=tmp_path, env=env) as slow:
        until = time.monotonic() + 60
        while not int(python(COUNT, tmp_path, s3)) and time.monotonic() < until:
            assert slow.poll() is None
        slow.send_signal(signal.SIGKILL)
    done = applied(tmp_path, *words[1:], "--check", **s3)
    assert done.returncode == 0, done.stderr
    assert "were finished by an earlier run, and are whole" in done.stdout
    names = python(FETCH, tmp_path, s3).split()
    assert all(name.startswith("bucket/dest/out/model") for name in names)  # nothing of the run is left
    assert is_bitwise(load_output(tmp_path / "fetched"), WANTED)
    again = applied(tmp_path, *words[1:], **s3)
    assert again.stderr.startswith("error[bad-file]: s3://bucket/dest/out is there already\n")


@needs("s3")
def test_buckets_are_not_made_and_what_is_missing_is_one_message(s3: dict[str, str], tmp_path: Path) -> None:
    plan_of(STATE).save(tmp_path / "plan.json")
    found = applied(tmp_path, "s3://bucket/none", "-o", "out", **s3)
    assert (found.returncode, found.stderr) == (2, "error[bad-file]: there is no checkpoint s3://bucket/none\n")
    found = applied(tmp_path, "s3://bucket/src", "-o", "s3://none/out", **s3)
    assert found.returncode == 2
    assert "error[bad-file]: writing s3://none/out stopped: The specified bucket does not exist" in found.stderr
    gone = s3 | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    found = applied(tmp_path, "s3://bucket/src", "-o", "out", **gone)
    assert found.returncode == 2
    assert found.stderr.startswith("error[bad-file]: s3://bucket/src cannot be reached: ")
