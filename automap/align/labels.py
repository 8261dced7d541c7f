"""Structural labels: what happens to a value afterwards, to a given depth, whatever the spelling of the layout.

Labels order the candidates that values leave open, and tell several uses of one value in one op apart; what they say is
borne out by the values that follow, or taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeAlias

from automap.canonical.flow import Flow, Node, Role
from automap.canonical.rules.layout import MOVES

DEPTH = 6
#: so many ops after one are looked at to see that dest goes on as src does: a bias, and what scales the sum
_STEPS = 2
#: what follows a value, one entry for each depth
Label: TypeAlias = tuple[Hashable, ...]
_SILENT = (MOVES - {"cat", "stack"}) | {"cast"}


def _is_silent(flow: Flow, node: Node) -> bool:
    """Layout, and sums or products with a number or a weight, say nothing about the role of a value."""
    if node.op in _SILENT:
        return True
    if node.op not in ("add", "mul", "div", "neg"):
        return False
    activations = [i for i in node.operands if flow[i].role is Role.ACTIVATION]
    return len(activations) <= 1


def _is_layout(flow: Flow, node: Node) -> bool:
    return node.op in _SILENT


def _heard(flow: Flow, is_silent: Callable[[Flow, Node], bool]) -> list[tuple[tuple[int, str], ...]]:
    """For each node the ops that compute with it, with the operand's position, seen through silent ones."""
    heard: list[tuple[tuple[int, str], ...]] = [()] * len(flow)
    for index in range(len(flow) - 1, -1, -1):
        found: list[tuple[int, str]] = []
        for reader in flow.readers.get(index, ()):
            node = flow[reader]
            if node.role is Role.CONSTANT:  # it asks for the shape alone
                continue
            if is_silent(flow, node):
                found.extend(heard[reader])
            else:
                commutes = node.op in ("add", "mul")
                positions = [p for p, operand in enumerate(node.operands) if operand == index]
                found.extend((reader, node.op if commutes else f"{node.op}.{p}") for p in positions)
        heard[index] = tuple(dict.fromkeys(found))
    return heard


def labels(flow: Flow) -> list[Label]:
    """Return for each node one label per depth; equal labels mean equal use to that depth."""
    return _labelled(flow, _heard(flow, _is_silent), DEPTH)


def next_steps(flow: Flow) -> list[Label]:
    """Return for each node what the next ops do with it, those with weights and numbers as well."""
    return _labelled(flow, _heard(flow, _is_layout), _STEPS)


def _labelled(flow: Flow, heard: list[tuple[tuple[int, str], ...]], depth: int) -> list[Label]:
    current = [0] * len(flow)
    found: list[Label] = [()] * len(flow)
    outputs = {index for _, index in flow.outputs}
    for _ in range(depth):
        following = [0] * len(flow)
        for index in range(len(flow)):
            uses = tuple(sorted({(name, current[reader]) for reader, name in heard[index]}))
            following[index] = hash((uses, index in outputs))
        current = following
        found = [(*labels, label) for labels, label in zip(found, current, strict=True)]
    return found


def similarity(a: Label, b: Label) -> int:
    """Return at how many depths two labels agree; a set agrees with one that it holds: one step of a loop, say."""
    return sum(_agree(x, y) for x, y in zip(a, b, strict=False))


def _agree(x: Hashable, y: Hashable) -> bool:
    return x == y or (isinstance(x, frozenset) and isinstance(y, frozenset) and (x <= y or y <= x))
