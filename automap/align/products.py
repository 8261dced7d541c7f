"""Candidates for products and convolutions: src uses that meet the same columns of numbers, cut as dest's outputs
are read.

Columns give the order of input channels, what reads the outputs gives their parts; which part is which is left open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from automap.align.assignment import Claim
from automap.align.candidates import Candidate, Piece, certain
from automap.align.cuts import cut, merged, read, src_pieces
from automap.align.effective import folded, scales_behind, scales_to
from automap.align.forms import LinearForm, is_near, unfolded
from automap.align.labels import similarity
from automap.align.mixed import unmixed
from automap.align.moments import CLOSE, EXACT, ROUNDED, bijection, clean, distance, row_order
from automap.align.side import Side
from automap.align.table import Source
from automap.align.thaw import thawed_order
from automap.align.unscaled import divided, unscaled

#: how well a cut of src's outputs speaks for a candidate
_FIT = {"repeat": 0.0, "part": 1.0, "merged": 0.5, "whole": 0.5, "run": 0.0}


@dataclass(frozen=True, slots=True, eq=False)
class _Unit:
    """One matrix of a src use that meets the same columns; `order[k]` is the src column of dest column k."""

    form: LinearForm
    group: int
    order: Tensor
    off: float


def linear_candidates(dest: Side, src: Source, form: LinearForm) -> list[tuple[Piece, list[Candidate]]]:
    """Return the pieces of a dest use with their candidates; empty where nothing in src meets the same columns."""
    found = _met_by(dest, src, form)
    early = None if found else unscaled(dest, form)
    return found if early is None else divided(src, _met_by(dest, src, early[0]), early[1])


def _met_by(dest: Side, src: Source, form: LinearForm) -> list[tuple[Piece, list[Candidate]]]:
    """The pieces of a use with what in src meets the same columns as it does.

    Candidates that are too few, a narrower use of src that would be taken several times, are the last resort.
    """
    short: list[tuple[Piece, list[Candidate]]] = []
    for tolerance in (EXACT, ROUNDED, CLOSE):
        for mine, theirs in _readings(dest, src, form, tolerance):
            if mine.groups > 1:
                found = _stacked(dest, src, mine, [*_folded_stacks(dest, src, mine, theirs), *theirs], tolerance)
                if found:
                    return found
            units = [_units(mine, group, theirs, tolerance) for group in range(mine.groups)]
            units = [_with_effective(src, mine, n, group, tolerance) for n, group in enumerate(units)]
            if all(units):
                units[0] += _of_all_steps(dest, src, mine, units[0])
                found = _pieces(dest, src, mine, units)
                if found and not _is_short(found):
                    return found
                short = short or found
    if form.kind == "matmul":
        fewer = [_with_other_rows(dest, src, form, group) for group in range(form.groups)]
        found = _pieces(dest, src, form, fewer) if all(fewer) else []
        return found or short or (_unmixed(dest, src, form) if form.groups == 1 else [])
    return short


def _is_short(found: list[tuple[Piece, list[Candidate]]]) -> bool:
    """Whether there are fewer candidates than pieces, so that some would be taken twice."""
    return len({c.key for _, options in found for c in options}) < len(found)


def _unmixed(dest: Side, src: Source, form: LinearForm) -> list[tuple[Piece, list[Candidate]]]:
    """Candidates where one side mixes positions, by a mean say, before the product, and the other one behind it."""
    readings = [(form, src.unmixed), *((early, src.linear) for early in unmixed(dest, form))]
    for mine, theirs in readings:
        units = _units(mine, 0, [f for f in theirs if f.kind == "matmul"], EXACT)
        found = _pieces(dest, src, mine, [units]) if units else []
        if found:
            return found
    return []


def _with_other_rows(dest: Side, src: Source, form: LinearForm, group: int = 0) -> list[_Unit]:
    products = [f for f in src.linear if f.kind == "matmul"]
    found = _subset_units(src, form, _rows(dest, form, group), products)
    return [unit for unit in found if unit.form.count > form.count or _is_complete(src, unit, found)]


def _is_complete(src: Source, unit: _Unit, units: list[_Unit]) -> bool:
    """Whether what all steps of a loop of src meet is among what dest meets at once, not what some of them do."""
    if not src.is_shared(unit.form.weight):
        return True
    mine, there = _stored(src, unit.form.weight), {other.form.node for other in units}
    leaves = src.flow.ancestors([unit.form.weight]) & set(src.flow.weights)
    alike = [f for f in src.linear if f.node not in there and leaves <= src.flow.ancestors([f.weight])]
    return all(_stored(src, f.weight) != mine for f in alike)


def _of_all_steps(dest: Side, src: Source, form: LinearForm, units: list[_Unit]) -> list[_Unit]:
    """Where what is met goes through a loop of src as well: the products that src takes outside of it, at once."""
    is_loop = form.kind == "matmul" and form.groups == 1 and any(src.is_shared(u.form.weight) for u in units)
    return _with_other_rows(dest, src, form) if is_loop else []


def _with_effective(src: Source, form: LinearForm, group: int, units: list[_Unit], tolerance: float) -> list[_Unit]:
    """Units with the sums of products before them and two products in a row behind them."""
    summed, chained = (_units(form, group, forms, tolerance) for forms in (src.branches, src.chains))
    return summed + units + chained


def _rows(side: Side, form: LinearForm, group: int) -> Tensor:
    """What meets one matrix of a product's weight, as `(positions, in)`."""
    node, x = side.flow[form.node], clean(side.run.value(form.data))
    if node.op == "convolution":
        return x.movedim(1, -1).reshape(-1, x.shape[1])
    if node.operands[0] == form.weight and x.dim() > 1:
        x = x.transpose(-1, -2)
    return x.reshape(form.groups, -1, x.shape[-1])[group]


