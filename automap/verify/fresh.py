"""Fresh inputs of the same kind as the sample: numbers of the same spread and range, ids and masks in another order."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from automap.align.outputs import has_same_numbers
from automap.canonical.flow import Flow

_FEW_KINDS = 8  # as many numbers for each different one: a mask or a table, no measurement


def fresh_inputs(src: Flow, dest: Flow, seed: int) -> tuple[Mapping[int, Tensor], Mapping[int, Tensor]] | None:
    """Return inputs for both flows, the same for both; None where dest's are not simply src's, or there are none."""
    generator = torch.Generator().manual_seed(seed)
    mine = {index: fresh_value(value, generator) for index, value in src.inputs.items()}
    theirs: dict[int, Tensor] = {}
    for index, value in dest.inputs.items():
        twin = next((i for i, other in src.inputs.items() if has_same_numbers(other, value)), None)
        if twin is None:
            return None
        theirs[index] = mine[twin]
    return (mine, theirs) if mine else None


def fresh_value(value: Tensor, generator: torch.Generator) -> Tensor:
    """Return other values of the same kind: within the range of those given, ids from among them."""
    flat = value.reshape(-1)
    if not value.is_floating_point() or len(torch.unique(flat)) * _FEW_KINDS <= len(flat):
        return _reordered(value, generator)
    if len(flat) < 2:
        return value.double()
    wide = value.double()
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    low, high = torch.aminmax(wide[torch.isfinite(wide)])
    return (noise * wide.std() + wide.mean()).clamp(low, high)


def _reordered(value: Tensor, generator: torch.Generator) -> Tensor:
    """The same values in another order along the last dim that has one, so that every row keeps its own."""
    long = [dim for dim, size in enumerate(value.shape) if size > 1]
    if not long:
        return value
    rows = value.movedim(long[-1], -1)
    order = torch.rand(rows.shape, generator=generator).argsort(-1)
    return rows.gather(-1, order).movedim(-1, long[-1])
