"""What is equal on this input and would not be on another: limits that are not reached, positions that turn nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from automap.align.divergence import constant_operands, origin_ops, scalars
from automap.align.side import Side
from automap.align.solve import Solution
from automap.canonical.flow import Flow, Node, Role, site_of
from automap.canonical.rules.layout import MOVES
from automap.findings import Finding

_LIMITED = {"hardtanh", "clamp", "clamp_max"}
_FAR = 1e3  # limits beyond are there for the number type, not for the model


def unturned(solution: Solution) -> list[Finding]:
    """Return a finding where rotary positions turn nothing: what pairs they turn cannot be seen."""
    dest = solution.dest
    live = dest.flow.ancestors([index for _, index in dest.flow.outputs])
    for node in dest.flow.nodes:
        if node.op != "mul" or node.role is not Role.ACTIVATION or node.index not in live:
            continue
        if any(_is_still(dest, index, value) for index, value in constant_operands(dest, node)):
            message = (
                "the rotary positions turn nothing on this input (there is only position 0): which pairs they turn "
                "is a guess"
            )
            return [
                Finding(
                    "ambiguous",
                    message,
                    None,
                    site_of(dest.flow, node.index),
                    help="match again with a longer sample input",
                )
            ]
    return []


def _is_still(side: Side, index: int, value: Tensor) -> bool:
    """Whether a table of cosines is one throughout, or one of sines zero."""
    made = origin_ops(side.flow, index)
    wanted = 1.0 if "cos" in made else 0.0 if "sin" in made else math.nan
    return value.is_floating_point() and value.numel() > 1 and bool((value == wanted).all())


def unreached(solution: Solution) -> Iterator[Finding]:
    """Yield a warning for each kind of limit that dest has and src has not, and that no value on this input reaches."""
    theirs = {_limits(node) for node in _activations(solution.src.flow)}
    told = set[tuple[float, ...]]()
    for node in _activations(solution.dest.flow):
        limits = _limits(node)
        if node.op not in _LIMITED or limits in theirs | told or not solution.dest.run.knows(node.index):
            continue
        value = solution.dest.run.value(node.index)
        idle = [limit for limit in limits if isinstance(value, Tensor) and not bool((value == limit).any())]
        if idle:
            told.add(limits)
            ends = ", ".join(f"{limit:g}" for limit in idle)
            yield Finding(
                "attribute-differs",
                f"no value on this input reaches {ends}, where dest's {node.op} ends; src has no such limit",
                None,
                site_of(solution.dest.flow, node.index),
                "warning",
                help="match again with a larger sample input",
            )


def _activations(flow: Flow) -> list[Node]:
    return [node for node in flow.nodes if node.role is Role.ACTIVATION and node.op not in MOVES]


def _limits(node: Node) -> tuple[float, ...]:
    """The finite limits of an op that has some."""
    if node.op not in _LIMITED:
        return ()
    found = [v for v in scalars(node).values() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return tuple(float(v) for v in found if math.isfinite(v) and 0 < abs(v) < _FAR)
