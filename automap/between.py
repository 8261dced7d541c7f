"""What lies between two ops on either side: steps that one side has and the other has not, and layouts that differ.

Comes in: an op of dest whose operands src has, and the src ops that read the same values. Goes out: the ops that make
the difference, in words.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from automap.align.divergence import scalars
from automap.align.side import Side
from automap.canonical.flow import Flow, Node, Role
from automap.canonical.rules.layout import MOVES

#: layouts that tell which way a value is laid out, not what is taken of it
_PLAIN = {"reshape", "permute", "transpose", "expand", "squeeze", "unsqueeze", "copy", "as_strided"}
_MOST = 8  # ops that one side may do more than the other and still be said to do nothing else otherwise
PRODUCTS = {"matmul", "convolution"}


def heard_ops(flow: Flow, index: int) -> list[Node]:
    """Return the ops that compute with a value, seen through layouts and casts."""
    found, stack, seen = list[Node](), list(flow.readers.get(index, ())), set[int]()
    while stack:
        reader = stack.pop(0)
        if reader not in seen and flow[reader].role is Role.ACTIVATION:
            seen.add(reader)
            if flow[reader].op in MOVES or flow[reader].op == "cast":
                stack.extend(flow.readers.get(reader, ()))
            else:
                found.append(flow[reader])
    return found


def detour(flow: Flow, start: Node, wanted: Callable[[Node], bool], ends: Container[int] = frozenset()) -> list[Node]:
    """Return the ops from start on up to one that is wanted, along the shortest way; none where there is no such way.

    A way has no product with a weight on it: what comes after one is another matter. It may also end with one of ends.
    """
    ways: list[list[Node]] = [[start]]
    seen = {start.index}
    while ways:
        way = ways.pop(0)
        if way[-1].index in ends or any(i in ends for i in _layouts(flow, way[-1].index)):
            return way
        if way[-1].op in PRODUCTS:
            continue
        for reader in heard_ops(flow, way[-1].index):
            if wanted(reader):
                return way
            if reader.index not in seen and len(way) < _MOST:
                seen.add(reader.index)
                ways.append([*way, reader])
    return []


def _layouts(flow: Flow, index: int) -> list[int]:
    """The layouts of a node, and layouts of these."""
    found = [r for r in flow.readers.get(index, ()) if flow[r].op in MOVES or flow[r].op == "cast"]
    return found + [further for r in found for further in _layouts(flow, r)]


def skipped(src: Flow, dest: Flow, node: Node, readers: Sequence[int]) -> list[Node]:
    """Return the src ops before the one that dest goes on with, where src does the same as dest after them."""
    wanted = _same_step(dest, node, src)
    found = [detour(src, src[r], wanted) for r in readers if src[r].op not in PRODUCTS]
    return min((way for way in found if way), key=len, default=[])


def added(src: Flow, dest: Flow, node: Node, readers: Sequence[int]) -> list[Node]:
    """Return the dest ops before the one that src goes on with, where dest does the same as src after them."""
    if node.op in PRODUCTS:
        return []
    found = [detour(dest, node, _same_step(src, src[r], dest)) for r in readers]
    return min((way for way in found if way), key=len, default=[])


def _same_step(one: Flow, node: Node, other: Flow) -> Callable[[Node], bool]:
    """What tells an op of the other side that does what node does, and is heard by the same ops."""
    following = {n.op for n in heard_ops(one, node.index)}

    def wanted(candidate: Node) -> bool:
        if candidate.op != node.op:
            return False
        if {k: v for k, v in scalars(candidate).items() if isinstance(v, float)} != {
            k: v for k, v in scalars(node).items() if isinstance(v, float)
        }:
            return False
        return {n.op for n in heard_ops(other, candidate.index)} == following

    return wanted


def missing_way(src: Flow, reader: int, values: Sequence[int]) -> list[Node]:
    """Return the ops through which src's reader gets one of the values that it does not read as they are."""
    direct = {index for index in values if any(n.index == reader for n in heard_ops(src, index))}
    for index in values:
        if index not in direct:
            for first in heard_ops(src, index):
                way = detour(src, first, lambda n: n.index == reader)
                if way:
                    return way
    return []


def laid_out(side: Side, index: int) -> tuple[int, list[Node]]:
    """Return the value that a value is only a layout of, and the layouts that take something of it or move it."""
    found: list[Node] = []
    flow = side.flow
    while flow[index].op in MOVES and flow[index].op != "part":  # one of several results is a value of its own
        operands = list(dict.fromkeys(i for i in flow[index].operands if flow[i].role is Role.ACTIVATION))
        if len(operands) != 1:
            break
        if flow[index].op not in _PLAIN and _changes(side, index):
            found.append(flow[index])
        index = operands[0]
    return index, found[::-1]


def _changes(side: Side, index: int) -> bool:
    """Whether a layout does anything: a slice that takes all of it does not."""
    node = side.flow[index]
    return len(node.operands) > 1 or node.shape != side.flow[node.operands[0]].shape or node.op in ("roll", "flip")


def layout_text(nodes: Sequence[Node]) -> str:
    """Return layouts in words: each with what it takes."""
    return ", ".join(_layout_word(node) for node in nodes)


def _layout_word(node: Node) -> str:
    numbers = ", ".join(f"{name} {value}" for name, value in scalars(node).items() if value is not None)
    return f"`{node.op}`" + (f" ({numbers})" if numbers else "")


def way_text(nodes: Sequence[Node]) -> str:
    """Return a way of ops in words: what they are, where, and what they amount to if that shows."""
    path = next((p for n in nodes if n.origin is not None and (p := n.origin.meta.get("module_path", ""))), "")
    place, sense = (f" in {path}" if path else ""), _sense([node.op for node in nodes])
    origins = [node.origin for node in nodes]
    calls = [n for i, n in enumerate(nodes) if n.origin is None or n.origin not in origins[:i]]  # fused ops once
    if len(calls) == 1:
        return f"`{calls[0].op}`{place}{_numbers(calls[0])}{sense}"
    words = ", ".join(f"`{node.op}`{_numbers(node) if node.op in ('mul', 'div') else ''}" for node in calls)
    return words + place + sense


def _numbers(node: Node) -> str:
    """The numbers that an op takes, in brackets."""
    found = [(k, v) for k, v in scalars(node).items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    words = [f"scale {value}" if node.op in ("mul", "div") else f"{name} {value}" for name, value in found]
    return f" ({', '.join(words)})" if words else ""


def _sense(ops: Sequence[str]) -> str:
    found = set(ops)
    if "tanh" in found and found <= {"tanh", "mul", "div"} and len(found) > 1:
        return " (a soft cap)"
    if "rsqrt" in found or ("sqrt" in found and "mean" in found):
        return " (a norm)"
    return " (a mask)" if ops == ["masked_fill"] else ""
