"""From an alignment to a plan: element numbers become expressions, weights that never ran are matched last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from automap.align.assignment import ONE, UNKNOWN, ZERO
from automap.align.solve import Solution
from automap.alternatives import alternatives
from automap.capture import Weight
from automap.computed import computed_expr, replaced
from automap.errors import PlanError
from automap.plan import (
    Cast,
    ElementMap,
    Expr,
    Fill,
    Plan,
    Reshape,
    Source,
    SourceTensor,
    build_expr,
    dtype_of,
    evaluate,
    format_expr,
    is_computed,
    shape_of,
    simplify,
    sources_of,
)  # fmt: skip
from automap.results import Evidence


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan with the evidence for each of its names, and what it leaves alone on both sides.

    `partly` are weights of which the sample reads some elements only: name, how many it does not read, how many of
    those src has nothing for. `missing` are dest weights that reach a compared output and have no source, `idle` those
    that reach none, `own` buffers that outputs agree with as they are, `uncomputed` weights with the formula that they
    would take, `unwritten` those with one that no plan can hold, with the reason, `doubtful` those of which the order
    of some elements is a guess: name, how many, and the other orders in words.
    """

    plan: Plan
    evidence: Mapping[str, Evidence]
    missing: tuple[str, ...]
    idle: tuple[str, ...]
    unused: tuple[str, ...]
    assumed: tuple[tuple[str, str], ...]
    filled: tuple[tuple[str, float], ...]
    partly: tuple[tuple[str, int, int], ...] = ()
    doubtful: tuple[tuple[str, int, str], ...] = ()
    own: tuple[str, ...] = ()
    uncomputed: tuple[tuple[str, str], ...] = ()
    unwritten: tuple[tuple[str, str], ...] = ()

    @property
    def computed(self) -> tuple[str, ...]:
        """The dest weights that are arithmetic on src's, by their first names."""
        shown: dict[Expr, str] = {}
        for name, expr in self.plan.entries.items():
            if is_computed(expr):
                shown.setdefault(expr, name)
        return tuple(shown.values())


def draft_plan(solution: Solution, reached: set[int]) -> Draft:
    """Return the plan of a solution; reached are the dest nodes behind the outputs that agree."""
    books = _Books(solution)
    missing: list[str] = []
    idle: list[str] = []
    own: list[str] = []
    for leaf, weight in solution.dest.flow.weights.items():
        whole = solution.outcome.assignment.whole.get(leaf)
        if whole is not None:
            books.enter_whole(weight, whole, "proved" if leaf in reached else "aligned")
            continue
        ids = solution.outcome.assignment.ids[leaf]
        if leaf in solution.outcome.assignment.own:
            own.append(weight.name)
            continue
        is_unknown = ids < 0 if leaf not in reached else ids == UNKNOWN  # what fills nothing in sight is no finding
        if leaf not in reached and bool(is_unknown.all()):
            (missing if _is_wanted(solution, leaf) else idle).append(weight.name)
        elif bool(is_unknown.all()):
            missing.append(weight.name)
        else:
            doubts = solution.outcome.assignment.doubts.get(leaf)
            books.enter(weight, ids.view(weight.tensor.shape), "proved" if leaf in reached else "aligned", doubts)
    running = {w.name for w in solution.dest.flow.weights.values()}
    fixed = {w.name for w in solution.dest_capture.weights.values()} - running
    silent = [w for w in solution.dest_capture.all_weights if w.name not in running and w.name not in fixed]
    assumed = books.guess([*silent, *(w for w in solution.dest.flow.weights.values() if w.name in idle)])
    guessed = {name for name, _ in assumed}
    kept = tuple(name for name in dict.fromkeys([*idle, *(w.name for w in silent)]) if name not in guessed)
    plan = Plan(books.entries, solution.src_capture.model_name, solution.dest_capture.model_name)
    return Draft(
        plan,
        books.evidence,
        (*missing, *books.unwritten),
        kept,
        books.unused(),
        assumed,
        tuple(books.filled),
        tuple(books.partly),
        tuple(books.doubtful),
        tuple(own),
        unwritten=tuple(books.unwritten.items()),
    )


def without_arithmetic(draft: Draft) -> Draft:
    """Return a draft that only moves: what would have to be computed is missing, and said to be."""
    refused = {name: expr for name, expr in draft.plan.entries.items() if is_computed(expr)}
    if not refused:
        return draft
    plan = Plan({n: e for n, e in draft.plan.entries.items() if n not in refused}, draft.plan.src, draft.plan.dest)
    evidence = {name: kind for name, kind in draft.evidence.items() if name not in refused}
    wanted = tuple((name, format_expr(refused[name])) for name in draft.computed)
    return replace(draft, plan=plan, evidence=evidence, missing=(*draft.missing, *refused), uncomputed=wanted)


