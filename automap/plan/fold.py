"""Plans folded into rules: one template for all layers that are made alike, and back again without loss.

Only whole runs fold: `for i in 0..11` says that all twelve are there, with expressions that are equal but for the
numbers in their sources' names (on demand also for where slices start), which follow `i` evenly (`{i}`, `{i-1}`,
`{2i+1}`). `expand(fold(plan)) == plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product, repeat

from automap.plan.expr import Expr, walk_sources
from automap.plan.notation import format_expr
from automap.plan.plan import Plan
from automap.plan.shown import shown, size_names
from automap.plan.template import (
    Form,
    blanked,
    escape,
    instantiate,
    numbers_of,
    rename_sources,
    starts_of,
    template_from,
    with_starts,
)

MAX_INDICES = 3
MIN_EMBEDDED = 3  # `norm1`, `norm2` are two things more often than a series


@dataclass(frozen=True, slots=True)
class Index:
    """The variable `name`, which takes every value from `first` to `last`."""

    name: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.name} in {self.first}..{self.last}"

    @property
    def values(self) -> range:
        """Every value, in order."""
        return range(self.first, self.last + 1)


@dataclass(frozen=True, slots=True)
class Rule:
    """`dest <- expr` for every value of the indices; `dest` and the names in `expr` are templates.

    `starts` is empty, or has a template for every position that slices in `expr` start at (as `starts_of` lists them):
    expert `{e}` reads `packed[{8e}:{8e+8}]`. `expr` itself has the starts of the first member.
    """

    dest: str
    expr: Expr
    indices: tuple[Index, ...] = ()
    starts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text({})

    def text(self, names: Mapping[int, str]) -> str:
        """The rule as one line, sizes written as `names` has them."""
        ranges = ", ".join(map(str, self.indices))
        expr = format_expr(shown(self.expr, self.starts, names))
        return f"{self.dest} <- {expr}{f'   for {ranges}' if ranges else ''}"

    def entries(self) -> Iterator[tuple[str, Expr]]:
        """Every dest name and expression that the rule stands for."""
        for numbers in product(*(index.values for index in self.indices)):
            values = {index.name: number for index, number in zip(self.indices, numbers, strict=True)}
            yield instantiate(self.dest, values), self.expr_at(values)

    def expr_at(self, values: Mapping[str, int]) -> Expr:
        """The expression for one value of each index."""
        expr = rename_sources(self.expr, partial(instantiate, values=values))
        return with_starts(expr, (int(instantiate(start, values)) for start in self.starts)) if self.starts else expr


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a plan; printed one a line, then what the names of sizes stand for.

    `src` and `dest` name the two models.
    """

    rules: tuple[Rule, ...]
    src: str = ""
    dest: str = ""

    def __str__(self) -> str:
        names = size_names(rule.expr for rule in self.rules)
        legend = ", ".join(f"{name} = {size}" for size, name in names.items())
        lines = [rule.text(names) for rule in self.rules]
        return "\n".join([*lines, f"where {legend}"] if names else lines)

    def __len__(self) -> int:
        return len(self.rules)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)


def expand(rules: Rules) -> Plan:
    """The plan that `fold` made `rules` from.

    Raises:
        PlanError: a template has a hole that is no number.
    """
    entries = dict(entry for rule in rules for entry in rule.entries())
    return Plan(entries, src=rules.src, dest=rules.dest)


def fold(plan: Plan, *, cuts: bool = False) -> Rules:
    """The plan as the fewest rules found, in the order of their first members.

    Args:
        plan: what is folded.
        cuts: whether positions where slices start may follow an index too (see `Rule.starts`), or names only.
    """
    series = [_Series.of(place, name, expr, cuts) for place, (name, expr) in enumerate(plan.entries.items())]
    kinds: dict[tuple[object, ...], list[_Series]] = {}
    for one in series:
        kinds.setdefault((one.texts, one.expr), []).append(one)
    folded = [one for members in kinds.values() for one in _folded(members)]
    rules = tuple(one.rule() for one in sorted(folded, key=lambda one: one.place))
    return Rules(rules, plan.src, plan.dest)


