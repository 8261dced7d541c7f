"""What the commands do, without printing: specs and words in, results out, files written whole or not at all.

A Job is what a command line asks for. `prepare` builds both models and their inputs, `convert` and `explain` run the
core on them, `write_results` puts on disk what the outcome allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automap.errors import FileError, InputError

if TYPE_CHECKING:
    from torch import nn

    from automap.apply.stream import AppliedSummary
    from automap.capture import Capture
    from automap.capture.result import Method
    from automap.inputs import Inputs
    from automap.results import Explanation, Match, OpParity, Transfer


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
    algebra: bool = True
    meta: bool = False
    loaded: bool = False
    train: bool = False
    capture: Method = "dispatch"
    verify: str = "default"
    tolerance: float | None = None
    allow_differences: bool = False
    out: Path | None = None
    overwrite: bool = False
    plan: Path | None = None
    json: Path | None = None
    html: Path | None = None


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
    if job.meta and (job.out is not None or job.src_checkpoint is not None):
        what = "--out" if job.out is not None else "--src-checkpoint"
        raise InputError(
            f"--meta builds models without weights, and {what} is about weights",
            help="write the map with --plan FILE, then use it on a checkpoint: automap apply FILE CHECKPOINT -o DIR",
        )
    for pin in job.pin:
        _check_pin(pin)
    dtype = read_dtype(job.dtype) if job.dtype else None
    with _on_meta() if job.meta else nullcontext():
        src = build_model(job.src, seed=job.seed)
    notes = _load(src, job.src_checkpoint) if job.src_checkpoint else ()
    with _on_meta() if job.meta else nullcontext():
        dest = build_model(job.dest, seed=job.seed + 1)  # never the weights that src was drawn with
    if dtype is not None:
        src, dest = src.to(dtype), dest.to(dtype)
    src_inputs, dest_inputs = sample_inputs(job.sample_input, src, dest, dest_words=job.dest_input, seed=job.seed)
    return Sides(src, dest, src_inputs, dest_inputs, notes)


def _on_meta() -> AbstractContextManager[object]:
    import torch

    return torch.device("meta")


def convert(job: Job, sides: Sides) -> Transfer:
    """Return the transfer of src's weights to dest, whatever its verdict; without weights, that of none."""
    from automap.api import match, transfer
    from automap.results import Transfer

    if job.meta:
        found = match(sides.src, sides.dest, sides.src_inputs, **_core_options(job, sides))
        return Transfer(found, None, found.evidence, False, 0.0, found.timings_s)

    options: dict[str, Any] = {"verify": job.verify, "tolerance": job.tolerance}
    return transfer(sides.src, sides.dest, sides.src_inputs, strict=False, **options, **_core_options(job, sides))


def explain(job: Job, sides: Sides) -> Explanation:
    """Return every place where dest departs from src; nothing is modified."""
    from automap.api import explain

    options = {name: value for name, value in _core_options(job, sides).items() if name != "algebra"}
    return explain(sides.src, sides.dest, sides.src_inputs, loaded=job.loaded, train=job.train, **options)


def _core_options(job: Job, sides: Sides) -> dict[str, Any]:
    return {
        "dest_input": sides.dest_inputs,
        "src_output": job.src_output,
        "dest_output": job.dest_output,
        "seed": job.seed,
        "pins": job.pin,
        "capture": job.capture,
        "algebra": job.algebra,
    }


def is_good(job: Job, transfer: Transfer) -> bool:
    """Whether everything matches and the outputs agree, as far as there are any to compare."""
    return transfer.match.is_complete and (job.meta or transfer.is_equal)


def is_accepted(job: Job, transfer: Transfer) -> bool:
    """Whether the outcome may be written: complete and equal, or different in a way that the user allowed."""
    if is_good(job, transfer):
        return True
    return job.allow_differences and transfer.match.verdict == "differs" and transfer.is_applied


