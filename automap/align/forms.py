"""Uses of weights in normal form: what a weight meets, told without the layout that each side has chosen.

A linear use is `groups` of a matrix `(out, in, taps)` applied to columns; an elementwise use is a table that meets
groups of numbers; a lookup is a table whose rows data chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automap.align.moments import moments
from automap.canonical.flow import Flow, Node, Role

Values = Callable[[int], Any]


@dataclass(frozen=True, slots=True, eq=False)
class LinearForm:
    """One weight multiplied into one value.

    `columns` holds the moments of what each input channel carries, `(groups, in, 3)`; `sizes` are those of the weight
    as `(groups, out, in, taps)`, `strides` the steps of these in the weight-side value; `channels` the output channel
    of each element of the result. `geometry` is what else the op depends on, `count` over how many positions a column
    goes. In a folded form what follows the op is carried out: `weight` is the effective one, `shift` what is added; a
    composed one is two ops one after the other.
    """

    node: int
    data: int
    weight: int
    kind: str
    columns: Tensor
    sizes: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    count: int
    channels: Tensor
    geometry: tuple[Any, ...] = ()

    center: tuple[float, ...] = ()
    shift: int | None = None
    is_folded: bool = False
    is_composed: bool = False

    @property
    def groups(self) -> int:
        """How many matrices there are."""
        return self.sizes[0]

    @property
    def width(self) -> int:
        """How many output channels each matrix has."""
        return self.sizes[1]

    @property
    def places(self) -> Tensor:
        """The position of each weight element in the weight-side value, `(groups, out, in, taps)`, made anew."""
        groups, out, inner, _ = (torch.arange(n) for n in self.sizes)
        found = [self.places_at(int(group), out, inner) for group in groups]
        return torch.stack(found)

    def places_at(self, group: int, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the positions of some rows and columns of one matrix, `(rows, columns, taps)`."""
        step, across, along, tap = self.strides
        taps = torch.arange(self.sizes[3]) * tap
        return (group * step + rows * across)[:, None, None] + (columns * along)[None, :, None] + taps


@dataclass(frozen=True, slots=True, eq=False)
class ElementForm:
    """One table met elementwise: `meets` holds the moments of what each of its elements meets, `(elements, 3)`.

    `places` are the positions of these elements in the weight-side value.
    """

    node: int
    data: int
    weight: int
    kind: str
    meets: Tensor
    places: Tensor
    center: tuple[float, ...] = ()


def center(table: Tensor) -> tuple[float, ...]:
    """Return the mean of all rows of a table of moments: a quick test of whether two tables can be the same."""
    return tuple(table.reshape(-1, 3).mean(0).tolist())


def is_near(a: tuple[float, ...], b: tuple[float, ...], tolerance: float) -> bool:
    """Whether two centers agree to tolerance."""
    root = max(abs(a[1]), abs(b[1])) ** 0.5
    return all(
        abs(x - y) <= tolerance * (max(abs(x), abs(y)) + floor)
        for x, y, floor in zip(a, b, (root, 0.0, root**3), strict=True)
    )


def matmul_form(flow: Flow, node: Node, weight: int, value: Values, *, is_repeated: bool) -> LinearForm:
    """Return the form of `data @ weight` or `weight @ data`; is_repeated: every matrix of the stack is the same."""
    position = node.operands.index(weight) if node.operands[0] != weight else 0
    if node.operands[0] == node.operands[-1]:
        position = 1
    data = node.operands[1 - position] if len(node.operands) > 1 else node.operands[0]
    x = value(data)
    shape = flow[weight].shape
    if position == 1:  # (.., P, K) @ (.., K, N)
        inner, out = (shape[0], 1) if len(shape) == 1 else shape[-2:]
        steps = (1, out)
        channel = (
            torch.arange(out).expand(*node.shape[:-1], -1)
            if len(shape) > 1
            else torch.zeros(node.shape, dtype=torch.long)
        )
    else:  # (.., N, K) @ (.., K, P)
        x = x.transpose(-1, -2) if x.dim() > 1 else x
        out, inner = shape[-2:]
        steps = (inner, 1)
        channel = torch.arange(out).unsqueeze(-1).expand(*node.shape) if len(node.shape) > 1 else torch.arange(out)
    groups = 1 if is_repeated else _size(shape) // (out * inner)
    x = x.reshape(groups, -1, x.shape[-1])
    columns = moments(x, (1,))
    sizes, strides = (groups, out, inner, 1), (out * inner, *steps, 1)
    return LinearForm(
        node.index, data, weight, "matmul", columns, sizes, strides, x.shape[1], channel, (), center(columns)
    )


