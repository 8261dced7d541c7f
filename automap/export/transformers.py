"""A plan as conversions of transformers: `from_pretrained` reads and `save_pretrained` writes src's checkpoints.

Where transformers has operations for what a family is (stock.py), these are used; else functions of our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from automap.errors import ExportError
from automap.export.entries import Entry, Names
from automap.export.families import closed_families, numbered
from automap.export.functions import Functions
from automap.export.grouping import grouped
from automap.export.names import all_names, check_names, string, title
from automap.export.needs import Needs
from automap.export.patterns import check_plain, first_astray, pattern
from automap.export.script import by_indices, item_lines, loop_lines
from automap.export.shorten import shortened
from automap.export.stock import stock_entry
from automap.export.text import INDENT, WIDTH, Code, Each, Group, docstring, laid_out, module
from automap.plan.expr import Source

if TYPE_CHECKING:
    from automap.plan import Plan
    from automap.plan.fold import Index

MAX_LISTED = 3  # patterns that differ in a number only
_CLASSES = {
    "Numbered": '''
class Numbered(WeightConverter):
    """A converter for all blocks: the group in its patterns is the block's number."""

    __slots__ = ("name",)

    def __init__(self, source_patterns, target_patterns, operations, **kwargs):
        self.name = re.compile(target_patterns[0][1:].replace("*.", r".*\\."))
        sources, targets = list(source_patterns), list(target_patterns)
        super().__init__(sources, targets, operations, **kwargs)

    def convert(self, layer_name, **kwargs):
        number = self.name.search(layer_name)[1]
        targets = [target.replace(r"\\1", number) for target in self.target_patterns]
        self.target_patterns[:] = targets
        return super().convert(layer_name, **kwargs)
''',
    "Mapped": '''
class Mapped(ConversionOps):
    """`function` makes all targets from all sources, `inverse` undoes it on saving.

    A text instead of `inverse` says why nothing does.
    """

    supports_many_to_many = True

    def __init__(self, function, inverse, is_back=False):
        self.function, self.inverse, self.is_back = function, inverse, is_back

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        given = []
        for pattern in source_patterns:
            tensors = input_dict.get(pattern, [None])
            given.append(tensors if "*" in pattern else tensors[0])
        results = self.function(*given)
        if self.is_back and not are_same(given, self.inverse(*results)):
            raise ValueError(
                f"{source_patterns} have changed in a way for which the format they "
                f"were loaded from has no place; pass save_original_format=False"
            )
        made = {}
        for pattern, value in zip(target_patterns, results, strict=True):
            if "*" in pattern:
                made |= {pattern.replace("*", str(n)): t for n, t in enumerate(value)}
            else:
                made[pattern] = value
        return {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in made.items()
        }

    @property
    def reverse_op(self):
        if isinstance(self.inverse, str):
            raise NotImplementedError(
                f"the model cannot be saved in the format it was loaded from: "
                f"{self.inverse}; pass save_original_format=False"
            )
        return Mapped(self.inverse, self.function, is_back=not self.is_back)


def are_same(tensors, others):
    """Whether tensors are equal in pairs; those tied to another may be missing."""
    pairs = zip(tensors, others, strict=True)
    return all(
        torch.allclose(tensor, other, rtol=0, atol=0, equal_nan=True)
        for tensor, other in pairs
        if tensor is not None
    )
''',
    "present": '''
def present(*tensors):
    """The first tensor that is there: those tied to another may be missing."""
    return next(tensor for tensor in tensors if tensor is not None)
