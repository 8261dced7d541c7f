"""Names of tensors as they stand in generated code: as strings, in regular expressions, as variables.

A name comes from a model or a file, so nothing of it may end a string or start a replacement: what is not plain is
refused before any code is written.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from automap.errors import ExportError

if TYPE_CHECKING:
    from automap.plan import Plan
    from automap.plan.fold import Index

_HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_PRODUCT = re.compile(r"(?<![a-z])([0-9]+)([a-z])")
_WORDS = ("src", "dest", "model", "own", "torch", "state_dict", "cast", "take", "promoted")
_TAKEN = frozenset({*_WORDS, *keyword.kwlist, *keyword.softkwlist, *dir(builtins)})
_INDICES = frozenset("ijkeghmnopr")
_LEAVES = ("weight", "bias")
MAX_VARIABLE = 16


def check_names(plan: Plan, form: str) -> None:
    """Refuses a plan without a src tensor, or with names that cannot stand in generated code.

    Raises:
        ExportError: there is nothing to convert, or a name has quotes, backslashes or control characters.
    """
    if not plan.sources:
        raise ExportError(f"cannot export to {form}: no dest tensor of the plan is made of a src tensor")
    for name in (*plan.entries, *(source.name for source in plan.sources)):
        if not name or not name.isprintable() or set(name) & set("\"'\\"):
            raise ExportError(
                f"cannot export to {form}: the name {name!r} has quotes, backslashes or control characters in it"
            )


def all_names(plan: Plan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the src tensors that are read, and of the dest tensors."""
    return tuple(source.name for source in plan.sources), tuple(plan.entries)


def title(text: str, instead: str) -> str:
    """A model's name as it may stand in a docstring; `instead` where it is anything but plain."""
    return text if re.fullmatch(r"[\w./:?=&, -]{1,80}", text) else instead


def string(template: str) -> str:
    """The Python literal of the name that a template stands for: an f-string where numbers are filled in.

    Example:
        >>> string("layers.{2i+1}.weight")
        'f"layers.{2 * i + 1}.weight"'
    """
    if not holes(template):
        return f'"{unescaped(template)}"'
    return f'f"{_HOLE.sub(lambda hole: _formula(hole[0]), template)}"'


def holes(template: str) -> list[str]:
    """What stands in the holes of a template, from left to right: `["i", "j-1"]`."""
    return [hole[1] for hole in _HOLE.finditer(template) if hole[1] is not None]


def texts(template: str) -> list[str]:
    """The plain text around the holes of a template."""
    parts, end = [], 0
    for hole in _HOLE.finditer(template):
        if hole[1] is not None:
            parts.append(unescaped(template[end : hole.start()]))
            end = hole.end()
    return [*parts, unescaped(template[end:])]


def unescaped(template: str) -> str:
    """A template without holes as the name it stands for."""
    return template.replace("{{", "{").replace("}}", "}")


def common_prefix(templates: Sequence[str]) -> str:
    """What all templates begin with, up to a dot.

    Example:
        >>> common_prefix(["layers.{i}.attn.q.weight", "layers.{i}.attn.k.weight"])
        'layers.{i}.attn.'
    """
    parts = [template.split(".")[:-1] for template in templates]
    shared = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return "".join(f"{column[0]}." for column in shared)


def _formula(hole: str) -> str:
    """A hole as Python spaces it: `{2i+1}` is `{2 * i + 1}`."""
    if hole in ("{{", "}}"):
        return hole
    spaced = re.sub(r"([+-])", r" \1 ", hole[1:-1])
    return "{" + _PRODUCT.sub(r"\1 * \2", spaced) + "}"


def span(index: Index) -> str:
    """The values of an index as a call of range."""
    return f"range({index.first}, {index.last + 1})" if index.first else f"range({index.last + 1})"


def variable(template: str) -> str:
    """A variable for the tensor that a template names: `qkv` of `blocks.{i}.attn.qkv.weight`.

    Example:
        >>> variable("blocks.{i}.attn.qkv.weight"), variable("blocks.{i}.attn.qkv.bias")
        ('qkv', 'qkv_bias')
    """
    parts = [part for part in _HOLE.sub("", template).split(".") if re.match(r"[^\W\d]", part)]
    if len(parts) > 1 and parts[-1] in _LEAVES:
        parts = [parts[-2]] if parts[-1] == "weight" else [f"{parts[-2]}_{parts[-1]}"]
    found = re.sub(r"\W", "_", parts[-1] if parts else "tensor", flags=re.ASCII).lstrip("_") or "tensor"
    while len(found) > MAX_VARIABLE:
        found = found.partition("_")[2] or "tensor"
    return f"{found}_" if found in _TAKEN or found in _INDICES or found[0].isdigit() else found


def unique(wanted: Iterable[str], taken: Iterable[str] = ()) -> tuple[str, ...]:
    """The names wanted, numbered where one of them is there already."""
    used = set(taken)
    found = []
    for name in wanted:
        number, free = 2, name
        while free in used:
            free, number = f"{name}_{number}", number + 1
        used.add(free)
        found.append(free)
    return tuple(found)