def _is_wanted(solution: Solution, leaf: int) -> bool:
    """Whether an undecided weight stands behind an output that no src output accounts for."""
    return any(stop.reason != "output" for stop in solution.outcome.stops) and not solution.outcome.matched_outputs


class _Books:
    """Collects the entries of a plan."""

    def __init__(self, solution: Solution) -> None:
        self.solution = solution
        self.entries: dict[str, Expr] = {}
        self.evidence: dict[str, Evidence] = {}
        self.filled: list[tuple[str, float]] = []
        self.formulas: dict[str, Expr] = {}
        self.without_formula: dict[str, str] = {}
        self.unwritten: dict[str, str] = {}
        self.held: set[str] = set()
        self.sources = {i: self._source(i, offset) for i, offset in solution.src.numbering.offsets.items()}
        self.used: set[str] = set()
        self.partly: list[tuple[str, int, int]] = []
        self.doubtful: list[tuple[str, int, str]] = []

    def _source(self, index: int, offset: int) -> SourceTensor:
        """A stored src tensor, or a value computed from some, which stands for its formula."""
        weight = self.solution.src.flow.weights.get(index)
        if weight is not None:
            return SourceTensor(weight.name, tuple(weight.tensor.shape), _dtype(weight.tensor), offset)
        try:
            formula = computed_expr(self.solution.src, index)
        except PlanError as problem:
            self.without_formula[f"%{index}"] = str(problem)
            formula = Fill(math.nan, self.solution.src.flow[index].shape)
        self.formulas[f"%{index}"] = formula
        return SourceTensor(f"%{index}", shape_of(formula), dtype_of(formula), offset)

    def enter_whole(self, weight: Weight, leaf: int, evidence: Evidence) -> None:
        """Add the entries of a dest weight that is one src weight, in another shape perhaps."""
        source = self.sources[leaf]
        shape = tuple(weight.tensor.shape)
        expr: Expr = Source(source.name, source.shape, source.dtype)
        expr = expr if source.shape == shape else Reshape(expr, shape)
        expr = expr if source.dtype == _dtype(weight.tensor) else Cast(expr, _dtype(weight.tensor))
        self.used.add(source.name)
        for name in weight.in_state:
            self.entries[name], self.evidence[name] = expr, evidence

    def enter(self, weight: Weight, ids: Tensor, evidence: Evidence, doubts: Tensor | None = None) -> None:
        """Add the entries of one dest weight, under each of its names.

        What is in doubt goes on as what is known does; where that cannot be told, the weight is assumed.
        """
        if doubts is not None and bool(doubts.any()):
            sure = torch.where(doubts.view(ids.shape), torch.full_like(ids, UNKNOWN), ids)
            going_on = extended(sure, list(self.sources.values()))
            is_open = going_on == UNKNOWN
            evidence = "assumed" if bool(is_open.any()) else evidence
            if bool(is_open.any()):
                self.doubtful.append((weight.name, int(is_open.sum()), alternatives(is_open)))
            ids = torch.where(is_open, ids, going_on)
        is_blind = ids == UNKNOWN
        if bool(is_blind.any()):
            ids = extended(ids, list(self.sources.values()))
            self.partly.append((weight.name, int(is_blind.sum()), int((ids == UNKNOWN).sum())))
        ids = torch.where(ids == UNKNOWN, ZERO, ids)
        fill = int(ids.reshape(-1)[0]) if ids.numel() else 0
        if fill < 0 and bool((ids == fill).all()):
            self.filled.append((weight.name, self.solution.outcome.assignment.fills[-1 - fill]))
        touched = self._touched(ids) if self.formulas else ()
        reasons = [reason for s in touched if (reason := self._unwritten_because(s.name)) is not None]
        if reasons:
            self.unwritten |= dict.fromkeys(weight.in_state, reasons[0])
            return
        expr = self._expression(weight, ids)
        for name in weight.in_state:
            self.entries[name] = expr
            self.evidence[name] = evidence

    def _unwritten_because(self, name: str) -> str | None:
        """Why a computed value cannot be written down; what is written is held to the value that src has."""
        if name in self.formulas and name not in self.held:
            self.held.add(name)
            if name not in self.without_formula and not self._is_right(int(name.removeprefix("%"))):
                self.without_formula[name] = f"`{format_expr(self.formulas[name])}` is not what src computes"
        return self.without_formula.get(name)

    def _is_right(self, index: int) -> bool:
        src, formula = self.solution.src, self.formulas[f"%{index}"]
        leaves = {weight.name: leaf for leaf, weight in src.flow.weights.items()}
        state = {s.name: src.run.weights[leaves[s.name]] for s in sources_of(formula)}
        wide = {s.name: replace(s, dtype=_dtype(state[s.name])) for s in sources_of(formula)}
        found = evaluate(replaced(formula, wide), state)
        value = src.run.value(index)
        return torch.allclose(found.to(value.dtype), value, rtol=1e-7, atol=1e-9 * float(value.abs().max()))

    def _touched(self, ids: Tensor) -> tuple[SourceTensor, ...]:
        """The sources that element numbers belong to."""
        numbering = self.solution.src.numbering
        return tuple(self.sources[numbering.leaves[owner]] for owner in numbering.owners(ids)[1] if owner >= 0)

    def _expression(self, weight: Weight, ids: Tensor) -> Expr:
        shape, dtype = tuple(weight.tensor.shape), _dtype(weight.tensor)
        fills = tuple(self.solution.outcome.assignment.fills[1:]) if int(ids.min()) <= ONE else ()
        expr = simplify(replaced(build_expr(ElementMap(shape, dtype, ids, self._touched(ids), fills)), self.formulas))
        self.used |= {s.name for s in sources_of(expr)}
        return expr

    def guess(self, weights: list[Weight]) -> tuple[tuple[str, str], ...]:
        """Match weights that no compared output depends on by name and shape alone: only where one src weight fits."""
        found = []
        free = [w for w in self.solution.src_capture.all_weights if w.name not in self.used]
        for weight in weights:
            last = weight.name.rsplit(".", 2)[-2:]
            alike = [
                w for w in free if w.tensor.shape == weight.tensor.shape and _endings(w.name, weight.name) >= len(last)
            ]
            alike = alike or [
                w for w in free if w.tensor.shape == weight.tensor.shape and _endings(w.name, weight.name) >= 1
            ]
            if len(alike) == 1 and weight.in_state and alike[0].in_state:
                expr = Source(alike[0].name, tuple(alike[0].tensor.shape), _dtype(alike[0].tensor))
                self.used.add(alike[0].name)
                for name in weight.in_state:
                    self.entries[name], self.evidence[name] = expr, "assumed"
                found.append((weight.name, alike[0].name))
        return tuple(found)

    def unused(self) -> tuple[str, ...]:
        """The src weights that nothing takes."""
        return tuple(w.name for w in self.solution.src_capture.all_weights if w.name not in self.used)


