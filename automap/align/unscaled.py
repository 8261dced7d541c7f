"""Products of data that a number multiplies, as products of the data before that: the weight takes the number in."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from automap.align.assignment import Claim
from automap.align.candidates import Candidate, Piece
from automap.align.forms import LinearForm, center
from automap.align.side import Side
from automap.align.table import Source
from automap.canonical.flow import Ref, Role
from automap.canonical.rules.layout import MOVES


def unscaled(side: Side, form: LinearForm) -> tuple[LinearForm, float] | None:
    """Return a product as that of its data before numbers multiplied it, and the product of these, or None."""
    factor = _factor(side, form.data)
    if factor in (0.0, 1.0):
        return None
    columns = form.columns / torch.tensor([factor, factor**2, factor**3], dtype=torch.float64)
    return replace(form, columns=columns, center=center(columns)), factor


def unscaled_products(src: Source) -> list[LinearForm]:
    """Return src's products of scaled data, each with an effective weight that scales in place of that."""
    found = [pair for pair in (unscaled(src, form) for form in src.linear) if pair is not None]
    return [
        replace(form, weight=src.derive("mul", torch.mul, Ref(form.weight), factor), is_folded=True)
        for form, factor in found
    ]


def divided(
    src: Source, found: list[tuple[Piece, list[Candidate]]], factor: float
) -> list[tuple[Piece, list[Candidate]]]:
    """Return candidates with weights that make up for a number by which dest multiplies before it."""
    return [(piece, [_divided(src, candidate, factor) for candidate in options]) for piece, options in found]


def _divided(src: Source, candidate: Candidate, factor: float) -> Candidate:
    def changed(claim: Claim) -> Claim:
        if claim.src_value is None:
            return claim
        return replace(claim, src_value=src.derive("mul", torch.mul, Ref(claim.src_value), 1 / factor))

    def claims() -> tuple[Claim, ...]:
        return tuple(changed(claim) for claim in candidate.claims)

    return replace(candidate, work_out=claims, is_folded=True)


def _factor(side: Side, index: int) -> float:
    """The product of the numbers that a value was multiplied with last, layout aside."""
    factor = 1.0
    while True:
        node = side.flow[index]
        data = [i for i in node.operands if side.flow[i].role is Role.ACTIVATION]
        if len(data) != 1 or node.op not in (*MOVES, "mul", "div"):
            return factor
        if node.op not in MOVES:
            number = _number(side, node.args, data[0])
            if number is None or not number or (node.op == "div" and node.args[0] != Ref(data[0])):
                return factor
            factor *= number if node.op == "mul" else 1 / number
        index = data[0]


def _number(side: Side, args: tuple[object, ...], data: int) -> float | None:
    """The one number among the factors of a product, or None where it is not one number."""
    others = [a for a in args if a != Ref(data)]
    if len(others) != 1 or isinstance(others[0], (int, float)):
        return float(others[0]) if len(others) == 1 and isinstance(others[0], (int, float)) else None
    index = others[0].index if isinstance(others[0], Ref) else None
    value = side.run.value(index) if index is not None and side.flow[index].role is Role.CONSTANT else None
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else None
