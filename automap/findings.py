"""Findings: what is different, missing or undecided between two models, in the user's own terms.

A finding is plain data. Where it points at an op or a weight it holds a Site: the name, shape and dtype, and the line
of the user's code that ran it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
Code = Literal[
    "unmatched-weight",
    "unused-source",
    "shape-differs",
    "attribute-differs",
    "constant-differs",
    "op-missing",
    "op-extra",
    "rewired",
    "output-differs",
    "output-extra",
    "not-executed",
    "no-effect",
    "zero-filled",
    "neutral-filled",
    "computed",
    "ambiguous",
    "input-coincidence",
    "weight-differs",
]


@dataclass(frozen=True, slots=True)
class Site:
    """A place in one model: a weight or an op.

    `name` is a state-dict name or a module path; `kind` the op or "weight"; `shape` and `dtype` those of the tensor
    there; `file`, `line` and `code` the user's own source line that ran it, where there is one.
    """

    name: str
    kind: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    file: str = ""
    line: int = 0
    code: str = ""

    def __str__(self) -> str:
        where = f" {self.file}:{self.line}" if self.file else ""
        size = f" {self.dtype}{list(self.shape)}" if self.shape is not None else ""
        return f"{self.name}{f' ({self.kind})' if self.kind else ''}{size}{where}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference or doubt: one root cause, one finding.

    `message` stands alone. `notes` are facts, `help` is the only advice.
    """

    code: Code
    message: str
    src: Site | None = None
    dest: Site | None = None
    severity: Severity = "error"
    notes: tuple[str, ...] = ()
    help: str | None = None
