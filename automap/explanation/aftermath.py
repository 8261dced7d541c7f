"""After the last round: what ops repaired along with others would have given, on the values that reach them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from automap.align.divergence import Values
from automap.align.moments import EXACT, distance, moments
from automap.capture import Capture
from automap.explanation.departures import own_cause
from automap.explanation.mirror import Mirror
from automap.explanation.rounds import Found, Journey
from automap.explanation.siblings import Siblings, renumbered
from automap.findings import Finding, Site
from automap.results import Departure
from automap.verify.layout import gap

_NOTHING = 1e-13  # relative; less is rounding, and the op that was adjusted is no difference


@dataclass(frozen=True, slots=True)
class Aftermath:
    """A journey, and its last solution beside dest's flow without repairs."""

    journey: Journey
    mirror: Mirror

    @classmethod
    def of(cls, journey: Journey, dest: Capture) -> Aftermath:
        """Return what there is to look at; dest is its recording without repairs."""
        return cls(journey, Mirror.of(journey.solution, dest))

    def adjusted(self) -> Iterator[tuple[str, Departure]]:
        """Yield the ops that differ as the one they were adjusted with does."""
        solution, points, there = self.journey.solution, self.journey.points, self.mirror.there
        values = Values(solution)
        for name, patch in self.journey.repairs.adjusted.items():
            like = points.get(patch.point)
            if name in points or like is None or like.place >= len(there.get(name, ())):
                continue
            node, was = there[name][like.place], self.mirror.here[name][like.place]
            twin, mine = _same_value(self.journey, values, node), self.mirror.own_value(was)
            off = gap(solution.dest.run.value(node), mine) if mine is not None and twin is not None else None
            if twin is None or (off is not None and off.max_rel <= _NOTHING):
                continue
            cause = own_cause(self.mirror.original, was, solution.src.flow, twin)
            other = solution.src.flow[twin].origin
            moved = self._elsewhere(like, patch.point, name, other.name if other is not None else None)
            yield name, Departure(cause or moved, off)

    def given(self) -> Iterator[tuple[str, Departure]]:
        """Yield the places like a point in other blocks, where what was given would not be there already."""
        ours, theirs = Siblings.of(self.mirror.dest), Siblings.of(self.journey.solution.src_capture)
        for gift in self.journey.repairs.given.values():
            found, name = self.journey.points.get(gift.point), ours.moved(gift.point, gift.like, gift.call)
            if found is None or name is None or gift.call == gift.like or name in self.journey.points:
                continue
            off, is_known = self.mirror.gift_gap(gift)
            if is_known and (off is None or off.max_rel <= EXACT):
                continue
            group = ours.like(gift.call)
            twin = _twin(theirs, found, group.index(gift.call) - group.index(gift.like))
            yield name, Departure(self._elsewhere(found, gift.point, name, twin), off)

    def _elsewhere(self, found: Found, point: str, name: str, twin: str | None) -> Finding:
        """The finding of a point said of a call in another block."""
        mine, theirs = _paths(self.mirror.dest), _paths(self.journey.solution.src_capture)
        moved = (theirs[found.twin[0]], theirs[twin]) if found.twin is not None and twin is not None else None
        return said_of(found.point.finding, (mine[point], mine[name]), moved)


def _paths(capture: Capture) -> dict[str, str]:
    """The module path of each recorded call."""
    return {node.name: str(node.meta.get("module_path", "")) for node in capture.graph.nodes}


def _same_value(journey: Journey, values: Values, node: int) -> int | None:
    """The src op of the same kind with the same value, else any src op that has it."""
    dest, src = journey.solution.dest, journey.solution.src
    mine = dest.run.value(node) if dest.run.knows(node) else None
    if not isinstance(mine, Tensor):
        return None
    sums = moments(mine, tuple(range(mine.dim()))).reshape(1, 3)
    alike = [n for n, theirs in values.by_size.get(mine.numel(), ()) if distance(sums, theirs) <= EXACT]
    same = [n for n in alike if src.flow[n].op == dest.flow[node].op]
    return next(iter((*same, *alike)), None)


def _twin(siblings: Siblings, found: Found, by: int) -> str | None:
    """The src call that is to the twin of a point what a call so many blocks on is to the point."""
    group = siblings.like(found.twin[0]) if found.twin is not None else ()
    place = group.index(found.twin[0]) + by if found.twin is not None and group else -1
    return group[place] if 0 <= place < len(group) else None


def said_of(finding: Finding, dest: tuple[str, str], src: tuple[str, str] | None) -> Finding:
    """Return a finding about an op said of the same op elsewhere; (module before, module after) for each side."""
    mine, theirs, text = finding.dest, finding.src, renumbered(finding.message, *dest)
    if src is not None:
        text = text if src == dest else renumbered(text, *src)
        theirs = replace(theirs, name=_renamed(theirs, src)) if theirs is not None else None
    return replace(finding, message=text, dest=replace(mine, name=_renamed(mine, dest)) if mine else None, src=theirs)


def _renamed(site: Site, modules: tuple[str, str]) -> str:
    return modules[1] if site.name == modules[0] else renumbered(site.name, *modules)
