"""Which rule of a plan makes which tensor of another model, whose indices go further than the plan's.

In: rules, and dest names. Out: for each name the rule and its indices. A name that no rule reaches, or two that differ,
is refused, and so is whatever could as well count in another way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import TypeAlias

from automap.errors import PlanError
from automap.plan.expr import walk_sources
from automap.plan.fold import Rule, Rules
from automap.plan.template import Form, escape, numbers_of, parts_of, starts_of

Values: TypeAlias = Mapping[str, int]


@dataclass(frozen=True)
class Reach:
    """A rule, as what it says about names."""

    rule: Rule

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The text between the numbers of the dest name."""
        return parts_of(self.rule.dest)[0]

    @cached_property
    def columns(self) -> tuple[tuple[str, int, int], ...]:
        """For each number of the dest name its variable (if any), the first and the last value that the rule has."""
        ranges = {index.name: (index.first, index.last) for index in self.rule.indices}
        forms = parts_of(self.rule.dest)[1]
        names = [form.terms[0][0] if form.terms else "" for form in forms]
        return tuple((n, *ranges.get(n, (form.shift, form.shift))) for n, form in zip(names, forms, strict=True))

    @cached_property
    def starts(self) -> tuple[Form, ...]:
        """How the positions that slices start at follow the indices."""
        starts = self.rule.starts or map(str, starts_of(self.rule.expr))
        return tuple(parts_of(start)[1][0] for start in starts)

    @cached_property
    def members(self) -> tuple[Values, ...]:
        """The values of the indices that the plan has."""
        names = [index.name for index in self.rule.indices]
        ranges = [index.values for index in self.rule.indices]
        return tuple(dict(zip(names, numbers, strict=True)) for numbers in product(*ranges))

    def has(self, numbers: tuple[int, ...]) -> bool:
        """Whether a dest name with these numbers is one of the plan's."""
        return all(first <= number <= last for number, (_, first, last) in zip(numbers, self.columns, strict=True))

    def extends_to(self, numbers: tuple[int, ...]) -> bool:
        """Whether the rule says what a dest name with these numbers is, if its indices go on."""
        pairs = zip(numbers, self.columns, strict=True)
        return all(first <= number if name else first == number for number, (name, first, _) in pairs)

    def values_at(self, numbers: tuple[int, ...]) -> Values:
        """The indices of the dest name with these numbers."""
        return {name: number for number, (name, _, _) in zip(numbers, self.columns, strict=True) if name}

    def blocks(self, other: Reach, numbers: tuple[int, ...]) -> bool:
        """Whether the plan goes on with this rule where `other` ends, before it gets to `numbers`."""
        for place, (number, mine, theirs) in enumerate(zip(numbers, self.columns, other.columns, strict=True)):
            rest, columns = numbers[:place] + numbers[place + 1 :], self.columns[:place] + self.columns[place + 1 :]
            near = all(first <= n if name else first == n for n, (name, first, _) in zip(rest, columns, strict=True))
            if near and number > theirs[2] and mine[2] > theirs[2]:
                return True
        return False

    def paths(self, members: Iterable[Values]) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
        """The beginnings of src names, up to each of their numbers: the text, and the numbers of each member."""
        names = [parts_of(source.name) for source in walk_sources(self.rule.expr)]
        for values in members:
            for texts, forms in names:
                numbers = tuple(form.value(values) for form in forms)
                for count in range(1, len(numbers) + 1):
                    yield texts[:count], numbers[:count]


@dataclass(frozen=True, slots=True)
class Reached:
    """A dest tensor, the rule that makes it, and the rule's indices for it."""

    name: str
    reach: Reach
    values: Values


