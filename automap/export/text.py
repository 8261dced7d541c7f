"""Python text as `ruff format` has it: code and statements in, lines out.

Only a few forms are written: what does not fit on a line is either brackets with one item a line and a comma behind
each, which every formatter keeps, or cut into statements that fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias, assert_never

WIDTH = 88
INDENT = 4


@dataclass(frozen=True, slots=True)
class Group:
    """`head`, items with commas between them, `tail`: a call, a list, a tuple. One item a line where it is too long."""

    head: str
    items: tuple[Code, ...]
    tail: str


@dataclass(frozen=True, slots=True)
class Each:
    """`[element clause]`: a list comprehension."""

    element: Code
    clause: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """`name[key]`."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Chain:
    """`base` and what follows it: `.transpose(0, 1)`, `[:768]`, ` + other`. Never broken: see code.Writer."""

    base: Code
    suffix: str


@dataclass(frozen=True, slots=True)
class Operation:
    """`left * right` and the like: what needs parentheses before anything can follow it. Never broken either."""

    text: str


Code: TypeAlias = str | Group | Each | Lookup | Chain | Operation


def flat(code: Code) -> str:
    """The code on one line."""
    match code:
        case str():
            return code
        case Group(head, items, tail):
            return head + ", ".join(map(flat, items)) + tail
        case Each(element, clause):
            return f"[{flat(element)} {clause}]"
        case Lookup(name, key):
            return f"{name}[{key}]"
        case Chain(base, suffix):
            return flat(base) + suffix
        case Operation(text):
            return text
        case _:
            assert_never(code)


def laid_out(code: Code, indent: int = 0, *, before: str = "", after: str = "") -> list[str]:
    """The lines of `code` between `before` and `after`, which stay on its first and last line."""
    line = f"{' ' * indent}{before}{flat(code)}{after}"
    if len(line) <= WIDTH:
        return [line]
    margin, inner = " " * indent, indent + INDENT
    match code:
        case Group(head, items, tail) if items:
            middle = [line for item in items for line in laid_out(item, inner, after=",")]
            return [f"{margin}{before}{head}", *middle, f"{margin}{tail}{after}"]
        case Each(element, clause):
            whole = f"{' ' * inner}{flat(element)} {clause}"
            middle = [whole] if len(whole) <= WIDTH else [*laid_out(element, inner), f"{' ' * inner}{clause}"]
            return [f"{margin}{before}[", *middle, f"{margin}]{after}"]
        case Lookup(name, key):
            return [f"{margin}{before}{name}[", f"{' ' * inner}{key}", f"{margin}]{after}"]
        case _:
            return [line]


def assignment(target: str | Lookup, value: Code, indent: int) -> list[str] | None:
    """The lines of `target = value`; None where they have no form that formatters keep."""
    line = f"{' ' * indent}{flat(target)} = {flat(value)}"
    if len(line) <= WIDTH:
        return [line]
    if isinstance(target, Lookup):
        return _kept(target, value, indent) if isinstance(value, str) else None
    return None if isinstance(value, Chain | Operation) else laid_out(value, indent, before=f"{target} = ")


def _kept(target: Lookup, name: str, indent: int) -> list[str]:
    """An assignment of a variable: in parentheses, or, where the target is too long for that, with its key alone."""
    head = f"{' ' * indent}{flat(target)} = ("
    if len(head) <= WIDTH:
        return [head, f"{' ' * (indent + INDENT)}{name}", f"{' ' * indent})"]
    return laid_out(target, indent, after=f" = {name}")


def docstring(text: str, indent: int) -> list[str]:
    """The lines of a docstring, its first line and the rest as given."""
    first, *rest = text.strip().splitlines()
    margin = " " * indent
    if not rest:
        return [f'{margin}"""{first}"""']
    return [f'{margin}"""{first}', *(f"{margin}{line}".rstrip() for line in rest), f'{margin}"""']


def module(parts: Iterable[str]) -> str:
    """Top-level pieces of a file, two empty lines between them, a newline at the end."""
    return "\n\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"
