"""What the stages hand to the user: Match (nothing applied yet) and Transfer (weights placed and verified)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from automap.findings import Finding, Site
from automap.plan import Plan

#: outputs that change relatively less than this under another input do not depend on it
NO_POWER = 1e-13
#: findings that stand whatever the outputs say: some numbers are not the same
_NUMBERS = {"weight-differs", "attribute-differs", "constant-differs"}
Verdict = Literal["complete", "differs", "ambiguous", "impossible"]
Evidence = Literal["proved", "aligned", "tested", "assumed"]


@dataclass(frozen=True, slots=True)
class CaptureSummary:
    """What was recorded of one model: `op_count` ATen calls by `method`, over `mode` tensors, in `elapsed_s` seconds.

    `notes` are facts about the recording, such as buffers that the forward changes.
    """

    model: str
    method: str
    mode: str
    op_count: int
    weight_count: int
    weight_size_bytes: int
    elapsed_s: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class Match:
    """The weights of dest as expressions over src's, with what was found on the way.

    `evidence` maps each dest name in the plan to how sure its expression is; `unused` are src names nothing takes;
    `kept` are dest names that the plan leaves as they are (constants, counters, weights without effect), `missing`
    those that run and have no expression.
    """

    plan: Plan
    findings: tuple[Finding, ...]
    verdict: Verdict
    evidence: Mapping[str, Evidence]
    src_capture: CaptureSummary
    dest_capture: CaptureSummary
    unused: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    timings_s: Mapping[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every dest weight that runs has an expression and both sides compute the same."""
        return self.verdict == "complete"

    def __repr__(self) -> str:
        return f"<Match: {self.verdict}, {_in_short(self, self.evidence)}>"

    def _repr_html_(self) -> str:
        from automap.report import notebook_html

        return notebook_html(self)


@dataclass(frozen=True, slots=True)
class OutputParity:
    """Two outputs compared: largest absolute and relative difference, and the tolerance (relative) it was held to."""

    src_path: str
    dest_path: str
    shape: tuple[int, ...]
    dtype: str
    max_abs: float
    max_rel: float
    tolerance: float

    @property
    def is_equal(self) -> bool:
        """Whether the difference is within tolerance (never true for NaN)."""
        return self.max_rel <= self.tolerance


@dataclass(frozen=True, slots=True)
class ParityCheck:
    """One run of both models with the same input: what weights ("random" or "own"), what input, what came out."""

    weights: Literal["random", "own"]
    inputs: Literal["sample", "random"]
    outputs: tuple[OutputParity, ...]

    @property
    def is_equal(self) -> bool:
        """Whether there was something to compare and all of it agrees."""
        return bool(self.outputs) and all(output.is_equal for output in self.outputs)


@dataclass(frozen=True, slots=True)
class Parity:
    """All checks of one verification, the names of weights that no compared output depends on, and the test's power.

    `input_sensitivity` is the relative change of the outputs when the input is drawn anew, to first order; a value near
    zero means that the comparison could not have failed. `swaps_tried` wrong maps were made by exchanging weights,
    parts or rows in the right one; `swaps_caught` of them change the outputs, `swaps_missed` names the others (at most
    50). `notes` say what was left out.
    """

    checks: tuple[ParityCheck, ...]
    unverifiable: tuple[str, ...] = ()
    input_sensitivity: float | None = None
    swaps_tried: int = 0
    swaps_caught: int = 0
    swaps_missed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether every check was made and agrees, and could have failed."""
        return bool(self.checks) and not self.is_powerless and all(check.is_equal for check in self.checks)

    @property
    def is_powerless(self) -> bool:
        """Whether the outputs do not depend on the input, so that comparing them proves nothing."""
        return self.input_sensitivity is not None and self.input_sensitivity < NO_POWER


@dataclass(frozen=True, slots=True, repr=False)
class Transfer:
    """A match whose weights were placed in dest (unless refused), and the proof.

    `op_parity` compares aligned ops on the values of the match, in the order in which dest runs them.
    """

    match: Match
    parity: Parity | None
    evidence: Mapping[str, Evidence]
    is_applied: bool
    tolerance: float
    timings_s: Mapping[str, float] = field(default_factory=dict)
    op_parity: tuple[OpParity, ...] = ()

    @property
    def plan(self) -> Plan:
        """The match's plan."""
        return self.match.plan

    @property
    def is_equal(self) -> bool:
        """Whether the weights were placed and all compared outputs agree."""
        return self.is_applied and self.parity is not None and self.parity.is_equal

    @property
    def report(self) -> str:
        """The terminal report as plain text."""
        from automap.report import render_text

        return render_text(self)

    def __repr__(self) -> str:
        compared = {True: "outputs equal, ", False: "outputs differ, "}
        outputs = compared[self.parity.is_equal] if self.parity is not None else "nothing compared, "
        placed = "" if self.is_applied else "dest not changed, "
        return f"<Transfer: {self.match.verdict}, {outputs}{placed}{_in_short(self.match, self.evidence)}>"

    def _repr_html_(self) -> str:
        from automap.report import notebook_html

        return notebook_html(self)


