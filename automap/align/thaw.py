"""The order of channels that are zero throughout the sample: seen where no op cuts its values off.

A unit that never turns on meets its weight with zeros, which tell nothing. Both sides are computed once more with every
op that cuts off letting a little of its input through: what was equal stays equal, and nothing is zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from automap.align.forms import LinearForm, convolution_form, matmul_form
from automap.align.moments import EXACT, bijection
from automap.align.side import Side
from automap.canonical.evaluate import compute
from automap.canonical.flow import Role

#: ops that give one number for all inputs beyond a limit
_CUTTING = {"relu", "hardtanh", "clamp", "clamp_min", "threshold", "hardswish", "hardsigmoid"}
_THROUGH = 0.1


def thawed_order(dest: Side, src: Side, mine: tuple[LinearForm, int], theirs: tuple[LinearForm, int]) -> Tensor | None:
    """Return for each column of a dest product's group the src column that it is, or None where that is not seen."""
    columns, others = _columns(dest, *mine), _columns(src, *theirs)
    if columns is None or others is None or int((columns == 0).all(1).sum()) > 1:
        return None
    matched = bijection(columns, others, EXACT)
    return None if matched is None else matched[0]


def _columns(side: Side, form: LinearForm, group: int) -> Tensor | None:
    """What each input channel of a group carries, `(in, 3)`, where nothing is cut off."""
    node, data = side.flow[form.node], _thawed(side, form.data)

    def value(index: int) -> Any:
        return data if index == form.data else side.run.value(index)

    if node.op == "convolution":
        again = convolution_form(side.flow, node, form.weight, value)
    else:
        again = matmul_form(side.flow, node, form.weight, value, is_repeated=form.groups == 1)
    return again.columns[group] if again.columns.shape == form.columns.shape else None


def _thawed(side: Side, index: int) -> Any:
    """A value, computed with ops that do not cut off."""
    values: dict[int, Any] = {}
    for step in sorted(side.flow.ancestors([index])):
        node = side.flow[step]
        if node.role is not Role.ACTIVATION or node.op == "input":
            values[step] = side.run.value(step)
            continue
        values[step] = compute(node, values.__getitem__)
        if node.op in _CUTTING and isinstance(values[step], Tensor):
            values[step] = torch.add(values[step], values[node.operands[0]], alpha=_THROUGH)
    return values[index]
