"""The command line: the only place that prints and exits.

`automap SRC DEST` is the main job and has no name; `trace`, `explain` and `apply` are named. Nothing heavy is imported
before a command runs. Exit status: 0 complete and equal, 1 anything else, 2 usage.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from automap.collector import seldom_collecting
from automap.errors import AutomapError, FileError, InputError, MismatchError, OutputError, SpecError
from automap.options import (
    Algebra,
    AllowDifferences,
    Capture,
    Capturing,
    Debug,
    Dest,
    DestInput,
    DestOutput,
    Dtype,
    ExportFormat,
    HtmlFile,
    JsonFile,
    Loaded,
    Meta,
    Model,
    OutFolder,
    Overwrite,
    Pin,
    PlanFile,
    Quiet,
    SampleInput,
    Seed,
    Src,
    SrcCheckpoint,
    SrcOutput,
    Tolerance,
    TraceFormat,
    Train,
    Verify,
    Verifying,
    Version,
)

if TYPE_CHECKING:
    from rich.console import Console

    from automap.apply.stream import Progress
    from automap.jobs import Job

EPILOG = """Examples:

automap timm:resnet50 hf:ResNetForImageClassification --sample-input 1x3x224x224

automap timm:vit_base_patch16_224 "hf:ViTForImageClassification?layer_norm_eps=1e-6" -i 1x3x224x224 --out vit-hf

automap old.py:Encoder new.py:Encoder -i ids=1x16:int64 --src-checkpoint run7.pt:model --plan plan.json

A model is timm:NAME, hf:CLASS, hf:FOLDER, hf:HUB_ID, torchvision:NAME, FILE.py:FACTORY or PACKAGE.MODULE:FACTORY, each
with ?key=value&... for its factory or config.

Other commands: automap explain SRC DEST, automap trace MODEL, automap apply PLAN CHECKPOINT; each has --help.

Exit status: 0 complete and equal, 1 anything else (no model and no plan is written), 2 usage."""

USAGE_ERRORS = (SpecError, InputError, FileError, OutputError)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line given (or the process's own) and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    named = {command.name for command in commands.registered_commands}
    run = commands if words[0] in named else app
    with seldom_collecting():
        run(args=words, prog_name="automap")
    sys.exit(0)


@app.command(epilog=EPILOG)
def convert(
    src: Src,
    dest: Dest,
    sample_input: SampleInput,
    dest_input: DestInput = None,
    src_output: SrcOutput = None,
    dest_output: DestOutput = None,
    src_checkpoint: SrcCheckpoint = None,
    out: OutFolder = None,
    overwrite: Overwrite = False,
    plan: PlanFile = None,
    json: JsonFile = None,
    html: HtmlFile = None,
    dtype: Dtype = None,
    tolerance: Tolerance = None,
    seed: Seed = 0,
    verify: Verify = Verifying.default,
    capture: Capture = Capturing.dispatch,
    allow_differences: AllowDifferences = False,
    pin: Pin = None,
    algebra: Algebra = True,
    meta: Meta = False,
    quiet: Quiet = False,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Carry the weights of SRC over to DEST: match both computations, place the weights, compare the outputs."""
    with _clear_errors(debug):
        _convert(_job(locals()), is_quiet=quiet)


@commands.command("explain")
def explain(
    src: Src,
    dest: Dest,
    sample_input: SampleInput,
    dest_input: DestInput = None,
    src_output: SrcOutput = None,
    dest_output: DestOutput = None,
    src_checkpoint: SrcCheckpoint = None,
    json: JsonFile = None,
    html: HtmlFile = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    capture: Capture = Capturing.dispatch,
    pin: Pin = None,
    loaded: Loaded = False,
    train: Train = False,
    debug: Debug = False,
) -> None:
    """Say every place where DEST does not compute what SRC computes; no weights are carried over."""
    with _clear_errors(debug):
        _explain(_job(locals()))


