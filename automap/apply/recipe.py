"""Recipes: a dest tensor as an expression over views of a checkpoint's files.

A plan's expression and the places of src's tensors in, the same expression over views out, with whatever only looks at
a stored tensor in another way (slices, reshapes, permutes) turned into such a view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from automap.apply.header import item_bytes
from automap.apply.narrow import narrowed
from automap.apply.stored import Part, Sizes, StoredTensor
from automap.apply.views import Leaves, View
from automap.errors import CheckpointError, PlanError
from automap.plan import Cast, Concat, Expand, Expr, Permute, Reshape, Slice, Source, dtype_of, shape_of
from automap.plan.expr import args_of, with_args


@dataclass(frozen=True, slots=True)
class Recipe:
    """The dest tensor `name`: `expr`, whose leaves stand for `views`, is made in `made_dtype`, written in `dtype`."""

    name: str
    expr: Expr
    views: tuple[View, ...]
    shape: Sizes
    made_dtype: str
    dtype: str

    @property
    def size_bytes(self) -> int:
        """The bytes that are written."""
        return math.prod(self.shape) * item_bytes(self.dtype)


def recipe_of(name: str, expr: Expr, tensors: Mapping[str, StoredTensor], *, dtype: str | None = None) -> Recipe:
    """The recipe of the dest tensor `name`, in its own dtype or, where it is a float, in `dtype`.

    Raises:
        PlanError: the expression cannot be computed from what is stored.
    """
    leaves = Leaves()
    try:
        stored = _seen(_stored(expr, tensors, leaves), leaves)
        made = dtype_of(stored)
    except PlanError as problem:
        raise PlanError(f"`{name}`: {problem}", help=problem.help) from problem
    is_float = made.startswith(("float", "bfloat"))
    used = Leaves()
    stored = _renumbered(stored, leaves, used)
    return Recipe(name, stored, tuple(used.views), shape_of(stored), made, dtype if dtype and is_float else made)


def _renumbered(expr: Expr, leaves: Leaves, used: Leaves) -> Expr:
    """The same expression over a table of the leaves that it has."""
    if isinstance(expr, Source):
        return used.add(leaves.view(expr))
    return with_args(expr, tuple(_renumbered(arg, leaves, used) for arg in args_of(expr)))


def _stored(expr: Expr, tensors: Mapping[str, StoredTensor], leaves: Leaves) -> Expr:
    """The expression over leaves: each Source the concatenation of the parts that it is stored in.

    Leaves have the dtypes that are stored; a Cast written for another one is left out, as evaluate does.
    """
    if not isinstance(expr, Source):
        args = tuple(_stored(arg, tensors, leaves) for arg in args_of(expr))
        return args[0] if isinstance(expr, Cast) and dtype_of(args[0]) != dtype_of(expr.arg) else with_args(expr, args)
    stored = tensors[expr.name]
    views = [(part, View(part, part.offset, stored.dtype, part.sizes, part.strides)) for part in stored.parts]
    return _assembled(expr, views, (0,) * len(stored.shape), stored.shape, leaves)


def _assembled(source: Source, views: list[tuple[Part, View]], starts: Sizes, sizes: Sizes, leaves: Leaves) -> Expr:
    """The box of a tensor from `starts` with `sizes`, joined from the parts that lie in it."""
    if len(views) == 1 and (views[0][0].starts, views[0][0].sizes) == (starts, sizes):
        return leaves.add(views[0][1])
    for dim, size in enumerate(sizes):
        end = starts[dim] + size
        edges = sorted({part.starts[dim] for part, _ in views} | {end})
        cuts = [edge for edge in edges if not any(_is_torn(part, dim, edge) for part, _ in views)]
        if len(cuts) > 2 and cuts[0] == starts[dim]:
            boxes = list(pairwise(cuts))
            inner = [[(p, v) for p, v in views if low <= p.starts[dim] < high] for low, high in boxes]
            args = [
                _assembled(source, found, _at(starts, dim, low), _at(sizes, dim, high - low), leaves)
                for (low, high), found in zip(boxes, inner, strict=True)
            ]
            return Concat(tuple(args), dim)
    raise CheckpointError(f"the parts of `{source.name}` leave gaps, overlap, or are no grid")


def _is_torn(part: Part, dim: int, edge: int) -> bool:
    return part.starts[dim] < edge < part.starts[dim] + part.sizes[dim]


def _at(sizes: Sizes, dim: int, value: int) -> Sizes:
    return (*sizes[:dim], value, *sizes[dim + 1 :])


def _seen(expr: Expr, leaves: Leaves) -> Expr:
    """The same value, nodes that only look at a leaf in another way replaced by leaves."""
    args = tuple(_seen(arg, leaves) for arg in args_of(expr))
    expr = with_args(expr, args)
    if isinstance(expr, Slice | Permute | Reshape | Expand) and isinstance(expr.arg, Source):
        return leaves.as_view(expr, expr.arg) or expr
    if isinstance(expr, Slice) and set(expr.step) == {1}:
        arg = expr.arg
        for dim, (start, stop) in enumerate(zip(expr.start, expr.stop, strict=True)):
            arg = narrowed(arg, dim, start, stop, leaves)
        return arg
    return expr
