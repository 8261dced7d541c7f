"""Products of one value that src adds up, or applies one after the other, as the one product that they are.

Branches of convolutions with their norms and a skip around them are one convolution; a low-rank update beside a
projection is part of it. Smaller kernels are padded, a skip is a kernel with a one in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from automap.align.effective import Affine, advanced, as_form, end_of, is_plain, started
from automap.align.forms import LinearForm
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


def _composed(src: Source, second: Affine, form: LinearForm) -> Affine | None:
    """`second(first(x))` as one product."""
    start = started(src, form)
    if start is None or not len(src.flow[start.weight].shape) == len(src.flow[second.weight].shape) == 2:
        return None
    first = advanced(src, start)
    weight = src.derive("matmul", torch.matmul, Ref(second.weight), Ref(first.weight))
    shift = second.shift
    if first.shift is not None:
        passed = src.derive("matmul", torch.matmul, Ref(second.weight), Ref(first.shift))
        shift = passed if shift is None else src.derive("add", torch.add, Ref(shift), Ref(passed))
    return replace(second, form=form, weight=weight, shift=shift)


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


def _taps(src: Source, affine: Affine) -> int:
    return math.prod(src.flow[affine.weight].shape[2:])


def _padded(src: Source, small: Affine, large: Affine) -> int | None:
    """The smaller kernel with zeros around it, where both slide over the data in the same steps."""
    mine, theirs = src.flow[small.weight].shape, src.flow[large.weight].shape
    if mine == theirs:
        return small.weight
    node = src.flow[large.form.node]
    if mine[:2] != theirs[:2] or node.op != "convolution" or set(mine[2:]) != {1}:
        return None
    stride, padding, dilation = node.args[3:6]
    is_centred = all(2 * p == d * (k - 1) for p, d, k in zip(padding, dilation, theirs[2:], strict=True))
    if not is_centred or (not _is_dirac(src, small) and list(src.flow[small.form.node].args[3]) != list(stride)):
        return None
    if _is_dirac(src, small) and set(stride) != {1}:
        return None
    pads = tuple(n for k in reversed(theirs[2:]) for n in ((k - 1) // 2, k // 2))
    return src.derive("constant_pad_nd", aten.constant_pad_nd.default, Ref(small.weight), pads)


def _is_dirac(src: Source, affine: Affine) -> bool:
    return any(src.flow[i].op == "dirac" for i in src.flow.ancestors([affine.weight]))
