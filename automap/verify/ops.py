"""Aligned ops compared one by one, on the values of a match: every use of a weight in dest beside its counterpart."""

from __future__ import annotations

from torch import Tensor

from automap.align import Solution
from automap.align.moments import EXACT
from automap.canonical.flow import site_of
from automap.results import Gap, OpParity
from automap.verify.layout import gap


def op_parities(solution: Solution) -> dict[int, OpParity]:
    """Return how far each dest op that uses a weight is from src's, by dest node; those laid out too differently are
    left out.
    """
    found = {}
    src, dest = solution.src, solution.dest
    for node, twin in sorted(solution.outcome.partners.items()):
        if twin < 0 or not dest.run.knows(node) or not src.run.knows(twin):
            continue
        off = _off(solution, node, twin)
        if off is not None and off.max_rel < _SAME:
            sites = site_of(dest.flow, node), site_of(src.flow, twin)
            found[node] = OpParity(*sites, off.max_abs, off.max_rel, EXACT)
    return found


def _off(solution: Solution, node: int, twin: int) -> Gap | None:
    src, dest = solution.src.run, solution.dest.run
    if dest.is_same(node, src, twin):  # the same op on the same values
        return Gap(0.0, 0.0, (), 0.0, 0.0)
    mine, theirs = dest.value(node), src.value(twin)
    return gap(theirs, mine) if isinstance(mine, Tensor) and isinstance(theirs, Tensor) else None


_SAME = 1e-2  # farther apart, the two are only in part made of the same: a product of which one side has more
