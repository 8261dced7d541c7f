"""The report for a terminal, and the same as plain text.

Lines are never wrapped or cut to a width: names are for copying, and a piped report is the same as a shown one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from automap.findings import Finding, Site
from automap.inputs import short_size
from automap.report.model import (
    FoldedFinding,
    Names,
    Report,
    Row,
    Stage,
    build_report,
    farthest,
    fold_names,
    format_bytes,
)
from automap.report.visible import visible
from automap.results import CaptureSummary, Match, OpParity, OutputParity, Parity, ParityCheck, Transfer

_MOST_FINDINGS = 20
_MOST_NAMES = 12
_MOST_MISSED = 3
_WIDEST = 72  # columns are aligned up to here, longer entries push the next one to the right
_STYLES = {
    "error": "bold red",
    "warning": "bold yellow",
    "note": "bold cyan",
    "proved": "green",
    "tested": "cyan",
    "aligned": "yellow",
    "assumed": "magenta",
    "equal": "green",
    "differs": "bold red",
    "complete": "bold green",
    "ambiguous": "bold red",
    "impossible": "bold red",
}


def render_text(result: Transfer | Match | Report) -> str:
    """Return the report of result as plain text."""
    report = result if isinstance(result, Report) else build_report(result)
    return "\n".join(line.plain.rstrip() for line in _lines(report)) + "\n"


def print_report(console: Console, result: Transfer | Match | Report) -> None:
    """Print the report of result to console, in colour where it has colour."""
    report = result if isinstance(result, Report) else build_report(result)
    for line in _lines(report):
        console.print(line, soft_wrap=True, highlight=False)


def print_findings(console: Console, report: Report) -> None:
    """Print only the findings, the verdict and what to do next."""
    for line in _joined([_findings(report.findings), _verdict(report)]):
        console.print(line, soft_wrap=True, highlight=False)


def _lines(report: Report) -> Iterator[Text]:
    title = Text.assemble(("automap", "bold"), f"  {report.src.model} -> {report.dest.model}")
    parts = [
        [title],
        _captures(report),
        [_head("weights"), *(line for stage in report.stages for line in _stage(stage, _widths(report)))],
        _leftovers(report),
        _findings(report.findings),
        _parity(report.parity, report.op_parity),
        _verdict(report),
    ]
    return _joined(parts)


def _joined(parts: Iterable[Sequence[Text]]) -> Iterator[Text]:
    """Yield the lines of all parts with an empty line between them, and nothing in them that moves the cursor."""
    for number, part in enumerate(part for part in parts if part):
        if number:
            yield Text()
        for line in part:
            line.plain = visible(line.plain)
            yield line


def _captures(report: Report) -> list[Text]:
    width = max(cell_len(report.src.model), cell_len(report.dest.model))
    lines = [_capture("src ", report.src, width), _capture("dest", report.dest, width)]
    sides = (("src", report.src), ("dest", report.dest))
    notes = [*report.notes, *(f"{side}: {note}" for side, capture in sides for note in capture.notes)]
    return [_head("captured"), *lines, *(Text(f"  note: {note}") for note in notes)]


def _capture(side: str, capture: CaptureSummary, width: int) -> Text:
    size = f"{capture.weight_count} weights ({format_bytes(capture.weight_size_bytes)})"
    how = f"{capture.method} over {capture.mode} tensors, {capture.elapsed_s:.2f} s"
    return Text.assemble(f"  {side}  {_pad(capture.model, width)}  {capture.op_count} ops, {size}; ", (how, "dim"))


def _widths(report: Report) -> tuple[int, int, int]:
    rows = [(stage, row) for stage in report.stages for row in stage.rows]
    names = [cell_len(_inside(stage, row)) for stage, row in rows]
    return (
        min(max(names, default=0), _WIDEST),
        max((len(row.size) for _, row in rows), default=0),
        min(max((cell_len(row.expression) for _, row in rows), default=0), _WIDEST),
    )


def _stage(stage: Stage, widths: tuple[int, int, int]) -> list[Text]:
    indices = (f"   for {stage.indices}", "dim") if stage.indices else ""
    head = [Text.assemble("  ", (stage.name, "bold"), indices)] if stage.name or stage.indices else []
    return [*head, *(_row(stage, row, widths) for row in stage.rows)]


def _row(stage: Stage, row: Row, widths: tuple[int, int, int]) -> Text:
    name, size, expression = widths
    start = f"  {_pad(_inside(stage, row), name)}  {row.size:{size}}  "
    return Text.assemble(
        start, ("<- ", "dim"), f"{_pad(row.expression, expression)}  ", (row.evidence, _STYLES[row.evidence])
    )


def _inside(stage: Stage, row: Row) -> str:
    return f"  {row.dest.removeprefix(f'{stage.name}.')}" if stage.name else row.dest


def _leftovers(report: Report) -> list[Text]:
    lists = (
        ("missing in dest (nothing found for it)", report.missing),
        ("unused in src (nothing in dest takes it)", report.unused),
        ("kept in dest (no weight of src belongs there)", report.kept),
        ("assumed (by name and shape alone, or no equal output depends on it)", report.assumed),
    )
    return [
        line for title, names in lists if names.count for line in (_head(f"{title}: {names.count}"), *_names(names))
    ]


def _names(names: Names) -> list[Text]:
    shown = [Text(f"  {text}") for text in names.texts[:_MOST_NAMES]]
    rest = len(names.texts) - len(shown)
    return [*shown, Text(f"  ... and {rest} more")] if rest else shown


def _findings(findings: Sequence[FoldedFinding]) -> list[Text]:
    lines = [line for folded in findings[:_MOST_FINDINGS] for line in (*_finding(folded), Text())]
    rest = len(findings) - _MOST_FINDINGS
    if rest > 0:
        return [*lines, Text(f"... and {rest} more findings; all of them are in the JSON report")]
    return lines[:-1]


def _finding(folded: FoldedFinding) -> list[Text]:
    finding = folded.finding
    head = Text.assemble((f"{finding.severity}[{finding.code}]", _STYLES[finding.severity]), f": {finding.message}")
    same = (f"same for {', '.join(folded.same[:4])}",) if folded.same else ()
    more = (f"and {len(folded.same) - 4} more groups of the same kind",) if len(folded.same) > 4 else ()
    notes = [Text(f"   = note: {note}") for note in (*finding.notes, *same, *more)]
    advice = [Text.assemble("   = ", ("help", "bold"), f": {finding.help}")] if finding.help else []
    return [head, *_sites(finding), *notes, *advice]


def _sites(finding: Finding) -> list[Text]:
    sites = [(side, site) for side, site in (("dest", finding.dest), ("src ", finding.src)) if site is not None]
    cells = [_site_cells(site) for _, site in sites]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for (side, _), row in zip(sites, cells, strict=True):
        words = "  ".join(_pad(cell, width) for cell, width in zip(row, widths, strict=True) if width)
        lines.append(Text.assemble(("  --> ", "bold blue"), f"{side}  {words}".rstrip()))
    return lines


def _site_cells(site: Site) -> tuple[str, str, str, str]:
    kind = f" ({site.kind})" if site.kind and site.kind != "weight" else ""
    size = short_size(site.dtype, site.shape) if site.shape is not None else ""
    return f"{site.name}{kind}", size, f"{site.file}:{site.line}" if site.file else "", site.code.strip()


def _parity(parity: Parity | None, ops: Sequence[OpParity]) -> list[Text]:
    if parity is None:
        return [_head("parity"), *_ops(ops)] if ops else []
    lines = [_output(check, output) for check in parity.checks for output in check.outputs]
    if parity.input_sensitivity is not None:
        lines.append(Text(f"  another input changes the outputs by {parity.input_sensitivity:.1e} (relative)"))
    if parity.swaps_tried:
        lines.append(Text(f"  {parity.swaps_caught} of {parity.swaps_tried} wrong maps tried were told apart"))
        lines += [Text(f"    not told apart: {missed}") for missed in parity.swaps_missed[:_MOST_MISSED]]
    if parity.unverifiable:
        names = fold_text(parity.unverifiable)
        lines.append(Text(f"  no compared output depends on {_count(len(parity.unverifiable), 'weight')}: {names}"))
    lines += [Text(f"  note: {note}") for note in parity.notes]
    return [_head("parity"), *(lines or [Text("  nothing could be compared")]), *_ops(ops)]


def _ops(ops: Sequence[OpParity]) -> list[Text]:
    """Say how many ops were compared, and the first that differs or else the one that comes nearest to it."""
    if not ops:
        return []
    first = next((op for op in ops if not op.is_equal), None)
    shown, what = (first, "the first that differs") if first else (farthest(ops), "the largest difference")
    figures = f"max abs {shown.max_abs:.1e}, max rel {shown.max_rel:.1e}"
    return [Text(f"  {_count(len(ops), 'op')} compared one by one; {what}: {_site_cells(shown.dest)[0]}, {figures}")]


def fold_text(names: Sequence[str]) -> str:
    """Return names folded, in one line, the first few of them."""
    texts = fold_names(names).texts
    return ", ".join(texts[:4]) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")


def _output(check: ParityCheck, output: OutputParity) -> Text:
    paths = dict.fromkeys((output.src_path or "output", output.dest_path or "output"))
    size = short_size(output.dtype, output.shape)
    word = "equal" if output.is_equal else "differs"
    figures = f"max abs {output.max_abs:.1e}, max rel {output.max_rel:.1e}, tolerance {output.tolerance:.0e}"
    what = f"{check.weights} weights, {check.inputs} input"
    return Text.assemble(f"  {what:29} {' / '.join(paths)} {size}  {figures}  ", (word, _STYLES[word]))


def _verdict(report: Report) -> list[Text]:
    counts = ", ".join(f"{count} {how}" for how, count in report.evidence.items())
    total = sum(report.evidence.values())
    outputs = {True: ", outputs equal", False: ", outputs differ", None: ""}[report.is_equal]
    line = Text.assemble(("verdict", "bold"), ": ", (report.verdict, _STYLES[report.verdict]), outputs)
    lines = [line, Text(f"  {_count(total, 'weight')} of dest: {counts}")] if total else [line]
    if not report.is_applied and report.is_equal is not None:
        lines.append(Text("  dest was not changed"))
    return [*lines, *(Text(f"  next: {step}") for step in report.next_steps)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _pad(text: str, width: int) -> str:
    """Return text filled up with spaces to a width in cells, of which some characters take two."""
    return text + " " * (width - cell_len(text))


def _head(text: str) -> Text:
    return Text(text, style="bold")