def _readings(
    dest: Side, src: Source, form: LinearForm, tolerance: float
) -> Iterator[tuple[LinearForm, list[LinearForm]]]:
    """Ways to read both sides' uses: as they are, then convolutions as products over patches; each when asked for."""
    near = _between(tolerance)
    yield form, src.alike(form, form.kind, near)
    if form.kind == "matmul":
        yield form, src.alike(form, "matmul", near, "patches")
    patches = unfolded(form, dest.flow[form.node], dest.run.value)
    if patches is not None:
        yield patches, [f for among in ("linear", "patches") for f in src.alike(patches, "matmul", near, among)]
    yield form, src.alike(form, form.kind, near, "inputless")
    yield form, src.alike(form, form.kind, near, "absorbed")
    yield form, src.alike(form, form.kind, near, "unscaled")


def _between(tolerance: float) -> float:
    """How far apart the means over all columns may be where these agree to a tolerance."""
    return max(tolerance * 100, 1e-6)


def _units(form: LinearForm, group: int, forms: list[LinearForm], tolerance: float) -> list[_Unit]:
    columns = form.columns[group]
    taps = form.sizes[3]
    found = []
    for other in forms:
        if other.columns.shape[1:] != columns.shape or other.sizes[3] != taps:
            continue
        if form.groups == other.groups == 1 and not is_near(form.center, other.center, _between(tolerance)):
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
        if other.sizes != form.sizes or not is_near(form.center, other.center, _between(tolerance)):
            continue
        order = _group_order(form.columns, other.columns, tolerance)
        if order is not None:
            is_same = bool((order == torch.arange(len(order))).all()) and form.strides == other.strides
            claim = (
                Claim(form.weight, None, other.weight, None)
                if is_same and _has_shape(dest, form, src, other)
                else Claim(form.weight, form.places.reshape(-1), other.weight, other.places[order].reshape(-1))
            )
            likeness = similarity(piece.label, src.labels[other.node]) + (
                3.0 if form.geometry == other.geometry else 0.0
            )
            likeness += 3.0 if other.is_folded else 0.0
            order = torch.arange(form.groups * form.width)
            channels = (other.node, order, order) if other.is_folded else None
            options.append(
                Candidate(
                    certain(claim), (other.node, "stack"), src.labels[other.node], likeness, channels=channels,
                    shift=other.shift, is_folded=other.is_folded,
                )
            )  # fmt: skip
    return [(piece, options)] if options else []


def _folded_stacks(dest: Side, src: Source, form: LinearForm, forms: list[LinearForm]) -> list[LinearForm]:
    """Grouped convolutions of src with what follows there, and not in dest, carried out."""
    scales = scales_behind(dest.flow, form.node)
    alike = [f for f in forms if f.kind == "convolution" and f.sizes == form.sizes]
    surplus = [(f, scales_behind(src.flow, f.node) - scales) for f in alike]
    found = [folded(src, f, count) for f, count in surplus if count > 0]
    return [*(f for f in src.branches if f.groups > 1), *(f for f in found if f is not None)]


