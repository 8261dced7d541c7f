"""Products of one value that src adds up, or applies one after the other, as the one product that they are.

Branches of convolutions with their norms and a skip around them are one convolution; a low-rank update beside a
projection is part of it. Smaller kernels are padded, a skip is a kernel with a one in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from automap.align.effective import Affine, advanced, as_form, end_of, is_plain, started
from automap.align.forms import LinearForm, center
from automap.align.table import Source
from automap.canonical.flow import Node, Ref, Role

aten = torch.ops.aten


def summed_products(src: Source) -> list[LinearForm]:
    """Return one use for every sum of two or more products of one value in src."""
    ends: dict[int, list[LinearForm]] = {}
    for form in src.linear:
        ends.setdefault(end_of(src.flow, form.node), []).append(form)
    found: dict[int, Affine] = {}
    for node in src.flow.nodes:
        operands = [i for i in node.operands if src.flow[i].role is Role.ACTIVATION]
        if node.op == "add" and len(operands) == 2 and operands[0] != operands[1]:
            joined = _joined(src, node, operands[0], operands[1], ends, found)
            if joined is not None:
                joined = advanced(src, joined)
                found[joined.node] = joined
    return [replace(as_form(src, a), node=a.node, channels=a.channels) for a in found.values()]


def _joined(
    src: Source, node: Node, left: int, right: int, ends: dict[int, list[LinearForm]], sums: dict[int, Affine]
) -> Affine | None:
    mine = list(_ending(src, left, ends, sums))
    for affine in mine:
        for other in _ending(src, right, ends, sums):
            if _root(src, other.form.data) == _root(src, affine.form.data):
                return _added(src, node, affine, other)
        skip = _skip(src, affine, right)
        if skip is not None:
            return _added(src, node, affine, skip)
    for affine in _ending(src, right, ends, sums):
        skip = _skip(src, affine, left)
        if skip is not None:
            return _added(src, node, affine, skip)
    return None


def _ending(src: Source, index: int, ends: dict[int, list[LinearForm]], sums: dict[int, Affine]) -> Iterator[Affine]:
    """The products, or sums of such, that a value is; also two products one after the other."""
    if index in sums:
        yield sums[index]
    for form in ends.get(index, ()):
        start = started(src, form)
        if start is None:
            continue
        affine = advanced(src, start)
        for first in ends.get(form.data, ()):
            composed = _composed(src, affine, first)
            if composed is not None:
                yield composed
        yield affine


def chained_products(src: Source) -> list[LinearForm]:
    """Return one use for every two products one after the other in src."""
    ends: dict[int, list[LinearForm]] = {}
    for form in src.linear:
        ends.setdefault(end_of(src.flow, form.node), []).append(form)
    found = []
    for form in src.linear:
        start = started(src, form) if form.data in ends or _root(src, form.data) in ends else None
        if start is not None:
            second = advanced(src, start)
            pairs = [_composed(src, second, first) for first in ends.get(form.data, ())]
            found += [both for both in pairs if both is not None]
    return [replace(as_form(src, a), node=a.node, channels=a.channels, is_composed=True) for a in found]


def _composed(src: Source, second: Affine, form: LinearForm) -> Affine | None:
    """`second(first(x))` as one product, where one of the two looks at one place at a time."""
    start = started(src, form)
    if start is None or len(src.flow[start.weight].shape) != len(src.flow[second.weight].shape):
        return None
    first = advanced(src, start)
    if not _reads_in_order(src, first, second):
        return None
    if _is_pointwise(src, second):
        return _with_pointwise_behind(src, first, second)
    if _is_pointwise(src, first) and second.form.groups == 1 and (first.shift is None or not _pads(src, second)):
        return _with_pointwise_before(src, first, second)
    return None


def _reads_in_order(src: Source, first: Affine, second: Affine) -> bool:
    """Whether input channel k of the second product is output channel k of the first, and all of them are read."""
    node, width = src.flow[second.form.node], src.flow[first.weight].shape[0]
    channels = first.channels
    if first.node != second.form.data or math.prod(channels.shape) == 0:
        return False
    is_left = node.op == "matmul" and node.operands[0] != second.form.data
    rows = channels.movedim(1 if node.op == "convolution" else -2 if is_left else -1, -1)
    return rows.shape[-1] == width and bool((rows == torch.arange(width)).all())


def _is_pointwise(src: Source, affine: Affine) -> bool:
    """Whether a product is one of matrices, over channels alone."""
    node = src.flow[affine.form.node]
    return affine.form.groups == 1 and affine.form.kind == "matmul" and node.op in ("matmul", "convolution")


def _pads(src: Source, affine: Affine) -> bool:
    node = src.flow[affine.form.node]
    return node.op == "convolution" and any(node.args[4])


def _matrix(src: Source, weight: int) -> int:
    """A weight `(out, in, 1, ...)` as a matrix."""
    shape = src.flow[weight].shape
    return weight if len(shape) == 2 else src.derive("reshape", torch.reshape, Ref(weight), shape[:2])


def _with_pointwise_behind(src: Source, first: Affine, second: Affine) -> Affine:
    whole, matrix = _whole(src, first), _matrix(src, second.weight)
    out, inner, *taps = src.flow[whole].shape
    flat = src.derive("reshape", torch.reshape, Ref(whole), (out, inner * math.prod(taps))) if taps else whole
    weight = src.derive("matmul", torch.matmul, Ref(matrix), Ref(flat))
    shape = (src.flow[weight].shape[0], inner, *taps)
    weight = src.derive("reshape", torch.reshape, Ref(weight), shape) if taps else weight
    form = _ungrouped(first.form)
    return replace(second, form=form, weight=weight, shift=_passed_on(src, matrix, first, second))


def _with_pointwise_before(src: Source, first: Affine, second: Affine) -> Affine:
    out, middle, *taps = src.flow[second.weight].shape
    rows = src.derive("transpose", torch.transpose, Ref(second.weight), 1, -1) if taps else second.weight
    rows = src.derive("matmul", torch.matmul, Ref(rows), Ref(_matrix(src, first.weight)))
    weight = src.derive("transpose", torch.transpose, Ref(rows), 1, -1) if taps else rows
    sums = second.weight
    if taps:
        flat = src.derive("reshape", torch.reshape, Ref(second.weight), (out, middle, math.prod(taps)))
        sums = src.derive("sum", torch.sum, Ref(flat), -1)
    form = replace(second.form, data=first.form.data, columns=first.form.columns, center=first.form.center)
    return replace(second, form=form, weight=weight, shift=_passed_on(src, sums, first, second))


def _ungrouped(form: LinearForm) -> LinearForm:
    """A use of groups as one of all channels."""
    columns = form.columns.reshape(1, -1, form.columns.shape[-1])
    return replace(form, columns=columns, sizes=(1, *form.sizes[1:]), center=center(columns))


def _whole(src: Source, affine: Affine) -> int:
    """A weight of groups with one channel in each as one of all channels, zeros between them."""
    shape, groups = src.flow[affine.weight].shape, affine.form.groups
    if groups == 1:
        return affine.weight
    eye = src.derive("dirac", dirac, groups, groups, len(shape))
    return src.derive("mul", torch.mul, Ref(affine.weight), Ref(eye))


def _passed_on(src: Source, matrix: int, first: Affine, second: Affine) -> int | None:
    """What the first of two products adds, after the second one, with what that adds."""
    shift = second.shift
    if first.shift is None:
        return shift
    passed = src.derive("matmul", torch.matmul, Ref(matrix), Ref(first.shift))
    return passed if shift is None else src.derive("add", torch.add, Ref(shift), Ref(passed))


def _skip(src: Source, beside: Affine, index: int) -> Affine | None:
    """The data of a product itself, scaled and shifted perhaps, as a product with a kernel that leaves it as it is."""
    form = beside.form
    shape = src.flow[beside.weight].shape
    if shape[0] != form.groups * shape[1] or src.flow[form.data].shape != src.flow[beside.node].shape:
        return None
    path = _path(src, form.data, index)
    if path is None:
        return None
    kernel = src.derive("dirac", dirac, shape[0], shape[1], len(shape))
    affine = Affine(form, form.data, kernel, None, beside.channels)
    return advanced(src, affine, path)


def _root(src: Source, index: int) -> int:
    """The value that a value is only another shape of."""
    node = src.flow[index]
    while node.op == "reshape" and len(node.operands) == 1:
        node = src.flow[node.operands[0]]
    return node.index


def _path(src: Source, start: int, end: int) -> tuple[int, ...] | None:
    """The plain steps from one value to another, or None where there are others."""
    found: list[int] = []
    while end != start:
        node = src.flow[end]
        operands = [i for i in node.operands if src.flow[i].role is Role.ACTIVATION]
        if len(operands) != 1 or not is_plain(src.flow, node, operands[0]):
            return None
        found.append(end)
        end = operands[0]
    return tuple(reversed(found))


def dirac(out: int, inner: int, rank: int) -> Tensor:
    """Return a kernel `(out, inner, 1, ...)` that gives each channel of its group back as it is."""
    eye = torch.eye(inner, dtype=torch.float64).repeat(out // inner, 1)
    return eye.reshape(out, inner, *[1] * (rank - 2))


def _added(src: Source, node: Node, a: Affine, b: Affine) -> Affine | None:
    if len(src.flow[a.weight].shape) != len(src.flow[b.weight].shape):
        return None
    large, small = (a, b) if _taps(src, a) >= _taps(src, b) else (b, a)
    weight = _padded(src, small, large)
    if weight is None or large.form.groups != small.form.groups or not torch.equal(a.channels, b.channels):
        return None
    total = src.derive("add", torch.add, Ref(large.weight), Ref(weight))
    shifts = [s for s in (a.shift, b.shift) if s is not None]
    shift = shifts[0] if shifts else None
    if len(shifts) == 2:
        shift = src.derive("add", torch.add, Ref(shifts[0]), Ref(shifts[1]))
    return Affine(large.form, node.index, total, shift, a.channels, 1)


@dataclass(frozen=True, slots=True)
class _Window:
    """How a kernel slides over its data."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def _window(src: Source, affine: Affine) -> _Window | None:
    node = src.flow[affine.form.node]
    if node.op != "convolution" or node.args[6]:
        return None
    if _is_dirac(src, affine) and _taps(src, affine) == 1:
        ones = (1,) * len(node.args[3])
        return _Window(ones, (0,) * len(ones), ones)
    return _Window(*(tuple(sizes) for sizes in node.args[3:6]))


