"""Where an op comes from: the module that is running, and the line of the user's code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_TORCH = str(Path(torch.__file__).parent) + os.sep
_HERE = str(Path(__file__).parent) + os.sep
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_OWNERS: dict[str, str] = {}


def owner_of(file: str) -> str:
    """Return whose code a file is: "torch", "capture" or "user"."""
    found = _OWNERS.get(file)
    if found is None:
        is_torch = file.startswith((_TORCH, "<"))
        found = _OWNERS[file] = "torch" if is_torch else "capture" if file.startswith(_HERE) else "user"
    return found


def user_line() -> tuple[str, int] | None:
    """Return the file and line of the innermost frame that is the user's, or None where torch alone is running.

    Called from within the recorder, whose own frames come first; the next ones of capture are those that called the
    model, and nothing beyond them is the model's.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and owner_of(frame.f_code.co_filename) == "capture":
        frame = frame.f_back
    while frame is not None:
        code = frame.f_code
        owner = owner_of(code.co_filename)
        if owner == "user":
            return code.co_filename, frame.f_lineno
        if owner == "capture" and code.co_name == "call_model":
            return None
        frame = frame.f_back
    return None


def line_of_trace(trace: str | None) -> tuple[str, int] | None:
    """Return the user's innermost file and line in a printed traceback."""
    found = _FRAME.findall(trace or "")
    return next(((file, int(line)) for file, line in reversed(found) if owner_of(file) == "user"), None)


@contextmanager
def module_paths(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep the last of path at the module that is running, through global hooks that are taken off again."""
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        path.append(names.get(id(module), path[-1]))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        path.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
