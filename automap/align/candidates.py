"""Which uses in src could be the counterpart of a use in dest: by what meets the weight, never by name.

A candidate is a set of claims; its rank says how alike both sides are in what follows. Values decide between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from automap.align.assignment import Claim
from automap.align.forms import ElementForm, LinearForm, is_near, unfolded
from automap.align.labels import similarity
from automap.align.moments import CLOSE, EXACT, bijection, clean, distance, injection
from automap.align.table import Lookup, Side, Slot, Source
from automap.canonical.provenance import Part


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One possible counterpart: what it claims, which src part it takes, and how alike the two are (higher is better)."""

    claims: tuple[Claim, ...]
    key: tuple[object, ...]
    label: tuple[int, ...]
    likeness: float
    off: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A set of dest output channels that must find one counterpart: what is decided at once."""

    channels: Tensor
    label: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Unit:
    """One matrix of a src use that meets the same columns; `order[k]` is the src column of dest column k."""

    form: LinearForm
    group: int
    order: Tensor
    off: float


def linear_candidates(dest: Side, src: Source, form: LinearForm) -> list[tuple[Piece, list[Candidate]]]:
    """Return the pieces of a dest use with their candidates; empty where nothing in src meets the same columns."""
    for tolerance in (EXACT, CLOSE):
        for mine, theirs in _readings(dest, src, form):
            if mine.groups > 1:
                found = _stacked(dest, src, mine, theirs, tolerance)
                if found:
                    return found
            units = [_units(mine, group, theirs, tolerance) for group in range(mine.groups)]
            if all(units):
                found = _pieces(dest, src, mine, units)
                if found:
                    return found
    if form.kind == "matmul" and form.groups == 1:
        mine = _rows(dest, form)
        units = _subset_units(form, mine, [f for f in src.linear if f.kind == "matmul"], lambda other: _rows(src, other))
        return _pieces(dest, src, form, [units]) if units else []
    return []


def _rows(side: Side, form: LinearForm) -> Tensor:
    """What meets a product's weight, as `(positions, in)`."""
    node, x = side.flow[form.node], clean(side.run.value(form.data))
    if node.op == "convolution":
        return x.movedim(1, -1).reshape(-1, x.shape[1])
    if node.operands[0] == form.weight and x.dim() > 1:
        x = x.transpose(-1, -2)
    return x.reshape(-1, x.shape[-1])


def _readings(dest: Side, src: Source, form: LinearForm) -> list[tuple[LinearForm, list[LinearForm]]]:
    """Ways to read both sides' uses: as they are, then convolutions as products over patches."""
    found = [(form, [f for f in src.linear if f.kind == form.kind])]
    patches = unfolded(form, dest.flow[form.node], dest.run.value)
    if form.kind == "matmul":
        found.append((form, src.patches))
    if patches is not None:
        found.append((patches, [f for f in src.linear if f.kind == "matmul"] + src.patches))
    return found


def _units(form: LinearForm, group: int, forms: list[LinearForm], tolerance: float) -> list[_Unit]:
    columns = form.columns[group]
    taps = form.places.shape[-1]
    found = []
    for other in forms:
        if other.columns.shape[1:] != columns.shape or other.places.shape[-1] != taps:
            continue
        if form.groups == other.groups == 1 and not is_near(form.center, other.center, max(tolerance * 100, 1e-6)):
            continue
        candidates = range(other.groups) if other.groups <= 8 else _near(columns, other, tolerance)
        found.extend(_unit(columns, other, candidates, tolerance))
    same = [u for u in found if u.form.geometry == form.geometry]
    return same + [u for u in found if u.form.geometry != form.geometry]