def convolution_form(flow: Flow, node: Node, weight: int, value: Values) -> LinearForm:
    """Return the form of a convolution; a 1x1 one without stride is a product of matrices."""
    data = node.args[0].index
    x = value(data)
    stride, padding, dilation, transposed, output_padding, groups = node.args[3:9]
    shape = flow[weight].shape
    taps = tuple(shape[2:])
    count_taps = _size(taps)
    spatial = tuple(range(2, x.dim()))
    channel_count = node.shape[1]
    view = (1, -1, *[1] * len(taps))
    channels = torch.arange(channel_count).view(view).expand(node.shape)
    if transposed:  # (in, out / groups, *taps)
        sizes = (groups, shape[1], shape[0] // groups, count_taps)
        strides = (sizes[1] * sizes[2] * count_taps, count_taps, shape[1] * count_taps, 1)
    else:
        sizes = (groups, shape[0] // groups, shape[1], count_taps)
        strides = contiguous(sizes)
    columns = moments(x, (0, *spatial)).view(groups, -1, 3)
    count = x.numel() // x.shape[1]
    plain = not transposed and groups == 1 and set(taps) <= {1} and set(stride) <= {1} and not any(padding)
    geometry = (
        () if plain else (taps, tuple(stride), tuple(padding), tuple(dilation), bool(transposed), tuple(output_padding))
    )
    return LinearForm(
        node.index,
        data,
        weight,
        "matmul" if plain else "convolution",
        columns,
        sizes,
        strides,
        count,
        channels,
        geometry,
        center(columns),
    )


def unfolded(form: LinearForm, node: Node, value: Values) -> LinearForm | None:
    """Return a convolution as the product of matrices over its patches, or None where that is not one."""
    if form.kind != "convolution" or form.geometry[4] or form.sizes[3] == 1:
        return None
    taps, stride, padding, dilation = form.geometry[:4]
    x = value(form.data)
    if any(padding):
        x = torch.nn.functional.pad(x, [p for p in reversed(padding) for _ in (0, 1)])
    for axis, (size, step, spread) in enumerate(zip(taps, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, spread * (size - 1) + 1, step)[..., ::spread]
    dims = (0, *range(2, 2 + len(taps)))  # batch and the patch grid; channels and taps stay
    if x.numel() > 50_000_000:
        return None
    columns = moments(x, dims).reshape(form.groups, -1, 3)
    sizes = (form.groups, form.width, form.sizes[2] * form.sizes[3], 1)
    return replace(
        form,
        kind="matmul",
        columns=columns,
        sizes=sizes,
        strides=contiguous(sizes),
        count=x.numel() // (form.groups * columns.shape[1]),
        geometry=(),
        center=center(columns),
    )


def contiguous(sizes: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the strides of a row-major value."""
    _, out, inner, taps = sizes
    return (out * inner * taps, inner * taps, taps, 1)


def element_form(
    flow: Flow,
    node: Node,
    weight: int,
    value: Values,
    essential: tuple[tuple[int, ...], Tensor],
    addend: int | None = None,
) -> ElementForm | None:
    """Return the form of an op that combines data and a weight-side value elementwise, or None if it does not.

    essential is the weight-side value's shape without repetition, and the places of what remains of it. With addend,
    the form is as if the weight met this term of the data, which is a sum.
    """
    others = [i for i in node.operands if i != weight]
    if addend is None and (len(others) != 1 or flow[others[0]].role is Role.WEIGHT):
        return None
    data = others[0] if addend is None else addend
    x = value(data)
    if not isinstance(x, Tensor) or not _meets(tuple(x.shape), flow[weight].shape, node.shape):
        return None
    shape, places = essential
    x = x.expand(node.shape)
    lead = len(node.shape) - len(shape)
    dims = (*range(lead), *(lead + d for d, n in enumerate(shape) if n == 1 and node.shape[lead + d] != 1))
    meets = moments(x, dims).reshape(-1, 3)
    position = "" if node.op in ("add", "mul", "maximum", "minimum") else f".{node.operands.index(weight)}"
    return ElementForm(node.index, data, weight, node.op + position, meets, places, center(meets))


def addends(flow: Flow, form: ElementForm) -> tuple[int, ...]:
    """Return the terms of the sum that an added weight meets, if it meets one: sums may be taken in another order."""
    node = flow[form.data]
    terms = tuple(i for i in node.operands if flow[i].role is Role.ACTIVATION and flow[i].shape == node.shape)
    return terms if form.kind == node.op == "add" and len(terms) == 2 else ()


def _meets(data: tuple[int, ...], weight: tuple[int, ...], result: tuple[int, ...]) -> bool:
    try:
        return bool(np.broadcast_shapes(data, weight) == result)
    except ValueError:
        return False


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
