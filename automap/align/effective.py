"""Effective weights: a src product with the scales, shifts and sums behind it carried out, as one product.

What follows a product and is per channel (a norm in eval mode, layer scale, a constant factor), and other products of
the same data that are added, become one weight and one shift on the weight side. Dest uses meet these as any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from automap.align.forms import ElementForm, LinearForm, center, contiguous, element_form
from automap.align.moments import clean, moments
from automap.align.side import Lookup
from automap.align.table import Source
from automap.canonical.flow import Flow, Node, Ref, Role
from automap.canonical.provenance import moved
from automap.canonical.rules.layout import MOVES

_MOST_STEPS = 24


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """The value of src node `node` as `weight (data) + shift`.

    `weight` is a weight-side value `(out, in, *taps)`; `shift` one of `(out,)`, or None.
    `channels` holds the output channel of each element of the value; `scales` counts the factors carried out.
    """

    form: LinearForm
    node: int
    weight: int
    shift: int | None
    channels: Tensor
    scales: int = 0


def terms_behind(flow: Flow, index: int) -> int:
    """Return how many tables are added to a value one after the other."""
    return len(_added_vectors(flow, index))


def _added_vectors(flow: Flow, index: int) -> list[Node]:
    """The sums with a table that a value goes through one after the other; reshapes may keep the last dim."""
    found: list[Node] = []
    last = flow[index].shape[-1:]
    for node in _steps(flow, index):
        if node.op == "add":
            found.append(node)
        elif node.op != "reshape" or node.shape[-1:] != last:
            break
    return found


def scales_behind(flow: Flow, index: int) -> int:
    """Return how many weights a value is multiplied with before anything else computes with it."""
    return sum(_is_scaling(flow, node) for node in _steps(flow, index))


def _is_scaling(flow: Flow, node: Node) -> bool:
    """Whether an op multiplies with a weight; numbers may stand in many places and are compared as they come out."""
    return node.op == "mul" and any(flow[i].role is Role.WEIGHT for i in node.operands)


def _numbers_behind(flow: Flow, index: int) -> int:
    return sum(node.op == "mul" and not _is_scaling(flow, node) for node in _steps(flow, index))


def scales_to(flow: Flow, index: int, readers: frozenset[int]) -> int:
    """Return how many weights are multiplied in between a value and the ops that compute with a part of it."""
    stack, seen, found = [(index, 0)], {index}, list[int]()
    while stack:
        step, count = stack.pop()
        for reader in flow.readers.get(step, ()):
            node = flow[reader]
            if reader in readers:
                found.append(count)
            elif reader not in seen and is_plain(flow, node, step):
                seen.add(reader)
                stack.append((reader, count + _is_scaling(flow, node)))
    return min(found) if found else scales_behind(flow, index)


def _steps(flow: Flow, index: int) -> Iterator[Node]:
    """The layout ops, sums and products with weights and numbers that a value goes through, read by nothing else."""
    for _ in range(_MOST_STEPS):
        readers = flow.readers.get(index, ())
        node = flow[readers[0]] if len(readers) == 1 else None
        if node is None or not is_plain(flow, node, index):
            return
        yield node
        index = node.index


def is_plain(flow: Flow, node: Node, index: int) -> bool:
    """Return whether an op only lays a value out, adds a weight to it or multiplies it with one or a number."""
    others = [i for i in node.operands if i != index]
    if node.op in MOVES:
        return not others
    if node.op not in ("add", "mul") or node.operands.count(index) != 1:
        return False
    return all(flow[i].role is Role.WEIGHT or (node.op == "mul" and math.prod(flow[i].shape) == 1) for i in others)


def folded(src: Source, form: LinearForm, surplus: int) -> LinearForm | None:
    """Return a src use with the first `surplus` factors behind it carried out, or None where that cannot be done."""
    start = started(src, form)
    found = None if start is None else advanced(src, start, most_scales=surplus)
    return as_form(src, found) if found is not None and found.scales == surplus else None


def advanced(src: Source, found: Affine, steps: Iterable[int] | None = None, most_scales: int = _MOST_STEPS) -> Affine:
    """Return the affine value that the steps after one lead to, with at most so many factors carried out.

    Steps are nodes; those that read nothing else are found by themselves.
    """
    nodes = _steps(src.flow, found.node) if steps is None else (src.flow[i] for i in steps)
    for node in nodes:
        following = None if node.op == "mul" and found.scales == most_scales else _after(src, found, node)
        if following is None:
            break
        found = following
    return found


def shift_behind(src: Source, form: LinearForm) -> int | None:
    """Return the first table added behind a product as one number for each of its outputs, or None."""
    found = started(src, form)
    for node in _steps(src.flow, form.node):
        found = None if found is None or node.op == "mul" else _after(src, found, node)
        if found is None or found.shift is not None:
            break
    return None if found is None else found.shift


def end_of(flow: Flow, index: int) -> int:
    """Return the last value that a value goes to through layout, sums and products with weights and numbers."""
    for node in _steps(flow, index):
        index = node.index
    return index


def absorbed(src: Source, form: LinearForm) -> LinearForm | None:
    """Return a product of matrices as one of what its data was scaled and shifted from, both carried out, or None."""
    start = started(src, form) if _takes_each_channel_once(src, form) else None
    path = _back_to_plain(src.flow, form.data) if start is not None else []
    if start is None or not any(node.op == "mul" for node in path):
        return None
    weight, shift = start.weight, None
    for node in path:
        table = _per_input(src, node, form) if node.op not in MOVES else None
        if node.op == "add" and table is not None and not _pads(src, form):
            term = _applied(src, weight, table, form)
            shift = term if shift is None else src.derive("add", torch.add, Ref(shift), Ref(term))
        elif node.op == "mul" and table is not None:
            weight = src.derive("mul", torch.mul, Ref(weight), Ref(_beside(src, weight, table, form)))
        elif node.op not in MOVES:
            return None
    whole = advanced(src, replace(start, weight=weight, shift=shift), most_scales=0)
    columns = _columns(src, form, path)
    return replace(as_form(src, whole), data=path[-1].operands[0], columns=columns, center=center(columns))


def _takes_each_channel_once(src: Source, form: LinearForm) -> bool:
    """Whether a product has one matrix for all channels, or one row of taps for each."""
    node = src.flow[form.node]
    if node.op != "convolution":
        return form.kind == "matmul" and form.groups == 1 and len(src.flow[form.weight].shape) == 2
    return not node.args[6] and (form.groups == 1 or form.sizes[1:3] == (1, 1))


def _pads(src: Source, form: LinearForm) -> bool:
    """Whether zeros stand beside the data, to which nothing was added."""
    node = src.flow[form.node]
    return node.op == "convolution" and any(node.args[4])


def _beside(src: Source, weight: int, table: int, form: LinearForm) -> int:
    """A number for each input channel, in the shape that meets these in a weight `(out, in, *taps)`."""
    rank = len(src.flow[weight].shape)
    if rank == 2:
        return table
    shape = (-1, *[1] * (rank - 1 if form.groups > 1 else rank - 2))
    return src.derive("reshape", torch.reshape, Ref(table), shape)


def _applied(src: Source, weight: int, table: int, form: LinearForm) -> int:
    """What a product gives for one number for each input channel."""
    shape = src.flow[weight].shape
    if len(shape) > 2:
        flat = src.derive("reshape", torch.reshape, Ref(weight), (*shape[:2], math.prod(shape[2:])))
        weight = src.derive("sum", torch.sum, Ref(flat), -1)
    if form.groups == 1:
        return src.derive("matmul", torch.matmul, Ref(weight), Ref(table))
    column = src.derive("reshape", torch.reshape, Ref(weight), (-1,))
    return src.derive("mul", torch.mul, Ref(column), Ref(table))


def _back_to_plain(flow: Flow, index: int) -> list[Node]:
    """The layout ops, then sums and products with weights, that made a value, last one first."""
    path: list[Node] = []
    for _ in range(_MOST_STEPS):
        node = flow[index]
        data = [i for i in node.operands if flow[i].role is Role.ACTIVATION]
        roles = {flow[i].role for i in node.operands}
        is_table = node.op in ("add", "mul") and roles == {Role.ACTIVATION, Role.WEIGHT}
        is_layout = node.op in MOVES and not any(n.op not in MOVES for n in path)
        if len(data) != 1 or not (is_layout or (is_table and is_plain(flow, node, data[0]))):
            break
        path.append(node)
        index = data[0]
    while path and path[-1].op in MOVES:
        path.pop()
    return path


def _per_input(src: Source, node: Node, form: LinearForm) -> int | None:
    """The table of a sum or product as one number for each input channel of the use behind it, or None."""
    table = next(i for i in node.operands if src.flow[i].role is Role.WEIGHT)
    shape, width = src.flow[table].shape, form.columns.shape[0] * form.columns.shape[1]
    if src.flow[form.node].op != "convolution":
        return table if shape == (width,) and node.shape[-1] == width else None
    wide = (1,) * (len(node.shape) - len(shape)) + shape
    if wide != (1, width, *[1] * (len(node.shape) - 2)) or node.shape != src.flow[form.data].shape:
        return None
    return src.derive("reshape", torch.reshape, Ref(table), (-1,)) if len(shape) > 1 else table


def _columns(src: Source, form: LinearForm, path: list[Node]) -> Tensor:
    """What each input channel carried before it was scaled and shifted, `(groups, in, 3)`."""
    value = clean(src.run.value(path[-1].operands[0]))
    if src.flow[form.node].op == "convolution":
        return moments(value, (0, *range(2, value.dim()))).view(form.columns.shape)
    return moments(value.reshape(-1, form.columns.shape[1]).unsqueeze(0), (1,))


def folded_lookup(src: Source, lookup: Lookup, dest: Flow, node: int) -> Lookup | None:
    """Return a src table with the numbers carried out that multiply its rows, or else the vectors that are added to
    all of them, where they are not in dest; or None.
    """
    surplus = _numbers_behind(src.flow, lookup.node) - _numbers_behind(dest, node)
    if surplus > 0:
        return _with_numbers(src, lookup, surplus)
    return _with_vector(src, lookup) if terms_behind(src.flow, lookup.node) > terms_behind(dest, node) else None


def _with_vector(src: Source, lookup: Lookup) -> Lookup | None:
    """A table with the first vector added that src adds to each of its rows."""
    node = _added_vectors(src.flow, lookup.node)[0]
    index = next(i for i in node.operands if src.flow[i].role is Role.WEIGHT)
    shape, width = src.flow[index].shape, node.shape[-1]
    places = src.essential(index)[1]
    if src.flow[lookup.weight].shape[1:] != (width,) or shape[-1:] != (width,) or len(places) != width:
        return None
    vector = taken(src, index, places)
    return replace(lookup, weight=src.derive("add", torch.add, Ref(lookup.weight), Ref(vector)))


def _with_numbers(src: Source, lookup: Lookup, surplus: int) -> Lookup | None:
    weight, count = lookup.weight, 0
    for node in _steps(src.flow, lookup.node):
        if node.op == "mul" and count < surplus:
            factor = _number(src, node)
            if factor is None:
                return None
            weight, count = src.derive("mul", torch.mul, Ref(weight), factor), count + 1
    return replace(lookup, weight=weight) if count == surplus else None


def folded_tables(src: Source) -> list[tuple[ElementForm, int]]:
    """Return the tables that src adds one after the other, as one table each, with how many follow the first."""
    found: list[tuple[ElementForm, int]] = []
    for form in src.elements.get("add", ()):
        table = form.weight
        for count, node in enumerate(_added_vectors(src.flow, form.node), start=1):
            others = [i for i in node.operands if src.flow[i].role is Role.WEIGHT]
            if len(others) != 1:
                break
            table = src.derive("add", torch.add, Ref(table), Ref(others[0]))
            whole = _met_by(src, form, node, table)
            found += [(whole, count)] if whole is not None else []
    return found


def _met_by(src: Source, form: ElementForm, node: Node, table: int) -> ElementForm | None:
    """A sum of tables as met by what the first one meets; only vectors are the same in another shape of that."""
    if src.flow[form.data].shape == node.shape:
        return element_form(src.flow, node, table, src.run.value, src.essential(table), form.data)
    is_vector = len(src.flow[table].shape) == 1 and src.flow[table].shape == src.flow[form.weight].shape
    return replace(form, node=node.index, weight=table) if is_vector else None


def _number(src: Source, node: Node) -> float | None:
    """The one number that a product is with, or None where it is with a weight or with several."""
    others = [a for a in node.args if not (isinstance(a, Ref) and src.flow[a.index].role is Role.ACTIVATION)]
    if len(others) != 1:
        return None
    if not isinstance(others[0], Ref):
        return float(others[0])
    value = src.run.value(others[0].index)
    is_one = src.flow[others[0].index].role is Role.CONSTANT and isinstance(value, Tensor) and value.numel() == 1
    return float(value) if is_one else None


def started(src: Source, form: LinearForm) -> Affine | None:
    """Return a product as the affine value that it is, or None for stacks of matrices."""
    weight = canonical_weight(src, form)
    return None if weight is None else Affine(form, form.node, weight, None, form.channels)


def canonical_weight(src: Source, form: LinearForm) -> int | None:
    """Return a use's weight as `(out, in, *taps)` on the weight side; None for stacks of matrices."""
    shape = src.flow[form.weight].shape
    if form.kind == "convolution" or src.flow[form.node].op == "convolution":
        is_transposed = bool(src.flow[form.node].args[6])
        if not is_transposed:
            return form.weight
        return src.derive("transpose", torch.transpose, Ref(form.weight), 0, 1) if form.groups == 1 else None
    if form.groups != 1 or len(shape) != 2:
        return None
    is_right = src.flow[form.node].operands[0] != form.weight
    return src.derive("transpose", torch.transpose, Ref(form.weight), 0, 1) if is_right else form.weight


