"""A second draw of all weights: tells numbers of the architecture from numbers that weights happen to make.

On one draw a value may be another one times 0.7 because both models say so, or because a weight is 0.7 there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from automap.align.draw import draw_weights
from automap.align.run import Run
from automap.align.table import Source
from automap.canonical.evaluate import compute
from automap.canonical.flow import Ref, Role

if TYPE_CHECKING:
    from automap.align.search import Search

_SEED, _SAME = 7919, 1e-6


class Second:
    """Values of both sides on other weights, dest's made of src's as they are assigned so far."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.src = Run(search.src.flow, draw_weights(search.src.flow, _SEED))

    def of_src(self, index: int) -> Any:
        """Return what a value of src is on the second draw."""
        self.src.flow = self.search.src.flow
        return _computed(self.src, index)

    def of_dest(self, index: int) -> Any:
        """Return what a value of dest is on the second draw."""
        flow, assignment = self.search.dest.flow, self.search.assignment
        behind = [leaf for leaf in flow.ancestors([index]) if leaf in flow.weights]
        weights = {leaf: assignment.values(assignment.numbers(leaf), self.of_src) for leaf in behind}
        own = {leaf: self.search.dest.run.weights[leaf] for leaf in behind if leaf in assignment.own}
        shaped = {leaf: own.get(leaf, value).view(flow[leaf].shape) for leaf, value in weights.items()}
        return _computed(Run(flow, shaped), index)

    def factor(self, ratio: float, again: float) -> float | Ref | None:
        """Return what a ratio is that comes out as `again` on the second draw: a number, or a weight-side value."""
        if _is_same(ratio, again):
            return ratio
        src = self.search.src
        scalars = [n.index for n in src.flow.nodes if n.role is Role.WEIGHT and _is_scalar(src, n.index)]
        for index in scalars:
            mine, other = float(src.run.value(index)), float(self.of_src(index))
            if mine and other and _is_same(ratio / mine, again / other):
                return _times(src, index, ratio / mine)
            if mine and other and _is_same(ratio * mine, again * other):
                return _times(src, src.derive("reciprocal", torch.reciprocal, Ref(index)), ratio * mine)
        return None


def _times(src: Source, index: int, number: float) -> Ref:
    """A scalar of the weight side, without dims, times a number."""
    scalar = src.derive("reshape", torch.reshape, Ref(index), ())
    nearest = round(number)
    number = nearest if _is_same(number, nearest) else number
    return Ref(scalar if number == 1 else src.derive("mul", torch.mul, Ref(scalar), number))


def _is_scalar(src: Source, index: int) -> bool:
    value = src.run.value(index)
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()


def _is_same(a: float, b: float) -> bool:
    return abs(a - b) <= _SAME * max(abs(a), abs(b))


def _computed(run: Run, index: int) -> Any:
    for step in sorted(run.flow.ancestors([index])):
        node = run.flow[step]
        if node.role is Role.ACTIVATION and not run.knows(step):
            run.set(step, compute(node, run.value))
    return run.value(index)
