"""The output's layout: which tensor goes into which file, decided from sizes alone, before anything is read.

Tensors keep the order of the checkpoint's bytes, so that reading goes forward; files are about equally large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from automap.apply.header import build_header, item_bytes
from automap.apply.index import index_text
from automap.apply.recipe import Recipe

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file of the output: its header, and the tensors behind it."""

    name: str
    header: bytes
    recipes: tuple[Recipe, ...]


def in_file_order(recipes: Sequence[Recipe], file_numbers: Mapping[str, int]) -> list[Recipe]:
    """The recipes sorted by the first byte of the checkpoint that they read; those that read nothing come last."""

    def first_byte(recipe: Recipe) -> tuple[int, int]:
        places = [(file_numbers[view.part.place.text], view.offset) for view in recipe.views]
        return min(places, default=(len(file_numbers), 0))

    return sorted(recipes, key=first_byte)


def output_files(
    recipes: Sequence[Recipe], metadata: Mapping[str, str], *, max_bytes: int | None, file_name: str | None
) -> tuple[OutputFile, ...]:
    """The files of the output.

    Args:
        recipes: all tensors, in the order in which they should come.
        metadata: what each file's header notes.
        max_bytes: the most bytes of tensors in one file, as far as tensors are smaller; None for no limit.
        file_name: the name of the one file that is asked for, or None for a folder.

    Raises:
        CheckpointError: a tensor's dtype or name is not one that safetensors has.
    """
    groups = [list(recipes)] if file_name or max_bytes is None else _groups(recipes, max_bytes)
    files = []
    for number, group in enumerate(groups, start=1):
        group.sort(key=lambda recipe: -item_bytes(recipe.dtype))  # each tensor then begins at a multiple of its items
        header = build_header([(recipe.name, recipe.dtype, recipe.shape) for recipe in group], metadata)
        name = f"model-{number:05}-of-{len(groups):05}.safetensors" if len(groups) > 1 else file_name or SINGLE_NAME
        files.append(OutputFile(name, header, tuple(group)))
    return tuple(files)


def _groups(recipes: Sequence[Recipe], max_bytes: int) -> list[list[Recipe]]:
    """The recipes in as few groups as max_bytes allows, about equally large."""
    total = sum(recipe.size_bytes for recipe in recipes)
    wanted = total / max(1, math.ceil(total / max_bytes))
    groups: list[list[Recipe]] = [[]]
    size = done = 0
    for recipe in recipes:
        is_full = done + size + recipe.size_bytes / 2 > wanted * len(groups)
        if groups[-1] and (is_full or size + recipe.size_bytes > max_bytes):
            done, size = done + size, 0
            groups.append([])
        groups[-1].append(recipe)
        size += recipe.size_bytes
    return groups


def index_of(files: Sequence[OutputFile], metadata: Mapping[str, Any]) -> str | None:
    """The index of the output, where it has more than one file; metadata is what the checkpoint's index noted."""
    if len(files) < 2:
        return None
    placed = {recipe.name: file.name for file in files for recipe in file.recipes}
    kept = {key: value for key, value in metadata.items() if key != "total_parameters"}
    total = sum(recipe.size_bytes for file in files for recipe in file.recipes)
    return index_text(placed, {**kept, "total_size": total})
