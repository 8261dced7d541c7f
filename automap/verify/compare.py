"""How far two outputs are apart in float64, and what a plan's expressions are where nothing is rounded."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from automap.align.outputs import relative_difference
from automap.plan import Cast, Expr, Fill
from automap.plan.expr import args_of, with_args
from automap.results import OutputParity

FLOAT64_TOLERANCE = 1e-9


def output_parity(src_path: str, dest_path: str, a: Tensor, b: Tensor, limit: float) -> OutputParity:
    """Return how far dest's output b is from src's output a, beside a (relative) limit."""
    rel = relative_difference(a, b)
    same = a.shape == b.shape
    gap = float((a.double() - b.double()).abs().max()) if same and a.numel() and not a.is_complex() else rel
    dtype = str(b.dtype).removeprefix("torch.")
    return OutputParity(src_path, dest_path, tuple(b.shape), dtype, gap, rel, limit)


def uncast(expr: Expr) -> Expr:
    """Return an expression without changes of precision: numbers are float64 throughout."""
    expr = with_args(expr, tuple(uncast(arg) for arg in args_of(expr)))
    if isinstance(expr, Fill) and expr.dtype.startswith(("float", "bfloat")):
        return replace(expr, dtype="float64")
    return expr.arg if isinstance(expr, Cast) else expr