def _stacked(
    dest: Side, src: Source, form: LinearForm, forms: list[LinearForm], tolerance: float
) -> list[tuple[Piece, list[Candidate]]]:
    """Candidates that are stacks of as many matrices of the same size, whose outputs are read as one."""
    if form.kind != "convolution" and len(dest.parts(form)) > 1:
        return []
    piece = Piece(torch.arange(form.width), dest.labels[form.node])
    options = []
    for other in forms:
        if other.places.shape != form.places.shape or not is_near(form.center, other.center, max(tolerance * 100, 1e-6)):
            continue
        order = _group_order(form.columns, other.columns, tolerance)
        if order is not None:
            claim = Claim(form.weight, form.places.reshape(-1), other.weight, other.places[order].reshape(-1))
            likeness = similarity(piece.label, src.labels[other.node]) + (3.0 if form.geometry == other.geometry else 0.0)
            options.append(Candidate((claim,), (other.node, "stack"), src.labels[other.node], likeness))
    return [(piece, options)] if options else []


def _group_order(mine: Tensor, theirs: Tensor, tolerance: float) -> Tensor | None:
    """Return for each dest matrix the src matrix that meets the same columns, in the same order."""
    matched = bijection(mine.mean(1), theirs.mean(1), tolerance)
    if matched is None:
        return None
    off = distance(mine.reshape(-1, 3), theirs[matched[0]].reshape(-1, 3))
    return matched[0] if off <= tolerance else None


def _subset_units(form: LinearForm, rows: Tensor, forms: list[LinearForm], rows_of: Callable[[LinearForm], Tensor]) -> list[_Unit]:
    """Units that meet the same rows of numbers in other positions: one side works on fewer of them."""
    found = []
    for other in forms:
        if other.groups != 1 or other.columns.shape != form.columns.shape or other.count == form.count:
            continue
        theirs = rows_of(other)
        few, many = (rows, theirs) if len(rows) < len(theirs) else (theirs, rows)
        order = row_order(few[0], many)
        if order is not None:
            found.append(_Unit(other, 0, order if few is rows else torch.argsort(order), 0.0))
    return found


def row_order(row: Tensor, rows: Tensor) -> Tensor | None:
    """Return p such that `row[i]` is `r[p[i]]` for one r of rows, or None."""
    if rows.numel() > 20_000_000:
        return None
    place, theirs = torch.argsort(row), rows.sort(1)
    gaps = (theirs.values - row[place]).abs().max(1).values
    best = int(gaps.argmin())
    if float(gaps[best]) > EXACT * (float(row.abs().max()) + 1e-12):
        return None
    order = torch.empty_like(place)
    order[place] = theirs.indices[best]
    return order


def _near(columns: Tensor, other: LinearForm, tolerance: float) -> list[int]:
    mean = columns.mean(0)
    gaps = ((other.columns.mean(1) - mean).abs() / (mean.abs() + 1e-9)).max(1).values
    return [int(i) for i in torch.nonzero(gaps <= tolerance * 10).reshape(-1)]


def _unit(columns: Tensor, other: LinearForm, groups: object, tolerance: float) -> list[_Unit]:
    found = []
    for group in groups:  # type: ignore[attr-defined]
        theirs = other.columns[group]
        if distance(columns.mean(0, keepdim=True), theirs.mean(0, keepdim=True)) > max(tolerance * 100, 1e-6):
            continue
        matched = bijection(columns, theirs, tolerance)
        if matched is not None:
            found.append(_Unit(other, group, matched[0], matched[1]))
    return found


def _pieces(dest: Side, src: Source, form: LinearForm, units: list[list[_Unit]]) -> list[tuple[Piece, list[Candidate]]]:
    for mine in _partings(dest, form, units):
        found = [(piece, _options(dest, src, form, piece, units)) for piece in mine]
        if all(options for _, options in found):
            return found
    return []


def _partings(dest: Side, form: LinearForm, units: list[list[_Unit]]) -> list[list[Piece]]:
    """Ways to cut a dest use's outputs: by who reads them, the like-read together, whole."""
    read = [Piece(p.channels, dest.part_label(p, form)) for p in dest.parts(form)]
    whole = [Piece(torch.arange(form.width), dest.labels[form.node])]
    if sum(len(p.channels) for p in read) != form.width:
        unread = torch.ones(form.width, dtype=torch.bool)
        for p in read:
            unread[p.channels] = False
        read.append(Piece(torch.nonzero(unread).reshape(-1), ()))
    widths = {u.form.width for group in units for u in group}
    halves = [_cut(read, width) for width in sorted(widths, reverse=True) if width < form.width]
    return [read, _merged(read), *halves, whole]