@dataclass(frozen=True, slots=True)
class _Series:
    """Dest tensors that are made alike: the text of their names, and the numbers as forms of the indices folded so far.

    Until a series becomes a rule, the variable of a number in the dest name is called by its column: "0", "1", ...
    """

    place: int
    texts: tuple[str, ...]
    numbers: tuple[Form, ...]
    expr: Expr
    src_numbers: tuple[Form, ...]
    starts: tuple[Form, ...]
    indices: tuple[Index, ...] = ()

    @classmethod
    def of(cls, place: int, name: str, expr: Expr, cuts: bool) -> _Series:
        """The series of one; its expression has 0 for the numbers in names, with `cuts` also for where slices start."""
        texts, numbers = numbers_of(escape(name))
        found = [numbers_of(escape(source.name))[1] for source in walk_sources(expr)]
        blank = rename_sources(expr, lambda name: blanked(escape(name)))
        src_numbers = tuple(Form(number) for one in found for number in one)
        starts = starts_of(expr) if cuts else ()
        if cuts:
            blank = with_starts(blank, repeat(0))
        return cls(place, texts, tuple(map(Form, numbers)), blank, src_numbers, tuple(map(Form, starts)))

    def key(self, column: int) -> tuple[object, ...]:
        """What members of one run along `column` have in common."""
        others = self.numbers[:column] + self.numbers[column + 1 :]
        return others, tuple(form.terms for form in (*self.src_numbers, *self.starts)), self.indices

    def delta(self, column: int, following: _Series) -> tuple[int, ...] | None:
        """How names' numbers and starts go on to the series that comes next along `column`; None where none is next.

        Either go on: what is read from another tensor is read from the same place there.
        """
        if following.numbers[column].shift != self.numbers[column].shift + 1:
            return None
        names, starts = (
            tuple(after.shift - before.shift for before, after in zip(these, those, strict=True))
            for these, those in ((self.src_numbers, following.src_numbers), (self.starts, following.starts))
        )
        return (
            (*names, *starts) if min((*names, *starts), default=0) >= 0 and not (any(names) and any(starts)) else None
        )

    def run(self, column: int, delta: tuple[int, ...], length: int) -> _Series:
        """One series of this one and the `length - 1` that follow it along `column`."""
        name, first = str(column), self.numbers[column].shift
        forms = tuple(
            Form(form.shift - step * first, (*form.terms, (name, step))) if step else form
            for form, step in zip((*self.src_numbers, *self.starts), delta, strict=True)
        )
        numbers = (*self.numbers[:column], Form(0, ((name, 1),)), *self.numbers[column + 1 :])
        count = len(self.src_numbers)
        indices = (*self.indices, Index(name, first, first + length - 1))
        return replace(self, numbers=numbers, src_numbers=forms[:count], starts=forms[count:], indices=indices)

    def rule(self) -> Rule:
        """The series with its variables called i, j, k from left to right."""
        indices = sorted(self.indices, key=lambda index: int(index.name))
        names = {index.name: letter for index, letter in zip(indices, "ijk", strict=False)}
        forms = iter([_renamed(form, names) for form in self.src_numbers])

        def filled(blank: str) -> str:
            texts, _ = numbers_of(blank)
            return template_from(texts, tuple(next(forms) for _ in texts[1:]))

        dest = template_from(self.texts, tuple(_renamed(form, names) for form in self.numbers))
        renamed = tuple(replace(index, name=names[index.name]) for index in indices)
        expr = rename_sources(self.expr, filled)
        first = {index.name: index.first for index in renamed}
        starts = tuple(str(_renamed(form, names)) for form in self.starts)
        expr = with_starts(expr, (int(instantiate(start, first)) for start in starts)) if starts else expr
        return Rule(dest, expr, renamed, starts if any(form.terms for form in self.starts) else ())


def _renamed(form: Form, names: dict[str, str]) -> Form:
    return replace(form, terms=tuple(sorted((names[name], coefficient) for name, coefficient in form.terms)))


def _folded(series: list[_Series]) -> list[_Series]:
    """Series with equal texts and expressions, folded along one column of numbers after the other."""
    texts = series[0].texts
    columns = list(range(len(texts) - 1))[::-1]
    for column in sorted(columns, key=lambda column: not _is_whole_part(texts, column)):
        shortest = 2 if _is_whole_part(texts, column) else MIN_EMBEDDED
        groups: dict[tuple[object, ...], list[_Series]] = {}
        for one in series:
            groups.setdefault(one.key(column), []).append(one)
        series = [one for group in groups.values() for one in _runs(group, column, shortest)]
    return series


def _is_whole_part(texts: tuple[str, ...], column: int) -> bool:
    """Whether the number is all there is between two dots of the name."""
    return (texts[column][-1:] or ".") + (texts[column + 1][:1] or ".") == ".."


def _runs(group: Iterable[_Series], column: int, shortest: int) -> Iterator[_Series]:
    """The series of a group, whole runs along `column` as one."""
    members = sorted(group, key=lambda one: one.numbers[column].shift)
    if len(members[0].indices) == MAX_INDICES:
        yield from members
        return
    deltas = [one.delta(column, following) for one, following in pairwise(members)]
    start = 0
    while start < len(members):
        length = _run_length(deltas, start)
        if length == 2 and _run_length(deltas, start + 1) > 2:
            length = 1  # the second member belongs to the longer run
        delta = deltas[start] if length >= shortest else None
        if delta is None:
            yield from members[start : start + length]
        else:
            first = members[start].run(column, delta, length)
            yield replace(first, place=min(one.place for one in members[start : start + length]))
        start += length


def _run_length(deltas: list[tuple[int, ...] | None], start: int) -> int:
    end = start
    while end < len(deltas) and deltas[end] is not None and deltas[end] == deltas[start]:
        end += 1
    return end - start + 1
