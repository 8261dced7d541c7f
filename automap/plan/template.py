"""Names with numbers in them, as templates: `blocks.3.attn.weight` is `blocks.{i}.attn.weight` where i = 3.

A template is a string; `{i}`, `{i+1}` and `{2i+1}` stand for numbers, `{{` and `}}` for braces. An expression is a
template where the names of its sources are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from automap.errors import PlanError
from automap.plan.expr import Expr, Source, args_of, with_args

_NUMBER = re.compile(r"\{\{|\}\}|\{[^{}]*\}|(?<![0-9])(?:0|[1-9][0-9]{0,8})(?![0-9])")
_HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_FORM = re.compile(r"([1-9][0-9]*)?([a-z]+)([+-][0-9]+)?")


@dataclass(frozen=True, slots=True)
class Form:
    """A number in a name: `shift`, or the sum of `coefficient * variable` for each variable, plus `shift`."""

    shift: int
    terms: tuple[tuple[str, int], ...] = ()

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
    total, end = 0, 0
    for term in _FORM.finditer(hole):
        coefficient, name, shift = term.groups()
        if term.start() != end or name not in values:
            break
        total += int(coefficient or 1) * values[name] + int(shift or 0)
        end = term.end() + (hole[term.end() : term.end() + 1] == "+")
    if not hole or end != len(hole):
        raise PlanError(f"`{{{hole}}}` in `{template}` is not a number of {', '.join(values) or 'no variable'}")
    return total


def rename_sources(expr: Expr, rename: Callable[[str], str]) -> Expr:
    """The same expression over sources with other names."""
    if isinstance(expr, Source):
        return replace(expr, name=rename(expr.name))
    return with_args(expr, tuple(rename_sources(arg, rename) for arg in args_of(expr)))
