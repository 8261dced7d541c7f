"""What the commands do, without printing: specs and words in, results out, files written whole or not at all.

A Job is what a command line asks for. `prepare` builds both models and their inputs, `convert` and `explain` run the
core on them, `write_results` puts on disk what the outcome allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automap.errors import FileError, InputError

if TYPE_CHECKING:
    from torch import nn

    from automap.capture import Capture
    from automap.capture.result import Method
    from automap.inputs import Inputs
    from automap.results import Match, Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One command line: two specs, their inputs, and what to do with the outcome."""

    src: str
    dest: str
    sample_input: tuple[str, ...]
    dest_input: tuple[str, ...] = ()
    src_output: str | None = None
    dest_output: str | None = None
    src_checkpoint: str | None = None
    dtype: str | None = None
    seed: int = 0
    pin: tuple[str, ...] = ()
    capture: Method = "dispatch"
    verify: str = "default"
    tolerance: float | None = None
    allow_differences: bool = False
    out: Path | None = None
    overwrite: bool = False
    plan: Path | None = None
    json: Path | None = None


@dataclass(frozen=True, slots=True)
class Sides:
    """Both models with their inputs, and notes on what a checkpoint left out."""

    src: nn.Module
    dest: nn.Module
    src_inputs: Inputs
    dest_inputs: Inputs
    notes: tuple[str, ...] = ()


def prepare(job: Job) -> Sides:
    """Return both models in eval mode with their inputs.

    Raises:
        SpecError, InputError, FileError, CheckpointError: whatever of the command line cannot be had.
    """
    from automap.models import build_model
    from automap.samples import read_dtype, sample_inputs

    check_places(job)
    for pin in job.pin:
        _check_pin(pin)
    dtype = read_dtype(job.dtype) if job.dtype else None
    src = build_model(job.src, seed=job.seed)
    notes = _load(src, job.src_checkpoint) if job.src_checkpoint else ()
    dest = build_model(job.dest, seed=job.seed + 1)  # never the weights that src was drawn with
    if dtype is not None:
        src, dest = src.to(dtype), dest.to(dtype)
    src_inputs, dest_inputs = sample_inputs(job.sample_input, src, dest, dest_words=job.dest_input, seed=job.seed)
    return Sides(src, dest, src_inputs, dest_inputs, notes)


def convert(job: Job, sides: Sides) -> Transfer:
    """Return the transfer of src's weights to dest, whatever its verdict."""
    from automap.api import transfer

    options: dict[str, Any] = {"verify": job.verify, "tolerance": job.tolerance}
    return transfer(sides.src, sides.dest, sides.src_inputs, strict=False, **options, **_core_options(job, sides))


def explain(job: Job, sides: Sides) -> Match:
    """Return the match of both models; nothing is modified."""
    from automap.api import match

    return match(sides.src, sides.dest, sides.src_inputs, **_core_options(job, sides))


def _core_options(job: Job, sides: Sides) -> dict[str, Any]:
    return {
        "dest_input": sides.dest_inputs,
        "src_output": job.src_output,
        "dest_output": job.dest_output,
        "seed": job.seed,
        "pins": job.pin,
        "capture": job.capture,
    }


def is_accepted(job: Job, transfer: Transfer) -> bool:
    """Whether the outcome may be written: complete and equal, or different in a way that the user allowed."""
    if transfer.match.is_complete and transfer.is_equal:
        return True
    return job.allow_differences and transfer.match.verdict == "differs" and transfer.is_applied


def write_results(job: Job, sides: Sides, transfer: Transfer) -> tuple[str, ...]:
    """Write what job asks for and return a line for each thing written.

    The model and the plan are written only if the outcome is accepted; the JSON report always is, since it says so.
    """
    from automap.apply import save_model, written_atomically

    written = []
    if job.out is not None and is_accepted(job, transfer):
        save_model(sides.dest, job.out, overwrite=job.overwrite)
        written.append(f"wrote the model to {job.out}")
    if job.plan is not None and is_accepted(job, transfer):
        with written_atomically(job.plan) as partial:
            transfer.plan.save(partial)
        written.append(f"wrote the plan to {job.plan}")
    return (*written, *write_json(job, sides, transfer))


def write_json(job: Job, sides: Sides, result: Transfer | Match) -> tuple[str, ...]:
    """Write the JSON report if job asks for it."""
    from automap.apply import written_atomically
    from automap.report import report_json

    if job.json is None:
        return ()
    text = report_json(result, notes=sides.notes)
    with written_atomically(job.json) as partial:
        partial.write_text(text, encoding="utf-8")
    return (f"wrote the report to {job.json}",)


def check_places(job: Job) -> None:
    """Raise FileError where something could not be written later: before the long work, not after it."""
    from automap.apply import check_file, check_folder

    if job.out is not None:
        check_folder(job.out, overwrite=job.overwrite)
    for path in (job.plan, job.json):
        if path is not None:
            check_file(path)


def trace(model: str, *, words: tuple[str, ...], method: Method = "dispatch", seed: int = 0) -> Capture:
    """Return what is captured of one forward of the model that a spec names."""
    from automap.capture import capture
    from automap.models import build_model
    from automap.samples import sample_inputs

    built = build_model(model, seed=seed)
    inputs, _ = sample_inputs(words, built, built, seed=seed)
    return capture(built, inputs, method=method)


def apply_plan(plan: Path, checkpoint: str, out: Path, *, overwrite: bool = False) -> tuple[str, ...]:
    """Send a checkpoint through a saved plan, write the result, and return lines that say what was done.

    Args:
        plan: a file that `--plan` or `Plan.save` wrote.
        checkpoint: a file, shard index or folder, with `:key.path` where needed.
        out: a `.safetensors` file, or a folder for `model.safetensors`.
        overwrite: whether out may be there already.
    """
    from automap.apply import check_file, check_folder, load_checkpoint, save_state, save_state_folder
    from automap.plan import Plan

    is_file = out.suffix == ".safetensors"
    if is_file:
        check_file(out, overwrite=overwrite)
    else:
        check_folder(out, overwrite=overwrite)
    if not plan.is_file():
        raise FileError(f"there is no plan {plan}")
    loaded = Plan.load(plan)
    state, notes = load_checkpoint(checkpoint)
    applied = loaded.apply(state)
    place = save_state(applied, out) if is_file else save_state_folder(applied, out, overwrite=overwrite)
    return (*notes, f"wrote {len(applied)} tensor{'s' * (len(applied) != 1)} to {place}")


def _load(model: nn.Module, checkpoint: str) -> tuple[str, ...]:
    from automap.apply import load_checkpoint, load_into

    state, notes = load_checkpoint(checkpoint)
    return (*notes, *load_into(model, state))


def _check_pin(text: str) -> None:
    """Raise InputError unless text has the form `DEST=SRC`."""
    dest, equals, src = text.partition("=")
    if not equals or not dest.strip() or not src.strip():
        raise InputError(f"`{text}` is no pin", help="write --pin DEST=SRC with two weight names")
