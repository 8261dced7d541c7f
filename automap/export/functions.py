"""Families as pairs of Python functions, from src tensors to dest tensors and back, for an operation of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from automap.errors import PlanError
from automap.export.code import Writer
from automap.export.entries import STAR, Entry
from automap.export.families import Entries, Family
from automap.export.names import unique, variable
from automap.export.needs import Needs
from automap.export.parts import PART, Cut, cut_of
from automap.export.script import cut_text
from automap.export.spelling import filled_like
from automap.export.text import INDENT, Code, Each, Group, flat, laid_out
from automap.plan.expr import Expr, Fill, Source, is_computed
from automap.plan.plan import Plan

MIN_LISTED = 3


@dataclass(slots=True)
class Functions:
    """The functions written so far: text by name, and what they need; equal ones are written once."""

    needs: Needs
    texts: dict[str, str] = field(default_factory=dict)
    helpers: set[str] = field(default_factory=set)

    def add(self, hint: str, parameters: Sequence[str], lines: Sequence[str]) -> str:
        """The name of a function with these parameters and lines."""
        for number in count(1):
            name = hint if number == 1 else f"{hint}_{number}"
            head = laid_out(Group(f"def {name}(", tuple(parameters), "):"))
            text = "\n".join([*head, *lines])
            if self.texts.setdefault(name, text) == text:
                return name
        raise AssertionError("there are more numbers")

    def entry(self, family: Family) -> Entry:
        """The entry that converts a family with functions of its own."""
        firsts, copies = _split_copies(family.entries)
        sources = Tensors.of([source.name for source in family.sources])
        ordered = [dest for dest, _ in (*firsts, *copies)]
        dests = Tensors.of(ordered)
        if not dests.is_list or copies:
            dests = Tensors.apart(ordered)
        names = tuple(name for names in dests.names for name in names)
        firsts = tuple(sorted(firsts, key=lambda entry: names.index(entry[0])))
        load = self._load(sources, firsts, copies, family.sources[0])
        save = self._save(sources, dests, firsts, copies)
        return Entry(sources.patterns, names, (Group("Mapped(", (load, save), ")"),), family.indices)

    def _load(self, sources: Tensors, firsts: Entries, copies: Entries, like: Source) -> str:
        """The name of the function that makes the dest tensors."""
        name = f"load_{variable(firsts[0][0])}"
        writer = Writer(self.needs, sources.code, INDENT, taken=sources.variables)
        cut = cut_of(Family(firsts)) if not copies else None
        whole = _comprehension(cut, writer, self.needs) if cut and cut.dests == tuple(dict(firsts)) else None
        if whole is not None:
            return self.add(name, sources.variables, [*writer.lines, *laid_out(whole, INDENT, before="return ")])
        values = {expr: _value(expr, like, writer) for _, expr in firsts}
        codes = [*values.values(), *(values[expr] for _, expr in copies)]
        return self.add(name, sources.variables, [*writer.lines, *_return_lines(codes)])

    def _save(self, sources: Tensors, dests: Tensors, firsts: Entries, copies: Entries) -> str:
        """The name of the function that makes the src tensors again, or a text that says why there is none."""
        try:
            back = _inverse(firsts)
        except PlanError as reason:
            return '"' + str(reason).replace('"', "'") + '"'
        lines = [
            f"    {dests.code(dest)} = present({', '.join(map(dests.code, same))})"
            for dest, expr in firsts
            if len(same := [dest, *(copy for copy, other in copies if other == expr)]) > 1
        ]
        self.helpers |= {"present"} if lines else set()
        writer = Writer(self.needs, dests.code, INDENT, taken=dests.variables, counts=dests.is_list)
        codes = [_made(names, back, writer, self.needs) for names in sources.names]
        parameters = [f"*{name}" for name in dests.variables] if dests.is_list else dests.variables
        lines += [*writer.lines, *_return_lines(codes)]
        return self.add(f"save_{variable(firsts[0][0])}", parameters, lines)


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors that a function is given: one for each pattern; all that a STAR stands for are one list."""

    patterns: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    variables: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Tensors:
        """The tensors of these names, numbered ones as lists."""
        lists = _lists(names)
        listed = {name: star for star, members in lists.items() for name in members}
        patterns = tuple(dict.fromkeys(listed.get(name, name) for name in names))
        members = tuple(lists.get(pattern, (pattern,)) for pattern in patterns)
        return cls(patterns, members, unique(variable(pattern.replace(STAR, "{n}")) for pattern in patterns))

    @classmethod
    def apart(cls, names: Sequence[str]) -> Tensors:
        """The tensors of these names, none in lists."""
        return cls(tuple(names), tuple((name,) for name in names), unique(map(variable, names)))

    @property
    def is_list(self) -> bool:
        """Whether all are one list."""
        return len(self.patterns) == 1 and STAR in self.patterns[0]

    def code(self, name: str) -> str:
        """The code for the tensor of a name, which may have a variable for its number."""
        for pattern, found in zip(self.patterns, self.variables, strict=True):
            start, star, end = pattern.partition(STAR)
            if name == pattern:
                return found
            if star and name.startswith(start) and name.endswith(end):
                return f"{found}[{name[len(start) : len(name) - len(end)].strip('{}')}]"
        raise AssertionError(f"{name} is none of {self.patterns}")


