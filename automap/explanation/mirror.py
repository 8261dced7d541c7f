"""Dest's flow as it was recorded beside the one with repairs: what an op would have given on what it reads now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from automap.align import Solution
from automap.align.moments import EXACT, distance, moments
from automap.canonical.evaluate import compute
from automap.canonical.fixed import fixed_buffers
from automap.canonical.flow import Flow, Role
from automap.canonical.lower import lower
from automap.capture import Capture
from automap.explanation.edits import end_of_call
from automap.explanation.graphs import Given
from automap.results import Gap
from automap.verify.layout import gap


@dataclass(frozen=True, slots=True)
class Mirror:
    """A solution for dest with repairs beside the flow without: `here` and `there` hold the nodes of each recorded call
    in the one and the other, `twins` pairs them.
    """

    solution: Solution
    dest: Capture
    original: Flow
    here: Mapping[str, list[int]]
    there: Mapping[str, list[int]]
    twins: Mapping[int, int]

    @classmethod
    def of(cls, solution: Solution, dest: Capture) -> Mirror:
        """Return both flows; dest is its recording without repairs."""
        original = lower(dest, fixed_buffers(dest, solution.src_capture))
        here, there = by_call(original), by_call(solution.dest.flow)
        pairs = ((old, new) for call, mine in here.items() for old, new in zip(mine, there.get(call, ()), strict=False))
        return cls(solution, dest, original, here, there, dict(pairs))

    def own_value(self, node: int) -> Tensor | None:
        """What a node of the original flow would hold, given what its call reads now; None where that is not known."""
        run, flow = self.solution.dest.run, self.original
        own: dict[int, Any] = {}
        for step in flow.nodes[: node + 1]:
            if step.origin is not flow[node].origin or step.function is None:
                continue
            if any(i not in own and not self._is_known(i) for i in step.operands):
                return None
            own[step.index] = compute(step, lambda i: own[i] if i in own else run.value(self.twins[i]))
        value = own.get(node)
        return value if isinstance(value, Tensor) and not bool(value.isnan().all()) else None

    def _is_known(self, operand: int) -> bool:
        """Whether a node of the original flow has a value now."""
        twin, side = self.twins.get(operand), self.solution.dest
        if twin is None:
            return False
        return side.run.knows(twin) if side.flow[twin].role is Role.ACTIVATION else side.run.is_resolved(twin)

    def replaced_value(self, gift: Given) -> Tensor | None:
        """What was there before a gift, on the values that reach it now."""
        nodes = self.here.get(gift.node) or self.here.get(gift.call)
        return self.own_value(end_of_call(self.original, nodes[-1])) if nodes else None

    def gift_gap(self, gift: Given) -> tuple[Gap | None, bool]:
        """Return how far what was given is from what would be there, and whether that is known."""
        source: Tensor = self.solution.src.run.value(gift.src)
        mine = self.replaced_value(gift)
        if mine is None or mine.numel() != source.numel():
            return None, False
        off = gap(source.reshape(-1)[gift.order].view(mine.shape), mine)
        if off is None or gift.reader is None:
            return off, True
        call = next(node for node in self.dest.graph.nodes if node.name == gift.reader)
        return replace(off, at=call.meta.get("module_path", "") or str(call.target)), True

    def is_wrong(self, gift: Given) -> bool:
        """Whether a guess for a later block turns out wrong: what dest's op reads there is not what src has there."""
        if gift.partner is None or gift.call == gift.like:
            return False
        if not gift.is_detached:
            read = [self.replaced_value(gift)]
        else:
            own = set(self.here.get(gift.call, ()))
            outer = {i for node in own for i in self.original[node].operands} - own
            data = [i for i in outer if self.original[i].role is Role.ACTIVATION]
            read = [self.solution.dest.run.value(self.twins[i]) if self._is_known(i) else None for i in data]
        known = [value for value in read if isinstance(value, Tensor)]
        theirs: Tensor = self.solution.src.run.value(gift.partner)
        return len(known) == len(read) and not any(same_numbers(value, theirs) for value in known)


def by_call(flow: Flow) -> dict[str, list[int]]:
    """Return the nodes of each recorded call."""
    found: dict[str, list[int]] = {}
    for node in flow.nodes:
        if node.origin is not None:
            found.setdefault(node.origin.name, []).append(node.index)
    return found


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two values hold the same numbers, in whatever layout."""
    if a.numel() != b.numel():
        return False
    sums = [moments(value, tuple(range(value.dim()))).reshape(1, 3) for value in (a, b)]
    return distance(*sums) <= EXACT