@commands.command("trace")
def trace(
    model: Model,
    sample_input: SampleInput,
    form: Annotated[TraceFormat, typer.Option("--format", help="The form to print.")] = TraceFormat.table,
    capture: Capture = Capturing.dispatch,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Print what is captured of one forward of MODEL."""
    with _clear_errors(debug):
        from automap import jobs
        from automap.report.trace import trace_text

        found = jobs.trace(model, words=tuple(sample_input), method=capture.value, seed=seed)
        typer.echo(trace_text(found, form=form.value), nl=False)


@commands.command("apply")
def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A file that --plan wrote.", show_default=False)],
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A file, shard index or folder: local, hf://ORG/NAME or any fsspec URL.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="OUT", help="A .safetensors file or a folder.", show_default=False)
    ],
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What may be held at once; a quarter of what is free by default.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of one file in a folder.")] = "5GB",
    dtype: Annotated[str | None, typer.Option(help="Cast floats to this dtype.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be read and written.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read everything again and compare.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on where an interrupted run stopped.")] = True,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this Dask cluster, tcp://HOST:PORT.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Send a CHECKPOINT of src through a saved PLAN and write the weights for dest, streaming."""
    with _clear_errors(debug):
        _apply({name: value for name, value in locals().items() if name not in ("quiet", "debug")}, is_quiet=quiet)


@commands.command("export")
def export(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A file that --plan wrote.", show_default=False)],
    form: Annotated[
        ExportFormat, typer.Option("--format", help="A script, or what these libraries load checkpoints with.")
    ] = ExportFormat.python,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write to this file instead of the terminal.")
    ] = None,
    model_class: Annotated[
        str | None, typer.Option(metavar="NAME", help="For transformers: the class of DEST, if the plan has no name.")
    ] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write a saved PLAN as Python code that does the same without automap."""
    with _clear_errors(debug):
        from automap import jobs

        text = jobs.export_plan(plan, form.value, out=out, model_class=model_class, overwrite=overwrite)
        typer.echo(text, nl=False)


def _job(arguments: Mapping[str, Any]) -> Job:
    """Return the Job that a command's arguments ask for: they have the names of its fields."""
    from automap.jobs import Job

    known = {field.name for field in fields(Job)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    values: dict[str, Any] = {name: value for name, value in given.items() if name in known and value is not None}
    return Job(**values)


def _convert(job: Job, *, is_quiet: bool) -> None:
    from automap import jobs
    from automap.report import build_report, print_report

    with _progress("building both models", is_quiet):
        sides = jobs.prepare(job)
    with _progress("matching and verifying", is_quiet):
        transfer = jobs.convert(job, sides)
    if not is_quiet:
        print_report(_console(), build_report(transfer, notes=sides.notes))
    written = jobs.write_results(job, sides, transfer)
    for line in () if is_quiet else written:
        typer.echo(f"  {line}")
    is_good = jobs.is_good(job, transfer)
    if not is_good and is_quiet:
        _print_error("mismatch", f"the verdict is {transfer.match.verdict}, see the report without --quiet", None)
    raise typer.Exit(0 if is_good else 1)


def _explain(job: Job) -> None:
    from automap import jobs
    from automap.explanation.text import as_findings, print_explanation

    with _progress("building both models", False):
        sides = jobs.prepare(job)
    with _progress("comparing op by op", False):
        explanation = jobs.explain(job, sides)
    print_explanation(_console(), explanation, notes=sides.notes)
    for line in jobs.write_reports(job, sides, as_findings(explanation), op_parity=explanation.op_parity):
        typer.echo(f"  {line}")
    raise typer.Exit(0 if explanation.is_equal else 1)


def _apply(arguments: Mapping[str, Any], *, is_quiet: bool) -> None:
    from automap import jobs

    try:
        with _transfer_progress(is_quiet) as show:
            lines = jobs.apply_plan(**arguments, progress=show)
    except KeyboardInterrupt:
        text = f"stopped before the end; {arguments['out']} is as it was"
        _print_error("interrupted", text, "run the same command again to go on from here")
        raise typer.Exit(130) from None
    for line in () if is_quiet else lines:
        typer.echo(line)


@contextlib.contextmanager
def _transfer_progress(is_quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Show bytes, speed and time left, where somebody can see it."""
    console = _console(is_error=True)
    if is_quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("apply")
        yield lambda state: bars.update(bar, completed=state.done_bytes, total=state.total_bytes)


@contextlib.contextmanager
def _clear_errors(debug: bool) -> Iterator[None]:
    """Print an error as one message and exit with its status; with debug, let it through as it is."""
    if debug:
        yield
        return
    _silence_libraries()
    try:
        yield
    except MismatchError as problem:
        _print_error(problem.slug, str(problem), problem.help)
        raise typer.Exit(1) from None
    except AutomapError as problem:
        _print_error(problem.slug, str(problem), problem.help)
        raise typer.Exit(2 if isinstance(problem, USAGE_ERRORS) else 1) from None
    except KeyboardInterrupt:
        _print_error("interrupted", "stopped before the end; nothing was written", None)
        raise typer.Exit(130) from None
    except (OSError, MemoryError) as problem:
        _print_error("system", f"{type(problem).__name__}: {problem}", None)
        raise typer.Exit(1) from None
    except typer.Exit:
        raise
    except Exception as problem:
        text = f"{type(problem).__name__}: {problem}"
        _print_error("internal", text, "this is a fault of automap: run again with --debug and report it")
        raise typer.Exit(1) from None


def _print_error(slug: str, message: str, advice: str | None) -> None:
    from rich.text import Text

    console = _console(is_error=True)
    console.print(Text.assemble((f"error[{slug}]", "bold red"), f": {message}"), soft_wrap=True, highlight=False)
    if advice:
        console.print(Text.assemble("   = ", ("help", "bold"), f": {advice}"), soft_wrap=True, highlight=False)


def _console(*, is_error: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=is_error)


def _progress(text: str, is_quiet: bool) -> contextlib.AbstractContextManager[Any]:
    """Show what is going on while it goes on, where somebody can see it."""
    console = _console(is_error=True)
    return contextlib.nullcontext() if is_quiet or not console.is_terminal else console.status(f"{text} ...")


def _silence_libraries() -> None:
    """Keep the progress bars and warnings of model libraries out of the way."""
    import os
    import warnings

    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
