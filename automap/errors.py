"""The errors a user can cause: one base class, one subclass per kind, each with a stable slug.

A message stands alone: what was wrong, where, and what was tried. `help` holds the advice, and only advice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from automap.results import Transfer


class AutomapError(Exception):
    """Anything that went wrong for a reason the user can act on."""

    slug = "error"

    def __init__(self, message: str, *, help: str | None = None) -> None:
        super().__init__(message)
        self.help = help


class SpecError(AutomapError):
    """A model spec names nothing that can be built."""

    slug = "bad-spec"


class MissingExtraError(SpecError):
    """A model spec needs a package that is not installed."""

    slug = "missing-extra"


class InputError(AutomapError):
    """A sample input cannot be read, or a model does not accept it."""

    slug = "bad-input"


class FileError(AutomapError):
    """A file that is asked for is missing, or one that would be written is in the way."""

    slug = "bad-file"


class CheckpointError(AutomapError):
    """A checkpoint is truncated, has no weights in it, or does not fit the model."""

    slug = "bad-checkpoint"


class CaptureError(AutomapError):
    """A model's forward could not be recorded."""

    slug = "capture-failed"


class OutputError(AutomapError):
    """The outputs of both models cannot be compared."""

    slug = "outputs-not-comparable"


class NanError(AutomapError):
    """What src computes is not a number, so that nothing can be equal to it."""

    slug = "nan-output"


class PlanError(AutomapError):
    """A plan is malformed, or does not fit the weights it is applied to."""

    slug = "bad-plan"


class ExportError(AutomapError):
    """A plan cannot be written in the form that is asked for."""

    slug = "cannot-export"


class MismatchError(AutomapError):
    """The two models do not match, or their outputs differ; carries the Transfer."""

    slug = "mismatch"

    def __init__(self, message: str, transfer: Transfer) -> None:
        super().__init__(message)
        self.transfer = transfer
