"""What can be said on the command line: the choices, arguments and options that the commands share, with their help."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Capturing(StrEnum):
    """Ways to record a forward."""

    dispatch = "dispatch"
    export = "export"
    hooks = "hooks"


class Verifying(StrEnum):
    """How much to verify."""

    quick = "quick"
    default = "default"
    thorough = "thorough"


class TraceFormat(StrEnum):
    """Forms of a trace."""

    table = "table"
    json = "json"
    graphml = "graphml"


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        typer.echo(f"automap {version('automap-weights')}")
        raise typer.Exit


ExportFormat = StrEnum("ExportFormat", ["python", "transformers", "timm", "vllm"])

Src = Annotated[str, typer.Argument(metavar="SRC", help="The model that has the weights.", show_default=False)]
Dest = Annotated[str, typer.Argument(metavar="DEST", help="The model that wants them.", show_default=False)]
SampleInput = Annotated[
    list[str],
    typer.Option(
        "--sample-input",
        "-i",
        metavar="INPUT",
        help="What both are called with: 1x3x224x224, ids=1x16:int64, an image or text file, or tensors in .pt, .npy, "
        ".safetensors. Repeat for several.",
        show_default=False,
    ),
]
DestInput = Annotated[
    list[str] | None, typer.Option(metavar="INPUT", help="The same for DEST, where its signature differs.")
]
SrcOutput = Annotated[str | None, typer.Option(metavar="PATH", help="The output to compare: logits, 0.hidden, ...")]
DestOutput = Annotated[str | None, typer.Option(metavar="PATH", help="The same for DEST.")]
SrcCheckpoint = Annotated[
    str | None, typer.Option(metavar="FILE[:KEYS]", help="Load these weights into SRC first (also a folder or index).")
]
Dtype = Annotated[str | None, typer.Option(help="Convert both models to this dtype first.")]
Seed = Annotated[int, typer.Option(help="What random weights and inputs are drawn from.")]
Pin = Annotated[
    list[str] | None,
    typer.Option(metavar="DEST=SRC", help="Decide one weight, as DEST=SRC or DEST=SRC[0:768]; checked. Repeatable."),
]
Capture = Annotated[Capturing, typer.Option(help="How to record the forward.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON, refused or not.")
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the report as one HTML page, refused or not.")
]
Algebra = Annotated[
    bool, typer.Option("--algebra/--no-algebra", help="Also find weights that are computed from those of SRC.")
]
Meta = Annotated[
    bool,
    typer.Option(
        "--meta", help="Build both models without weights: match only, for models too large for this machine."
    ),
]
Loaded = Annotated[bool, typer.Option("--loaded", help="Compare DEST with the weights that it has; carry none over.")]
Train = Annotated[bool, typer.Option("--train", help="Compare what both compute in train mode.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings.")]

OutFolder = Annotated[Path | None, typer.Option(metavar="DIR", help="Write DEST with its weights to this folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there already.")]
PlanFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the map of weights as JSON.")]
Tolerance = Annotated[float | None, typer.Option(help="Largest relative difference of equal outputs.")]
Verify = Annotated[Verifying, typer.Option(help="How much to verify.")]
AllowDifferences = Annotated[
    bool, typer.Option("--allow-differences", help="Write the weights also when the verdict is `differs`.")
]
Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model to run.", show_default=False)]
