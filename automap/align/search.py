"""Walks dest in order, gives every weight the src counterpart that meets the same values, and checks each guess.

What ops alone tell is taken first. Where several counterparts fit, the likest is tried; the guess is confirmed when
what follows is found in src again, and revised, alone or with others still open, when it is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from automap.align.assignment import Assignment
from automap.align.candidates import Candidate, Piece
from automap.align.choices import Choice, Key, Outcome, Stop
from automap.align.counterparts import Counterparts
from automap.align.ends import matched_outputs
from automap.align.forms import ElementForm, LinearForm, addends, element_form
from automap.align.labels import Label
from automap.align.moments import CLOSE, EXACT
from automap.align.outputs import relative_difference
from automap.align.pins import Pin, fits_pins
from automap.align.products import linear_candidates
from automap.align.rests import with_rest
from automap.align.revise import keep_own, mend, settle_early
from automap.align.side import Lookup, Side, Slot, weight_operands
from automap.align.sums import sums_with, tables_of_sum, whole_bias
from automap.align.table import Source
from automap.align.tables import (
    bias_candidates,
    element_candidates,
    elements_among,
    lookup_candidates,
    neutral_candidate,
    slot_candidates,
)
from automap.canonical.evaluate import compute
from automap.canonical.flow import Role
from automap.canonical.rules.layout import MOVES

#: so many ops are computed again in all of a walk before what is open stays open
_WALK = 12_000


@dataclass(slots=True)
class Search:
    """The walk over dest; mutable state of one match."""

    src: Source
    dest: Side
    assignment: Assignment
    pins: tuple[Pin, ...] = ()
    is_algebraic: bool = True
    counterparts: Counterparts | None = None
    choices: dict[Key, Choice] = field(default_factory=dict)
    fresh: dict[int, frozenset[Key]] = field(default_factory=dict)
    ripe: dict[int, frozenset[Key]] = field(default_factory=dict)
    forced: dict[Key, tuple[object, ...]] = field(default_factory=dict)
    taken: dict[tuple[object, ...], Key] = field(default_factory=dict)
    learned: dict[tuple[object, object], int] = field(default_factory=dict)
    poisoned: set[int] = field(default_factory=set)
    stops: list[Stop] = field(default_factory=list)
    walked: list[int] = field(default_factory=list)
    partners: dict[int, int] = field(default_factory=dict)
    offs: dict[int, float] = field(default_factory=dict)
    found: dict[int, tuple[object, list[tuple[Piece, list[Candidate]]]]] = field(default_factory=dict)
    feeding: dict[int, set[Key]] = field(default_factory=dict)
    decided: dict[int, set[Key]] = field(default_factory=dict)
    offered: dict[Key, Candidate] = field(default_factory=dict)
    lost: set[frozenset[Key]] = field(default_factory=set)
    trials: int = 0
    work: int = 0

    def walk(self, live: set[int], outputs: tuple[tuple[str, int], ...]) -> Outcome:
        """Process every live node of dest in order, then its outputs."""
        for node in self.dest.flow.nodes:
            if node.index not in live or node.role is not Role.ACTIVATION:
                continue
            stop = self.process(node.index)
            if stop is not None and not keep_own(self, stop) and not (self.work < _WALK and mend(self, stop)):
                self._give_up(stop)
                if self.counterparts is not None:  # a walk that gets no further is begun anew without them
                    return self._outcome([])
            elif stop is None:
                settle_early(self, node.index)
            self.walked.append(node.index)
        return self._outcome(matched_outputs(self, outputs))

    def _outcome(self, matched: list[tuple[str, str, float]]) -> Outcome:
        stops = [stop for stop in self.stops if stop.node in self.poisoned]
        return Outcome(
            self.assignment, self.choices, stops, self.partners, self.offs, self.poisoned, matched, self.trials
        )

    # ------------------------------------------------------------------ one node
    def process(self, index: int) -> Stop | None:
        """Compute a node of dest, its weights decided first; return why it cannot be done, or None."""
        node = self.dest.flow[index]
        self._carry(index)
        if node.op == "input":
            return None
        if any(i in self.poisoned for i in node.operands):
            self.poisoned.add(index)
            return None
        self.poisoned.discard(index)
        if self._is_repeated(index):
            return None
        for weight in self._open_operands(index):
            stop = self._resolve(index, weight)
            if stop is not None:
                return stop
        self.dest.run.set(index, compute(node, self.dest.run.value))
        if self.counterparts is not None:
            self.counterparts.note(index)
        return None

    def _is_repeated(self, index: int) -> bool:
        """Whether a node does what a node of src does, on the same values: then its value is known, and its weights."""
        if self.counterparts is None:
            return False
        twin = self.counterparts.repeated(index)
        if twin is None and self.counterparts.is_moved(index):
            twin = self.counterparts.same.get(index)
            if twin is None:
                self.dest.run.forget(index)  # its value is made of known ones if it is asked for
                return True
        only = self.counterparts.only_use(index) if twin is None else None
        if only is not None:
            self._take_same(index, only)
            twin = self.counterparts.repeated(index)
        if twin is None:
            return False
        self.dest.run.set_same(index, self.src.run, twin)
        return True

    def _take_same(self, index: int, only: Candidate) -> None:
        """Decide on all weights of a node at once."""
        self._enter(Choice((index, only.claims[0].dest_value, 0), (), [only]))
        for operand in self.dest.flow[index].operands:
            self.confirm(operand, 0.0)

    def _carry(self, index: int) -> None:
        """Decisions behind a node: ripe once their value has met another one, before that nothing can bear them out."""
        operands = [
            i for i in dict.fromkeys(self.dest.flow[index].operands) if self.dest.flow[i].role is Role.ACTIVATION
        ]
        fresh = frozenset().union(*(self.fresh.get(i, frozenset()) for i in operands))
        ripe = frozenset().union(*(self.ripe.get(i, frozenset()) for i in operands))
        if len(operands) > 1:  # what is borne out already is left behind, or sums would gather all that went before
            fresh, ripe = frozenset(), frozenset(filter(self._is_open, ripe | fresh))
        self.fresh[index], self.ripe[index] = fresh, ripe

    def _is_open(self, key: Key) -> bool:
        return key in self.choices and not self.choices[key].is_confirmed

    def _open_operands(self, index: int) -> list[int]:
        node = self.dest.flow[index]
        return [i for i in weight_operands(self.dest.flow, node) if not self.dest.run.is_resolved(i)]

    def _resolve(self, index: int, weight: int) -> Stop | None:
        node = self.dest.flow[index]
        operands = weight_operands(self.dest.flow, node)
        is_table_data = len(operands) > 1 and len(operands) == len(node.operands) and weight == node.operands[0]
        if node.op in ("matmul", "convolution") and not is_table_data:
            form = self.dest.linear_form(node, weight)
            chosen = self.dest.chosen_rows(form) if form is not None else None
            if chosen is not None:
                return self._decide(
                    index, weight, 0, self.dest.labels[index], lookup_candidates(self.dest, self.src, chosen)
                )
            if form is not None:
                return self._resolve_linear(form)
        if node.op == "lookup" and weight == node.operands[0]:
            return self._resolve_lookup(index, weight)
        element = None if is_table_data else self._element(index, weight)
        if element is not None:
            return self._resolve_element(element)
        slot = Slot(index, weight, node.op + (".data" if is_table_data else ""))
        return self._decide(index, weight, 0, self.dest.labels[index], slot_candidates(self.dest, self.src, slot))

    def _folded_bias(self, form: ElementForm) -> list[Candidate]:
        """What follows a product that takes an effective weight: src has the values before this sum nowhere."""
        if form.kind != "add" or not any(candidate.is_folded for candidate in self._products(form)):
            return []
        return [c for c in self._following(form) if self._accepts(c)]

    def _whole_bias(self, form: ElementForm) -> list[Candidate]:
        """The sum of what src adds to several products that are added up, where dest adds to one of them alone."""
        if form.kind != "add" or len(tables_of_sum(self.dest, form.node)) != 1:
            return []
        return self._bias_of_sum(form, least=2)

    def _bias_of_sum(self, form: ElementForm, least: int = 1) -> list[Candidate]:
        """The sum of what src adds, in at least so many places, to the products that are added up."""
        products = self._products(form) or self._first_products(form.data)
        found = whole_bias(self.dest, self.src, form, products, least=least)
        return [c for c in found if self._accepts(c)]

    def _first_products(self, index: int) -> list[Candidate]:
        """What was chosen for the first product of a sum of products, whose channels those of the others are."""
        node = self.dest.flow[index]
        while node.op in (*MOVES, "add") and not self._chosen(node.index):
            node = self.dest.flow[node.operands[0]]
        return self._chosen(node.index)

    def _met_there(self, form: ElementForm) -> list[Candidate]:
        """What src applies to the very value that a table is applied to, where that is known."""
        tables = self.counterparts.tables_on(form.data, form.kind) if self.counterparts is not None else []
        return elements_among(self.dest, self.src, form, tables, EXACT)

    def _products(self, form: ElementForm) -> list[Candidate]:
        """What was chosen for the products whose results a table meets."""
        data = form.data
        while self.dest.flow[data].op in MOVES and len(self.dest.flow[data].operands) == 1:
            data = self.dest.flow[data].operands[0]
        return self._chosen(data)

    def _chosen(self, index: int) -> list[Candidate]:
        """What was chosen for a product, if a dest node is one."""
        taken = [self.choices[key].taken for key in sorted(self.decided_at(index))]
        return [candidate for candidate in taken if candidate.channels is not None]

    def decided_at(self, node: int) -> list[Key]:
        """The decisions at a dest node."""
        return [key for key in self.decided.get(node, ()) if key in self.choices]

    def _following(self, form: ElementForm) -> list[Candidate]:
        """The src bias that follows the product whose result this one is added to."""
        taken = self._products(form) if form.kind == "add" else []
        return bias_candidates(self.dest, self.src, form, taken) if taken else []

    def _element(self, index: int, weight: int, addend: int | None = None) -> ElementForm | None:
        essential = self.dest.essential(weight)
        return element_form(self.dest.flow, self.dest.flow[index], weight, self.dest.run.value, essential, addend)

    def _resolve_linear(self, form: LinearForm) -> Stop | None:
        pieces = self._linear_candidates(form)
        if not pieces:
            reason = "no-use" if self.src.holds(self.dest.run.value(form.data)) else "nothing-meets"
            return Stop(form.node, reason, form.weight)
        self.confirm(form.data, max(c.off for _, options in pieces for c in options[:1]))
        for number, (piece, options) in enumerate(pieces):
            stop = self._decide(form.node, form.weight, number, piece.label, options, piece.readers)
            if stop is not None:
                return stop
        return None

    def _linear_candidates(self, form: LinearForm) -> list[tuple[Piece, list[Candidate]]]:
        """The candidates of a use, kept while what meets it stays the same."""
        value = self.dest.run.value(form.data)
        known = self.found.get(form.node)
        if known is None or known[0] is not value:
            known = (value, linear_candidates(self.dest, self.src, form))
            self.found[form.node] = known
        return known[1]

    def _resolve_lookup(self, index: int, weight: int) -> Stop | None:
        rows = self.dest.run.value(self.dest.flow[index].operands[1]).reshape(-1)
        found = lookup_candidates(self.dest, self.src, Lookup(index, weight, rows))
        return self._decide(index, weight, 0, self.dest.labels[index], found)

    def _resolve_element(self, form: ElementForm) -> Stop | None:
        derived = self._folded_bias(form) or self._whole_bias(form)
        if derived:  # what the product was taken for says so, and bears nothing out
            return self._decide(form.node, form.weight, 0, self.dest.labels[form.node], derived)
        found = self._met_there(form) or element_candidates(self.dest, self.src, form)
        for term in () if found else addends(self.dest.flow, form):
            other = self._element(form.node, form.weight, term)
            found = found or (element_candidates(self.dest, self.src, other) if other is not None else [])
        if found and not bool(form.meets.any()):  # zeros tell no order
            found = self._following(form) or found
        if any(self._accepts(c) for c in found):
            self.confirm(form.data, min(c.off for c in found))
            found = with_rest(self, form, found)
            return self._decide(form.node, form.weight, 0, self.dest.labels[form.node], found)
        following = [c for c in self._following(form) if self._accepts(c)] or (
            self._bias_of_sum(form) if form.kind == "add" else []
        )
        if following:
            found = with_rest(self, form, following)
        else:
            is_held = self.src.holds(self.dest.run.value(form.data))
            slots = slot_candidates(self.dest, self.src, Slot(form.node, form.weight, self.dest.flow[form.node].op))
            zeros = [neutral_candidate(form)] if form.kind in ("add", "mul") else []
            slots = sorted(slots, key=lambda c: -c.likeness)[:8]
            found = [*zeros, *slots] if is_held else [*slots, *zeros]
            if is_held:
                found = [replace(c, likeness=100.0 if any(c is z for z in zeros) else c.likeness) for c in found]
        return self._decide(form.node, form.weight, 0, self.dest.labels[form.node], found)

    def _decide(
        self, index: int, weight: int, piece: int, label: Label, found: list[Candidate],
        readers: frozenset[int] = frozenset(),
    ) -> Stop | None:  # fmt: skip
        """Take a candidate: the one forced by a trial, else the likest that nothing else has taken."""
        key = (index, weight, piece)
        found = [*found, self.offered[key]] if key in self.offered else found
        found = self._pinned(weight, found)
        found = found if self.is_algebraic else [c for c in found if not c.is_folded]
        kin = self._kin(index, readers, label) if len(found) > 1 else frozenset()
        ordered = sorted(found, key=lambda c: self._merit(c, label, key, kin), reverse=True)
        if key in self.forced:
            ordered.sort(key=lambda c: c.id != self.forced[key])
        while ordered and not self._accepts(ordered[0]):
            del ordered[0]
        if not ordered:
            return Stop(index, "no-use", weight)
        self._enter(Choice(key, label, ordered, readers=readers))
        for reader in readers:
            self.feeding.setdefault(reader, set()).add(key)
        if len(ordered) > 1:
            self.fresh[index] = self.fresh[index] | {key}
        return None

    def _enter(self, choice: Choice) -> None:
        """Put a decision into the books, and what it claims into effect."""
        index = choice.key[0]
        self.choices[choice.key] = choice
        self.decided.setdefault(index, set()).add(choice.key)
        self.taken.setdefault(choice.taken.key, choice.key)
        for claim in choice.taken.claims:
            self.assignment.take(claim, index)
        self.partners[index] = choice.taken.src_node

    def _pinned(self, weight: int, found: list[Candidate]) -> list[Candidate]:
        """The candidates that no pin speaks against."""
        flow = self.dest.flow
        pins = [pin for pin in self.pins if pin.dest in flow.ancestors([weight])]
        if not pins:
            return found
        shares = self.assignment.shares
        return [c for c in found if all(fits_pins(pins, self.dest, self.src, shares(claim)) for claim in c.claims)]

    def _accepts(self, candidate: Candidate) -> bool:
        return all(self.assignment.accepts(claim) for claim in candidate.claims)

    def _kin(self, index: int, readers: frozenset[int], label: Label) -> frozenset[int]:
        """The src ops that compute with what was chosen for the other operands of the dest ops given."""
        fed = {key for reader in readers for key in self.feeding.get(reader, ()) if key in self.choices}
        siblings = {
            key for key in fed if self.choices[key].label[:1] != label[:1] or self._is_added(key[0], index)
        }  # other heads are not other operands
        return frozenset().union(*(self.choices[key].taken.readers for key in siblings))

    def _merit(self, candidate: Candidate, label: Label, key: Key, kin: frozenset[int]) -> tuple[float, ...]:
        owner = self.taken.get(candidate.key)
        is_free = owner is None or owner == key
        return (
            float(is_free),
            float(not kin.isdisjoint(candidate.readers)),
            float(self.learned.get((label[:3], candidate.label[:3]), 0) > 0),
            candidate.likeness,
            -candidate.off,
        )

    def _is_added(self, one: int, other: int) -> bool:
        """Whether two products of dest are added up."""
        return one != other and other in sums_with(self.dest.flow, one)

    def confirm(self, index: int, off: float) -> None:
        """What meets this weight is found in src: the decisions behind it are right."""
        self.offs[index] = off
        for key in self.ripe.get(index, ()):
            choice = self.choices[key]
            if not choice.is_confirmed:
                choice.is_confirmed = True
                pair = (choice.label[:3], choice.taken.label[:3])
                self.learned[pair] = self.learned.get(pair, 0) + 1
        self.ripe[index] = frozenset()

    def _give_up(self, stop: Stop) -> None:
        self.stops.append(stop)
        self.poisoned.add(stop.node)

    # ------------------------------------------------------------------ outputs
    def output_partner(self, index: int) -> tuple[str, float] | None:
        """The src output that equals a dest output, and how far off it is."""
        if index in self.poisoned:
            return None
        same = next(
            (path for path, other in self.src.flow.outputs if self.dest.run.is_same(index, self.src.run, other)), None
        )
        if same is not None:
            return same, 0.0
        value = self.dest.run.value(index)
        found = []
        for path, other in self.src.flow.outputs:
            theirs = self.src.run.value(other)
            if isinstance(theirs, Tensor) and isinstance(value, Tensor):
                found.append((path, relative_difference(theirs, value)))
        best = min(found, key=lambda pair: pair[1], default=None)
        return best if best is not None and best[1] <= CLOSE else None
