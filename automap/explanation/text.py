"""An explanation as plain text: the findings with what was measured, and the verdict."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from automap.findings import Finding
from automap.results import Departure, Explanation, Gap, Match

if TYPE_CHECKING:
    from rich.console import Console


def as_findings(explanation: Explanation) -> Match:
    """Return the match with the departures as its findings, the first that matters first; others follow them."""
    found = [_noted(departure) for departure in explanation.departures]
    return replace(explanation.match, findings=(*found, *_others(explanation)))


def _noted(departure: Departure) -> Finding:
    finding = departure.finding
    notes = [_measured(departure.gap)] if departure.gap is not None else []
    more = len(departure.same) - 4
    rest = f" and {more} more groups of the same kind" if more > 0 else ""
    notes += [f"same for {', '.join(departure.same[:4])}{rest}"] if departure.same else []
    return replace(finding, notes=(*notes, *finding.notes))


def _measured(gap: Gap) -> str:
    values = f"{gap.src_value:.7g} in src, {gap.dest_value:.7g} in dest"
    place = f" at {list(gap.where)}" if gap.where else ""
    size = f"{gap.max_abs:.1e} ({gap.max_rel:.1e} of the largest)"
    what = f"what `{gap.at}` reads" if gap.at else "the result"
    return f"on src's own values {what} is off by {size}{place}: {values}"


def _others(explanation: Explanation) -> tuple[Finding, ...]:
    """The findings of the match that no departure stands for: those that are about no op, if there are departures."""
    known = {departure.finding.message for departure in explanation.departures}
    has_error = any(departure.finding.severity == "error" for departure in explanation.departures)
    return tuple(
        finding
        for finding in explanation.match.findings
        if finding.message not in known and not (has_error and finding.severity == "error")
    )


def render(explanation: Explanation) -> str:
    """Return the explanation as plain text."""
    from rich.console import Console

    text = io.StringIO()
    print_explanation(Console(file=text, color_system=None, width=200), explanation)
    return text.getvalue()


def print_explanation(console: Console, explanation: Explanation, *, notes: Sequence[str] = ()) -> None:
    """Print the explanation: a headline, notes (those given first), findings, verdict."""
    from automap.report import build_report, print_findings

    match = as_findings(explanation)
    head = f"{match.src_capture.model} -> {match.dest_capture.model}: {_headline(explanation)}"
    for line in (head, *(f"note: {note}" for note in (*notes, *explanation.notes)), ""):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    agreed = explanation.is_equal if explanation.outputs else None
    print_findings(console, replace(build_report(match), evidence={}, next_steps=(), is_equal=agreed, is_applied=True))


def _headline(explanation: Explanation) -> str:
    how = " in train mode" if explanation.is_training else ""
    what = "compared as they are" if explanation.is_loaded else "compared on equal weights"
    count = sum(d.count for d in explanation.departures if d.finding.severity == "error")
    found = f"dest leaves src at {count} place{'s' * (count != 1)}" if count else "dest leaves src nowhere"
    if not count and not explanation.is_equal:
        found = "no op shows where dest leaves src"
    differ = [o for o in explanation.outputs if not o.is_equal]
    outputs = f"; {len(differ)} of {len(explanation.outputs)} outputs differ" if differ else ""
    return f"{what}{how}, {found}{outputs}"
