"""Candidates for tables: scales, shifts, lookups and tokens, by the numbers that each element meets.

Where nothing is known of what a table meets (tokens, learned queries), tables that enter the same kind of op stand by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from automap.align.assignment import Claim
from automap.align.candidates import Candidate, certain
from automap.align.effective import folded_lookup, shift_behind, terms_behind
from automap.align.forms import ElementForm, is_near
from automap.align.labels import similarity
from automap.align.moments import CLOSE, EXACT, bijection, clean, injection, row_order
from automap.align.side import Lookup, Side, Slot
from automap.align.table import Source
from automap.canonical.rules.layout import MOVES


def element_candidates(dest: Side, src: Source, form: ElementForm) -> list[Candidate]:
    """Return the src tables that meet the same groups of numbers, or none."""
    for tolerance in (EXACT, CLOSE):
        found = _summed(dest, src, form, tolerance)
        found += elements_among(dest, src, form, src.meeting(form, tolerance), tolerance)
        if not found:
            found = _composite(form, src, tolerance)
        if found:
            return found
    return _subset_elements(dest, src, form)


def elements_among(
    dest: Side, src: Source, form: ElementForm, others: list[ElementForm], tolerance: float
) -> list[Candidate]:
    """Return the candidates among src tables that meet the same groups of numbers one by one."""
    found = []
    for other in others:
        places = _met(form, other, tolerance)
        if places is not None:
            claim, label = Claim(form.weight, form.places, other.weight, other.places[places]), src.labels[other.node]
            likeness, off = similarity(dest.labels[form.node], label), 0.0 if tolerance == EXACT else tolerance
            found.append(Candidate(certain(claim), (other.node, "element"), label, likeness, off))
    return found


def _summed(dest: Side, src: Source, form: ElementForm, tolerance: float) -> list[Candidate]:
    """Sums of tables that src adds one by one, where dest adds fewer."""
    if form.kind != "add" or not src.sums:
        return []
    found = []
    for other, count in src.sums:
        places = _met(form, other, tolerance) if count > terms_behind(dest.flow, form.node) else None
        if places is not None:
            claim = Claim(form.weight, form.places, other.weight, other.places[places])
            key, label = (other.node, "sum"), src.labels[other.node]
            likeness = similarity(dest.labels[form.node], label) + 3.0
            found.append(Candidate(certain(claim), key, label, likeness, is_folded=True))
    return found


def _subset_elements(dest: Side, src: Source, form: ElementForm) -> list[Candidate]:
    """The src tables of one dimension that meet the same rows of numbers in other positions."""
    mine = _element_rows(dest, form)
    found = []
    for other in src.elements.get(form.kind, ()) if mine is not None else ():
        theirs = _element_rows(src, other)
        if mine is None or theirs is None or theirs.shape[1] != mine.shape[1] or len(theirs) == len(mine):
            continue
        few, many = (mine, theirs) if len(mine) < len(theirs) else (theirs, mine)
        order = row_order(few, many)
        if order is not None:
            order = order if few is mine else torch.argsort(order)
            claim = Claim(form.weight, form.places, other.weight, other.places[order])
            found.append(
                Candidate(
                    certain(claim),
                    (other.node, "element"),
                    src.labels[other.node],
                    similarity(dest.labels[form.node], src.labels[other.node]),
                )
            )
    return found


def _element_rows(side: Side, form: ElementForm) -> Tensor | None:
    """What meets a per-channel table, as `(positions, elements)`, or None where it is not per channel."""
    shape, _ = side.essential(form.weight)
    long = [d - len(shape) for d, n in enumerate(shape) if n > 1]
    if len(long) != 1:
        return None
    x = clean(side.run.value(form.data)).expand(side.flow[form.node].shape)
    return x.movedim(long[0], -1).reshape(-1, x.shape[long[0]])


def _met(form: ElementForm, other: ElementForm, tolerance: float) -> Tensor | None:
    if len(form.meets) == len(other.meets):
        if not is_near(form.center, other.center, max(tolerance * 100, 1e-6)):
            return None
        matched = bijection(form.meets, other.meets, tolerance)
        return matched[0] if matched is not None else None
    if len(form.meets) > len(other.meets):
        return None
    places = injection(form.meets, other.meets, tolerance)
    return places if bool((places >= 0).all()) and len(torch.unique(places)) == len(places) else None


def _composite(form: ElementForm, src: Source, tolerance: float) -> list[Candidate]:
    """One dest table made of several src ones, each meeting some of its groups."""
    missing = torch.ones(len(form.meets), dtype=torch.bool)
    claims: list[Claim] = []
    nodes: list[int] = []
    for other in src.meeting_some(form, tolerance):
        if len(form.meets) < len(other.meets):
            continue
        places = injection(form.meets, other.meets, tolerance)
        hit = (places >= 0) & missing
        if (
            bool(hit.any())
            and len(torch.unique(places[hit])) == int(hit.sum())
            and int(hit.sum()) >= min(2, len(other.meets))
        ):
            claims.append(Claim(form.weight, form.places[hit], other.weight, other.places[places[hit]]))
            nodes.append(other.node)
            missing &= ~hit
    if not claims or (len(claims) == 1 and bool(missing.any()) and int(missing.sum()) > len(missing) * 0.9):
        return []
    if bool(missing.any()):
        if form.kind != "add":
            return []
        places = form.places[missing]
        claims.append(Claim(form.weight, places, None, places))
    return [Candidate(certain(*claims), (*nodes, "elements"), src.labels[nodes[0]], 1.0)]


def bias_candidates(dest: Side, src: Source, form: ElementForm, products: list[Candidate]) -> list[Candidate]:
    """Return the candidate that a bias follows its product: products tell which src channels dest's channels are."""
    _, places = dest.essential(form.weight)
    pairs = [(product, *product.channels) for product in products if product.channels is not None]
    claims = []
    for product, node, mine, theirs in pairs:
        bias, order = added_to(src, product, node)
        if bias is None or len(places) != sum(len(p[2]) for p in pairs) or int(theirs.max()) >= len(order):
            return []
        claims.append(Claim(form.weight, places[mine], bias, order[theirs]))
    label = src.labels[pairs[0][1]] if pairs else ()
    return [Candidate(certain(*claims), ("bias", *(p[1] for p in pairs)), label, 50.0)] if claims else []


