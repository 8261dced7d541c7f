"""How a finding calls things: ops, weights, constants and numbers, by what they are for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from automap.align.divergence import is_mask, origin_ops
from automap.align.solve import Solution
from automap.canonical.flow import Flow, Node, Role, site_of
from automap.findings import Code, Finding, Site

_ROOTS = {"rsqrt", "sqrt", "reciprocal", "div", "pow"}


@dataclass(frozen=True, slots=True)
class Cause:
    """A finding with how directly it explains a divergence: lower ranks come first."""

    rank: int
    finding: Finding


def cause_finding(solution: Solution, code: Code, text: str, src: int | None, dest: int | None) -> Finding:
    theirs: Site | None = site_of(solution.src.flow, src) if src is not None else None
    mine = site_of(solution.dest.flow, dest) if dest is not None else None
    return Finding(code, text, theirs, mine)


def named(flow: Flow, node: Node) -> str:
    path = node.origin.meta.get("module_path", "") if node.origin is not None else ""
    return f"`{node.op}`{f' in {path}' if path else ''}"


def leaves_of(flow: Flow, index: int) -> list[int]:
    if flow[index].role is not Role.WEIGHT:
        return []
    return sorted(i for i in flow.ancestors([index]) if i in flow.weights)


def leaf_name(flow: Flow, index: int) -> str:
    leaves = sorted(i for o in (index, *flow[index].operands) for i in leaves_of(flow, o))
    return flow.weights[leaves[0]].name if leaves else ""


def meaning_of(flow: Flow, node: Node, name: str, mine: Any, theirs: Any) -> str:
    """What a number without a name is for, from what it meets."""
    if not name.startswith("argument"):
        return name
    readers = [flow[r].op for r in flow.readers.get(node.index, ())]
    if node.op == "add" and any(op in _ROOTS for op in readers):
        return "eps"
    if node.op in ("mul", "div"):
        return "scale"
    if node.op == "gelu":
        return "approximate"
    return name


def constant_name(flow: Flow, index: int, value: Tensor) -> str:
    drawn = _dropped(value)
    if drawn:
        return drawn
    if is_mask(value):
        square = value.dim() >= 2 and value.shape[-1] == value.shape[-2] and value.shape[-1] > 1
        blocked = value if value.dtype == torch.bool else value == 0
        flat = blocked.reshape(-1, *value.shape[-2:])[0] if square else None
        return "causal mask" if flat is not None and torch.equal(flat, torch.ones_like(flat).tril()) else "mask"
    made = origin_ops(flow, index)
    waves = [op for op in made if op in ("cos", "sin", "polar", "exp")]
    return f"table of {'/'.join(waves)} (positions, rotary frequencies)" if waves else "constant table"


def _dropped(value: Tensor) -> str:
    """What a table is that has zeros and one number above one, as dropout draws it; empty if it is another table."""
    if not value.is_floating_point() or value.numel() < 8:
        return ""
    kept = value[value != 0]
    if not 0 < len(kept) < value.numel() or float(kept.min()) != float(kept.max()) or float(kept.max()) <= 1:
        return ""
    return f"random mask of zeros and {float(kept.max()):.4g} (an active dropout of {1 - 1 / float(kept.max()):.2g})"


def count_of(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