def reached_names(rules: Rules, names: Iterable[str]) -> tuple[Reached, ...]:
    """The rule and indices for each of `names`.

    Raises:
        PlanError: no rule reaches a name, or more than one does, or indices could go on in another way.
    """
    families: dict[tuple[str, ...], list[Reach]] = {}
    for rule in rules:
        reach = Reach(rule)
        families.setdefault(reach.texts, []).append(reach)
    found = []
    for name in names:
        texts, numbers = numbers_of(escape(name))
        found.append(_reached(name, numbers, families.get(texts, [])))
    _check_inner_indices(found)
    _check_paths(found)
    return tuple(found)


def _reached(name: str, numbers: tuple[int, ...], family: list[Reach]) -> Reached:
    own = [reach for reach in family if reach.has(numbers)]
    if own:
        return Reached(name, own[0], own[0].values_at(numbers))
    candidates = [reach for reach in family if reach.extends_to(numbers)]
    if not candidates:
        raise PlanError(f"no rule of the plan reaches `{name}`", help="make the plan from a model that has one like it")
    made = [reach.rule.expr_at(reach.values_at(numbers)) for reach in candidates]
    rivals = [reach for reach, expr in zip(candidates, made, strict=True) if expr != made[0]]
    rivals += [reach for reach in family if reach not in candidates and reach.blocks(candidates[0], numbers)]
    if rivals:
        raise PlanError(
            f"`{name}` could be made like `{candidates[0].rule.dest}` or like `{rivals[0].rule.dest}`",
            help="make the plan from a model with more layers, or with layers that are all alike",
        )
    return Reached(name, candidates[0], candidates[0].values_at(numbers))


def _check_inner_indices(found: list[Reached]) -> None:
    """Refuses other ranges for the `j` of `{3i+j}`: the 3 would be another number."""
    for reach, members in _by_reach(found):
        forms = [form for source in walk_sources(reach.rule.expr) for form in parts_of(source.name)[1]]
        for form in (*forms, *reach.starts):
            outermost = max(form.terms, key=lambda term: term[1], default=("", 0))
            for name, _ in form.terms:
                planned = {values[name] for values in reach.members}
                if name != outermost[0] and {values[name] for values in members} != planned:
                    last = max(values[name] for values in members)
                    raise PlanError(
                        f"`{reach.rule.dest}` with {name} up to {last}: the plan reads number {form} for "
                        f"{name} in {min(planned)}..{max(planned)}, which may count otherwise here"
                    )


def _check_paths(found: list[Reached]) -> None:
    """Refuses that two rules read the same block of src where the plan has a block for each."""
    paths: list[tuple[Reach, dict[tuple[str, ...], set[tuple[int, ...]]], dict[tuple[str, ...], set[tuple[int, ...]]]]]
    paths = [
        (reach, _grouped(reach.paths(reach.members)), _grouped(reach.paths(members)))
        for reach, members in _by_reach(found)
    ]
    for (left, left_planned, left_here), (right, right_planned, right_here) in combinations(paths, 2):
        for texts in left_planned.keys() & right_planned.keys():
            shared = left_here[texts] & right_here[texts]
            if shared and not left_planned[texts] & right_planned[texts]:
                block = "".join(f"{text}{number}" for text, number in zip(texts, min(shared), strict=True))
                raise PlanError(
                    f"`{left.rule.dest}` and `{right.rule.dest}` would both read `{block}`, in the plan they read"
                    " different blocks: does a number in a name follow the number of layers?"
                )


def _grouped(paths: Iterable[tuple[tuple[str, ...], tuple[int, ...]]]) -> dict[tuple[str, ...], set[tuple[int, ...]]]:
    groups: dict[tuple[str, ...], set[tuple[int, ...]]] = {}
    for texts, numbers in paths:
        groups.setdefault(texts, set()).add(numbers)
    return groups


def _by_reach(found: Iterable[Reached]) -> list[tuple[Reach, list[Values]]]:
    """The rules that are used, each with the indices it is used for."""
    groups: dict[int, tuple[Reach, list[Values]]] = {}
    for one in found:
        groups.setdefault(id(one.reach), (one.reach, []))[1].append(one.values)
    return list(groups.values())
