"""Sums of several products, each with a bias of its own: only the sum of these acts.

Where dest has one bias for such a sum and src several, dest's is the sum of src's.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from automap.align.assignment import Claim
from automap.align.candidates import Candidate, certain
from automap.align.effective import shift_behind
from automap.align.forms import ElementForm
from automap.align.side import Side
from automap.align.table import Source
from automap.canonical.flow import Flow, Ref, Role
from automap.canonical.rules.layout import MOVES

_MOST_STEPS = 24


def tables_of_sum(side: Side, index: int) -> list[int]:
    """Return the sums with a weight among what is added up to make the value that a sum is part of."""
    flow = side.flow
    return [i for i in _terms(flow, _top(flow, index)) if flow[i].op == "add" and _has_weight(flow, i)]


def whole_bias(dest: Side, src: Source, form: ElementForm, products: list[Candidate], *, least: int) -> list[Candidate]:
    """Return the candidate that a bias is all that src adds to the products that it adds up, or none.

    Src has to add in at least so many places.
    """
    _, places = dest.essential(form.weight)
    claims: list[Claim] = []
    for node, mine, theirs in (p.channels for p in products if p.channels is not None and not p.is_folded):
        total = _total(src, node, _products(dest, form.node), least)
        if total is None or int(theirs.max()) >= src.flow[total].shape[0] or int(mine.max()) >= len(places):
            return []
        claims.append(Claim(form.weight, places[mine], total, theirs))
    if sum(len(claim.src_places) for claim in claims if isinstance(claim.src_places, Tensor)) != len(places):
        return []
    key = ("whole bias", *(claim.src_value for claim in claims))
    return [Candidate(certain(*claims), key, (), 50.0, is_folded=True)]


def sums_with(flow: Flow, index: int) -> set[int]:
    """Return all that a value is added up with, and the sums on the way."""
    return _terms(flow, _top(flow, index))


def _products(side: Side, index: int) -> int:
    """How many products with weights are added up to make the value that a sum is part of."""
    flow = side.flow
    terms = (flow[i] for i in _terms(flow, _top(flow, index)))
    return sum(node.op in ("matmul", "convolution") and _has_weight(flow, node.index) for node in terms)


def _total(src: Source, product: int, count: int, least: int) -> int | None:
    """The sum of the biases of all products that one is added up with, where there are as many as on the other side."""
    inside = _terms(src.flow, _top(src.flow, product))
    forms = {form.node: form for i in inside if (form := src.product_at(i)) is not None}
    shifts = [shift for form in forms.values() if (shift := shift_behind(src, form)) is not None]
    widths = {form.groups * form.width for form in forms.values()}
    if product not in forms or len(forms) != count or len(shifts) < max(least, 1) or len(widths) != 1:
        return None
    return reduce(lambda one, other: src.derive("add", torch.add, Ref(one), Ref(other)), shifts)


def _top(flow: Flow, index: int) -> int:
    """The last value that a value is added up to; behind layout any of the values that are read alike will do."""
    top, step = index, index
    for _ in range(_MOST_STEPS):
        node = flow[next(iter(flow.readers.get(step, ())), step)]
        if node.index == step or (node.op not in MOVES and node.op != "add"):
            break
        step = node.index
        top = step if node.op == "add" else top
    return top


def _terms(flow: Flow, top: int) -> set[int]:
    """The sums behind a value and what they add up, seen through layout; what else is read too stands for itself."""
    found: set[int] = set()
    stack = [top]
    while stack:
        node = flow[stack.pop()]
        if (
            node.index in found
            or node.role is not Role.ACTIVATION
            or (node.index != top and _is_shared(flow, node.index))
        ):
            continue
        found.add(node.index)
        if node.op in MOVES or node.op == "add":
            stack.extend(node.operands)
    return found


def _is_shared(flow: Flow, index: int) -> bool:
    readers = flow.readers.get(index, ())
    return len(readers) > 1 and any(flow[reader].op not in MOVES for reader in readers)


def _has_weight(flow: Flow, index: int) -> bool:
    return any(flow[i].role is Role.WEIGHT for i in flow[index].operands)
