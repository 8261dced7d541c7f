"""Running exported code: as a module, through ruff, on states."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from automap.plan import Plan


def module_of(text: str) -> dict[str, Any]:
    """What a file with this text defines once it is imported."""
    namespace: dict[str, Any] = {"__name__": "exported"}
    exec(compile(text, "exported.py", "exec"), namespace)
    return namespace


def reformatted(*texts: str) -> list[str]:
    """What `ruff format` makes of each text, with ruff's own settings."""
    found = []
    for text in texts:
        command = [sys.executable, "-m", "ruff", "format", "--isolated", "--stdin-filename", "exported.py", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        found.append(done.stdout)
    return found


def random_state(plan: Plan, seed: int = 0, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Random values for every src tensor of a plan."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for source in plan.sources:
        wanted = getattr(torch, source.dtype) if dtype is None else dtype
        state[source.name] = torch.randn(source.shape, generator=generator).to(wanted)
    return state


def differing(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that are not bitwise the same, dtype, shape and layout included."""
    return [
        name
        for name in {**left, **right}
        if name not in left or name not in right or not is_same(left[name], right[name])
    ]


def is_same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are bitwise the same."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    fresh = (value.clone(memory_format=torch.contiguous_format) for value in (left, right))
    return torch.equal(*(value.view(-1).view(torch.uint8) for value in fresh))