def _cut(pieces: list[Piece], size: int) -> list[Piece]:
    """Pieces cut into runs of a size, where they are multiples of it."""
    found = []
    for piece in pieces:
        runs = piece.channels.split(size) if len(piece.channels) % size == 0 else (piece.channels,)
        found.extend(Piece(run, piece.label) for run in runs)
    return found


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Pieces that are read alike, as one: the heads of a loop over heads."""
    together: dict[object, list[Piece]] = {}
    for piece in pieces:
        together.setdefault(piece.label, []).append(piece)
    return [Piece(torch.cat([p.channels for p in group]), group[0].label) for group in together.values()]


def _options(dest: Side, src: Source, form: LinearForm, piece: Piece, units: list[list[_Unit]]) -> list[Candidate]:
    """Candidates of one piece: for every matrix of the dest use a unit and a part of it with as many channels."""
    per_group = [_group_options(dest, src, form, group, piece, units[group]) for group in range(form.groups)]
    if form.groups == 1:
        return per_group[0]
    rows = min((len(options) for options in per_group), default=0)
    found = []
    for row in range(rows):
        chosen = [options[row] for options in per_group]
        claims = _joined([claim for c in chosen for claim in c.claims])
        found.append(Candidate(claims, ("stack", *chosen[0].key), chosen[0].label, chosen[0].likeness, max(c.off for c in chosen)))
    return found


def _joined(claims: list[Claim]) -> tuple[Claim, ...]:
    """Claims between the same two values as one."""
    together: dict[tuple[int, int | None], list[Claim]] = {}
    for claim in claims:
        together.setdefault((claim.dest_value, claim.src_value), []).append(claim)
    return tuple(
        replace(g[0], dest_places=torch.cat([c.dest_places for c in g]), src_places=torch.cat([c.src_places for c in g]))
        for g in together.values()
    )


def _group_options(dest: Side, src: Source, form: LinearForm, group: int, piece: Piece, units: list[_Unit]) -> list[Candidate]:
    found = []
    size = len(piece.channels)
    for unit in units:
        for channels, label, key in _src_pieces(src, unit, size):
            target = form.places[group][piece.channels]
            source = unit.form.places[unit.group][channels][:, unit.order]
            claim = Claim(form.weight, target.reshape(-1), unit.form.weight, source.reshape(-1))
            likeness = similarity(piece.label, label) + (0.5 if unit.form.geometry == form.geometry else 0.0)
            likeness += (2.0 if unit.form.width == form.width else 0.0) + _FIT[key[0]]
            found.append(Candidate((claim,), (unit.form.node, unit.group, *key), label, likeness, unit.off))
    return found


#: how well a cut of src's outputs speaks for a candidate
_FIT = {"part": 1.0, "merged": 0.5, "whole": 0.5, "run": 0.0}


def _src_pieces(src: Source, unit: _Unit, size: int) -> list[tuple[Tensor, tuple[int, ...], tuple[str, int]]]:
    """The parts of a unit's outputs with `size` channels: as read, merged, runs of them, or the whole."""
    read = [Piece(p.channels, src.part_label(p, unit.form)) for p in src.parts(unit.form)]
    found = [(p.channels, p.label, ("part", n)) for n, p in enumerate(read) if len(p.channels) == size]
    if not found:
        found = [(p.channels, p.label, ("merged", n)) for n, p in enumerate(_merged(read)) if len(p.channels) == size]
    if not found:
        runs = [(p, r) for p in _merged(read) if len(p.channels) > size and len(p.channels) % size == 0 for r in p.channels.split(size)]
        found = [(run, p.label, ("run", n)) for n, (p, run) in enumerate(runs)]
    if not found and unit.form.width == size:
        found = [(torch.arange(size), src.labels[unit.form.node], ("whole", 0))]
    return found


