"""The first op where dest leaves src: its operands are values that src has, its result is none.

Works on the values of one walk: no names, no guesses about spelling. Where both sides spell a computation differently
but arrive at the same value, what lies between is no divergence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from automap.align.choices import Stop
from automap.align.moments import EXACT, distance, moments
from automap.align.side import Side
from automap.align.solve import Solution
from automap.canonical.flow import Flow, Node, Role
from automap.canonical.rules.layout import MOVES


@dataclass(frozen=True, slots=True)
class Divergence:
    """Dest's op `node` reads values that src has at `operands`; src's ops `readers` read them instead."""

    node: int
    operands: tuple[int, ...]
    readers: tuple[int, ...]


@dataclass(slots=True)
class Values:
    """Finds the src node that holds a dest value, in whatever layout."""

    solution: Solution
    by_size: dict[int, list[tuple[int, Tensor]]] = field(default_factory=dict)
    known: dict[int, int | None] = field(default_factory=dict)
    signatures: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """File src's values by size."""
        src = self.solution.src
        for node in src.flow.nodes:
            if node.role is Role.ACTIVATION and src.run.knows(node.index):
                value = src.run.value(node.index)
                if isinstance(value, Tensor) and value.numel():
                    self.signatures[node.index] = _signature(value)
                    self.by_size.setdefault(value.numel(), []).append((node.index, self.signatures[node.index]))

    def partner(self, index: int) -> int | None:
        """Return the first src node whose numbers are those of a dest node, or None."""
        if index not in self.known:
            self.known[index] = self._find(index)
        return self.known[index]

    def is_same(self, one: int, other: int) -> bool:
        """Whether two src nodes hold the same numbers."""
        if self.solution.src.flow[one].shape != self.solution.src.flow[other].shape:
            return False
        a, b = self.signatures.get(one), self.signatures.get(other)
        return a is not None and b is not None and distance(a, b) <= EXACT

    def _find(self, index: int) -> int | None:
        dest = self.solution.dest
        if not dest.run.knows(index):
            return None
        value = dest.run.value(index)
        if not isinstance(value, Tensor):
            return None
        mine = _signature(value)
        return next((n for n, theirs in self.by_size.get(value.numel(), ()) if distance(mine, theirs) <= EXACT), None)


def _signature(value: Tensor) -> Tensor:
    return moments(value, tuple(range(value.dim()))).reshape(1, 3)


def divergences(solution: Solution, values: Values, stop: Stop) -> list[Divergence]:
    """Return the ops where dest leaves src on the way to a stop, in order."""
    flow = solution.dest.flow
    cone = _cone(solution, values, stop)
    found = []
    for index in sorted(cone):
        operands = [i for i in flow[index].operands if flow[i].role is Role.ACTIVATION]
        if operands and flow[index].op not in MOVES and all(_is_had(flow, values, i) for i in operands):
            partners = tuple(dict.fromkeys(p for i in operands for p in _partners(flow, values, i)))
            readers = tuple(dict.fromkeys(r for p in partners for r in heard_by(solution.src.flow, p, values)))
            found.append(Divergence(index, partners, readers))
    return found


def _cone(solution: Solution, values: Values, stop: Stop) -> set[int]:
    """The nodes behind a stop whose values src does not have."""
    flow = solution.dest.flow
    start = (
        [stop.node]
        if stop.reason == "output"
        else [i for i in flow[stop.node].operands if flow[i].role is Role.ACTIVATION]
    )
    found: set[int] = set()
    stack = list(start)
    while stack:
        index = stack.pop()
        if index in found or flow[index].role is not Role.ACTIVATION:
            continue
        if _is_had(flow, values, index):
            stack.extend(i for i in flow[index].operands if _is_flat(solution.dest, values, i))
            continue
        found.add(index)
        stack.extend(flow[index].operands)
    return found


def _is_flat(side: Side, values: Values, index: int) -> bool:
    """Whether an op makes one number of values that vary, and src has no such thing: a product with it is no proof."""
    node = side.flow[index]
    if node.role is not Role.ACTIVATION or node.op == "input" or not side.run.knows(index):
        return False
    value = side.run.value(index)
    if not isinstance(value, Tensor) or value.numel() < 2 or values.partner(index) is not None:
        return False
    return bool((value == value.reshape(-1)[0]).all())


def _is_had(flow: Flow, values: Values, index: int) -> bool:
    """Whether src has a dest value, or all that a dest value is laid out from."""
    if flow[index].op == "input" or values.partner(index) is not None:
        return True
    operands = [i for i in flow[index].operands if flow[i].role is Role.ACTIVATION]
    return flow[index].op in MOVES and bool(operands) and all(_is_had(flow, values, i) for i in operands)


def held_at(flow: Flow, values: Values, index: int) -> int:
    """Return the value that src has and that a dest value is only a layout of, or the first of several such."""
    while values.partner(index) is None and flow[index].op in MOVES:
        operands = [i for i in flow[index].operands if flow[i].role is Role.ACTIVATION]
        if not operands:
            break
        index = operands[0]
    return index


def had_operands(solution: Solution, values: Values, node: int) -> list[tuple[int, int]]:
    """Return the operands of a dest node that src has, seen through layouts, each with its src node."""
    flow = solution.dest.flow
    operands = [i for i in flow[node].operands if flow[i].role is Role.ACTIVATION]
    return [(i, p) for i in operands for p in dict.fromkeys(_partners(flow, values, i))]


def _partners(flow: Flow, values: Values, index: int) -> Iterator[int]:
    partner = values.partner(index)
    if partner is not None:
        yield partner
    elif flow[index].op in MOVES:
        for operand in flow[index].operands:
            if flow[operand].role is Role.ACTIVATION:
                yield from _partners(flow, values, operand)