def write_results(job: Job, sides: Sides, transfer: Transfer) -> tuple[str, ...]:
    """Write what job asks for and return a line for each thing written.

    The model and the plan are written only if the outcome is accepted; the reports always are, since they say so.
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
    return (*written, *write_reports(job, sides, transfer))


def write_reports(
    job: Job, sides: Sides, result: Transfer | Match, *, op_parity: Sequence[OpParity] = ()
) -> tuple[str, ...]:
    """Write the JSON and HTML reports that job asks for and return a line for each."""
    from automap.apply import written_atomically
    from automap.report import build_report, report_html, report_json

    written = []
    for path in (job.json, job.html):
        if path is not None:
            if path is job.json:
                text = report_json(result, notes=sides.notes, op_parity=op_parity)
            else:
                text = report_html(build_report(result, notes=sides.notes, op_parity=op_parity))
            with written_atomically(path) as partial:
                partial.write_text(text, encoding="utf-8")
            written.append(f"wrote the report to {path}")
    return tuple(written)


def check_places(job: Job) -> None:
    """Raise FileError where something could not be written later: before the long work, not after it."""
    from automap.apply import check_file, check_folder

    if job.out is not None:
        check_folder(job.out, overwrite=job.overwrite)
    for path in (job.plan, job.json, job.html):
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


def apply_plan(
    plan: Path, checkpoint: str, out: str, *, scheduler: str | None = None, **options: Any
) -> tuple[str, ...]:
    """Send a checkpoint through a saved plan, write the result, and return lines that say what was done.

    Args:
        plan: a file that `--plan` or `Plan.save` wrote.
        checkpoint: a file, shard index or folder, local or remote, with `:key.path` where needed.
        out: a `.safetensors` file, or a folder.
        scheduler: the address of a Dask cluster that is to do it.
        options: what `automap.apply.apply_plan` takes.
    """
    from automap.apply.cluster import cluster_executor
    from automap.apply.stream import apply_plan as stream

    if scheduler is None:
        return _applied_lines(stream(plan, checkpoint, out, **options))
    with cluster_executor(scheduler) as executor:
        return _applied_lines(stream(plan, checkpoint, out, executor=executor, **options))


def _applied_lines(summary: AppliedSummary) -> tuple[str, ...]:
    from automap.apply.memory import size_text

    tensors = f"{summary.tensor_count} tensor{'s' * (summary.tensor_count != 1)}"
    if summary.is_dry:
        read = [f"would read {size_text(size)} of {file}" for file, size in summary.read]
        written = [f"would write {size_text(size)} to {name}" for name, size in summary.written]
        return (*summary.notes, *read, *written, f"would write {tensors} to {summary.out}")
    speed = size_text(summary.written_bytes / summary.elapsed_s)
    files = f"{len(summary.written)} file{'s' * (len(summary.written) != 1)}"
    lines = [f"{size_text(summary.written_bytes)} in {files}, {summary.elapsed_s:.1f} s, {speed}/s"]
    if summary.resumed_shards:
        lines.append(f"{summary.resumed_shards} of {files} were finished by an earlier run, and are whole")
    if summary.is_checked:
        lines.append("read again and compared: every bit is as the plan says")
    return (*summary.notes, *lines, f"wrote {tensors} to {summary.out}")


def export_plan(
    plan: Path, form: str, *, out: Path | None = None, model_class: str | None = None, overwrite: bool = False
) -> str:
    """Return a saved plan as Python code, or, where out is given, write it there and return a line that says so.

    Args:
        plan: a file that `--plan` or `Plan.save` wrote.
        form: "python", "transformers", "timm" or "vllm".
        out: the file to write.
        model_class: for transformers, the class of dest where the plan does not name it.
        overwrite: whether out may be there already.
    """
    from automap import export
    from automap.apply import check_file, written_atomically
    from automap.plan import Plan

    if not plan.is_file():
        raise FileError(f"there is no plan {plan}")
    if out is not None:
        check_file(out, overwrite=overwrite)
    loaded = Plan.load(plan)
    if form == "transformers":
        text = export.export_transformers(loaded, model_class=model_class)
    else:
        text = {"python": export.export_python, "timm": export.export_timm, "vllm": export.export_vllm}[form](loaded)
    if out is None:
        return text
    with written_atomically(out) as partial:
        partial.write_text(text, encoding="utf-8")
    return f"wrote {form} code for {len(loaded.entries)} tensors to {out}\n"


def _load(model: nn.Module, checkpoint: str) -> tuple[str, ...]:
    from automap.apply import load_checkpoint, load_into

    state, notes = load_checkpoint(checkpoint)
    return (*notes, *load_into(model, state))


def _check_pin(text: str) -> None:
    """Raise InputError unless text has the form `DEST=SRC`."""
    dest, equals, src = text.partition("=")
    if not equals or not dest.strip() or not src.strip():
        raise InputError(f"`{text}` is no pin", help="write --pin DEST=SRC with two weight names")
