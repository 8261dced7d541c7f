"""benchmarks/RESULTS.md in sections: a name and markdown in, the file with that section new and the rest as it was.

A section stands between `<!-- name:start -->` and `<!-- name:end -->`; no command changes what is outside of its marks.
"""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from automap.apply import written_atomically

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADER = "# Results\n\nEach section is written by the command that it names. Edit nothing between the marks.\n"


def write_section(name: str, markdown: str, path: Path = RESULTS) -> None:
    """Put markdown in the place of the section called name, or at the end where there is none; whole or not at all.

    Raises:
        ValueError: the file has one of the section's two marks, or markdown has a mark of its own.
    """
    before = path.read_text(encoding="utf-8") if path.exists() else HEADER
    text = with_section(before, name, markdown)
    with written_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def with_section(text: str, name: str, markdown: str) -> str:
    """Return text with markdown between the marks of the section called name."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if start in markdown or end in markdown:
        raise ValueError(f"the text for section {name} has a mark of that section in it")
    section = f"{start}\n{markdown.strip()}\n{end}"
    if text.count(start) != text.count(end) or text.count(start) > 1:
        raise ValueError(f"section {name} is not marked by one start and one end")
    if start not in text:
        return f"{text.rstrip()}\n\n{section}\n"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return before + section + after


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in markdown; the first column is text, the others are set to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def machine() -> str:
    """Return what the figures were measured on, in one line."""
    import torch

    ram_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{cores} cores ({_processor()}), {ram_gb:.0f} GB RAM, {platform.system()}; {python}"


def _processor() -> str:
    """The processor's name where the system tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.machine()


def provenance() -> str:
    """Return the date, the command and the machine, as a section's second paragraph."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    today = datetime.date.today().isoformat()
    return f"{today}, `python benchmarks/{shlex.join(words)}`, on {machine()}."


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds added up over the cores: all that went by, those idle, and those at work for this process."""

    all_s: float
    idle_s: float
    own_s: float

    @classmethod
    def now(cls) -> Clock:
        stat = Path("/proc/stat")  # elsewhere than on Linux nothing is known, and the machine passes for calm
        words = stat.read_text(encoding="utf-8").partition("\n")[0].split()[1:9] if stat.exists() else ["0"] * 8
        counts = [int(word) / os.sysconf("SC_CLK_TCK") for word in words]
        return cls(sum(counts), counts[3] + counts[4], sum(os.times()[:4]))

    def others_share(self) -> float:
        """Return the share of the cores' time that other processes have had since."""
        now = Clock.now()
        all_s = now.all_s - self.all_s
        busy_s = all_s - (now.idle_s - self.idle_s) - (now.own_s - self.own_s)
        return max(0.0, busy_s) / all_s if all_s else 0.0

    def conditions(self) -> str:
        """Return a sentence on what else has run since."""
        return f"Other processes had {self.others_share():.0%} of the cores' time meanwhile."
