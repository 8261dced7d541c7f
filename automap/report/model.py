"""The report as one frozen value, from which the terminal, JSON and HTML forms are written.

A Match or Transfer comes in; captures, folded rows and findings, parity figures, the verdict and what to do next go
out. No paths outside of the user's project, no times of day, nothing of the environment.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from automap.findings import Finding, Site
from automap.inputs import short_size
from automap.plan import Plan, Rule, dtype_of, format_expr, shape_of, sources_of
from automap.plan.shown import shown
from automap.report.folding import fold
from automap.results import CaptureSummary, Evidence, Match, OpParity, Parity, Transfer, Verdict

#: every kind of evidence, the strongest first
EVIDENCE: tuple[Evidence, ...] = ("proved", "tested", "aligned", "assumed")
_SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Member:
    """One dest weight and the expression it is."""

    dest: str
    expression: str


@dataclass(frozen=True, slots=True)
class Row:
    """A rule of the plan: dest weights and where they come from, with `{i}` for the numbers in `indices`.

    `sources` are the src weights that the expression reads, as templates like `dest`. All members have the same
    evidence.
    """

    dest: str
    size: str
    expression: str
    indices: str
    evidence: Evidence
    members: tuple[Member, ...]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """The rows of one part of dest: their names start with `name` and a dot (or not, if it is empty)."""

    name: str
    indices: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Names:
    """A folded list of weight names with how many they are."""

    texts: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class FoldedFinding:
    """A finding, and the places (folded) that the same is true of."""

    finding: Finding
    same: tuple[str, ...]
    count: int


def farthest(ops: Sequence[OpParity]) -> OpParity:
    """Return the op with the largest relative difference; NaN is larger than anything."""
    return max(ops, key=lambda op: math.inf if math.isnan(op.max_rel) else op.max_rel)


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """All that a run has to say. `is_equal` is None where nothing was verified.

    `op_parity` compares aligned ops in the order in which dest runs them; it is empty where they were not compared.
    """

    verdict: Verdict
    is_applied: bool
    is_equal: bool | None
    src: CaptureSummary
    dest: CaptureSummary
    stages: tuple[Stage, ...]
    evidence: Mapping[Evidence, int]
    unused: Names
    kept: Names
    missing: Names
    assumed: Names
    findings: tuple[FoldedFinding, ...]
    parity: Parity | None
    next_steps: tuple[str, ...]
    notes: tuple[str, ...] = ()
    timings_s: Mapping[str, float] | None = None
    op_parity: tuple[OpParity, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether the verdict is complete, and the outputs equal where they were compared."""
        return self.verdict == "complete" and self.is_equal is not False

    def __repr__(self) -> str:
        return f"<Report: {self.verdict}, {self.src.model} -> {self.dest.model}>"


def build_report(result: Transfer | Match, *, notes: Sequence[str] = (), op_parity: Sequence[OpParity] = ()) -> Report:
    """Return the report of a match or transfer.

    Args:
        result: what `match` or `transfer` gave.
        notes: facts from before it, such as what a checkpoint dropped.
        op_parity: aligned ops that were compared, in dest's order; those of the transfer if none are given.
    """
    match = result.match if isinstance(result, Transfer) else result
    transfer = result if isinstance(result, Transfer) else None
    evidence = dict(result.evidence)
    made = transfer.op_parity if transfer is not None else ()
    return Report(
        verdict=match.verdict,
        is_applied=transfer is not None and transfer.is_applied,
        is_equal=transfer.parity.is_equal if transfer is not None and transfer.parity is not None else None,
        src=match.src_capture,
        dest=match.dest_capture,
        stages=_stages(_rows(match, evidence)),
        evidence=Counter(evidence.values()),
        unused=fold_names(match.unused),
        kept=fold_names(match.kept),
        missing=fold_names(match.missing),
        assumed=fold_names([name for name, how in evidence.items() if how == "assumed"]),
        findings=fold_findings(match.findings),
        parity=transfer.parity if transfer is not None else None,
        next_steps=_next_steps(match, transfer),
        notes=tuple(notes),
        timings_s=dict(result.timings_s),
        op_parity=tuple(replace(op, dest=short_site(op.dest), src=short_site(op.src)) for op in op_parity or made),
    )


def fold_names(names: Iterable[str]) -> Names:
    """Return names folded over numbered modules."""
    listed = list(names)
    return Names(tuple(row.texts[0] for row in fold([(name,) for name in listed])), len(listed))


def fold_findings(findings: Iterable[Finding]) -> tuple[FoldedFinding, ...]:
    """Return findings, errors first, each once for all numbered modules that it is equally true of."""
    ranked = sorted((shorten(finding) for finding in findings), key=lambda f: _SEVERITIES.index(f.severity))
    folded = []
    for row in fold([_finding_texts(finding) for finding in ranked]):
        members = [ranked[index] for index in row.members]
        others = [(site.name,) for finding in members[1:] if (site := finding.dest or finding.src)]
        folded.append(FoldedFinding(members[0], tuple(other.texts[0] for other in fold(others)), len(members)))
    return tuple(folded)


