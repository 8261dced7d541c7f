"""Which values stand in several places: read more than once, as shared heads are, or broadcast on the way."""

from __future__ import annotations

import math

from automap.canonical.flow import Flow, Role
from automap.canonical.rules.layout import MOVES

#: layout ops that may read one channel several times
_SPREADING = {"expand", "repeat", "index", "index_select"}


def spread_values(flow: Flow, size: int) -> list[bool]:
    """Return for each node whether an op reads it more than once, be it behind moves and sums of no more than size."""
    nodes, sizes = flow.nodes, [math.prod(node.shape) for node in flow.nodes]
    found = [False] * len(nodes)
    for index in reversed(range(len(nodes))):
        for reader in flow.readers.get(index, ()):
            op = nodes[reader].op
            is_passed_on = found[reader] and sizes[reader] <= size and (op in MOVES or op in ("add", "mul"))
            found[index] |= is_passed_on or (op in _SPREADING and sizes[reader] > sizes[index])
    return found


def is_broadcast(flow: Flow, weight: int) -> bool:
    """Whether an op on the way from what is stored to a weight-side value makes more elements than it is given."""
    for index in flow.ancestors([weight]):
        node = flow[index]
        behind = [math.prod(flow[i].shape) for i in node.operands if flow[i].role is Role.WEIGHT]
        if behind and math.prod(node.shape) > max(behind):
            return True
    return False
