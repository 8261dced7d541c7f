"""The report as JSON, schema "automap-report/1".

    schema       "automap-report/1"; a later number means that a field changed its meaning or went away
    verdict      "complete" | "differs" | "ambiguous" | "impossible"
    is_applied   whether the weights were placed in dest
    is_equal     whether all compared outputs agree; null where nothing was compared
    captures     {"src": ..., "dest": ...}: model, method, mode, op_count, weight_count, weight_size_bytes, notes
    weights      [{"dest", "shape", "dtype", "expression", "evidence"}]: one entry for each weight of dest, not folded;
                 the expression is for people, the complete one is in the plan
    unused, kept, missing   names of src that nothing takes; of dest that stay as they are, and without an expression
    findings     [{"code", "severity", "message", "notes", "help", "src", "dest"}], not folded; a side is null or
                 {"name", "kind", "shape", "dtype", "file", "line", "code"}
    parity       null or {"checks": [{"weights", "inputs", "is_equal", "outputs": [...]}], "unverifiable",
                 "input_sensitivity", "swaps_tried", "swaps_caught"}
    op_parity    [{"dest", "src", "max_abs", "max_rel", "tolerance", "is_equal"}]: aligned ops that were compared one by
                 one, in dest's order; the sides are as in findings
    next_steps, notes   lines for people

Figures that are not finite are written as the strings "nan", "inf" and "-inf". How long things took is left out, so
that two runs of one command give one file. docs/report-format.md says what each field means.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from automap.findings import Finding
from automap.plan import dtype_of, format_expr, shape_of
from automap.report.model import build_report, shorten
from automap.results import CaptureSummary, Match, OpParity, Parity, Transfer

SCHEMA = "automap-report/1"
_SURROGATE = re.compile("[\ud800-\udfff]")


def report_json(result: Transfer | Match, *, notes: Sequence[str] = (), op_parity: Sequence[OpParity] = ()) -> str:
    """Return the report of result as JSON text, ending with a newline."""
    data = report_data(result, notes=notes, op_parity=op_parity)
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # a name may hold one, no encoding does


def report_data(
    result: Transfer | Match, *, notes: Sequence[str] = (), op_parity: Sequence[OpParity] = ()
) -> dict[str, Any]:
    """Return the report of result as plain data in the schema above; the arguments are those of build_report."""
    match = result.match if isinstance(result, Transfer) else result
    report = build_report(result, notes=notes, op_parity=op_parity)
    return {
        "schema": SCHEMA,
        "verdict": report.verdict,
        "is_applied": report.is_applied,
        "is_equal": report.is_equal,
        "captures": {"src": _capture_data(report.src), "dest": _capture_data(report.dest)},
        "weights": [
            {
                "dest": name,
                "shape": list(shape_of(expr)),
                "dtype": dtype_of(expr),
                "expression": format_expr(expr),
                "evidence": result.evidence.get(name, "assumed"),
            }
            for name, expr in match.plan.entries.items()
        ],
        "unused": list(match.unused),
        "kept": list(match.kept),
        "missing": list(match.missing),
        "findings": [_finding_data(finding) for finding in match.findings],
        "parity": _parity_data(report.parity) if report.parity is not None else None,
        "op_parity": [{**_finite(asdict(op)), "is_equal": op.is_equal} for op in report.op_parity],
        "next_steps": list(report.next_steps),
        "notes": list(report.notes),
    }


def _capture_data(capture: CaptureSummary) -> dict[str, Any]:
    data = asdict(capture)
    del data["elapsed_s"]
    data["notes"] = list(capture.notes)
    return data


def _finding_data(finding: Finding) -> dict[str, Any]:
    data: dict[str, Any] = _finite(asdict(shorten(finding)))
    return data


def _parity_data(parity: Parity) -> dict[str, Any]:
    data: dict[str, Any] = _finite(asdict(parity))
    for check, checked in zip(data["checks"], parity.checks, strict=True):
        check["is_equal"] = checked.is_equal
        for output, compared in zip(check["outputs"], checked.outputs, strict=True):
            output["is_equal"] = compared.is_equal
    return data


def _finite(value: Any) -> Any:
    """Return plain data with figures that JSON does not know as strings, and tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
