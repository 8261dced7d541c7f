"""A plan as the `checkpoint_filter_fn` of a timm model: the module that `build_model_with_cfg` takes it from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from automap.export.families import families_of
from automap.export.names import all_names, check_names, title
from automap.export.needs import Needs
from automap.export.script import conversion_lines, renaming_lines
from automap.export.text import docstring, module

if TYPE_CHECKING:
    from automap.plan import Plan

_END = """    own = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in own and name not in dest:
            dest[name] = buffer  # a constant, which the checkpoint need not have
    return {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in dest.items()
    }
"""


def export_timm(plan: Plan) -> str:
    """A module with `checkpoint_filter_fn(state_dict, model)`, which makes a state dict of dest from one of src.

    What it gives is bitwise `plan.apply`, and the model's own buffers that the plan has no expression for. A state dict
    that is dest's already is given back as it is, as far as names tell.

    Raises:
        ExportError: the plan reads no src tensor, has names that no code can hold, or casts that have no spelling.

    Example:
        >>> from automap.plan import Plan, Source
        >>> export_timm(Plan({"norm.weight": Source("ln.weight", (768,))})).count("def checkpoint_filter_fn")
        1
    """
    check_names(plan, "timm")
    families, needs = families_of(plan), Needs()
    renames = renaming_lines(families)
    start = "dest = {new: src[old] for old, new in renamed()}" if renames else "dest = {}"
    body = [
        "@torch.no_grad()",
        "def checkpoint_filter_fn(state_dict, model):",
        f'    """The weights of {title(plan.src, "src")} as those of {title(plan.dest, "dest")}."""',
        *_guard(plan),
        "    src = state_dict",
        f"    {start}",
        *conversion_lines(families, needs),
        _END,
    ]
    imports = "\n".join([*(f"import {name}" for name in needs.imports()), "", "import torch"]).strip()
    return module([f"{_file_head(plan)}\n\n{imports}", *needs.parts(), "\n".join(renames), "\n".join(body)])


def _guard(plan: Plan) -> list[str]:
    """What lets dest's own state dicts pass: one without a name that only src has."""
    sources, dests = all_names(plan)
    only = [name for name in sources if name not in dests]
    return [f'    if "{only[0]}" not in state_dict:', "        return state_dict"] if only else []


def _file_head(plan: Plan) -> str:
    text = f"""Weights of {title(plan.src, "src")} for the timm model {title(plan.dest, "dest")}.

Written by `automap export` from a plan of {len(plan.entries)} tensors.
"""
    return "\n".join(docstring(text, 0))
