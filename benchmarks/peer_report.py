"""The section "Against peers" of RESULTS.md: rows in, tables out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path

from results import Clock, provenance, table, write_section

OUTCOMES = ("solved", "refused", "wrong")
USES = {
    "hook-order": """the idea of `Tracker` and `ModuleTransfer` in our own few lines: the leaf modules that run on both
sides are paired in order; unequal numbers or shapes are refused. Weights that no leaf holds stay as they are, as in the
original""",
    "timm-remap": """`timm.models._helpers.remap_state_dict`; unequal numbers of tensors are refused, where timm itself
would stop at the end of the shorter list""",
    "weightbridge": """`weightbridge.adapt(src_state, dest_state)`, where that fails once more with
`ignore_unmatched_inputs=True`""",
    "lit-wsl": """`WeightMapper(src, dest, buffer_matching_mode="strict", dummy_input=...)` and its
`suggest_mapping(strategy="optimal")`. Tensors of dest that it lists as unmatched, and a failure of its own check of the
outputs, are refusals. It calls models with one tensor and wants one back: a subclass with such a forward lets it call
them all""",
    "automap": "`automap.match(src, dest, inputs, dest_input=...)`; every verdict but `complete` is a refusal",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One tool at one pair. `unseen` counts the weights unlike the hand-made map's, whatever the outputs say."""

    name: str
    tool: str
    outcome: str
    seconds: float = 0.0
    reason: str = ""
    unseen: int = 0
    group: str = ""


def line(rows: Sequence[Row]) -> str:
    """Return one pair's outcomes on a line."""
    cells = [f"{row.tool} {row.outcome} {row.seconds:.1f} s" for row in rows]
    return f"{rows[0].name}: {'; '.join(cells)}"


def totals(rows: Iterable[Row], tools: Sequence[str]) -> str:
    """Return the table with a line for each tool."""
    rows = list(rows)
    groups = list(dict.fromkeys(row.group for row in rows))
    lines = []
    for tool in tools:
        mine = [row for row in rows if row.tool == tool]
        if not mine:
            continue
        seconds = [row.seconds for row in mine]
        by_group = ["/".join(str(n) for n in _counts(r for r in mine if r.group == group)) for group in groups]
        times = [f"{sum(seconds):.1f}", f"{statistics.median(seconds):.2f}", f"{max(seconds):.1f}"]
        lines.append([tool, *_counts(mine), *by_group, *times])
    header = ["tool", "solved", "refused", "silently wrong", *(f"{g} s/r/w" for g in groups)]
    return table([*header, "seconds, all", "median", "longest"], lines)


def _counts(rows: Iterable[Row]) -> list[int]:
    found = Counter(row.outcome for row in rows)
    return [found[outcome] for outcome in OUTCOMES]


def reasons(rows: Iterable[Row], tools: Sequence[str]) -> str:
    """Return the table of why tools refused: what stands before a reason's colon, with its number of pairs."""
    kinds = Counter((row.tool, _kind(row)) for row in rows if row.outcome == "refused")
    lines = [[f"{tool}: {kind}", n] for tool in tools for (t, kind), n in kinds.most_common() if t == tool]
    return table(["why refused", "pairs"], lines)


def _kind(row: Row) -> str:
    return row.reason.partition(":")[0].strip() or "no reason given"


def by_pair(rows: Iterable[Row], tools: Sequence[str]) -> str:
    """Return the table with a line for each pair."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.name, {})[row.tool] = row
    return table(["pair", *tools], [[name, *(_cell(cells.get(t)) for t in tools)] for name, cells in found.items()])


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    outcome = "**wrong**" if row.outcome == "wrong" else row.outcome
    return f"{outcome}{'*' * (row.outcome == 'solved' and row.unseen > 0)} {row.seconds:.2f}"


RULES = """{pairs} pairs of independent implementations, random weights in float64, built and checked by the pairs' own
runner. A pair is *solved* when dest, given the tool's map, computes what src computes; *refused* when the tool gives no
map, says itself that its map is incomplete or wrong, crashes, gives a map that cannot be loaded, or takes longer than
{limit_s:.0f} s; *silently wrong* when it gives a map without a word and the outputs differ. Seconds are processor time
of the tool alone, on one thread: models are built before. automap was developed on these pairs; the peers were not."""


def markdown(rows: Sequence[Row], tools: Sequence[str], limit_s: float, versions: dict[str, str], ran: Clock) -> str:
    """Return the whole section."""
    uses = "\n".join(f"- **{tool}** {versions.get(tool, '')}: {' '.join(USES[tool].split())}." for tool in tools)
    return f"""## Against peers

{provenance()}

{RULES.format(pairs=len({row.name for row in rows}), limit_s=limit_s)} {ran.conditions()}

{totals(rows, tools)}

{uses.replace(" :", ":")}

{reasons(rows, tools)}

<details><summary>Every pair, with seconds. An asterisk: solved, and weights that no output shows are not those of the
hand-made map.</summary>

{by_pair(rows, tools)}

</details>
"""


def write(rows: Sequence[Row], tools: Sequence[str], limit_s: float, site: Path, ran: Clock) -> None:
    """Write the section into RESULTS.md; ran was read when the run began."""
    versions = {found.name: found.version for found in distributions(path=[str(site)])}
    versions["timm-remap"] = f"(timm {version('timm')})"
    write_section("peers", markdown(rows, tools, limit_s, versions, ran))