''',
}
_STOCK = ("Chunk", "Concatenate", "ConversionOps", "MergeModulelist", "PrefixChange", "Split", "Transpose")


def export_transformers(plan: Plan, *, model_class: str | None = None) -> str:
    r"""A module that, once imported, lets a model class of transformers load and save checkpoints of src.

    Args:
        plan: its dest is a model of transformers.
        model_class: the name of the model's class, `plan.dest` where it is not given.

    Raises:
        ExportError: no class is named, a name has characters that a pattern cannot hold, names cannot be told apart by
            patterns, or an expression has no spelling.

    Example:
        >>> from automap.plan import Permute, Plan, Source
        >>> plan = Plan({"fc.weight": Permute(Source("dense.kernel", (3, 4)), (1, 0))}, dest="MyModel")
        >>> [line.strip() for line in export_transformers(plan).splitlines() if "kernel" in line]
        ['WeightConverter(r"^dense\\.kernel", r"^fc\\.weight", [Transpose(dim0=0, dim1=1)]),']
    """
    name = model_class or plan.dest
    if not name.isidentifier():
        what = f"`{name}` is not the name of a model class" if name else "neither plan nor option names a model class"
        raise ExportError(
            f"cannot export to transformers: {what}",
            help="name it: --model-class ViTForImageClassification",
        )
    check_names(plan, "transformers")
    sources, dests = all_names(plan)
    check_plain((*sources, *dests))
    functions = Functions(Needs())
    whole = [stock_entry(family) or functions.entry(family) for family in closed_families(plan)]
    entries, prefix = _told_apart(shortened(whole, (sources, dests)), (sources, dests))
    if not entries:
        raise ExportError("there is nothing to export to transformers: all tensors have src's names and values")
    head = _file_head(plan, name, is_double=_has_double_names(entries, prefix, dests))
    return _module_text(head, name, _mapping_lines(entries, prefix), functions)


def _has_double_names(entries: Sequence[Entry], prefix: str | None, dests: Iterable[str]) -> bool:
    """Whether a tensor that is changed has the name of one of dest's own: then no pattern tells whose it is."""
    changed = {name for entry in entries for member in entry.members() for name in member.sources}
    changed = {name.removeprefix(f"{prefix}.") for name in changed} if prefix else changed
    heads = tuple(name for name in changed if name.endswith("."))
    return any(name in changed or (heads and name.startswith(heads)) for name in dests)


def _told_apart(entries: Sequence[Entry], names: Names) -> tuple[list[Entry], str | None]:
    """The entries such that none changes what another has made, and the prefix that src names get for it, if any.

    Raises:
        ExportError: a name goes astray in spite of it.
    """
    plain = grouped(entries, names)
    if first_astray(plain, names) is None:
        return [entry for entry in plain if not entry.is_idle], None
    prefix = "src"
    while any(name.startswith(f"{prefix}.") for name in (*names[0], *names[1])):
        prefix += "_"
    names = ([f"{prefix}.{name}" for name in names[0]], names[1])
    moved = [replace(entry, sources=tuple(f"{prefix}.{name}" for name in entry.sources)) for entry in entries]
    apart = grouped(moved, names)
    astray = first_astray(apart, names)
    if astray is not None:
        raise ExportError(
            f"cannot export to transformers: no patterns tell `{astray.removeprefix(f'{prefix}.')}` from other names"
            " (tried one for each module, tensor and block)"
        )
    return apart, prefix


def _mapping_lines(entries: Sequence[Entry], prefix: str | None) -> list[str]:
    """The function that gives the list of conversions: renamings first, as transformers applies them."""
    ranked = sorted(entries, key=lambda entry: bool(entry.operations))
    change = (f'PrefixChange(prefix_to_add="{prefix}")',) if prefix else ()
    items = (*change, *(_item(entry) for entry in ranked if not _loops(entry)))
    lines = ["def conversions():", '    """What becomes of the tensors of a checkpoint."""']
    lines += ["    mapping = [", *item_lines(items, INDENT), "    ]"] if items else ["    mapping = []"]
    for indices, members in by_indices([entry for entry in ranked if _loops(entry)], _loops):
        depth = INDENT * (1 + len(indices))
        margin = " " * depth
        lines += [*loop_lines(indices, INDENT), f"{margin}mapping += ["]
        lines += [*item_lines([*map(_item, members)], depth), f"{margin}]"]
    return [*lines, "    return mapping"]


def _loops(entry: Entry) -> tuple[Index, ...]:
    """The indices for whose values entries are written out."""
    return () if entry.blocks else entry.indices


def _item(entry: Entry) -> Code:
    if not entry.operations:
        return Group("WeightRenaming(", (*_texts(entry.sources, entry), *_texts(entry.targets, entry)), ")")
    sources, targets = (_patterns(side, entry) for side in (entry.sources, entry.targets))
    operations = Group("[", entry.operations, "]")
    if entry.blocks:
        return Group("Numbered(", (sources, targets, operations), ")")
    return Group("WeightConverter(", (_without_brackets(sources), _without_brackets(targets), operations), ")")


def _patterns(names: Sequence[str], entry: Entry) -> Code:
    """The list of the patterns of names; a comprehension where numbers count them."""
    many = numbered([Source(name, ()) for name in names]) if len(names) > MAX_LISTED else None
    if many is None or not isinstance(many.template, Source):
        return Group("[", tuple(_texts(names, entry)), "]")
    (text,) = _texts([many.template.name], entry)
    return Each(text, f"for {many.variable} in range({many.count})")


def _without_brackets(patterns: Code) -> Code:
    return patterns.items[0] if isinstance(patterns, Group) and len(patterns.items) == 1 else patterns


def _texts(names: Iterable[str], entry: Entry) -> list[str]:
    return [_pattern_text(name, entry) for name in names]


def _pattern_text(name: str, entry: Entry) -> str:
    return f"r{string(pattern(name, entry.blocks))}"


def _module_text(docs: str, model_class: str, mapping: Sequence[str], functions: Functions) -> str:
    body = "\n".join([*functions.texts.values(), *mapping])
    wanted = [*functions.helpers, *(name for name in ("Numbered", "Mapped") if f"{name}(" in body)]
    classes = [text for name, text in _CLASSES.items() if name in wanted]
    needed = functions.needs.parts()
    everything = "\n".join([body, *classes, *needed])
    head = "\n\n".join([docs, _imports(everything, functions.needs.imports())])
    call = laid_out(
        Group("register_checkpoint_conversion_mapping(", (f'"{model_class}"', "conversions()", "overwrite=True"), ")")
    )
    return module([head, *needed, *classes, *functions.texts.values(), "\n".join(mapping), "\n".join(call)])


def _imports(text: str, modules: Iterable[str]) -> str:
    """The imports that a file with this text needs."""
    used = [name for name in _STOCK if f"{name}(" in text or f"({name})" in text]
    used += [name for name in ("WeightConverter", "WeightRenaming") if f"{name}(" in text or f"({name})" in text]
    standard = sorted([*modules, *(["re"] if "re.compile(" in text else [])])
    core = "from transformers.core_model_loading import "
    one = core + ", ".join(used)
    lines = [one] if len(one) <= WIDTH else [f"{core}(", *(f"    {name}," for name in used), ")"]
    torch = ["import torch"] if "torch." in text else []
    start = "".join(f"import {name}\n" for name in standard) + ("\n" if standard else "")
    first = "from transformers.conversion_mapping import register_checkpoint_conversion_mapping"
    return start + "\n".join([*torch, first, *lines])


def _file_head(plan: Plan, model_class: str, *, is_double: bool) -> str:
    src = title(plan.src, "src")
    text = f"""Checkpoints of {src} for {model_class} of transformers, loaded and saved.

Written by `automap export` from a plan of {len(plan.entries)} tensors, for transformers 5.23. Once this
module is imported, `{model_class}.from_pretrained` reads the weights of
{src}, and `save_pretrained` writes them in that format again
(in the one of transformers with `save_original_format=False`).
"""
    note = f"""
Do not import it to load {model_class}'s own checkpoints: some of their tensors have
names that mean others in those of {src}.
"""
    return "\n".join(docstring(text + (note if is_double else ""), 0))