def _group_order(mine: Tensor, theirs: Tensor, tolerance: float) -> Tensor | None:
    """Return for each dest matrix the src matrix that meets the same columns, in the same order."""
    matched = bijection(mine.mean(1), theirs.mean(1), tolerance)
    if matched is None:
        return None
    off = distance(mine.reshape(-1, 3), theirs[matched[0]].reshape(-1, 3))
    return matched[0] if off <= tolerance else None


def _subset_units(src: Source, form: LinearForm, rows: Tensor, forms: list[LinearForm]) -> list[_Unit]:
    """Units that meet the same rows of numbers in other positions: one side works on fewer of them."""
    found = []
    for other in forms:
        if other.columns.shape[1:] != form.columns.shape[1:] or other.count == form.count:
            continue
        for group in range(other.groups):
            theirs = _rows(src, other, group)
            few, many = (rows, theirs) if len(rows) < len(theirs) else (theirs, rows)
            order = row_order(few, many)
            if order is not None:
                found.append(_Unit(other, group, order if few is rows else torch.argsort(order), 0.0))
    return found


def _near(columns: Tensor, other: LinearForm, tolerance: float) -> list[int]:
    mean = columns.mean(0)
    gaps = ((other.columns.mean(1) - mean).abs() / (mean.abs() + 1e-9)).max(1).values
    return [int(i) for i in torch.nonzero(gaps <= tolerance * 10).reshape(-1)]


def _unit(columns: Tensor, other: LinearForm, groups: Iterable[int], tolerance: float) -> list[_Unit]:
    found = []
    for group in groups:
        theirs = other.columns[group]
        if distance(columns.mean(0, keepdim=True), theirs.mean(0, keepdim=True)) > _between(tolerance):
            continue
        matched = bijection(columns, theirs, tolerance)
        if matched is not None:
            found.append(_Unit(other, group, matched[0], matched[1]))
    return found


def _pieces(dest: Side, src: Source, form: LinearForm, units: list[list[_Unit]]) -> list[tuple[Piece, list[Candidate]]]:
    for mine in _partings(dest, src, form, units):
        found = [(piece, _options(dest, src, form, piece, units)) for piece in mine]
        if all(options for _, options in found):
            return found
    return []


def _partings(dest: Side, src: Source, form: LinearForm, units: list[list[_Unit]]) -> list[list[Piece]]:
    """Ways to cut a dest use's outputs: by who reads them, the like-read together, as wide as src's, whole."""
    pieces = read(dest, form)
    whole = [Piece(torch.arange(form.width), dest.labels[form.node])]
    if sum(len(p.channels) for p in pieces) != form.width:
        unread = torch.ones(form.width, dtype=torch.bool)
        for p in pieces:
            unread[p.channels] = False
        pieces.append(Piece(torch.nonzero(unread).reshape(-1), ()))
    forms = {u.form.node: u.form for group in units for u in group}.values()
    alike = {len(piece.channels) for f in forms for piece in merged(read(src, f))}
    widths = [*sorted(alike, reverse=True), *sorted({f.width for f in forms} - alike, reverse=True)]
    halves = [cut(pieces, width) for width in widths if width < form.width]
    return [pieces, merged(pieces), *halves, whole]


def _options(dest: Side, src: Source, form: LinearForm, piece: Piece, units: list[list[_Unit]]) -> list[Candidate]:
    """Candidates of one piece: for every matrix of the dest use a unit and a part of it with as many channels."""
    per_group = [_group_options(dest, src, form, group, piece, units[group]) for group in range(form.groups)]
    if form.groups == 1:
        return per_group[0]
    rows = min((len(options) for options in per_group), default=0)
    found = []
    for row in range(rows):
        chosen = [options[row] for options in per_group]
        found.append(
            Candidate(
                partial(_joined, chosen),
                ("stack", *chosen[0].key),
                chosen[0].label,
                chosen[0].likeness,
                max(c.off for c in chosen),
            )
        )
    return found


def _joined(chosen: list[Candidate]) -> tuple[Claim, ...]:
    """The claims of several candidates, those between the same two values as one."""
    together: dict[tuple[int, int | None], list[Claim]] = {}
    for claim in (claim for candidate in chosen for claim in candidate.claims):
        together.setdefault((claim.dest_value, claim.src_value), []).append(claim)
    return tuple(
        replace(g[0], dest_places=_all([c.dest_places for c in g]), src_places=_all([c.src_places for c in g]))
        for g in together.values()
    )


