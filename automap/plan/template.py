"""Names with numbers in them, as templates: `blocks.3.attn.weight` is `blocks.{i}.attn.weight` where i = 3.

A template is a string; `{i}`, `{i+1}` and `{2i+1}` stand for numbers, `{{` and `}}` for braces. An expression is a
template where the names of its sources are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from automap.errors import PlanError
from automap.plan.expr import Expr, Slice, Source, args_of, walk_sources, with_args

_NUMBER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|(?<![0-9])(?:0|[1-9][0-9]{0,8})(?![0-9])")
_HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_FORM = re.compile(r"([1-9][0-9]*)?([a-z]+)([+-][0-9]+)?")


@dataclass(frozen=True, slots=True)
class Form:
    """A number in a name: `shift`, or the sum of `coefficient * variable` for each variable, plus `shift`."""

    shift: int
    terms: tuple[tuple[str, int], ...] = ()

    def value(self, values: Mapping[str, int]) -> int:
        """The number where the variables have `values`."""
        return self.shift + sum(coefficient * values[name] for name, coefficient in self.terms)

    def __str__(self) -> str:
        if not self.terms:
            return str(self.shift)
        total = "+".join(f"{'' if coefficient == 1 else coefficient}{name}" for name, coefficient in self.terms)
        return f"{{{total}{f'{self.shift:+d}' if self.shift else ''}}}"


def escape(name: str) -> str:
    """A name as a template without numbers to fill in."""
    return name.replace("{", "{{").replace("}", "}}")


def numbers_of(template: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The text between the plain numbers of a template, and the numbers (those with leading zeros are text)."""
    texts, numbers, end = [], [], 0
    for match in _NUMBER.finditer(template):
        if match[0][0] in "{}":
            continue
        texts.append(template[end : match.start()])
        numbers.append(int(match[0]))
        end = match.end()
    return (*texts, template[end:]), tuple(numbers)


def blanked(template: str) -> str:
    """The template with every plain number set to 0: equal for names that differ in numbers only."""
    return "0".join(numbers_of(template)[0])


def template_from(texts: tuple[str, ...], forms: tuple[Form, ...]) -> str:
    """The template with `forms` between `texts`."""
    return texts[0] + "".join(f"{form}{text}" for form, text in zip(forms, texts[1:], strict=True))


def instantiate(template: str, values: Mapping[str, int]) -> str:
    """The name that a template stands for.

    Raises:
        PlanError: a hole is not of the form `{2i+1}`, or names an unknown variable.

    Example:
        >>> instantiate("layers.{i+1}.weight", {"i": 3})
        'layers.4.weight'
    """

    def filled(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        return str(_hole_value(match[1], values, template))

    return _HOLE.sub(filled, template)


def _hole_value(hole: str, values: Mapping[str, int], template: str) -> int:
    form = _form(hole)
    if form is None or any(name not in values for name, _ in form.terms):
        raise PlanError(f"`{{{hole}}}` in `{template}` is not a number of {', '.join(values) or 'no variable'}")
    return form.value(values)


def _form(hole: str) -> Form | None:
    """What is between the braces of a template."""
    terms, total, end = [], 0, 0
    for term in _FORM.finditer(hole):
        coefficient, name, shift = term.groups()
        if term.start() != end:
            return None
        terms.append((name, int(coefficient or 1)))
        total += int(shift or 0)
        end = term.end() + (hole[term.end() : term.end() + 1] == "+")
    return Form(total, tuple(terms)) if terms and end == len(hole) else None


def parts_of(template: str) -> tuple[tuple[str, ...], tuple[Form, ...]]:
    """The text between all numbers of a template, and the numbers: plain ones and holes.

    Raises:
        PlanError: a hole is not of the form `{2i+1}`.
    """
    texts, forms, end = [], [], 0
    for match in _NUMBER.finditer(template):
        if match[0] in ("{{", "}}"):
            continue
        form = Form(int(match[0])) if match[1] is None else _form(match[1])
        if form is None:
            raise PlanError(f"`{match[0]}` in `{template}` is not a number")
        texts.append(template[end : match.start()])
        forms.append(form)
        end = match.end()
    return (*texts, template[end:]), tuple(forms)


def starts_of(expr: Expr) -> tuple[int, ...]:
    """Where every Slice in `expr` starts, dim by dim, outer slices first."""
    own = expr.start if isinstance(expr, Slice) else ()
    return (*own, *(start for arg in args_of(expr) for start in starts_of(arg)))


def with_starts(expr: Expr, starts: Iterator[int]) -> Expr:
    """The same expression with slices of the same lengths from other starts, taken as `starts_of` gives them."""
    if isinstance(expr, Slice):
        moved = tuple(next(starts) for _ in expr.start)
        stops = tuple(stop + now - was for stop, now, was in zip(expr.stop, moved, expr.start, strict=True))
        expr = replace(expr, start=moved, stop=stops)
    return with_args(expr, tuple(with_starts(arg, starts) for arg in args_of(expr)))


def rename_sources(expr: Expr, rename: Callable[[str], str]) -> Expr:
    """The same expression over sources with other names."""
    if isinstance(expr, Source):
        return replace(expr, name=rename(expr.name))
    return with_args(expr, tuple(rename_sources(arg, rename) for arg in args_of(expr)))


def numbered_args(args: tuple[Expr, ...], shortest: int) -> tuple[Expr, str] | None:
    """One argument that stands for all (at least `shortest`), with the variable in its names, which counts from 0."""
    names = [[numbers_of(source.name) for source in walk_sources(arg)] for arg in args]
    numbers = [[number for _, found in sources for number in found] for sources in names]
    blanks = {rename_sources(arg, blanked) for arg in args}
    if len(args) < shortest or len(blanks) > 1 or not numbers[0]:
        return None
    deltas = [b - a for a, b in zip(numbers[0], numbers[1], strict=True)]
    steady = all([b - a for a, b in zip(one, two, strict=True)] == deltas for one, two in pairwise(numbers))
    if not steady or min(deltas) < 0 or not any(deltas):
        return None
    variable = _unused_variable(args[0])
    forms = iter([Form(first, ((variable, d),) if d else ()) for first, d in zip(numbers[0], deltas, strict=True)])

    def named(name: str) -> str:
        texts, found = numbers_of(name)
        return template_from(texts, tuple(next(forms) for _ in found))

    return rename_sources(args[0], named), variable


def _unused_variable(expr: Expr) -> str:
    used = "".join(source.name for source in walk_sources(expr))
    return next(name for name in "eghmnopr" if f"{{{name}" not in used)