def added_to(src: Source, product: Candidate, node: int) -> tuple[int | None, Tensor]:
    """What src adds to a product, and the place in it of each output channel."""
    if product.is_folded:
        width = 0 if product.shift is None else src.flow[product.shift].shape[0]
        return product.shift, torch.arange(width)
    bias = _bias_of(src, node)
    forms = [f for f in src.linear if f.node == node] if bias is not None else []
    if bias is not None and (not forms or len(bias.places) >= forms[0].groups * forms[0].width):
        return bias.weight, bias.places
    spread = shift_behind(src, forms[0]) if forms else None  # one number for several channels, side by side in images
    return spread, torch.arange(0 if spread is None else src.flow[spread].shape[0])


def _bias_of(src: Source, node: int) -> ElementForm | None:
    """The per-channel table added to an op's result, seen through layout."""
    behind = {node}
    for form in src.elements.get("add", ()):
        data = form.data
        while data not in behind and src.flow[data].op in MOVES and len(src.flow[data].operands) == 1:
            data = src.flow[data].operands[0]
        if data in behind:
            return form
    return None


def lookup_candidates(dest: Side, src: Source, form: Lookup) -> list[Candidate]:
    """Return the src tables whose rows are chosen by the same numbers, up to an offset."""
    found = []
    table = dest.flow[form.weight].shape
    for other in _lookups(dest, src, form):
        theirs = src.flow[other.weight].shape
        shift = _row_shift(form.rows, other.rows)
        if shift is None or _row_size(table) != _row_size(theirs):
            continue
        claim = _rows_claim(form.weight, other.weight, table, theirs, shift)
        likeness = (
            similarity(dest.labels[form.node], src.labels[other.node])
            + (10 if shift == 0 else 0)
            + (5 if theirs[0] == table[0] else 0)
        )
        is_folded = src.flow[other.weight].origin is None
        found.append(
            Candidate(
                certain(claim), (other.node, "lookup"), src.labels[other.node], likeness + 3.0 * is_folded,
                is_folded=is_folded,
            )
        )  # fmt: skip
    return found


def _rows_claim(mine: int, other: int, table: tuple[int, ...], theirs: tuple[int, ...], shift: int) -> Claim:
    """The claim that a table's rows are src's, shift rows further on."""
    if shift == 0 and table == theirs:
        return Claim(mine, None, other, None)
    low, high, size = max(0, -shift), min(table[0], theirs[0] - shift), _row_size(table)
    rows = torch.arange(low, high).unsqueeze(1) * size + torch.arange(size)
    return Claim(mine, rows.reshape(-1), other, (rows + shift * size).reshape(-1))


def _lookups(dest: Side, src: Source, form: Lookup) -> list[Lookup]:
    """Src's tables, those multiplied with a number afterwards also as if that were done already."""
    is_shared = dest.is_shared(form.weight) and not _is_only_looked_up(dest, form.weight)
    found = []
    for other in src.lookups:
        effective = None if is_shared else folded_lookup(src, other, dest.flow, form.node)
        found += [effective, other] if effective is not None else [other]
    return found


def _is_only_looked_up(side: Side, table: int) -> bool:
    """Whether rows of a table are chosen and nothing else is done with it."""
    readers = [side.flow[i] for i in side.flow.readers.get(table, ())]
    return all(node.op == "lookup" and node.operands.count(table) == 1 for node in readers)


def _row_size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape[1:]:
        size *= n
    return size


def _row_shift(dest: Tensor, src: Tensor) -> int | None:
    """By how much src's row numbers exceed dest's, where they otherwise agree."""
    a, b = torch.unique(dest.long()), torch.unique(src.long())
    if len(a) != len(b):
        return None
    gaps = b - a
    if len(dest) == len(src) and bool((src.long() - dest.long() == gaps[0]).all()):
        return int(gaps[0])
    return int(gaps[0]) if bool((gaps == gaps[0]).all()) else None


def slot_candidates(dest: Side, src: Source, slot: Slot) -> list[Candidate]:
    """Return src tables that enter an op of the same kind in the same number, nothing being known of what they meet."""
    shape, places = dest.essential(slot.weight)[0], dest.distinct(slot.weight)
    label = dest.labels[slot.node]
    found = []
    for other in src.slots:
        theirs = src.distinct(other.weight)
        if len(theirs) != len(places):
            continue
        claim = Claim(slot.weight, places, other.weight, theirs)
        likeness = similarity(label, src.labels[other.node]) + (3.0 if other.op == slot.op else 0.0)
        likeness += 1.0 if src.essential(other.weight)[0] == shape else 0.0
        found.append(Candidate(certain(claim), (other.node, other.weight, "slot"), src.labels[other.node], likeness))
    return found


def neutral_candidate(form: ElementForm) -> Candidate:
    """Return the candidate that lets a table change nothing, for a bias or scale that src does not have."""
    fill, name = (0.0, "zeros") if form.kind == "add" else (1.0, "ones")
    return Candidate(certain(Claim(form.weight, form.places, None, form.places, fill)), (name, form.node), (), -1.0)