def _finding_texts(finding: Finding) -> tuple[str, ...]:
    sites = [(s.name, f"{s.kind} {s.shape} {s.dtype} {s.file}:{s.line}") if s else ("", "") for s in _sites(finding)]
    return (
        f"{finding.severity} {finding.code}",
        *(text for site in sites for text in site),
        finding.message,
        *finding.notes,
        finding.help or "",
    )


def _sites(finding: Finding) -> tuple[Site | None, Site | None]:
    return finding.dest, finding.src


def shorten(finding: Finding) -> Finding:
    """Return finding with short file paths in its sites."""
    src, dest = (short_site(site) if site else None for site in (finding.src, finding.dest))
    return replace(finding, src=src, dest=dest)


def short_site(site: Site) -> Site:
    """Return site with a short file path."""
    return replace(site, file=short_path(site.file))


def short_path(path: str) -> str:
    """Return path from its package or from the current folder on, else its last part: never an absolute one."""
    if "site-packages/" in path:
        return path.rpartition("site-packages/")[2]
    if not path.startswith("/"):
        return path
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else Path(path).name


def _rows(match: Match, evidence: Mapping[str, Evidence]) -> list[Row]:
    """Return the plan's rules, folded apart for each kind of evidence, in the plan's order."""
    place = {name: number for number, name in enumerate(match.plan.entries)}
    rows = [row for how in EVIDENCE for row in _rows_with(how, match.plan, evidence)]
    return sorted(rows, key=lambda row: place[row.members[0].dest])


def _rows_with(how: Evidence, plan: Plan, evidence: Mapping[str, Evidence]) -> list[Row]:
    part = Plan({name: expr for name, expr in plan.entries.items() if evidence.get(name, "assumed") == how})
    return [_row(rule, how) for rule in part.rules(cuts=True)]


def _row(rule: Rule, how: Evidence) -> Row:
    entries = tuple(rule.entries())
    dest, expr = (rule.dest, rule.expr) if rule.indices else entries[0]  # no template where nothing is folded
    return Row(
        dest=dest,
        size=short_size(dtype_of(expr), shape_of(expr)),
        expression=format_expr(shown(expr, rule.starts)),
        indices=", ".join(map(str, rule.indices)),
        evidence=how,
        members=tuple(Member(name, format_expr(made)) for name, made in entries),
        sources=tuple(dict.fromkeys(source.name for source in sources_of(expr))),
    )


def format_bytes(size_bytes: int) -> str:
    """Return a size in memory for people: `346.0 MB`.

    Example:
        >>> format_bytes(11_200)
        '11.2 kB'
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"


def _stages(rows: Sequence[Row]) -> tuple[Stage, ...]:
    """Group neighbouring rows by the part of dest they belong to."""
    groups = groupby(rows, key=lambda row: (_stage_name(row.dest), row.indices))
    return tuple(Stage(name, indices, tuple(members)) for (name, indices), members in groups)


def _stage_name(name: str) -> str:
    """Return a dest name up to its first number or hole, "" where it has none."""
    parts = name.split(".")
    numbered = next((at for at, part in enumerate(parts[:-1]) if part.isdigit() or "{" in part), None)
    return ".".join(parts[: numbered + 1]) if numbered is not None else ""


def _next_steps(match: Match, transfer: Transfer | None) -> tuple[str, ...]:
    match match.verdict:
        case "impossible":
            return (
                "build dest with the options that src was built with, or see what each computes: `automap trace MODEL`",
                "to carry over what does match, call automap.transfer(..., strict=False)",
            )
        case "ambiguous":
            return ("say which weight is which with --pin DEST=SRC (pins= in Python); a pin is checked, not trusted",)
        case "differs":
            return (
                "build dest so that the first error above is gone: the weights are known, the rest is not the same",
                "or take the weights all the same: --allow-differences",
            )
        case "complete" if transfer is not None and transfer.parity is None and not transfer.is_applied:
            return (
                "nothing was carried over or tried: write the map with --plan FILE, send a checkpoint through it with "
                "`automap apply FILE CHECKPOINT -o OUT`",
            )
        case "complete" if transfer is None:
            return ("carry the weights over: automap SRC DEST --out DIR, or automap.transfer(src, dest, sample_input)",)
        case "complete" if transfer.is_equal:
            return ("write dest with --out DIR, the map with --plan FILE (in Python: plan.save(path))",)
        case _:
            return ("the outputs differ although the computations look equal: do not use these weights, and report it",)