def extended(ids: Tensor, sources: list[SourceTensor]) -> Tensor:
    """Return ids with unknown elements filled in as the known ones go on: rows of a table that the sample does not
    read.

    The known ones must lie in one source at regular steps along every dim; where they do not, unknown stays unknown.
    """
    known = ids >= 0
    if not bool(known.any()):
        return ids
    first = int(ids[known][0])
    source = next(s for s in sources if s.offset <= first < s.offset + _size(s.shape))
    places, values = torch.nonzero(known), ids[known] - source.offset
    steps = _steps(places, values, ids.shape, source.shape)
    if steps is None:
        return ids
    strides, start = steps
    everywhere = torch.nonzero(torch.ones_like(known))
    guess = (everywhere @ strides + start).view(ids.shape)
    fits = (guess >= 0) & (guess < _size(source.shape)) & (ids == UNKNOWN)
    taken = set(values.tolist()) if len(values) < 100_000 else set()
    fits &= torch.tensor([g not in taken for g in guess.reshape(-1).tolist()]).view(ids.shape) if taken else fits
    return torch.where(fits, guess + source.offset, ids)


def _steps(places: Tensor, values: Tensor, shape: torch.Size, source: tuple[int, ...]) -> tuple[Tensor, int] | None:
    """The step in a source for one step along each dim, and where it starts; None where there are no such steps."""
    natural = [
        _size(source[d + 1 :]) if len(source) == len(shape) else _size(tuple(shape)[d + 1 :]) for d in range(len(shape))
    ]
    moves = [d for d in range(len(shape)) if bool((places[:, d] != places[0, d]).any())]
    sample = torch.linspace(0, len(places) - 1, min(len(places), 4096)).long()
    system = torch.cat([places[sample][:, moves].double(), torch.ones(len(sample), 1, dtype=torch.float64)], 1)
    solved = (
        torch.linalg.lstsq(system, values[sample].double().unsqueeze(1), driver="gelsd")
        .solution.squeeze(1)
        .round()
        .long()
    )
    strides = torch.tensor(natural)
    for position, dim in enumerate(moves):
        strides[dim] = solved[position]
    start = int(values[0] - places[0] @ strides)
    return (strides, start) if torch.equal(places @ strides + start, values) else None


def _endings(a: str, b: str) -> int:
    """How many dotted components two names end with in common."""
    count = 0
    for x, y in zip(reversed(a.split(".")), reversed(b.split(".")), strict=False):
        if x != y:
            break
        count += 1
    return count


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