def _lists(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Names that differ in one number only, all from 0 on, under the name that has STAR for it."""
    groups: dict[str, dict[int, str]] = {}
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts[:-1]):
            if part.isdecimal() and part == str(int(part)):
                star = ".".join([*parts[:place], STAR, *parts[place + 1 :]])
                groups.setdefault(star, {})[int(part)] = name
    found: dict[str, tuple[str, ...]] = {}
    for star, members in groups.items():
        taken = {name for others in found.values() for name in others}
        if len(members) >= MIN_LISTED and set(members) == set(range(len(members))) and not taken & {*members.values()}:
            found[star] = tuple(members[number] for number in range(len(members)))
    return found


def _split_copies(entries: Entries) -> tuple[Entries, Entries]:
    """The entries without those that are equal to an earlier one, and these; what reads src tensors comes first."""
    firsts: dict[Expr, tuple[str, Expr]] = {}
    copies = []
    for dest, expr in sorted(entries, key=lambda entry: isinstance(entry[1], Fill)):
        if expr in firsts:
            copies.append((dest, expr))
        else:
            firsts[expr] = (dest, expr)
    return tuple(firsts.values()), tuple(copies)


def _inverse(entries: Entries) -> dict[str, Expr]:
    """Every src tensor as an expression over the dest tensors.

    Raises:
        PlanError: the map is not one-to-one, or computes something, which cannot be undone bitwise.
    """
    for dest, expr in entries:
        if is_computed(expr):
            raise PlanError(f"`{dest}` is computed, not moved, which cannot be undone bitwise")
    return dict(Plan(dict(entries)).invert().entries)


def _value(expr: Expr, like: Source, writer: Writer) -> Code:
    """The code for a dest tensor; constants have the device of `like`, and its dtype where the plan has."""
    if not isinstance(expr, Fill):
        return writer.value(expr)
    tensor = writer.source(like.name)
    dtype = f"{tensor}.dtype" if expr.dtype == like.dtype else f"torch.{expr.dtype}"
    return filled_like(tensor, expr.value, expr.shape, dtype)


def _made(names: Sequence[str], back: dict[str, Expr], writer: Writer, needs: Needs) -> Code:
    """The code for one src tensor, or for a list of them."""
    if len(names) == 1:
        return writer.value(back[names[0]])
    cut = cut_of(Family(tuple((name, back[name]) for name in names)))
    whole = _comprehension(cut, writer, needs) if cut is not None and cut.dests == tuple(names) else None
    return whole or Group("[", tuple(writer.value(back[name]) for name in names), "]")


def _comprehension(cut: Cut, writer: Writer, needs: Needs) -> Code | None:
    """All pieces of a tensor as one list, if they are treated alike and briefly."""
    inner = Writer(needs, {PART: PART}.__getitem__, INDENT, counts=False)
    element = inner.value(cut.made[0])
    if len(set(cut.made)) > 1 or inner.lines or len(flat(element)) > 60:
        return None
    return Each(element, f"for {PART} in {writer.source(cut.source.name)}{cut_text(cut.dim, cut.sizes)}")


def _return_lines(codes: Sequence[Code]) -> list[str]:
    return laid_out(Group("[", tuple(codes), "]"), INDENT, before="return ")
