"""Weights that src computes with products of matrices before data meets them: low-rank updates, spectral norms.

A product of two weights is data elsewhere (learned queries through a projection). Here such values are made again on
the weight side, for the uses where a product of dest takes one weight in their place.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from automap.align.forms import LinearForm, convolution_form, matmul_form
from automap.align.table import Source
from automap.canonical.flow import Node, Ref, Role, refs_in, replace_refs


def inputless_products(src: Source) -> list[LinearForm]:
    """Return the products of data with what is computed from weights alone, as uses of that as one weight."""
    free = _free_of_inputs(src)
    found = []
    for node in src.flow.nodes:
        if node.op in ("matmul", "convolution") and node.role is Role.ACTIVATION and node.index not in free:
            form = _use(src, node, free)
            found += [form] if form is not None else []
    return found


def _free_of_inputs(src: Source) -> set[int]:
    """The values made of weights that count as data."""
    found: set[int] = set()
    for node in src.flow.nodes:
        behind = [i for i in node.operands if src.flow[i].role is Role.ACTIVATION]
        if node.role is Role.ACTIVATION and node.op != "input" and found.issuperset(behind):
            found.add(node.index)
    return found


def _use(src: Source, node: Node, free: set[int]) -> LinearForm | None:
    """One product as the use of an operand that no input is behind, or None where there is no such operand."""
    operands = [i for i in node.operands if i in free]
    if len(operands) != 1 or (node.op == "convolution" and node.args[1].index != operands[0]):
        return None
    weight = on_weight_side(src, operands[0])
    if weight is None or (node.op == "matmul" and len(src.flow[weight].shape) != 2):
        return None
    if node.op == "convolution":
        form = convolution_form(src.flow, node, operands[0], src.run.value)
    else:
        form = matmul_form(src.flow, node, operands[0], src.run.value, is_repeated=False)
    return replace(form, weight=weight, is_folded=True)


def on_weight_side(src: Source, index: int) -> int | None:
    """Return a value without inputs as one computed on the weight side, or None where an op stands in the way."""
    node = src.flow[index]
    if node.role is not Role.ACTIVATION:
        return index
    if refs_in(node.kwargs) or not isinstance(src.run.value(index), Tensor):
        return None
    made: dict[int, int] = {}
    for ref in refs_in(node.args):
        other = on_weight_side(src, ref)
        if other is None:
            return None
        made[ref] = other
    assert node.function is not None
    function = partial(node.function, **node.kwargs) if node.kwargs else node.function
    return src.derive(node.op, function, *_hashable(replace_refs(node.args, lambda i: Ref(made[i]))))


def _hashable(value: object) -> tuple[object, ...]:
    return tuple(_hashable(v) if isinstance(v, (tuple, list)) else v for v in value)  # type: ignore[attr-defined]
