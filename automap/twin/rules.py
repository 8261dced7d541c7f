"""What each op of a flow graph says of its dims, one function a kind of op; of an op without a rule, every dim is kept.

A rule relates the dims of an op's operands to those of its result. Where its arguments hold sizes, `narrow_args` below
gives those of the twin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from automap.canonical.flow import Flow, Node, Ref
from automap.canonical.rules.layout import MOVES
from automap.twin.dims import Digits, Dims

#: the ops that compute each element of the result from the elements at the same place, or along dims that stay
_ELEMENTWISE = {
    "abs", "add", "batch_norm", "bitwise_and", "bitwise_not", "bitwise_or", "cast", "clamp", "clamp_max", "clamp_min",
    "complex", "cos", "cumsum", "div", "elu", "eq", "erf", "erfc", "exp", "expm1", "floor", "ge", "gelu", "gt",
    "hardsigmoid", "hardswish", "hardtanh", "imag", "isinf", "isnan", "le", "leaky_relu", "log", "log1p",
    "log_sigmoid_forward", "log_softmax", "logical_and", "logical_not", "logical_or", "lt", "masked_fill", "maximum",
    "minimum", "mish", "mul", "ne", "neg", "polar", "pow", "real", "reciprocal", "relu", "relu6", "round", "rsqrt",
    "sigmoid", "sign", "silu", "sin", "softmax", "softplus", "sqrt", "square", "sub", "tanh", "where",
}  # fmt: skip
_REDUCTIONS = {
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "linalg_vector_norm",
    "prod",
    "any",
    "all",
    "argmax",
    "logsumexp",
}
_POOLS = {
    "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "avg_pool1d", "max_pool2d_with_indices", "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
}  # fmt: skip
_NORMS_OVER_SHAPE = {"layer_norm", "rms_norm"}
_END = 2**62


@dataclass(frozen=True, slots=True)
class Shaped:
    """The dims of every node's value, as variables; `chosen` are the inputs that do nothing but choose rows."""

    flow: Flow
    dims: Dims
    variables: Mapping[int, tuple[int, ...]]
    chosen: Mapping[int, int]

    def of(self, value: Any) -> tuple[int, ...]:
        """Return the dims of an operand, none for a plain number."""
        return self.variables[value.index] if isinstance(value, Ref) else ()

    def alike(self, a: Sequence[int], b: Sequence[int]) -> None:
        """Make dims one class pair by pair, aligned at the end."""
        for one, other in zip(reversed(a), reversed(b), strict=False):
            self.dims.same(one, other)

    def keep(self, node: Node) -> None:
        """Keep all dims of a node and of what it reads."""
        self.dims.keep(self.variables[node.index])
        for operand in node.operands:
            self.dims.keep(self.variables[operand])


Rule = Callable[[Shaped, Node], None]


def relate(shaped: Shaped, node: Node) -> None:
    """Enter what an op says of its dims."""
    found = _RULES.get(node.op)
    if found is None:
        shaped.keep(node)
    else:
        found(shaped, node)


def _elementwise(shaped: Shaped, node: Node) -> None:
    for operand in node.operands:
        shaped.alike(shaped.variables[operand], shaped.variables[node.index])


def _reshape(shaped: Shaped, node: Node) -> None:
    shaped.dims.regroup(shaped.of(node.args[0]), shaped.variables[node.index])


def _permute(shaped: Shaped, node: Node) -> None:
    before, order = shaped.of(node.args[0]), node.args[1]
    for dim, variable in enumerate(shaped.variables[node.index]):
        shaped.dims.same(before[order[dim] % len(before)], variable)


def _transpose(shaped: Shaped, node: Node) -> None:
    before = list(shaped.of(node.args[0]))
    a, b = (d % len(before) for d in node.args[1:3])
    before[a], before[b] = before[b], before[a]
    shaped.alike(before, shaped.variables[node.index])


def _select(shaped: Shaped, node: Node) -> None:
    before = list(shaped.of(node.args[0]))
    shaped.dims.keep([before.pop(node.args[1] % len(before))])
    shaped.alike(before, shaped.variables[node.index])


def _stack(shaped: Shaped, node: Node) -> None:
    after = list(shaped.variables[node.index])
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    shaped.dims.keep([after.pop(dim % len(after))])
    for part in node.args[0]:
        shaped.alike(shaped.of(part), after)


def bounds(node: Node, size: int) -> tuple[int, int, int, int]:
    """Return dim, start, stop and step of a slice."""
    given = (*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :])
    dim, step = int(given[0]), int(given[3])
    start, stop = (0 if given[1] is None else given[1]), (size if given[2] is None else min(given[2], size))
    return dim, start + size * (start < 0), stop + size * (stop < 0), step


def _slice(shaped: Shaped, node: Node) -> None:
    before, after = shaped.of(node.args[0]), shaped.variables[node.index]
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(before)
    for place, (one, other) in enumerate(zip(before, after, strict=True)):
        if place != dim:
            shaped.dims.same(one, other)
    _cut(shaped.dims, before[dim], after[dim], *bounds(node, shaped.dims.size(before[dim]))[1:])


