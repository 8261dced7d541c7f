"""Tells buffers that are constants of the architecture (masks, coordinate tables) from buffers that are state.

A buffer is fixed where it is only compared, never computed with, where it is a mask of zeros and ones, where the other
model holds the very same values, or where it adds nothing and the other model has no tensor of its size.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from automap.canonical.lower import op_name
from automap.capture import Capture

_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and", "logical_or"}
_LAYOUT = {
    "slice",
    "view",
    "expand",
    "select",
    "unsqueeze",
    "squeeze",
    "_to_copy",
    "detach",
    "alias",
    "permute",
    "transpose",
    "clone",
}


def fixed_buffers(mine: Capture, other: Capture) -> frozenset[str]:
    """Return the names of mine's buffers that are constants, given what the other model holds."""
    nodes = {node.name: node for node in mine.graph.nodes}
    buffers = [w.tensor for w in other.weights.values() if not w.is_parameter]
    sizes = {w.tensor.numel() for w in other.all_weights}
    found = set()
    for name, weight in mine.weights.items():
        if weight.is_parameter:
            continue
        value = weight.tensor
        adds_nothing = value.numel() not in sizes and _is_only_added(nodes[name]) and not bool(value.any())
        is_plain = _is_only_compared(nodes[name]) or _is_binary(value) or adds_nothing
        is_shared = any(_holds_same(value, t) for t in other.constants.values())
        if is_plain or is_shared or (_is_table(value) and any(_holds_same(value, t) for t in buffers)):
            found.add(weight.name)
    return frozenset(found)


def _is_only_compared(node: fx.Node) -> bool:
    if not node.users:
        return False
    for user in node.users:
        name = op_name(user.target)
        if name not in _COMPARISONS and not (name in _LAYOUT and _is_only_compared(user)):
            return False
    return True


def _is_only_added(node: fx.Node) -> bool:
    return bool(node.users) and all(str(user.target).startswith("aten.add.") for user in node.users)


def _is_binary(value: Tensor) -> bool:
    """Whether a buffer holds zeros and ones, both of them and nothing else."""
    flat = value.detach().reshape(-1)
    if flat.numel() < 2 or float(flat[0]) not in (0.0, 1.0):
        return False
    return bool(((flat == 0) | (flat == 1)).all()) and bool((flat != flat[0]).any())


def _is_table(value: Tensor) -> bool:
    """Whether numbers repeat as in a table of coordinates; those of statistics do not."""
    flat = value.detach().reshape(-1)
    return 1 < len(torch.unique(flat)) <= len(flat) // 2


def _holds_same(a: Tensor, b: Tensor) -> bool:
    """Whether both hold the same numbers, not all equal."""
    if a.numel() != b.numel() or a.numel() < 2 or not b.is_floating_point():
        return False
    x, y = a.detach().reshape(-1).double(), b.detach().reshape(-1).double()
    return bool((x != x[0]).any()) and torch.equal(x.sort().values, y.sort().values)