def heard_by(flow: Flow, index: int, values: Values | None = None) -> list[int]:
    """The ops that compute with a value, seen through layout and, with src's values, through what changes nothing."""
    found: list[int] = []
    stack = list(flow.readers.get(index, ()))
    seen: set[int] = set()
    while stack:
        reader = stack.pop(0)
        if reader in seen:
            continue
        seen.add(reader)
        if flow[reader].op in MOVES or flow[reader].op == "cast" or _is_idle(values, flow, reader, index):
            stack.extend(flow.readers.get(reader, ()))
        else:
            found.append(reader)
    return sorted(found)


def _is_idle(values: Values | None, flow: Flow, reader: int, index: int) -> bool:
    """Whether an op gives the numbers that it takes: a product with one."""
    return values is not None and flow[reader].op in ("mul", "div", "add", "sub") and values.is_same(reader, index)


def scalars(node: Node) -> dict[str, Any]:
    """Return what an op's result depends on besides its operands: numbers and flags, named where their meaning
    shows.
    """
    names = _NAMES.get(node.op, ())
    plain = [a for a in node.args if not _has_ref(a)]
    places = [n for n, a in enumerate(node.args) if not _has_ref(a)]
    found = {}
    for place, value in zip(places, plain, strict=True):
        found[names[place] if place < len(names) else f"argument {place}"] = value
    found |= {k: v for k, v in node.kwargs.items() if not _has_ref(v) and k != "dtype"}
    found = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if not isinstance(v, torch.dtype)}
    return found | {k: v for k, v in _DEFAULTS.get(node.op, {}).items() if k not in found}


_NAMES: dict[str, tuple[str, ...]] = {
    "layer_norm": ("x", "normalized shape", "eps"),
    "rms_norm": ("x", "normalized shape", "eps"),
    "group_norm": ("x", "groups", "eps"),
    "batch_norm": ("x", "eps"),
    "convolution": ("x", "w", "bias", "stride", "padding", "dilation", "transposed", "output padding", "groups"),
    "softmax": ("x", "dim"),
    "log_softmax": ("x", "dim"),
    "max_pool2d_with_indices": ("x", "kernel size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool1d": ("x", "kernel size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "avg_pool2d": ("x", "kernel size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor"),
    "_adaptive_avg_pool2d": ("x", "output size"),
    "upsample_bilinear2d": ("x", "output size", "align_corners", "scale", "scale"),
    "upsample_bicubic2d": ("x", "output size", "align_corners", "scale", "scale"),
    "_upsample_bilinear2d_aa": ("x", "output size", "align_corners", "scale", "scale"),
    "upsample_nearest2d": ("x", "output size", "scale", "scale"),
    "leaky_relu": ("x", "negative slope"),
    "elu": ("x", "alpha", "scale", "input scale"),
    "softplus": ("x", "beta", "threshold"),
    "hardtanh": ("x", "min", "max"),
    "clamp": ("x", "min", "max"),
    "clamp_min": ("x", "min"),
    "masked_fill": ("x", "mask", "value"),
    "mean": ("x", "dim", "keepdim"),
    "sum": ("x", "dim", "keepdim"),
    "amax": ("x", "dim", "keepdim"),
    "var": ("x", "dim"),
    "cumsum": ("x", "dim"),
    "linalg_vector_norm": ("x", "order", "dim", "keepdim"),
    "pow": ("x", "exponent"),
    "topk": ("x", "count", "dim"),
    "roll": ("x", "shifts", "dims"),
    "select": ("x", "dim", "index"),
    "slice": ("x", "dim", "start", "stop", "step"),
    "flip": ("x", "dims"),
    "repeat": ("x", "times"),
    "constant_pad_nd": ("x", "padding", "value"),
    "pixel_shuffle": ("x", "factor"),
}

#: what an argument is that is not written out
_DEFAULTS: dict[str, Mapping[str, Any]] = {
    "avg_pool1d": {"padding": (0,), "ceil_mode": False, "count_include_pad": True},
    "avg_pool2d": {"padding": (0, 0), "ceil_mode": False, "count_include_pad": True},
    "max_pool2d_with_indices": {"padding": (0, 0), "dilation": (1, 1), "ceil_mode": False},
    "leaky_relu": {"negative slope": 0.01},
    "elu": {"alpha": 1, "scale": 1, "input scale": 1},
    "softplus": {"beta": 1, "threshold": 20},
    "gelu": {"approximate": "none"},
}


def _has_ref(value: Any) -> bool:
    from automap.canonical.flow import refs_in

    return bool(refs_in(value))


def constant_operands(side: Side, node: Node) -> list[tuple[int, Tensor]]:
    """Return an op's constant operands with their values."""
    found = []
    for index in node.operands:
        if side.flow[index].role is Role.CONSTANT:
            value = side.run.value(index)
            if isinstance(value, Tensor):
                found.append((index, value))
    return found


def is_mask(value: Tensor) -> bool:
    """Whether a constant blocks positions: true and false, or zero and something very negative."""
    if value.dtype == torch.bool:
        return True
    return value.is_floating_point() and value.numel() > 1 and bool((value <= -1e4).any()) and bool((value == 0).any())


def origin_ops(flow: Flow, index: int, limit: int = 24) -> tuple[str, ...]:
    """Return the names of the ops that made a constant, nearest first."""
    found: list[str] = []
    stack, seen = [index], set()
    while stack and len(found) < limit:
        step = stack.pop(0)
        if step in seen:
            continue
        seen.add(step)
        if flow[step].op not in MOVES and flow[step].op != "constant":
            found.append(flow[step].op)
        stack.extend(flow[step].operands)
    return tuple(dict.fromkeys(found))
