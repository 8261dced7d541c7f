"""Tables of one sum: what one of them takes of src's is not taken again by another, as src adds it once.

Two biases of dest that are added up may each look like the one that src adds: only their sum acts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from automap.align.assignment import Claim
from automap.align.candidates import Candidate, certain
from automap.align.forms import ElementForm
from automap.align.sums import tables_of_sum
from automap.align.tables import neutral_candidate

if TYPE_CHECKING:
    from automap.align.search import Search

_FIRST = 100.0


def with_rest(search: Search, form: ElementForm, found: list[Candidate]) -> list[Candidate]:
    """Return the candidates of a table, those first that leave out what other tables of the same sum are."""
    beside = [i for i in tables_of_sum(search.dest, form.node) if i != form.node] if form.kind == "add" else []
    owners = [search.choices[key].taken for i in beside for key in search.decided_at(i)]
    if not owners:
        return found
    spent = torch.cat([_numbers(search, claim) for owner in owners for claim in owner.claims])
    return [*(rest for c in found if (rest := _rest(search, form, c, spent)) is not None), *found]


def _rest(search: Search, form: ElementForm, candidate: Candidate, spent: Tensor) -> Candidate | None:
    """A candidate without its claims on elements that are spent; None where none of them is."""
    is_left = [not bool(torch.isin(_numbers(search, claim), spent).all()) for claim in candidate.claims]
    if all(is_left):
        return None
    if not any(is_left):
        return replace(neutral_candidate(form), likeness=_FIRST)
    places = [form.places if c.dest_places is None else c.dest_places for c in candidate.claims]
    claims = [
        c if left else Claim(form.weight, place, None, place)
        for c, place, left in zip(candidate.claims, places, is_left, strict=True)
    ]
    return replace(candidate, work_out=certain(*claims), key=(*candidate.key, "rest"), likeness=_FIRST)


def _numbers(search: Search, claim: Claim) -> Tensor:
    """The numbers of the src elements that a claim gives."""
    return torch.cat([*(values for _, _, values in search.assignment.shares(claim)), torch.arange(0)])
