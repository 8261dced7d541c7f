"""`automap apply`: what the options do and what is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from apply_cases import is_bitwise, load_output, plan_of, random_state, write_shards

from automap.apply import stream
from automap.apply.stream import Progress

Run = Callable[..., tuple[int, str, str]]
STATE = random_state()


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    """The command for a checkpoint in three shards."""
    plan_of(STATE).save(tmp_path / "plan.json")
    return ["apply", tmp_path / "plan.json", write_shards(STATE, tmp_path / "src"), "-o", tmp_path / "out"]


def test_what_was_done_is_said_in_a_few_lines(run: Run, words: list[object], tmp_path: Path) -> None:
    status, text, errors = run(*words, "--max-shard-size", "8kB", "--memory", "1GiB", "--check")
    assert (status, errors) == (0, "")
    first, second, third = text.splitlines()
    assert first.startswith("14.8 KiB in 2 files, ")
    assert first.endswith("iB/s")
    assert second == "read again and compared: every bit is as the plan says"
    assert third == f"wrote 28 tensors to {tmp_path / 'out'}"
    assert is_bitwise(load_output(tmp_path / "out"), plan_of(STATE).apply(STATE))


def test_quiet_prints_nothing(run: Run, words: list[object]) -> None:
    assert run(*words, "--quiet") == (0, "", "")


def test_a_dry_run_prints_what_would_be_read_and_written(run: Run, words: list[object], tmp_path: Path) -> None:
    status, text, _ = run(*words, "--max-shard-size", "8kB", "--dry-run")
    assert status == 0
    lines = text.splitlines()
    assert [line.rpartition("/")[2] for line in lines[:3]] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert all(line.startswith("would read ") for line in lines[:3])
    assert [line.split(" to ")[1] for line in lines[3:5]] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert lines[5] == f"would write 28 tensors to {tmp_path / 'out'}"
    assert not (tmp_path / "out").exists()


def test_floats_are_cast_and_a_file_is_written_where_one_is_named(
    run: Run, words: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "one.safetensors"
    assert run(*words[:3], "-o", out, "--dtype", "float16")[0] == 0
    assert {str(value.dtype) for value in load_output(out).values()} == {"torch.float16", "torch.int64", "torch.bool"}


def test_a_memory_that_python_alone_exceeds_is_said(run: Run, words: list[object]) -> None:
    status, out, _ = run(*words, "--memory", "1MB")
    assert status == 0
    assert " are held before a byte is read, more than the 976.6 KiB that may be" in out


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        pytest.param(["--memory", "much"], 2, "error[bad-input]: `much` is no size", id="memory"),
        pytest.param(["--dtype", "float99"], 2, "error[bad-input]: `float99` is no dtype", id="dtype"),
        pytest.param(["--memory", "100"], 1, "error[bad-plan]: `", id="too little memory"),
        pytest.param(["-o", "hf://org/name"], 2, "error[bad-file]: hf://org/name cannot be written to", id="hub"),
        pytest.param(["-o", "/nowhere/out.pt"], 2, "error[bad-file]: /nowhere/out.pt is not the name of a", id="torch"),
    ],
)
def test_what_cannot_be_done_is_one_message(
    run: Run, words: list[object], options: list[str], status: int, message: str
) -> None:
    found = run(*words, *options)
    assert found[:2] == (status, "")
    assert found[2].startswith(message)


def test_an_interrupt_says_how_to_go_on(
    run: Run, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "_all_of", interrupted)
    status, text, errors = run(*words)
    assert (status, text) == (130, "")
    assert errors.splitlines() == [
        f"error[interrupted]: stopped before the end; {tmp_path / 'out'} is as it was",
        "   = help: run the same command again to go on from here",
    ]


def test_speed_and_time_left_follow_from_what_is_done() -> None:
    state = Progress(done_bytes=50, total_bytes=200, elapsed_s=5.0)
    assert (state.bytes_per_s, state.left_s) == (10.0, 15.0)
    assert Progress(0, 200, 1.0).left_s == float("inf")
