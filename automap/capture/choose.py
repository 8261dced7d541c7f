"""Chooses how to capture: by which method, and over real or fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.export import ExportedProgram

from automap.capture.dispatch import record
from automap.capture.export import load_program, record_exported, record_program
from automap.capture.hooks import record_modules
from automap.capture.result import Capture, Method, Mode
from automap.capture.stage import is_weightless
from automap.errors import AutomapError, CaptureError
from automap.inputs import Inputs

Attempt = Callable[[Mode], Capture]


def capture(
    model_or_program: nn.Module | ExportedProgram | str | Path,
    inputs: Any,
    *,
    method: Method = "dispatch",
    mode: Literal["auto"] | Mode = "auto",
) -> Capture:
    """Return one forward as a graph of ATen calls with named weights as leaves; nothing is modified.

    Args:
        model_or_program: a model, or a `torch.export` program (the object or a saved `.pt2`).
        inputs: what it is called with: an Inputs, a tensor, a tuple of arguments, or a dict of keyword arguments.
        method: how a model is captured; a program is always captured as one.
        mode: over "real" values, over "fake" tensors that need no memory, or "auto": fake where the weights have no
            values. What fails over fakes is tried again over real values, where there are some.

    Raises:
        InputError: the inputs do not fit.
        CaptureError: the forward raised for another reason, or cannot be captured in this way.

    Example:
        >>> import torch
        >>> found = capture(torch.nn.Linear(3, 2), torch.zeros(1, 3))
        >>> found.method, found.mode, [weight.name for weight in found.weights.values()]
        ('dispatch', 'real', ['weight', 'bias'])
    """
    subject, attempt = _attempt(model_or_program, Inputs.of(inputs), method)
    values = subject.parameters() if isinstance(subject, nn.Module) else subject.state_dict.values()
    has_values = not is_weightless(values)
    if mode == "real" and not has_values:
        raise CaptureError(
            "the weights have shapes and no values, so that nothing real can be computed",
            help='capture with mode="fake", or load the weights first',
        )
    if mode == "fake" or not has_values:
        return _fake(attempt, has_values)
    return attempt("real")


def _attempt(subject: Any, inputs: Inputs, method: Method) -> tuple[nn.Module | ExportedProgram, Attempt]:
    """The model or program, and what captures it in a mode."""
    if isinstance(subject, (str, Path)):
        subject = load_program(Path(subject))
    if isinstance(subject, ExportedProgram):
        return subject, lambda mode: record_program(subject, inputs, mode=mode)
    if not isinstance(subject, nn.Module):
        raise CaptureError(f"a {type(subject).__name__} is neither a model nor an exported program")
    ways: dict[Method, Callable[..., Capture]] = {
        "dispatch": record,
        "export": record_exported,
        "hooks": record_modules,
    }
    return subject, lambda mode: ways[method](subject, inputs, mode=mode)


def _fake(attempt: Attempt, has_values: bool) -> Capture:
    """A capture over fake tensors or, where that fails and there are values, over real ones."""
    try:
        found = attempt("fake")
    except AutomapError as problem:
        if not has_values:
            raise
        reason = str(problem).partition("\n")[0]
        found = attempt("real")
        return replace(found, notes=(*found.notes, f"captured over real tensors, since fake ones failed: {reason}"))
    return (
        found
        if has_values
        else replace(found, notes=(*found.notes, "captured over fake tensors: no weight has values"))
    )
