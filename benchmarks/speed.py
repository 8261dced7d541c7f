"""How long automap takes, section by section; each writes its part of RESULTS.md.

    python benchmarks/speed.py                                all of it, about 10 minutes
    python benchmarks/speed.py --section matching --ops 1000
    python benchmarks/speed.py --section transfer --only ResNet --repeats 3

capture    what recording a forward costs, real and under fake tensors
transfer   full-size models: `automap.transfer` against plain forwards and the hook-order transfer; stages; memory
start      whole processes: the help text, and a conversion against imports and building
matching   how matching grows with the number of ops; also writes scaling.svg
large      Llama-70B shapes without their weights
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import speed_report
from results import Clock, write_section

HERE = Path(__file__).resolve().parent
CALM_SHARE = 0.15  # of all cores
IMPORTS = "import torch, timm, transformers"
BUILDING = f"""{IMPORTS}
timm.create_model("resnet50")
transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))"""
Figures = dict[str, Any]


def measured(function: str, *words: str, limit_s: float) -> Figures:
    """Return the figures of one case, measured in a process of its own, or why there are none."""
    child = [sys.executable, str(HERE / "speed.py"), "--child", json.dumps([function, *words])]
    print(f"  {' '.join([function, *words])} ...", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(child, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"not within {limit_s:.0f} s"}
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def in_child(text: str) -> None:
    """Measure one case here and print its figures as the last line."""
    import speed_cases

    function, *words = json.loads(text)
    cases: dict[str, Callable[..., Figures]] = {
        "capture": lambda name, repeats: speed_cases.capture(name, int(repeats)),
        "fake_capture": lambda side, repeats: speed_cases.fake_capture(int(side), int(repeats)),
        "transfer": lambda name, repeats: speed_cases.transfer(name, int(repeats)),
        "matching": lambda ops: speed_cases.matching(int(ops)),
        "large": speed_cases.large,
    }
    print("\n" + json.dumps(cases[function](*words)))


def transfer(options: argparse.Namespace) -> str:
    names = [name for name in speed_report.CASES if options.only in name]
    limit_s = options.limit_s * (options.repeats + 1)
    found = {name: measured("transfer", name, str(options.repeats), limit_s=limit_s) for name in names}
    return speed_report.transfer(found, options.repeats)


def capture(options: argparse.Namespace) -> str:
    names = [name for name in speed_report.CASES if options.only in name]
    repeats = str(3 * options.repeats)  # each takes a fraction of a second
    real = {name: measured("capture", name, repeats, limit_s=options.limit_s) for name in names}
    fake = [measured("fake_capture", side, repeats, limit_s=options.limit_s) for side in ("0", "1")]
    return speed_report.capture(real, fake)


def start(options: argparse.Namespace) -> str:
    """Return the medians of whole processes, one of each a round."""
    conversion = ["timm:resnet50", "hf:ResNetForImageClassification", "--sample-input", "1x3x224x224"]
    commands = {
        "python that does nothing": ["-c", ""],
        "`automap --help`": ["-m", "automap", "--help"],
        f"`{IMPORTS}`": ["-c", IMPORTS],
        "the same, and both ResNet-50 built": ["-c", BUILDING],
        f"`automap {' '.join(conversion)}`": ["-m", "automap", *conversion],
    }
    rounds = [{name: process_s(words) for name, words in commands.items()} for _ in range(options.repeats)]
    return speed_report.start(rounds)


def process_s(words: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - started


def matching(options: argparse.Namespace) -> str:
    found = {ops: measured("matching", str(ops), limit_s=options.limit_s) for ops in options.ops}
    points = {f["src_ops"]: speed_report.matching_s(f) for f in found.values() if "failed" not in f}
    if len(points) > 1 and not options.dry:
        (HERE / "scaling.svg").write_text(speed_report.scaling_svg(points), encoding="utf-8")
    return speed_report.matching(found)


def large(options: argparse.Namespace) -> str:
    return speed_report.large({n: measured("large", n, limit_s=options.limit_s) for n in speed_report.SHAPES})


SECTIONS: dict[str, Callable[[argparse.Namespace], str]] = {
    "capture": capture,
    "transfer": transfer,
    "start": start,
    "matching": matching,
    "large": large,
}


def wait_until_calm(limit_s: float) -> float:
    """Wait until little else runs, or for limit_s, and return what share of the cores' time other processes have."""
    deadline = time.monotonic() + limit_s
    while True:
        before = Clock.now()
        time.sleep(2)
        share = before.others_share()
        if share <= CALM_SHARE or time.monotonic() > deadline:
            return share
        time.sleep(3)


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", dest="sections", action="append", choices=tuple(SECTIONS))
    parser.add_argument(
        "--repeats", type=int, default=3, help="rounds of transfer and start; three times as many of capture"
    )
    parser.add_argument("--only", default="", help="capture and transfer: only models with this in their name")
    parser.add_argument("--ops", type=int, nargs="+", default=[1_000, 10_000, 50_000], help="sizes for matching")
    parser.add_argument("--limit-s", type=float, default=300, help="seconds that one case, or a round of it, may take")
    parser.add_argument("--calm-s", type=float, default=300, help="seconds to wait for a calm machine")
    parser.add_argument("--dry", action="store_true", help="print what would be written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main() -> int:
    options = read_options()
    if options.child:
        in_child(options.child)
        return 0
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error"):
        for name in options.sections or SECTIONS:
            share = wait_until_calm(options.calm_s)
            print(f"{name}: other processes have {share:.0%} of the cores", file=sys.stderr, flush=True)
            before = Clock.now()
            text = f"{SECTIONS[name](options)}\n{before.conditions()}\n"
            print(text)
            if not options.dry:
                write_section(f"speed-{name}", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