def element_candidates(dest: Side, src: Source, form: ElementForm) -> list[Candidate]:
    """Return the src tables that meet the same groups of numbers, or none."""
    label = dest.labels[form.node]
    for tolerance in (EXACT, CLOSE):
        found = []
        for other in src.meeting(form, tolerance):
            places = _met(form, other, tolerance)
            if places is not None:
                claim = Claim(form.weight, form.places, other.weight, other.places[places])
                likeness = similarity(label, src.labels[other.node])
                found.append(Candidate((claim,), (other.node, "element"), src.labels[other.node], likeness, 0.0 if tolerance == EXACT else tolerance))
        if not found:
            found = _composite(form, src, tolerance)
        if found:
            return found
    return _subset_elements(dest, src, form)


def _subset_elements(dest: Side, src: Source, form: ElementForm) -> list[Candidate]:
    """The src tables of one dimension that meet the same rows of numbers in other positions."""
    mine = _element_rows(dest, form)
    found = []
    for other in src.elements.get(form.kind, ()) if mine is not None else ():
        theirs = _element_rows(src, other)
        if mine is None or theirs is None or theirs.shape[1] != mine.shape[1] or len(theirs) == len(mine):
            continue
        few, many = (mine, theirs) if len(mine) < len(theirs) else (theirs, mine)
        order = row_order(few[0], many)
        if order is not None:
            order = order if few is mine else torch.argsort(order)
            claim = Claim(form.weight, form.places, other.weight, other.places[order])
            found.append(Candidate((claim,), (other.node, "element"), src.labels[other.node], similarity(dest.labels[form.node], src.labels[other.node])))
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
    for other in src.elements.get(form.kind, ()):
        if len(form.meets) < len(other.meets):
            continue
        places = injection(form.meets, other.meets, tolerance)
        hit = (places >= 0) & missing
        if bool(hit.any()) and len(torch.unique(places[hit])) == int(hit.sum()) and int(hit.sum()) >= min(2, len(other.meets)):
            claims.append(Claim(form.weight, form.places[hit], other.weight, other.places[places[hit]]))
            nodes.append(other.node)
            missing &= ~hit
    if not claims or len(claims) == 1 and bool(missing.any()) and int(missing.sum()) > len(missing) * 0.9:
        return []
    if bool(missing.any()):
        if form.kind != "add":
            return []
        places = form.places[missing]
        claims.append(Claim(form.weight, places, None, places))
    return [Candidate(tuple(claims), (*nodes, "elements"), src.labels[nodes[0]], 1.0)]


def lookup_candidates(dest: Side, src: Source, form: Lookup) -> list[Candidate]:
    """Return the src tables whose rows are chosen by the same numbers, up to an offset."""
    found = []
    table = dest.flow[form.weight].shape
    for other in src.lookups:
        theirs = src.flow[other.weight].shape
        shift = _row_shift(form.rows, other.rows)
        if shift is None or _row_size(table) != _row_size(theirs):
            continue
        low, high = max(0, -shift), min(table[0], theirs[0] - shift)
        rows = torch.arange(low, high).unsqueeze(1) * _row_size(table) + torch.arange(_row_size(table))
        claim = Claim(form.weight, rows.reshape(-1), other.weight, (rows + shift * _row_size(table)).reshape(-1))
        likeness = similarity(dest.labels[form.node], src.labels[other.node]) + (10 if shift == 0 else 0) + (5 if theirs[0] == table[0] else 0)
        found.append(Candidate((claim,), (other.node, "lookup"), src.labels[other.node], likeness))
    return found


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
        found.append(Candidate((claim,), (other.node, other.weight, "slot"), src.labels[other.node], likeness))
    return found


def zero_candidate(form: ElementForm, dest: Side) -> Candidate:
    """Return the candidate that fills an added table with zeros, for a bias that src does not have."""
    del dest
    places = form.places
    return Candidate((Claim(form.weight, places, None, places),), ("zeros", form.node), (), -1.0)

