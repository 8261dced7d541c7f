"""The end of a walk: which of src's outputs each output of dest is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from automap.align.choices import Stop
from automap.align.revise import mend
from automap.canonical.flow import Role

if TYPE_CHECKING:
    from automap.align.search import Search

#: the paths of two outputs that agree, src's and dest's, and how far off they are
Matched = tuple[str, str, float]


def matched_outputs(search: Search, outputs: tuple[tuple[str, int], ...]) -> list[Matched]:
    """Return dest's outputs that src has; where one is none of src's, what is open behind it is revised."""
    matched: list[Matched] = []
    for path, index in outputs:
        if search.dest.flow[index].role is Role.WEIGHT:
            continue
        partner = search.output_partner(index)
        if partner is None and index not in search.poisoned and _is_mended(search, index, matched):
            partner = search.output_partner(index)
        if partner is not None:
            search.confirm(index, partner[1])
            matched.append((partner[0], path, partner[1]))
    return matched


def _is_mended(search: Search, index: int, matched: list[Matched]) -> bool:
    """Whether a revision makes a dest output one of src's; none is tried where src computes the value as well, and has
    no output left that it might be.
    """
    is_free = _is_free(search, index, {path for path, _, _ in matched})
    return (is_free or not _is_inside(search, index)) and mend(search, Stop(index, "output"))


def _is_free(search: Search, index: int, taken: set[str]) -> bool:
    """Whether src has an output as large as one of dest's, which no other one of dest's is."""
    src, size = search.src.flow, math.prod(search.dest.flow[index].shape)
    return any(math.prod(src[i].shape) == size for path, i in src.outputs if path not in taken)


def _is_inside(search: Search, index: int) -> bool:
    """Whether src computes the value of a dest output."""
    if search.counterparts is not None:
        return index in search.counterparts.same
    value = search.dest.run.value(index)
    return isinstance(value, Tensor) and value.numel() > 1 and search.src.holds(value)
