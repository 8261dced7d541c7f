"""Goes on past every place where dest leaves src: repairs it in the recording, matches again, until nothing is left.

An op that differs in numbers or flags alone is given src's; where more differs, what a weight meets is given src's
value of what its counterpart meets. So the next difference shows as if it were the only one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from automap.align import Solution, solve
from automap.align.moments import EXACT
from automap.canonical.flow import Flow
from automap.capture import Capture
from automap.explanation.adjustments import adjustments, followed, reconsidered
from automap.explanation.departures import Point, points
from automap.explanation.gifts import Ground, edit_gifts, exit_gifts
from automap.explanation.graphs import Adjusted, Given, patched
from automap.explanation.mirror import Mirror
from automap.inputs import Inputs

_MOST_ROUNDS = 8


@dataclass(slots=True)
class Repairs:
    """What was changed so far in dest's recording; mutable state of one explanation.

    `adjusted` are ops by name, `given` values by what they replace for whom, `kept` ops that are not to be adjusted
    (again): they are right as they are although others like them are not, or adjusting them does not help. `refused`
    are gifts that were guessed wrongly.
    """

    adjusted: dict[str, Adjusted] = field(default_factory=dict)
    given: dict[tuple[str, str | None], Given] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    refused: set[tuple[str, str | None]] = field(default_factory=set)

    def applied(self, dest: Capture, src_value: Callable[[int], Any]) -> Capture | None:
        """Return dest with all repairs, values given being made of src's; None where they do not fit."""
        given = [(step, src_value(step.src).reshape(-1)) for step in self.given.values()]
        return patched(dest, list(self.adjusted.values()), given)


@dataclass(frozen=True, slots=True)
class Found:
    """A point as it was found; `place` tells which of the nodes of its recorded call it is.

    `twin` is the name of the src call and which of its nodes is meant, or None.
    """

    point: Point
    place: int
    twin: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Journey:
    """All rounds of one explanation: the points where dest departs, the last solution, and what was repaired for it.

    `points` are by the name of the recorded call; `is_finished` tells whether nothing is left.
    """

    points: Mapping[str, Found]
    solution: Solution
    repairs: Repairs
    is_finished: bool

    @property
    def is_proven(self) -> bool:
        """Whether outputs agree, with all repairs, to the last digit: the map of weights is right."""
        matched = self.solution.outcome.matched_outputs
        return self.is_finished and bool(matched) and all(off <= EXACT for _, _, off in matched)


def journey(solution: Solution, inputs: Inputs, *, seed: int) -> Journey:
    """Return where dest departs, from a first solution on; inputs are dest's."""
    dest, repairs, found = solution.dest_capture, Repairs(), dict[str, Found]()
    for _ in range(_MOST_ROUNDS):
        here = points(solution)
        fresh = []
        for point in here:
            name, place = call_of(solution.dest.flow, point.node)
            twin = call_of(solution.src.flow, point.twin) if point.twin is not None else None
            fresh += [point] if name not in found else []
            found.setdefault(name, Found(point, place, twin))
        following = _repaired(solution, dest, here, fresh, repairs)
        if following is None:
            return Journey(found, solution, repairs, not here)
        try:
            solution = solve(solution.src_capture, following, None, inputs, seed=seed, is_algebraic=False)
        except (RuntimeError, IndexError):  # torch refuses a shape or a number type: the repairs do not fit
            return Journey(found, solution, repairs, False)
    return Journey(found, solution, repairs, not points(solution))


def call_of(flow: Flow, index: int) -> tuple[str, int]:
    """Return the name of the recorded call that a node comes from, and which of its nodes it is."""
    origin = flow[index].origin
    assert origin is not None
    return origin.name, [node.index for node in flow.nodes if node.origin is origin].index(index)


def _repaired(
    solution: Solution, dest: Capture, here: Sequence[Point], fresh: Sequence[Point], repairs: Repairs
) -> Capture | None:
    """Repair what can be at the points of a round (fresh ones were not met before) and return dest so far.

    None is returned where nothing (more) can be done.
    """
    wrong = reconsidered(solution, here) & repairs.adjusted.keys()
    repairs.adjusted = {name: patch for name, patch in repairs.adjusted.items() if name not in wrong}
    repairs.kept |= wrong
    is_changed = bool(wrong)
    for patches in adjustments(solution, dest, here, repairs.kept | repairs.adjusted.keys()):
        is_changed |= _tried(solution, dest, patches, repairs)
    is_changed |= _withdrawn(solution, dest, repairs)
    if not is_changed:
        is_changed = _given(Ground.of(solution, dest), here, fresh, repairs)
    return repairs.applied(dest, solution.src.run.value) if is_changed else None


def _given(ground: Ground, here: Sequence[Point], fresh: Sequence[Point], repairs: Repairs) -> bool:
    """Give src's values where edits say so, and for stops without any such point further on; return whether there is
    something new.
    """
    gifts = {point.node: edit_gifts(ground, point) for point in fresh}
    helped = {point.stop for point in fresh if gifts[point.node]}
    left = [point for point in here if point.stop not in helped]
    found = [*(gift for given in gifts.values() for gift in given), *exit_gifts(ground, left)]
    apt = [gift for gift in found if gift.key not in repairs.refused or gift.call == gift.like]
    new = {gift.key: gift for gift in apt if gift.key not in repairs.given}
    repairs.given |= new
    return bool(new)


def _withdrawn(solution: Solution, dest: Capture, repairs: Repairs) -> bool:
    """Take back what was given to later blocks and turns out wrong there; return whether there was such a thing."""
    mirror = Mirror.of(solution, dest)
    with torch.no_grad(), torch._C.DisableTorchFunction():
        wrong = {key for key, gift in repairs.given.items() if mirror.is_wrong(gift)}
    repairs.given = {key: gift for key, gift in repairs.given.items() if key not in wrong}
    repairs.refused |= wrong
    return bool(wrong)


def _tried(solution: Solution, dest: Capture, patches: list[Adjusted], repairs: Repairs) -> bool:
    """Adjust ops, and what follows them if it takes that to fit; return whether it does."""
    for attempt in (patches, *followed(dest, solution.src_capture, patches[0])):
        before = repairs.adjusted
        repairs.adjusted = {**before, **{patch.name: patch for patch in attempt}}
        if repairs.applied(dest, solution.src.run.value) is not None:
            return True
        repairs.adjusted = before
    repairs.kept |= {patch.name for patch in patches}
    return False