def _after(src: Source, found: Affine, node: Node) -> Affine | None:
    """The value of the one reader of an affine value."""
    if node.op in MOVES:
        return replace(found, node=node.index, channels=moved(node, {found.node: found.channels}, src.run.value))
    operand = next((a for a in node.args if not (isinstance(a, Ref) and a.index == found.node)), None)
    table = _per_channel(src, operand, found, node)
    if table is None or (node.op == "add" and isinstance(table, float)):
        return None
    if node.op == "add":
        assert isinstance(table, int)
        shift = table if found.shift is None else src.derive("add", torch.add, Ref(found.shift), Ref(table))
        return replace(found, node=node.index, shift=shift)
    return _scaled(src, found, node, table)


def _scaled(src: Source, found: Affine, node: Node, table: int | float) -> Affine:
    shape = (-1, *[1] * (len(src.flow[found.weight].shape) - 1))
    column = Ref(src.derive("reshape", torch.reshape, Ref(table), shape)) if isinstance(table, int) else table
    factor = Ref(table) if isinstance(table, int) else table
    weight = src.derive("mul", torch.mul, Ref(found.weight), column)
    shift = None if found.shift is None else src.derive("mul", torch.mul, Ref(found.shift), factor)
    return replace(found, node=node.index, weight=weight, shift=shift, scales=found.scales + isinstance(table, int))