def _in_short(match: Match, evidence: Mapping[str, Evidence]) -> str:
    """How many weights of each evidence and how many findings there are, and the two models."""
    weights = f"{_counts(evidence.values())} of {len(evidence)} dest weights" if evidence else "no dest weights"
    findings = _counts(finding.severity for finding in match.findings)
    models = f"{match.src_capture.model} -> {match.dest_capture.model}"
    return f"{weights}, findings: {findings or 'none'}, {models}"


def _counts(words: Iterable[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in Counter(words).items())


@dataclass(frozen=True, slots=True)
class Gap:
    """How far an op of dest is from src's on the same values: the largest difference, also beside the largest value.

    `where` is the index of that difference in dest's layout, `src_value` and `dest_value` are the two numbers there.
    `at` names the module whose input was compared, where it is not the op's own result that was.
    """

    max_abs: float
    max_rel: float
    where: tuple[int, ...]
    src_value: float
    dest_value: float
    at: str = ""


@dataclass(frozen=True, slots=True)
class OpParity:
    """How far one op of dest is from its src twin on the same values; `tolerance` is relative."""

    dest: Site
    src: Site
    max_abs: float
    max_rel: float
    tolerance: float = math.inf

    @property
    def is_equal(self) -> bool:
        """Whether the difference is within tolerance (never true for NaN)."""
        return self.max_rel <= self.tolerance


@dataclass(frozen=True, slots=True)
class Departure:
    """A place where dest leaves src, dest's op being given src's own values.

    `finding` is the cause with both places, `gap` how far the results are apart (None where they have different
    shapes). `same` are the other places, folded, of which the same is true; `count` tells how many there are in all.
    """

    finding: Finding
    gap: Gap | None = None
    same: tuple[str, ...] = ()
    count: int = 1


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why dest does not compute what src computes: every place where it departs, in dest's order.

    `match` is what was matched without regard to the weights in dest; where `is_loaded`, these are compared with what
    the match makes of src's, and `outputs` are those of both models as they are. `op_parity` compares aligned ops, and
    `notes` say what could not be looked at.
    """

    match: Match
    departures: tuple[Departure, ...]
    outputs: tuple[OutputParity, ...] = ()
    op_parity: tuple[OpParity, ...] = ()
    is_loaded: bool = False
    is_training: bool = False
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Departure | None:
        """The first op that departs, or None."""
        return self.departures[0] if self.departures else None

    @property
    def is_equal(self) -> bool:
        """Whether dest computes what src computes, as far as was looked at: no departure matters, all outputs agree.

        Where outputs agree with the weights that dest has, ops that are spelled differently do not matter; numbers do.
        """
        wrong = {departure.finding.code for departure in self.departures if departure.finding.severity == "error"}
        agree = all(output.is_equal for output in self.outputs)
        if self.is_loaded and self.outputs:
            return agree and wrong.isdisjoint(_NUMBERS)
        return agree and not wrong and self.match.is_complete

    @property
    def text(self) -> str:
        """The explanation as plain text."""
        from automap.explanation.text import render

        return render(self)

    def __str__(self) -> str:
        return self.text
