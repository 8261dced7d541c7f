"""automap against the other tools on the pairs of ../shared/pairs: what each solves, refuses and gets wrong unawares.

    python benchmarks/peers.py                     every tool, every pair; writes the section of RESULTS.md
    python benchmarks/peers.py --tools automap,lit-wsl --group vision --only resnet

The runner of the pairs builds the models and checks the answers, the same way for every tool.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import peer_report
import torch
from peer_report import Row
from peer_tools import PEERS, Refusal, Side, State, Tool
from results import Clock
from torch import nn

PAIRS = Path(__file__).resolve().parents[2] / "shared" / "pairs"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SITE = Path(sys.prefix) / "peers-site"
TOOLS = (*PEERS, "automap")
LIMIT_S = 30.0


class OutOfTime(BaseException):
    """The time limit; no `except Exception` of a tool may swallow it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A tool's map, in the form in which the runner reads what automap's `match` returns."""

    state: State
    verdict: str = "complete"
    evidence: dict[str, str] = field(default_factory=dict)
    findings: tuple[()] = ()

    @property
    def plan(self) -> Claim:
        return self

    def apply(self, _: State) -> State:
        return self.state


def trial(runner: Any, tool: str, pair: Any, limit_s: float) -> Row:
    """Return what comes of one tool at one pair, as the runner's check sees it."""
    import automap

    blank = Row(pair.name, tool, "refused")
    watch = Watch(limit_s)
    call = automap.match if tool == "automap" else partial(_claimed, PEERS[tool], runner, pair)
    try:
        with mock.patch.object(automap, "match", partial(watch.time, call)):  # the runner scores what stands there
            found = runner.score(pair)
    except OutOfTime:
        return replace(blank, seconds=watch.elapsed_s, reason=f"the time limit of {limit_s:.0f} s")
    except Refusal as refusal:
        return replace(blank, seconds=watch.elapsed_s, reason=str(refusal))
    except Exception as problem:  # a tool that breaks, or a map that cannot be loaded, must not end the run
        return replace(blank, seconds=watch.elapsed_s, reason=f"crashed, {type(problem).__name__}: {problem}"[:300])
    reason = found["findings"][0] if found["outcome"] == "refused" and found["findings"] else ""
    return replace(
        blank, outcome=found["outcome"].lower(), seconds=watch.elapsed_s, reason=reason[:300],
        unseen=len(found["differs_from_gold"]),
    )  # fmt: skip


def _claimed(tool: Tool, runner: Any, pair: Any, src: Any, dest: Any, src_inputs: Any, *, dest_input: Any) -> Claim:
    """Call a tool in automap's place."""
    mine = Side(src, src_inputs.args, src_inputs.kwargs, lambda result: runner.flat(pair.src_output(result)))
    theirs = Side(dest, dest_input.args, dest_input.kwargs, lambda result: runner.flat(pair.dest_output(result)))
    return Claim(tool(mine, theirs))


class Watch:
    """Times calls, and ends one that takes longer than the limit: in processor time, whatever else the machine does."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.elapsed_s = 0.0

    def time(self, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        before = signal.signal(signal.SIGPROF, _ring)
        signal.setitimer(signal.ITIMER_PROF, self.limit_s)
        try:
            return call(*args, **kwargs)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
            self.elapsed_s = time.process_time() - started


def _ring(signum: int, frame: FrameType | None) -> None:
    raise OutOfTime


def run_group(runner: Any, options: argparse.Namespace) -> Iterator[Row]:
    """Give a row for every tool at every pair of one group, printing a line a pair."""
    warnings.filterwarnings("ignore")
    pairs, context = runner.load_group(options.child, runner.HERE / options.child, False)
    sys.path.append(str(SITE))  # last: the environment's own packages come first
    warm_up(options.tools)
    for pair in pairs:
        if options.only and not any(text in pair.name for text in options.only):
            continue
        rows = []
        for tool in options.tools:
            with context():
                rows.append(replace(trial(runner, tool, pair, options.limit_s), group=options.child))
        print(peer_report.line(rows), flush=True)
        yield from rows


def warm_up(tools: Sequence[str]) -> None:
    """Run every tool once, so that no pair pays for the imports."""
    import automap

    model, sample = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), torch.ones(1, 2)
    side = Side(model, (sample,), {}, lambda result: result)
    for tool in tools:
        if tool in PEERS:
            PEERS[tool](side, side)
        else:
            automap.match(model, model, sample)


def in_children(options: argparse.Namespace) -> list[Row]:
    """Return the rows of every group, each run in a process of its own: both groups have modules of the same names."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for group in options.groups:
            part = Path(folder) / f"{group}.json"
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child", group, "--json", str(part)], check=True)
            rows += [Row(**row) for row in json.loads(part.read_text(encoding="utf-8"))]
    return rows


def write_json(path: str, rows: Sequence[Row]) -> None:
    Path(path).write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let every process of the run use one thread and no network."""
    wanted = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with mock.patch.dict(os.environ, wanted):
        yield


def install(requirements: Path = REQUIREMENTS) -> None:
    """Install the peers into a folder of their own inside the environment, once for each content of the list."""
    stamp = SITE / ".done"
    if stamp.exists() and stamp.read_bytes() == requirements.read_bytes():
        return
    print(f"installing the peers into {SITE.name}/ ...", file=sys.stderr, flush=True)
    quiet = ["-qq", "--disable-pip-version-check", "--no-deps", "--upgrade", "--target", str(SITE)]
    subprocess.run([sys.executable, "-m", "pip", "install", *quiet, "-r", str(requirements)], check=True)
    stamp.write_bytes(requirements.read_bytes())


def load_runner() -> Any:
    """Return the pairs' own run.py as a module."""
    spec = spec_from_file_location("pairs_runner", PAIRS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    runner = module_from_spec(spec)
    spec.loader.exec_module(runner)
    os.environ["PAIRS_SITE"] = str(runner.site_folder())
    return runner


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=_names, default=TOOLS, help=f"of {','.join(TOOLS)}")
    parser.add_argument("--only", action="append", default=[], help="pairs with this in their name")
    parser.add_argument("--group", dest="groups", action="append", choices=("vision", "language"))
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds that a tool may take for a pair")
    parser.add_argument("--json", help="write the rows to this file too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.is_whole = not (options.only or options.groups or tuple(options.tools) != TOOLS)
    options.groups = options.groups or ["vision", "language"]
    return options


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in TOOLS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(TOOLS)}")
    return names


def main() -> int:
    options = read_options()
    if not (PAIRS / "run.py").is_file():
        print(f"benchmarks/peers.py measures on the pairs in ../shared/pairs, and {PAIRS} has none", file=sys.stderr)
        return 2
    runner = load_runner()
    if options.child:
        write_json(options.json, list(run_group(runner, options)))
        return 0
    with one_thread():
        install()
        runner.install_extra_packages(runner.HERE)
        ran = Clock.now()
        rows = in_children(options)
    print("\n" + peer_report.totals(rows, options.tools))
    if options.json:
        write_json(options.json, rows)
    if options.is_whole:
        peer_report.write(rows, options.tools, options.limit_s, SITE, ran)
    return 0


if __name__ == "__main__":
    sys.exit(main())
