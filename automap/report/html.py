"""The report as one self-contained HTML page, and as a fragment for notebooks.

The page has no address in it and loads nothing; its one script filters the weights, and everything can be read without
it. All text is escaped. Two runs of one command give one page: no times, no absolute paths, nothing of the environment.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from automap.inputs import short_size
from automap.report.blocks import blocks_of, part_of
from automap.report.chart import TICKS, check_chart, op_chart
from automap.report.model import EVIDENCE, Report, build_report, format_bytes
from automap.report.visible import visible, without_places

if TYPE_CHECKING:
    from automap.results import Match, Transfer

_MOST_IN_NOTEBOOK = 20

_SUMMARIES: Mapping[tuple[str, bool | None], str] = {
    ("complete", True): "Every weight of dest that runs has its source in src, and both models give the same outputs.",
    ("complete", None): "Every weight of dest that runs has its source in src, and both sides compute the same. "
    "No outputs have been compared yet.",
    ("complete", False): "Every weight has its source and the computations look the same, but the outputs differ.",
}
_OTHER_SUMMARIES: Mapping[str, str] = {
    "complete": "Every weight of dest that runs has its source in src.",
    "differs": "Every weight of dest that runs has its source in src, but something other than weights differs.",
    "ambiguous": "The evidence leaves more than one map from src to dest.",
    "impossible": "Some weight of dest that runs has no source in src.",
}
_MEANINGS: Mapping[str, str] = {
    "proved": "its whole computation is equal on both sides",
    "tested": "outputs that depend on it are equal",
    "aligned": "found from the computation, not verified",
    "assumed": "by name and shape alone, or no equal output depends on it",
}


def report_html(result: Transfer | Match | Report, *, notes: Sequence[str] = ()) -> str:
    """Return the report of result as one HTML page.

    Args:
        result: what `match` or `transfer` gave, or a report made of it.
        notes: facts from before it; a Report has its own.
    """
    report = result if isinstance(result, Report) else build_report(result, notes=notes)
    environment = _environment()
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html")
    return page.render(_values(report), style=Markup(_asset("page.css")), script=Markup(script), digest=digest)


def notebook_html(result: Transfer | Match) -> str:
    """Return the report of result as a fragment: verdict, findings, parity and the first rules; no script."""
    report = build_report(result)
    page = _environment().get_template("notebook.html")
    return page.render(_values(report), style=Markup(_asset("page.css")), limit=_MOST_IN_NOTEBOOK)


def summary_of(report: Report) -> str:
    """Return what the verdict means, as a sentence."""
    return _SUMMARIES.get((report.verdict, report.is_equal), _OTHER_SUMMARIES[report.verdict])


def _values(report: Report) -> dict[str, object]:
    return {
        "report": report,
        "summary": summary_of(report),
        "blocks": blocks_of(report),
        "checks": [check_chart(check) for check in report.parity.checks] if report.parity is not None else [],
        "ops": op_chart(report.op_parity),
        "mapped": sum(report.evidence.values()),
        "kinds": [(how, report.evidence[how]) for how in EVIDENCE if report.evidence.get(how)],
    }


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("automap.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    environment.filters |= {"prose": prose, "code": _code, "bytes": format_bytes, "figure": _figure, "count": _count}
    environment.filters |= {"indented": _after_part, "breakable": _breakable, "part": part_of, "short_size": _size}
    environment.globals |= {"ticks": TICKS, "meanings": _MEANINGS}
    return environment


@cache
def _asset(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


def _finalized(value: object) -> object:
    """Make every text that a template writes visible; markup is made of such texts already."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def prose(text: str) -> Markup:
    """Return a message with what stands in backticks as code.

    Example:
        >>> prose("nothing computes `<b>`")
        Markup('nothing computes <code>&lt;b&gt;</code>')
    """
    pieces = visible(without_places(text)).split("`")
    if len(pieces) % 2 == 0:  # a backtick without its twin is one
        pieces[-2:] = [f"{pieces[-2]}`{pieces[-1]}"]
    marked = [_ticked(text) if at % 2 else escape(text) for at, text in enumerate(pieces)]
    return Markup("").join(marked)


def _ticked(text: str) -> Markup:
    return Markup("<code>{}</code>").format(_breakable(text))


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after a dot."""
    return Markup(".<wbr>").join(escape(part) for part in visible(name).split("."))


def _code(text: str) -> str:
    """A line of source code without its indentation."""
    return without_places(text.strip())


def _after_part(name: str, part: str) -> Markup:
    """A name with the part of the model it is in set back."""
    rest = name.removeprefix(f"{part}.") if part else name
    if rest == name:
        return escape(visible(name))
    return Markup("<i>{}.</i>{}").format(visible(part), visible(rest))


def _figure(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(site_or_output: object) -> str:
    """The dtype and shape of whatever has both, "" without a shape."""
    shape, dtype = getattr(site_or_output, "shape", None), getattr(site_or_output, "dtype", "")
    return short_size(dtype, shape) if shape is not None else ""
