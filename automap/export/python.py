"""A plan as a script that needs torch and safetensors only: what a maintainer would commit beside a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from automap.export.families import families_of
from automap.export.names import check_names, title
from automap.export.needs import Needs
from automap.export.script import conversion_lines, renaming_lines
from automap.export.text import docstring, module

if TYPE_CHECKING:
    from automap.plan import Plan

_CHECK = """    elements = sum(tensor.numel() for tensor in dest.values())
    if elements != ELEMENTS:
        raise ValueError(f"made {elements} elements, not {ELEMENTS}: another size?")
    return {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in dest.items()
    }
"""

_FILES = '''
class Tensors(dict[str, torch.Tensor]):
    """Tensors by name that remember which of them were asked for."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.used.add(name)
        return super().__getitem__(name)


def load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, or of all shards in a folder."""
    if path.is_dir():
        parts = [load(shard) for shard in shards(path)]
        return {name: tensor for part in parts for name, tensor in part.items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def shards(folder: Path) -> list[Path]:
    """The files that hold the weights in a folder."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return sorted({folder / Path(shard).name for shard in placed.values()})
        if (folder / name).is_file():
            return [folder / name]
    raise SystemExit(f"{folder} holds no model.safetensors and no pytorch_model.bin")


def main() -> None:
    """Read the weights of src, write those of dest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("src", type=Path, help="a .safetensors or .bin file, or folder")
    parser.add_argument("dest", type=Path, help="the .safetensors file to write")
    args = parser.parse_args()
    src = Tensors(load(args.src))
    try:
        dest = convert_state_dict(src)
    except KeyError as missing:
        raise SystemExit(f"{args.src} holds no tensor {missing}") from None
    save_file(dest, args.dest, metadata={"format": "pt"})
    unused = sorted(set(src) - src.used)
    print(f"wrote {len(dest)} tensors to {args.dest}; {len(unused)} of src not used")
    for name in unused:
        print(f"  not used: {name}")


if __name__ == "__main__":
    main()
'''


def export_python(plan: Plan) -> str:
    """A stand-alone script with `convert_state_dict(src)` and a command line around it.

    What it makes of a state dict is bitwise `plan.apply`. Blocks that are made alike are loops.

    Raises:
        ExportError: the plan reads no src tensor, has names that no code can hold, or casts that have no spelling.

    Example:
        >>> from automap.plan import Permute, Plan, Source
        >>> script = export_python(Plan({"fc.weight": Permute(Source("dense.kernel", (768, 3072)), (1, 0))}))
        >>> [line.strip() for line in script.splitlines() if "kernel" in line]
        ['dest["fc.weight"] = src["dense.kernel"].T']
    """
    check_names(plan, "python")
    families, needs = families_of(plan), Needs()
    renames = renaming_lines(families)
    body = _function_lines(bool(renames), conversion_lines(families, needs))
    elements = sum(math.prod(shape) for shape in plan.dest_shapes.values())
    imports = "\n".join(f"import {name}" for name in sorted(["argparse", "json", *needs.imports()]))
    head = f"{imports}\nfrom pathlib import Path\n\nimport torch\nfrom safetensors.torch import load_file, save_file"
    parts = [_file_head(plan), f"ELEMENTS = {elements}  # of dest, in all tensors", *needs.parts(), "\n".join(renames)]
    return module([f"{parts[0]}\n\n{head}\n\n{parts[1]}", *parts[2:], "\n".join(body) + "\n" + _CHECK, _FILES])


def _file_head(plan: Plan) -> str:
    src, dest = title(plan.src, "src"), title(plan.dest, "dest")
    text = f"""Weights of {src} as those of {dest}.

Written by `automap export` from a plan of {len(plan.entries)} tensors:

    python THIS_FILE src.safetensors dest.safetensors
"""
    return "\n".join(docstring(text, 0))


def _function_lines(has_renames: bool, conversions: list[str]) -> list[str]:
    start = "dest = {new: src[old] for old, new in renamed()}" if has_renames else "dest = {}"
    return [
        "@torch.no_grad()",
        "def convert_state_dict(src: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:",
        '    """The weights of dest, made of those of src."""',
        f"    {start}",
        *conversions,
    ]