def _taps(src: Source, affine: Affine) -> int:
    return math.prod(src.flow[affine.weight].shape[2:])


def _padded(src: Source, small: Affine, large: Affine) -> int | None:
    """The smaller kernel with zeros around it, where both slide over the data in the same steps."""
    mine, theirs = src.flow[small.weight].shape, src.flow[large.weight].shape
    window, other = _window(src, large), _window(src, small)
    if window is None or other is None:
        is_same = src.flow[small.form.node].args[3:] == src.flow[large.form.node].args[3:]
        return small.weight if mine == theirs and is_same else None
    if mine[:2] != theirs[:2] or window.stride != other.stride:
        return None
    pads: list[int] = []
    steps = (window.padding, other.padding, window.dilation, other.dilation)
    for size, k, p, q, d, e in zip(theirs[2:], mine[2:], *steps, strict=True):
        before = (p - q) // d
        if (p - q) % d or (k > 1 and e != d) or before < 0 or before + k > size:
            return None
        pads = [before, size - k - before, *pads]
    if not any(pads):
        return small.weight
    return src.derive("constant_pad_nd", aten.constant_pad_nd.default, Ref(small.weight), tuple(pads))


def _is_dirac(src: Source, affine: Affine) -> bool:
    return any(src.flow[i].op == "dirac" for i in src.flow.ancestors([affine.weight]))