def _per_channel(src: Source, operand: Any, found: Affine, node: Node) -> int | float | None:
    """The operand of a sum or product: a number, or a weight-side value `(out,)`; None where it is neither."""
    width = src.flow[found.weight].shape[0]
    if not isinstance(operand, Ref) or src.flow[operand.index].role is Role.CONSTANT:
        return float(src.run.value(operand.index)) if isinstance(operand, Ref) else float(operand)
    shape = src.flow[operand.index].shape
    places = torch.arange(math.prod(shape)).view(shape).expand(node.shape).reshape(-1)
    channels = found.channels.reshape(-1)
    first = torch.full((width,), len(channels)).scatter_reduce(0, channels, torch.arange(len(channels)), "amin")
    if int(first.max()) == len(channels) or not torch.equal(places[first][channels], places):
        return None
    return taken(src, operand.index, places[first])


def taken(src: Source, index: int, places: Tensor) -> int:
    """Return the weight-side value that holds another's elements at flat places, in that order."""
    shape = src.flow[index].shape
    if torch.equal(places, torch.arange(math.prod(shape))):
        return src.derive("reshape", torch.reshape, Ref(index), (-1,)) if len(shape) != 1 else index
    return src.derive("index", _taken, Ref(index), tuple(places.tolist()))


def _taken(value: Tensor, places: tuple[int, ...]) -> Tensor:
    return torch.take(value, torch.tensor(places))


def as_form(src: Source, found: Affine) -> LinearForm:
    """Return an affine value as a use of its effective weight."""
    form = found.form
    shape = src.flow[found.weight].shape
    sizes = (form.groups, shape[0] // form.groups, shape[1], math.prod(shape[2:]))
    return replace(form, weight=found.weight, sizes=sizes, strides=contiguous(sizes), shift=found.shift, is_folded=True)