def _cut(dims: Dims, whole: int, piece: int, start: int, stop: int, step: int) -> None:
    size = dims.size(whole)
    if (start, stop, step) == (0, size, 1):
        dims.same(whole, piece)
    elif step == 1:
        unit = math.gcd(size, start, stop)
        shared = dims.new(unit)
        dims.link(whole, (dims.kept(size // unit), shared))
        dims.link(piece, (dims.kept((stop - start) // unit), shared))
    elif size % step == 0 and start < step and dims.size(piece) == size // step:
        dims.link(whole, (piece, dims.kept(step)))
    else:
        dims.keep([whole, piece])


def _cat(shaped: Shaped, node: Node) -> None:
    after, parts = shaped.variables[node.index], [shaped.of(part) for part in node.args[0]]
    dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(after)
    if any(len(part) != len(after) for part in parts):
        shaped.keep(node)
        return
    unit = math.gcd(*(shaped.dims.size(part[dim]) for part in parts))
    shared = shaped.dims.new(unit)
    for part in (*parts, after):
        for place, (one, other) in enumerate(zip(part, after, strict=True)):
            if place != dim:
                shaped.dims.same(one, other)
        shaped.dims.link(part[dim], (shaped.dims.kept(shaped.dims.size(part[dim]) // unit), shared))


def _repeat(shaped: Shaped, node: Node) -> None:
    before, after, counts = shaped.of(node.args[0]), shaped.variables[node.index], node.args[1]
    for one, other, count in zip(reversed(before), reversed(after), reversed(counts), strict=False):
        shaped.dims.link(other, (shaped.dims.kept(count), one))


def _moved_along(shaped: Shaped, node: Node) -> None:
    """Ops that change the places along some dims: these are kept."""
    moved = node.args[2] if node.op == "roll" and len(node.args) > 2 else node.args[1]
    after = shaped.variables[node.index]
    shaped.dims.keep(after[d] for d in (moved if isinstance(moved, (tuple, list)) else (moved,)))
    _elementwise(shaped, node)


def _pad(shaped: Shaped, node: Node) -> None:
    before, after, widths = shaped.of(node.args[0]), shaped.variables[node.index], node.args[1]
    for place, (one, other) in enumerate(zip(reversed(before), reversed(after), strict=True)):
        if any(widths[2 * place : 2 * place + 2]):
            shaped.dims.keep([one, other])
        shaped.dims.same(one, other)


def _matmul(shaped: Shaped, node: Node) -> None:
    left, right = (shaped.of(arg) for arg in node.args[:2])
    after = shaped.variables[node.index]
    shaped.dims.same(left[-1], right[-2] if len(right) > 1 else right[-1])
    rows, columns = left[:-1][-1:], right[-1:] if len(right) > 1 else ()
    tail = (*rows, *columns)
    shaped.alike(tail, after)
    for stack in (left[:-2], right[:-2]):
        shaped.alike(stack, after[: len(after) - len(tail)])


def _convolution(shaped: Shaped, node: Node) -> None:
    x, weight = shaped.of(node.args[0]), shaped.of(node.args[1])
    after, is_transposed, groups = shaped.variables[node.index], node.args[6], node.args[8]
    dims = shaped.dims
    dims.keep((*x[2:], *weight[2:], *after[2:]))
    dims.same(x[0], after[0])
    into, out = (weight[0], weight[1]) if is_transposed else (weight[1], weight[0])
    if groups == 1:
        dims.same(x[1], into)
        dims.same(after[1], out)
    elif is_depthwise(node, dims.size(x[1]), dims.size(weight[0])):
        for variable in (weight[0], after[1]):
            dims.same(x[1], variable)
    else:
        count = dims.kept(groups)
        dims.link(x[1], (count, into if not is_transposed else dims.new(dims.size(into) // groups)))
        dims.link(after[1], (count, out if is_transposed else dims.new(dims.size(out) // groups)))
        dims.same(*((x[1], into) if is_transposed else (after[1], out)))


def is_depthwise(node: Node, channels: int, out: int) -> bool:
    """Whether a convolution has a kernel of its own for each channel."""
    return bool(node.args[8] == channels == out) and not node.args[6]


def _group_norm(shaped: Shaped, node: Node) -> None:
    channels = shaped.of(node.args[0])[1]
    rest = shaped.dims.new(shaped.dims.size(channels) // node.args[1])
    shaped.dims.link(channels, (shaped.dims.kept(node.args[1]), rest))
    _elementwise(shaped, node)


def _reduction(shaped: Shaped, node: Node) -> None:
    before, after = shaped.of(node.args[0]), shaped.variables[node.index]
    place = 2 if node.op == "linalg_vector_norm" else 1
    given = node.args[place] if len(node.args) > place else None
    over = range(len(before)) if given is None else given if isinstance(given, (tuple, list)) else (given,)
    gone = {d % len(before) for d in over} if before else set()
    is_kept = len(after) == len(before)
    shaped.alike([v for d, v in enumerate(before) if is_kept or d not in gone], after)


def _pool(shaped: Shaped, node: Node) -> None:
    before, after = shaped.of(node.args[0]), shaped.variables[node.index]
    shaped.dims.keep((*before[2:], *after[2:]))
    for one, other in zip(before[:2], after[:2], strict=False):
        shaped.dims.same(one, other)


def _part(shaped: Shaped, node: Node) -> None:
    whole = shaped.flow[node.args[0].index]
    if whole.op not in _POOLS:
        shaped.keep(node)
        return
    before, after = shaped.of(whole.args[0]), shaped.variables[node.index]
    shaped.dims.keep(after[2:])
    for one, other in zip(before[:2], after[:2], strict=False):
        shaped.dims.same(one, other)


def _rows(shaped: Shaped, node: Node) -> None:
    """Rows of a table: how many there are stays, but where an input alone chooses among them."""
    if not all(isinstance(arg, Ref) for arg in node.args[:2]):
        shaped.keep(node)
        return
    table, index = (shaped.of(arg) for arg in node.args[:2])
    after = shaped.variables[node.index]
    shaped.dims.keep((*index, *after[: len(index)]))
    kinds = shaped.chosen.get(behind_moves(shaped.flow, node.args[1].index))
    if kinds is None or node.op != "lookup":
        shaped.dims.keep(table[:1])
    else:
        shaped.dims.cap(table[0], shaped.dims.limit, kinds)
    shaped.alike(table[1:], after[len(index) :])


def behind_moves(flow: Flow, index: int) -> int:
    """Return the node whose elements a node only lays out anew."""
    while flow[index].op in MOVES and len(flow[index].operands) == 1:
        index = flow[index].operands[0]
    return index


def choosing_inputs(flow: Flow) -> dict[int, int]:
    """Return the inputs of whole numbers that do nothing but choose rows of tables, with how many kinds they have."""
    found = {}
    for leaf, value in flow.inputs.items():
        if not value.is_floating_point() and value.dtype != torch.bool and _only_chooses(flow, leaf):
            found[leaf] = len(torch.unique(value))
    return found


def _only_chooses(flow: Flow, index: int) -> bool:
    readers = [flow[r] for r in flow.readers.get(index, ())]
    return bool(readers) and all(
        (r.op == "lookup" and r.operands[0] != index) or (r.op in MOVES and _only_chooses(flow, r.index))
        for r in readers
    )


def _as_complex(shaped: Shaped, node: Node) -> None:
    pair, whole = shaped.of(node.args[0]), shaped.variables[node.index]
    if node.op == "view_as_real":
        pair, whole = whole, pair
    shaped.dims.keep(pair[-1:])
    shaped.alike(pair[:-1], whole)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE | _NORMS_OVER_SHAPE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("reshape", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("roll", "flip"), _moved_along),
    **dict.fromkeys(("lookup", "index"), _rows),
    **dict.fromkeys(("view_as_complex", "view_as_real"), _as_complex),
    "expand": _elementwise,
    "permute": _permute,
    "transpose": _transpose,
    "select": _select,
    "stack": _stack,
    "slice": _slice,
    "cat": _cat,
    "repeat": _repeat,
    "constant_pad_nd": _pad,
    "matmul": _matmul,
    "convolution": _convolution,
    "group_norm": _group_norm,
    "part": _part,
}  # fmt: skip


def narrow_args(flow: Flow, node: Node, digits: Callable[[int], tuple[Digits, ...]]) -> tuple[Any, ...]:
    """Return an op's arguments with the twin's sizes; digits gives the dims of a node's value."""
    if node.op in ("reshape", "expand"):
        return (node.args[0], tuple(d.narrow_size for d in digits(node.index)))
    if node.op in _NORMS_OVER_SHAPE:
        after = digits(node.index)
        return (node.args[0], [d.narrow_size for d in after[len(after) - len(node.args[1]) :]], *node.args[2:])
    if node.op == "slice":
        return _narrow_slice(node, digits(node.args[0].index))
    if node.op == "convolution" and node.args[8] > 1:
        x, weight = (digits(arg.index) for arg in node.args[:2])
        if is_depthwise(node, x[1].size, weight[0].size):
            return (*node.args[:8], x[1].narrow_size)
    return node.args


def _narrow_slice(node: Node, before: tuple[Digits, ...]) -> tuple[Any, ...]:
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(before)
    found = before[dim]
    _, start, stop, step = bounds(node, found.size)
    if found.is_kept:
        return node.args
    if step > 1:
        return (node.args[0], dim, start, _END, step)
    unit = found.wide * found.inner
    return (node.args[0], dim, found.scaled(start, unit), found.scaled(stop, unit), 1)
