"""Checking an output shard: read it again and compare it, bit by bit, with what the plan says.

The expected value is computed in the plain way, whole tensors through `evaluate`, where memory allows; so that a fault
of the streaming does not hide itself. Only which NaN a conversion gives is left open, as that depends on the place in
the vector registers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from automap.apply.header import Entry, item_bytes
from automap.apply.places import Files
from automap.apply.reader import read_safetensors_header
from automap.apply.recipe import Recipe
from automap.apply.shard import Report, ShardBytes, ShardTask, tell_nobody
from automap.apply.steps import block_bytes
from automap.apply.stored import StoredTensor
from automap.apply.views import Leaves, bytes_of, read_tensor
from automap.plan import Expr, evaluate, is_computed, sources_of
from automap.plan.dtypes import torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

_PIECE_BYTES = 2**23


@dataclass(frozen=True, slots=True)
class CheckTask:
    """A shard, the expressions of its tensors, and the tensors that they read."""

    shard: ShardTask
    entries: Mapping[str, Expr]
    tensors: Mapping[str, StoredTensor]

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return self.shard.size_bytes

    @classmethod
    def of(cls, shard: ShardTask, entries: Mapping[str, Expr], tensors: Mapping[str, StoredTensor]) -> CheckTask:
        """The check of one shard of a plan's output."""
        own = {recipe.name: entries[recipe.name] for recipe in shard.recipes}
        read = {source.name: tensors[source.name] for expr in own.values() for source in sources_of(expr)}
        return cls(shard, own, read)


def check_shard(task: CheckTask, report: Report | None = None) -> tuple[str, ...]:
    """The names of tensors that are missing in the shard or differ from what the plan says."""
    wrong = []
    with Files() as files:
        found = {entry.name: entry for entry in read_safetensors_header(task.shard.place, files).entries}
        tell = report or tell_nobody
        tell(len(task.shard.header))
        for recipe in task.shard.recipes:
            entry = found.get(recipe.name)
            if entry is None or not _is_equal(entry, recipe, task, files):
                wrong.append(recipe.name)
            tell(recipe.size_bytes)
    return tuple(wrong)


def _is_equal(entry: Entry, recipe: Recipe, task: CheckTask, files: Files) -> bool:
    import torch

    if (entry.dtype, entry.shape) != (recipe.dtype, recipe.shape):
        return False
    offset = entry.start
    for piece in _expected(recipe, task, files):
        for start in range(0, len(piece), _PIECE_BYTES):
            wanted = torch.frombuffer(piece[start : start + _PIECE_BYTES], dtype=torch.uint8)
            found = torch.empty_like(wanted)
            files.read_into(task.shard.place, offset, bytes_of(found))
            if not (torch.equal(found, wanted) or _is_equal_but_nan(found, wanted, recipe)):
                return False
            offset += len(wanted)
    return offset == entry.stop


def _is_equal_but_nan(found: Tensor, wanted: Tensor, recipe: Recipe) -> bool:
    """Whether only bits of NaNs differ, in a tensor that was computed or converted from another dtype."""
    is_moved = {view.dtype for view in recipe.views} == {recipe.dtype} and not is_computed(recipe.expr)
    if is_moved or "float" not in recipe.dtype:
        return False
    import torch

    first, second = (bits.view(torch_dtype(recipe.dtype)).to(torch.float64) for bits in (found, wanted))
    return torch.equal(first.nan_to_num(nan=0.5), second.nan_to_num(nan=0.5)) and torch.equal(
        first.isnan(), second.isnan()
    )


def _expected(recipe: Recipe, task: CheckTask, files: Files) -> Iterator[memoryview]:
    """The bytes that a tensor should have."""
    import torch

    expr, budget = task.entries[recipe.name], task.shard.memory_bytes // 2
    stored = {source.name: task.tensors[source.name] for source in sources_of(expr)}
    read = sum(math.prod(tensor.shape) * item_bytes(tensor.dtype) for tensor in stored.values())
    if max(read, block_bytes(recipe.expr, recipe, Leaves(list(recipe.views)))) > budget:
        alone = ShardTask(task.shard.name, b"", (recipe,), task.shard.work, task.shard.memory_bytes)
        yield from ShardBytes(alone, files).pieces()
        return
    with torch.no_grad():
        value = evaluate(expr, {name: read_tensor(tensor, files) for name, tensor in stored.items()})
    value = value.to(torch_dtype(recipe.dtype)).contiguous()
    if value.numel():
        yield bytes_of(value)
