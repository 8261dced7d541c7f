"""A plan as a `WeightsMapper` of vLLM, which renames tensors and does nothing else: the rest is refused.

Source: vLLM, vllm/model_executor/models/utils.py, `WeightsMapper._map_name`: parts of names first, then prefixes; each
replaces once, in the order given, what the ones before it have left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from automap.errors import ExportError
from automap.export.entries import Entry
from automap.export.families import Family, closed_families
from automap.export.names import all_names, check_names, holes, string, texts, title
from automap.export.shorten import shortened
from automap.export.text import Group, docstring, laid_out, module
from automap.plan.notation import format_expr

if TYPE_CHECKING:
    from automap.plan import Plan

MAX_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Mapper:
    """Replacements as a WeightsMapper has them."""

    parts: dict[str, str] = field(default_factory=dict)
    prefixes: dict[str, str] = field(default_factory=dict)

    def renamed(self, name: str) -> str:
        """The name that vLLM makes of `name`."""
        for old, new in self.parts.items():
            name = name.replace(old, new, 1)
        for old, new in self.prefixes.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        return name


def export_vllm(plan: Plan) -> str:
    """A module with `hf_to_vllm_mapper`, which gives the tensors of src's checkpoints the names of dest.

    Raises:
        ExportError: a tensor is not only renamed, or no prefixes and parts of names tell all names apart.

    Example:
        >>> from automap.plan import Plan, Source
        >>> text = export_vllm(Plan({"lm.norm.weight": Source("norm.weight", (768,))}))
        >>> [line for line in text.splitlines() if "norm" in line]
        ['hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"norm.": "lm.norm."})']
    """
    check_names(plan, "vllm")
    families = closed_families(plan)
    _check_renamed(families)
    wanted = {name: dest for family in families for name, dest in _pairs(family)}
    renames = [
        Entry((family.renamed[0],), (family.renamed[1],), (), family.indices) for family in families if family.renamed
    ]
    entries = shortened(renames, all_names(plan))
    mapper = _fitting((_by_parts(entries), _by_prefixes(entries), _by_prefixes(renames)), wanted)
    src, dest = title(plan.src, "src"), title(plan.dest, "dest")
    text = f"""Names of {src}'s weights in vLLM's {dest}.

Written by `automap export` from a plan of {len(plan.entries)} tensors. Set `hf_to_vllm_mapper` in
the class of the model, or pass it to `AutoWeightsLoader.load_weights`.
"""
    head = docstring(text, 0)
    start = "\n".join([*head, "", "from vllm.model_executor.models.utils import WeightsMapper", "", *_lines(mapper)])
    return module([start])


def _check_renamed(families: Sequence[Family]) -> None:
    """Refuses what is made of src tensors in any other way than by another name."""
    others = [family for family in families if not family.renamed]
    if not others:
        return
    more = f"; and {len(others) - MAX_SHOWN} more" if len(others) > MAX_SHOWN else ""
    raise ExportError(
        "cannot export to vllm: a WeightsMapper gives each src tensor one new name, but "
        + "; ".join(map(_described, others[:MAX_SHOWN]))
        + more,
        help="convert the checkpoint with `--format python`, or leave fused weights to the model's load_weights",
    )


def _described(family: Family) -> str:
    """What is made of src tensors in a family, in a few words."""
    if len(family.entries) > 1 and len(family.sources) == 1:
        names = [f"`{dest}`" for dest, _ in family.entries]
        return f"`{family.sources[0].name}` becomes {', '.join(names[:-1])} and {names[-1]}"
    dest, expr = family.entries[0]
    return f"`{dest}` is {format_expr(expr)}"


def _pairs(family: Family) -> Iterable[tuple[str, str]]:
    if family.renamed:
        entry = Entry((family.renamed[0],), (family.renamed[1],), (), family.indices)
        yield from ((member.sources[0], member.targets[0]) for member in entry.members())


def _by_parts(entries: Sequence[Entry]) -> _Mapper:
    """Blocks by a prefix for what is in front of their number, and parts of names for what is behind it."""
    parts: dict[str, str] = {}
    prefixes: dict[str, str] = {}
    for entry in entries:
        src, dest = entry.sources[0], entry.targets[0]
        if holes(src) and holes(src) == holes(dest) and texts(src)[1:-1] == texts(dest)[1:-1]:
            prefixes[texts(src)[0]] = texts(dest)[0]
            parts[texts(src)[-1]] = texts(dest)[-1]
        else:
            prefixes |= {member.sources[0]: member.targets[0] for member in entry.members()}
    return _Mapper(_changing(parts), _changing(prefixes))


def _by_prefixes(entries: Sequence[Entry]) -> _Mapper:
    """Each module or tensor of each block by a prefix of its own."""
    return _Mapper(
        prefixes=_changing({m.sources[0]: m.targets[0] for entry in entries for m in entry.members()}),
    )


def _changing(pairs: dict[str, str]) -> dict[str, str]:
    """The pairs that change something, in an order in which what one gives is not changed again, if there is one."""
    left = {old: pairs[old] for old in sorted(pairs, key=len, reverse=True) if old != pairs[old]}
    after = {old: [other for other in left if other != old and new.startswith(other)] for old, new in left.items()}
    found: dict[str, str] = {}
    while ready := [old for old in left if not any(other in left for other in after[old])]:
        found |= {old: left.pop(old) for old in ready}
    return found | left


def _fitting(mappers: Iterable[_Mapper], wanted: dict[str, str]) -> _Mapper:
    """The first mapper that gives all names as wanted.

    Raises:
        ExportError: there is none; the message names what the last one gets wrong.
    """
    wrong = ""
    for mapper in mappers:
        astray = [name for name, dest in wanted.items() if mapper.renamed(name) != dest]
        if not astray:
            return mapper
        wrong = f"`{astray[0]}` would become `{mapper.renamed(astray[0])}`, not `{wanted[astray[0]]}`"
    raise ExportError(
        f"cannot export to vllm: its replacements follow each other, {wrong}"
        " (tried parts of names, then a prefix for each module and each tensor)"
    )


def _lines(mapper: _Mapper) -> list[str]:
    items = tuple(
        Group(f"{name}={{", tuple(f"{string(old)}: {string(new)}" for old, new in pairs.items()), "}")
        for name, pairs in (("orig_to_new_substr", mapper.parts), ("orig_to_new_prefix", mapper.prefixes))
        if pairs
    )
    return laid_out(Group("WeightsMapper(", items, ")"), before="hf_to_vllm_mapper = ")
