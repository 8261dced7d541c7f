"""A plan as families: what is made of the same src tensors, for all blocks that are made alike.

A rule of a plan is about one dest tensor, but q, k and v that are cut out of one src tensor belong together. Families
keep the indices of the rules they are made of; where the members of a family would differ from block to block, each
block is a family of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from automap.export.sizeless import sizeless
from automap.plan.expr import Expr, Source, args_of, sources_of, with_args
from automap.plan.fold import Index, Rule, fold
from automap.plan.plan import Plan
from automap.plan.template import (
    escape,
    instantiate,
    numbered_args,
    rename_sources,
)

Entries = tuple[tuple[str, Expr], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Dest tensors with their expressions, for all values of the indices; names are templates."""

    entries: Entries
    indices: tuple[Index, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """The src tensors that are read, each once."""
        return tuple(dict.fromkeys(source for _, expr in self.entries for source in sources_of(expr)))

    @property
    def renamed(self) -> tuple[str, str] | None:
        """The names in src and dest of the one tensor that is only renamed, if it is."""
        match self.entries:
            case ((dest, Source(name)),):
                return name, dest
            case _:
                return None

    def members(self) -> Iterable[Mapping[str, int]]:
        """The values of the indices, one mapping for each block."""
        names = [index.name for index in self.indices]
        for numbers in product(*(index.values for index in self.indices)):
            yield dict(zip(names, numbers, strict=True))


def families_of(plan: Plan) -> tuple[Family, ...]:
    """Rules that read the same src tensors in the same blocks together, all others one by one."""
    return tuple(
        family
        for group in _groups(_rules(plan, set()), links=())
        for family in _aligned(group) or [Family(((rule.dest, rule.expr),), rule.indices) for rule in group]
    )


def closed_families(plan: Plan) -> tuple[Family, ...]:
    """Families such that no src tensor is read by two of them and none reads no src tensor.

    Dest tensors that nothing in src computes belong to the family of the name next to theirs.
    """
    entries = [*plan.entries.items()]
    rules = _rules(plan, {entries[partner][0] for _, partner in _neighbours(entries)})
    found: list[Family] = []
    for group in _groups(rules, _neighbours([(rule.dest, rule.expr) for rule in rules])):
        found += _aligned(group) or _blocks(group)
    return tuple(found)


def _rules(plan: Plan, kept: set[str]) -> tuple[Rule, ...]:
    """The folded plan, first what is made alike whatever its sizes, so that blocks of other widths fold too.

    What reads a src tensor that a dest tensor in `kept` reads stays as it is.
    """
    alike = sizeless(plan.entries, kept)
    others = {dest: expr for dest, expr in plan.entries.items() if dest not in alike}
    return (*fold(Plan(alike)).rules, *fold(Plan(others)).rules)


def _blocks(rules: Sequence[Rule]) -> list[Family]:
    """The families of rules that read each other's src tensors across blocks: whatever belongs together, unfolded."""
    entries = [Rule(escape(dest), rename_sources(expr, escape)) for rule in rules for dest, expr in rule.entries()]
    links = _neighbours([(entry.dest, entry.expr) for entry in entries])
    return [Family(tuple((entry.dest, entry.expr) for entry in group)) for group in _groups(entries, links)]


def _aligned(rules: Sequence[Rule]) -> list[Family]:
    """The one family of rules that have the same indices and share src tensors in the same block only; else nothing."""
    if any(rule.indices != rules[0].indices for rule in rules):
        return []
    family = Family(tuple((rule.dest, rule.expr) for rule in rules), rules[0].indices)
    names = [instantiate(source.name, values) for values in family.members() for source in family.sources]
    return [family] if len(set(names)) == len(names) else []


def _neighbours(entries: Sequence[tuple[str, Expr]]) -> list[tuple[int, int]]:
    """For each entry without a src tensor the one with some whose dest name has most in common with its own."""
    made = [number for number, (_, expr) in enumerate(entries) if sources_of(expr)]
    return [
        (number, max(made, key=lambda other: _common_parts(entries[other][0], dest)))
        for number, (dest, expr) in enumerate(entries)
        if made and not sources_of(expr)
    ]


def _common_parts(left: str, right: str) -> int:
    """How many parts of two dotted names are equal from the start."""
    pairs = zip(left.split("."), right.split("."), strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(left.count("."), right.count(".")) + 1)


def _groups(rules: Sequence[Rule], links: Iterable[tuple[int, int]]) -> list[list[Rule]]:
    """The rules put together where they share a src tensor or are linked, in the order of their first members."""
    parent = list(range(len(rules)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    def join(left: int, right: int) -> None:
        first, second = sorted((root(left), root(right)))
        parent[second] = first

    readers: dict[str, int] = {}
    for number, rule in enumerate(rules):
        for name in _concrete_sources(rule):
            join(number, readers.setdefault(name, number))
    for left, right in links:
        join(left, right)
    groups: dict[int, list[Rule]] = {}
    for number, rule in enumerate(rules):
        groups.setdefault(root(number), []).append(rule)
    return list(groups.values())


def _concrete_sources(rule: Rule) -> set[str]:
    family = Family(((rule.dest, rule.expr),), rule.indices)
    return {instantiate(source.name, values) for values in family.members() for source in family.sources}


@dataclass(frozen=True, slots=True)
class Numbered:
    """Expressions that differ in one number in their sources' names, `{variable}`, which goes from 0 to `count - 1`."""

    template: Expr
    variable: str
    count: int


def numbered(args: Sequence[Expr]) -> Numbered | None:
    """What stands for all of `args` (two or more), if they count evenly from one to the next."""
    found = numbered_args(tuple(args), shortest=2)
    return None if found is None else Numbered(*found, len(args))


def replaced(expr: Expr, make: Callable[[Expr], Expr | None]) -> Expr:
    """The expression with whatever `make` has something else for exchanged, from the outside in."""
    other = make(expr)
    if other is not None:
        return other
    return with_args(expr, tuple(replaced(arg, make) for arg in args_of(expr)))
