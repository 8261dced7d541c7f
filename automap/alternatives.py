"""What else a weight could be where its order is a guess: the orders of its rows or columns, in words."""

from __future__ import annotations

import math
from itertools import permutations

from torch import Tensor

_LISTED = 3  # units whose orders are written out
_SHOWN = 8  # units that are named


def alternatives(is_open: Tensor) -> str:
    """Return which rows or columns may change places, and in how many ways; empty where it is not whole ones."""
    for dim, word in enumerate(("rows", "columns")[: is_open.dim()]):
        lines = is_open.movedim(dim, 0).reshape(is_open.shape[dim], -1)
        units = lines.all(1).nonzero().reshape(-1).tolist()
        if len(units) > 1 and len(units) * lines.shape[1] == int(is_open.sum()):
            return f"{word} {_named(units)} of it may change places: {_maps(units)}"
    return ""


def _named(units: list[int]) -> str:
    return ", ".join(map(str, units[:_SHOWN])) + (f" and {len(units) - _SHOWN} more" if len(units) > _SHOWN else "")


def _maps(units: list[int]) -> str:
    """The orders that are left, the one taken first, or how many they are."""
    count = math.factorial(len(units)) if len(units) < 20 else 0
    if len(units) > _LISTED:
        return f"{count} maps" if count else f"{len(units)}! maps"
    return f"{count} maps, " + ", ".join(str(order) for order in permutations(units))