def _all(places: list[Tensor | None]) -> Tensor | None:
    known = [p for p in places if p is not None]
    return torch.cat(known) if len(known) == len(places) else None


def _has_shape(dest: Side, form: LinearForm, src: Side, other: LinearForm) -> bool:
    return dest.flow[form.weight].shape == src.flow[other.weight].shape


def _piece_claim(
    dest: Side, src: Side, form: LinearForm, group: int, piece: Piece, unit: _Unit, channels: Tensor
) -> tuple[Claim, ...]:
    """The claim that a piece's channels are those of a src unit."""
    natural = torch.arange(form.width)
    is_whole = (
        form.groups == unit.form.groups == 1 and torch.equal(piece.channels, natural) and torch.equal(channels, natural)
    )
    if (
        is_whole
        and torch.equal(unit.order, torch.arange(len(unit.order)))
        and form.strides == unit.form.strides
        and _has_shape(dest, form, src, unit.form)
    ):
        return (Claim(form.weight, None, unit.form.weight, None),)
    idle, order, doubtful = (form.columns[group] == 0).all(1), unit.order, None
    is_guess = int(idle.sum()) > 1 and not torch.equal(order, torch.arange(len(order)))
    seen = thawed_order(dest, src, (form, group), (unit.form, unit.group)) if is_guess else None
    seen = seen if seen is not None and torch.equal(seen[~idle], order[~idle]) else None
    order = order if seen is None else seen
    target = form.places_at(group, piece.channels, torch.arange(form.sizes[2]))
    source = unit.form.places_at(unit.group, channels, order)
    if is_guess and seen is None:
        doubtful = idle.view(1, -1, 1).expand(target.shape).reshape(-1)
    return (Claim(form.weight, target.reshape(-1), unit.form.weight, source.reshape(-1), doubtful=doubtful),)


def _group_options(
    dest: Side, src: Source, form: LinearForm, group: int, piece: Piece, units: list[_Unit]
) -> list[Candidate]:
    found: dict[tuple[object, ...], Candidate] = {}
    size, scales = len(piece.channels), scales_to(dest.flow, form.node, piece.readers)
    for unit in units:
        for part, key in src_pieces(src, unit.form, size):
            surplus = scales_to(src.flow, unit.form.node, part.readers) - scales
            effective = folded(src, unit.form, surplus) if surplus > 0 and not unit.form.is_folded else None
            for taken in [replace(unit, form=effective), unit] if effective is not None else [unit]:
                option = _option(dest, src, form, group, piece, taken, part, key)
                stored = (_stored(src, taken.form.weight), unit.group, *key, taken.form.is_folded)
                same = found.setdefault(stored, option)  # other steps of one loop use it again
                if same.likeness < option.likeness:
                    found[stored] = replace(option, key=same.key)
    return list(found.values())


def _stored(src: Source, weight: int) -> object:
    """What is equal for weight-side values that are the same elements of a stored weight used several times."""
    if not src.is_shared(weight):
        return weight
    return tuple((t.path, int(t.ids[(0,) * t.ids.dim()])) for t in src.traces(weight))


def _option(
    dest: Side, src: Source, form: LinearForm, group: int, piece: Piece, unit: _Unit, part: Piece,
    key: tuple[str, int],
) -> Candidate:  # fmt: skip
    """The candidate that a piece of a dest use is a part of a src one."""
    claims = partial(_piece_claim, dest, src, form, group, piece, unit, part.channels)
    likeness = similarity(piece.label, part.label) + (0.5 if unit.form.geometry == form.geometry else 0.0)
    likeness += (2.0 if unit.form.width == form.width else 0.0) + _FIT[key[0]] + _merit(unit.form)
    is_numbered = form.groups == 1 and (unit.form.groups == 1 or src.flow[unit.form.node].op == "convolution")
    numbers = unit.group * unit.form.width + part.channels
    pair = (unit.form.node, piece.channels, numbers) if is_numbered else None
    which, shift, is_folded = (unit.form.node, unit.group, *key), unit.form.shift, unit.form.is_folded
    return Candidate(claims, which, part.label, likeness, unit.off, pair, part.readers, shift, is_folded)


def _merit(form: LinearForm) -> float:
    """How much speaks for what follows, or does not, being part of a product."""
    return -3.0 if form.is_composed else 3.0 if form.is_folded else 0.0
