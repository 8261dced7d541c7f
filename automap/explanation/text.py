"""An explanation as plain text: the findings with what was measured, and the verdict."""

from __future__ import annotations

import io
from dataclasses import replace

from automap.findings import Finding
from automap.results import Departure, Explanation, Gap, Match


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

    from automap.report import build_report, print_findings

    match = as_findings(explanation)
    text = io.StringIO()
    console = Console(file=text, color_system=None, width=200)
    lines = [f"{match.src_capture.model} -> {match.dest_capture.model}: {_headline(explanation)}"]
    lines += [f"note: {note}" for note in explanation.notes]
    agreed = explanation.is_equal if explanation.outputs else None
    report = replace(build_report(match), evidence={}, next_steps=(), is_equal=agreed, is_applied=True)
    print_findings(console, report)
    return "\n".join(lines) + "\n\n" + text.getvalue()


def _headline(explanation: Explanation) -> str:
    how = " in train mode" if explanation.is_training else ""
    what = "compared as they are" if explanation.is_loaded else "compared on equal weights"
    count = sum(d.count for d in explanation.departures if d.finding.severity == "error")
    found = f"dest leaves src at {count} place{'s' * (count != 1)}" if count else "dest leaves src nowhere"
    differ = [o for o in explanation.outputs if not o.is_equal]
    outputs = f"; {len(differ)} of {len(explanation.outputs)} outputs differ" if differ else ""
    return f"{what}{how}, {found}{outputs}"
