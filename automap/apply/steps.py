"""The steps that make a dest tensor's bytes: Runs, which are copied as they are, and Blocks, rows that are computed.

Steps follow each other as the bytes of the tensor do, and none takes more memory than it is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from automap.apply.header import item_bytes
from automap.apply.narrow import narrowed
from automap.apply.recipe import Recipe
from automap.apply.views import Leaves, View
from automap.plan import Cast, Concat, Expr, Reshape, Source, dtype_of, is_computed, shape_of, sources_of
from automap.plan.expr import args_of

_BLOCK_BYTES = 2**22  # of rows that are read in order: large enough for the disk, small enough for a cache


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes of a file that are part of the tensor as they are; `base` is what they are part of."""

    base: View
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are computed from `leaves`."""

    expr: Expr
    leaves: Leaves


Step: TypeAlias = Run | Block


def steps_of(recipe: Recipe, *, memory_bytes: int) -> Iterator[Step]:
    """The steps that make the tensor, within memory_bytes if it is no less than `least_bytes`.

    Each step is to be done before the next is asked for.
    """
    for part in _joined_parts(recipe.expr, recipe.made_dtype):
        run = _as_run(part, recipe)
        if run is not None:
            yield run
        else:
            yield from _blocks(part, recipe, Leaves(list(recipe.views)), memory_bytes)


def is_copied(recipe: Recipe) -> bool:
    """Whether the tensor is made of bytes of the checkpoint as they are, so that nothing is computed."""
    return all(_as_run(part, recipe) for part in _joined_parts(recipe.expr, recipe.made_dtype))


def _as_run(part: Expr, recipe: Recipe) -> Run | None:
    view = recipe.views[int(part.name)] if isinstance(part, Source) else None
    if view is None or not view.is_dense or view.dtype != recipe.dtype:
        return None
    return Run(view.base, view.offset, view.size_bytes)


def _joined_parts(expr: Expr, dtype: str) -> Iterator[Expr]:
    """Expressions whose elements one after the other are those of expr; only what has `dtype` is taken apart."""
    shape = shape_of(expr)
    match expr:
        case Reshape(arg):
            yield from _joined_parts(arg, dtype)
        case Concat(args, dim) if set(shape[:dim]) <= {1} and dtype_of(expr) == dtype:
            for arg in args:
                yield from _joined_parts(arg, dtype)
        case _ if 0 not in shape:
            yield expr


def least_bytes(recipe: Recipe, *, enough: int) -> int:
    """The memory that the tensor takes at least, cut as often as it can be; less than `enough` is not looked for."""
    if is_copied(recipe):
        return 0
    leaves = Leaves(list(recipe.views))
    return max(
        (_least_bytes(part, recipe, leaves, enough) for part in _joined_parts(recipe.expr, recipe.made_dtype)),
        default=0,
    )


def _least_bytes(expr: Expr, recipe: Recipe, leaves: Leaves, enough: int) -> int:
    least = block_bytes(expr, recipe, leaves)
    for dim, size in enumerate(shape_of(expr)):
        if size > 1 and least > enough:
            expr = narrowed(expr, dim, 0, 1, leaves)
            least = min(least, block_bytes(expr, recipe, leaves))
    return least


def _blocks(expr: Expr, recipe: Recipe, leaves: Leaves, memory_bytes: int) -> Iterator[Block]:
    """The expression as rows, or rows of rows, that fit into memory; single elements are made whatever they take."""
    limit = min(_BLOCK_BYTES, memory_bytes) if _is_read_in_order(expr, leaves) else memory_bytes
    cost = block_bytes(expr, recipe, leaves)
    dim = next((dim for dim, size in enumerate(shape_of(expr)) if size > 1), None)
    if cost <= limit or dim is None:
        yield Block(expr, leaves)
        return
    rows = _fitting_rows(expr, dim, recipe, leaves, limit, cost)
    size, count = shape_of(expr)[dim], len(leaves.views)
    for start in range(0, size, rows):
        del leaves.views[count:]
        yield from _blocks(narrowed(expr, dim, start, min(start + rows, size), leaves), recipe, leaves, memory_bytes)


def _fitting_rows(expr: Expr, dim: int, recipe: Recipe, leaves: Leaves, limit: int, cost: int) -> int:
    """How many rows along dim fit into limit, and at least one."""
    count = len(leaves.views)
    rows = max(1, min(shape_of(expr)[dim] - 1, shape_of(expr)[dim] * limit // cost))
    while rows > 1 and block_bytes(narrowed(expr, dim, 0, rows, leaves), recipe, leaves) > limit:
        rows //= 2
    del leaves.views[count:]
    return rows


def _is_read_in_order(expr: Expr, leaves: Leaves) -> bool:
    """Whether rows of expr are rows of one view in its own order, so that small blocks cost no more than large ones."""
    while isinstance(expr, Cast):
        expr = expr.arg
    return isinstance(expr, Source) and leaves.view(expr).is_ordered


def block_bytes(expr: Expr, recipe: Recipe, leaves: Leaves) -> int:
    """The most memory that computing expr takes at once: its leaves, what lies between, and what is written."""
    views = [leaves.view(leaf) for leaf in sources_of(expr)]
    read = sum(view.size_bytes for view in views) + max((view.buffer_bytes for view in views), default=0)
    if isinstance(expr, Source) and recipe.dtype == views[0].dtype:
        return read
    made = math.prod(shape_of(expr)) * (item_bytes(recipe.made_dtype) + item_bytes(recipe.dtype))
    wide = 16 if recipe.made_dtype.startswith("complex") else 8  # arithmetic is done in complex128 or float64
    item = wide if is_computed(expr) else item_bytes(recipe.made_dtype)
    return read + made + _most_at_once(expr, item, is_read=not is_computed(expr))


def _most_at_once(expr: Expr, item: int, *, is_read: bool) -> int:
    """The most that intermediate values take at once; leaves count only where they are converted first."""
    if isinstance(expr, Source):
        return 0 if is_read else math.prod(expr.shape) * item
    held = most = 0
    for arg in args_of(expr):
        most = max(most, held + _most_at_once(arg, item, is_read=is_read))
        held += 0 if is_read and isinstance(arg, Source) else math.prod(shape_of(arg)) * item
    return max(most, held + 2 * math.prod(shape_of(expr)) * item)
