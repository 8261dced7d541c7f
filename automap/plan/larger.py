"""A plan for one model, made into the plan for another of the same architecture with other sizes and depth.

In: the plan and the other model's shapes. Out: its plan, in which every size follows from those shapes; where it does
not, the plan is refused with the readings there are. Dest tensors that share src tensors are solved together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from automap.errors import PlanError
from automap.plan.expr import Concat, Expr, Shape, args_of, sources_of, with_args
from automap.plan.fold import fold
from automap.plan.plan import Plan
from automap.plan.reach import Reached, reached_names
from automap.plan.redraw import redrawn
from automap.plan.shapes import shape_of
from automap.plan.sketch import Sketch, Sketcher
from automap.plan.template import escape, instantiate, numbered_args, rename_sources

Entry = tuple[Reached, Expr]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is known of the other model. `factors` are sizes there by their size in the plan."""

    dest: Mapping[str, Shape]
    src: Mapping[str, Shape] | None
    factors: Mapping[int, int]

    def are_those_of(self, entries: Iterable[Entry]) -> bool:
        """Whether every dest tensor has the shape of the one like it in the plan."""
        return all(tuple(self.dest[one.name]) == shape_of(expr) for one, expr in entries)


def larger_plan(plan: Plan, sizes: Sizes) -> Plan:
    """The plan for the dest tensors of `sizes`.

    Raises:
        PlanError: a tensor is reached by no rule, or its sizes do not follow, or do not fit.
    """
    found = reached_names(fold(plan, cuts=True), sizes.dest)
    entries = [(one, _named(one, sizes)) for one in found]
    made: dict[str, Expr] = {}
    is_same = sizes.are_those_of(entries)
    for group in _components(entries):
        made |= _solved(group, sizes, is_same)
    return Plan({name: made[name] for name in sizes.dest})


def _named(one: Reached, sizes: Sizes) -> Expr:
    """The expression with the plan's sizes, its names in the other model."""
    expr = rename_sources(one.reach.rule.expr, partial(instantiate, values=one.values))
    grown = _grown(expr, sizes.dest[one.name], sizes.src)
    try:
        shape_of(grown)
    except PlanError as error:
        raise PlanError(f"`{one.name}` joins another number of tensors here: {error}") from error
    return grown


def _grown(expr: Expr, shape: Shape | None, src: Mapping[str, Shape] | None) -> Expr:
    """Joins of numbered tensors (`experts.0`, `experts.1`) with as many as there are in the other model."""
    args = tuple(_grown(arg, None, src) for arg in args_of(expr))
    if isinstance(expr, Concat):
        series = numbered_args(tuple(rename_sources(arg, escape) for arg in args), shortest=2)
        if series is not None:
            template, variable = series
            is_stack = shape is not None and len(shape) > expr.dim and shape_of(args[0])[expr.dim] == 1
            count = shape[expr.dim] if shape is not None and is_stack else _count(template, variable, src) or len(args)
            members = ({variable: number} for number in range(count))
            args = tuple(rename_sources(template, partial(instantiate, values=values)) for values in members)
    return with_args(expr, args)


def _count(template: Expr, variable: str, src: Mapping[str, Shape] | None) -> int:
    """How many tensors of a series src has."""
    names, count = [source.name for source in sources_of(template)], 0
    while src is not None and all(instantiate(name, {variable: count}) in src for name in names):
        count += 1
    return count


def _components(entries: Iterable[Entry]) -> list[list[Entry]]:
    """The entries, those together that share src tensors."""
    groups: dict[int, tuple[list[Entry], set[str]]] = {}
    owner: dict[str, int] = {}
    for number, entry in enumerate(entries):
        members, names = [entry], {source.name for source in sources_of(entry[1])}
        for other in sorted({owner[name] for name in names if name in owner}):
            more, their_names = groups.pop(other)
            members, names = [*more, *members], names | their_names
        groups[number] = members, names
        owner |= dict.fromkeys(names, number)
    return [members for members, _ in groups.values()]


def _solved(group: list[Entry], sizes: Sizes, is_same: bool) -> dict[str, Expr]:
    """The expressions of dest tensors that share src tensors."""
    sketcher = Sketcher()
    sketches: dict[str, Sketch] = {}
    made: dict[str, Expr] = {}
    for one, expr in group:
        if _is_empty(expr):
            made[one.name] = expr
        else:
            sketches[one.name] = sketcher.sketch(expr, one.name, iter(one.reach.starts), one.values)
    _know_shapes(sketcher, sketches, sizes)
    _solve(sketcher, sizes.factors, is_same)
    made |= {name: redrawn(sketch, name, sketcher.unknowns, sizes.factors) for name, sketch in sketches.items()}
    for name, expr in made.items():
        _check(name, expr, sizes)
    return made


def _is_empty(expr: Expr) -> bool:
    """Whether there are tensors without elements in an expression, whose sizes tell nothing."""
    return 0 in shape_of(expr) or any(map(_is_empty, args_of(expr)))


def _know_shapes(sketcher: Sketcher, sketches: Mapping[str, Sketch], sizes: Sizes) -> None:
    for name, sketch in sketches.items():
        _know(sketcher, name, sketch.sizes, sizes.dest[name])
    if sizes.src is None:
        return
    for name, (_, dims) in sketcher.sources.items():
        if name not in sizes.src:
            raise PlanError(f"src has no tensor `{name}`, which `{next(iter(sketches))}` needs")
        _know(sketcher, name, dims, sizes.src[name])


def _solve(sketcher: Sketcher, factors: Mapping[int, int], is_same: bool) -> None:
    """Determines unknowns: from shapes, then from what has to be as in the plan, then from what the caller says."""
    unknowns = sketcher.unknowns
    unknowns.finish_cuts()
    unknowns.solve()
    for size, why in sketcher.pins:
        unknowns.know(size, unknowns.in_plan(size), why)
    unknowns.solve()
    unknowns.fix(factors)
    unknowns.keep(is_same_model=is_same)
    unknowns.solve()


def _know(sketcher: Sketcher, name: str, dims: tuple[tuple[int, ...], ...], shape: Shape) -> None:
    planned = tuple(map(sketcher.unknowns.in_plan, dims))
    if len(dims) != len(shape) or 0 in shape:
        raise PlanError(f"`{name}` has shape {tuple(shape)}, in the plan {planned}")
    for dim, (size, here) in enumerate(zip(dims, shape, strict=True)):
        sketcher.unknowns.know(size, here, f"dim {dim} of `{name}` is {here} (in the plan {planned[dim]})")


def _check(name: str, expr: Expr, sizes: Sizes) -> None:
    """Refuses an expression that does not have the shapes of the other model."""
    if shape_of(expr) != tuple(sizes.dest[name]):
        raise PlanError(f"`{name}` has shape {tuple(sizes.dest[name])}, the plan gives {shape_of(expr)}")
    for source in sources_of(expr):
        if sizes.src is not None and source.shape != tuple(sizes.src.get(source.name, ())):
            raise PlanError(f"`{source.name}` has shape {sizes.src.get(source.name)}, the plan gives {source.shape}")
