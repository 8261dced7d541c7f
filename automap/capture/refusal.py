"""Why a forward raised, in the user's terms: the inputs do not fit, or something else."""

from __future__ import annotations

import linecache
import traceback
from pathlib import PurePath

import torch
from torch import nn

from automap.capture.site import owner_of
from automap.errors import AutomapError, CaptureError, InputError
from automap.inputs import Inputs, describe_call

_MISFITS = (TypeError, RuntimeError, ValueError, AssertionError, IndexError)
_NO_MISFITS = (NotImplementedError, RecursionError, torch.OutOfMemoryError)
_NEEDS_VALUES = {"DataDependentOutputException", "DynamicOutputShapeException", "GuardOnDataDependentSymNode"}


def refusal(model: nn.Module, inputs: Inputs, problem: Exception) -> AutomapError:
    """Return the error to raise for a forward that raised problem when called with inputs."""
    text = f"{type(model).__name__} raised {type(problem).__name__}: {str(problem).strip() or 'no message'}"
    message = f"{text}{_place(problem)}\n{describe_call(model, inputs)}"
    if type(problem).__name__ in _NEEDS_VALUES:
        return CaptureError(
            message, help="the forward needs values: give the model weights, and capture with real tensors"
        )
    if isinstance(problem, _MISFITS) and not isinstance(problem, _NO_MISFITS):
        return InputError(message)
    return CaptureError(message)


def _place(problem: Exception) -> str:
    """The innermost line of the user's code, indented on a line of its own."""
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if owner_of(f.filename) == "user"]
    if not frames:
        return ""
    frame = frames[-1]
    code = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"\n  at {PurePath(frame.filename).name}:{frame.lineno}  {code}"
