"""Goes back in a walk: decides and computes again from the first decision that a trial changes."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from automap.align.choices import Key, Stop
from automap.canonical.flow import Role

if TYPE_CHECKING:
    from automap.align.search import Search


def replay(search: Search, stop: Stop, trial: dict[Key, tuple[object, ...]]) -> Stop | None:
    """Compute again from the first decision of a trial to the stop, with the trial's candidates.

    Where that gets past the stop, what else is made of what changed is computed again too.
    """
    affected = _affected(search, trial, stop)
    search.forced |= trial
    found = _again(search, affected)
    if found is None and stop.reason == "unheld":
        found = None if search.src.holds(search.dest.run.value(stop.node)) else stop
    elif found is None and stop.reason == "output":
        found = stop if search.output_partner(stop.node) is None else None
    return _again(search, _beside(search, affected)) if found is None else found


def restore(search: Search, stop: Stop, former: dict[Key, tuple[object, ...]]) -> None:
    """Go back to the candidates before a trial, in all that is made of them."""
    replay(search, stop, former)
    _again(search, _beside(search, _affected(search, former, stop)))


def _again(search: Search, nodes: set[int]) -> Stop | None:
    """Decide and compute nodes anew; return the first stop at one that had been passed."""
    search.work += len(nodes)
    given_up = {stop.node: stop for stop in search.stops}
    search.assignment.undo(nodes)
    gone = {key for key in search.choices if key[0] in nodes}
    search.taken = {candidate: key for candidate, key in search.taken.items() if key not in gone}
    for key in gone:
        del search.choices[key]
    for index in sorted(nodes):
        search.dest.run.forget(index)
        if search.counterparts is not None:
            search.counterparts.same.pop(index, None)
    for index in sorted(nodes):
        found = search.process(index)
        if found is not None and index not in given_up:
            return found
        if found is not None:
            search.poisoned.add(index)
    return None


def _beside(search: Search, affected: set[int]) -> set[int]:
    """The nodes walked already that are made of affected ones and do not lead to the stop."""
    changed = set(affected)
    for index in search.walked[bisect_right(search.walked, min(affected)) :]:
        if any(i in changed for i in search.dest.flow[index].operands):
            changed.add(index)
    return changed - affected


def _affected(search: Search, trial: dict[Key, tuple[object, ...]], stop: Stop) -> set[int]:
    """The nodes between the decisions of a trial and the stop."""
    needed = search.dest.flow.ancestors([stop.node])
    found = {key[0] for key in trial}
    for index in range(min(found), stop.node + 1):
        node = search.dest.flow[index]
        if index in needed and node.role is Role.ACTIVATION and any(i in found for i in node.operands):
            found.add(index)
    return found | {stop.node}
