"""How single pieces of expressions are spelled in Python: slices, sizes, constants, lists of rows."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from automap.errors import ExportError
from automap.export.text import WIDTH, Chain, Code, Group
from automap.plan.dtypes import dtype_of, is_float
from automap.plan.expr import Expr, Shape, Slice
from automap.plan.shapes import shape_of

EXACT_EVERYWHERE = (0.0, 1.0, -1.0, 2.0, 0.5)  # not rounded in any float dtype


def slice_text(expr: Slice) -> str:
    """`[:768, ::2]`; dims that are whole at the end are left out."""
    entries = []
    for start, stop, step, size in zip(expr.start, expr.stop, expr.step, shape_of(expr.arg), strict=True):
        entries.append(f"{start or ''}:{stop if stop < size else ''}{f':{step}' if step > 1 else ''}")
    while len(entries) > 1 and entries[-1] == ":":
        entries.pop()
    return f"[{', '.join(entries)}]"


def permute_text(dims: tuple[int, ...]) -> str:
    """`.T`, `.transpose(1, 2)` or `.permute(2, 0, 1)`."""
    moved = [dim for dim, other in enumerate(dims) if dim != other]
    if len(moved) != 2:
        return f".permute({sizes_text(dims)})"
    return ".T" if len(dims) == 2 else f".transpose({moved[0]}, {moved[1]})"


def sizes_text(sizes: Sequence[int]) -> str:
    """Sizes as the arguments of a method."""
    return ", ".join(map(str, sizes)) or "()"


def tuple_text(sizes: Sequence[int]) -> str:
    """Sizes as a tuple."""
    return f"({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"


def number_text(value: float) -> str:
    """A number; infinities and NaN as what float reads."""
    return repr(float(value)).replace("e+", "e") if math.isfinite(value) else f'float("{value}")'


def filled(value: float, shape: Shape, dtype: str) -> Code:
    """A constant tensor; converted from float64, as evaluate does it."""
    sizes = tuple_text(shape)
    if repr(float(value)) in ("0.0", "1.0"):
        return Group("torch.ones(" if value else "torch.zeros(", (sizes, f"dtype={dtype}"), ")")
    if dtype == "torch.float64" or (value in EXACT_EVERYWHERE and "float" in dtype):
        return Group("torch.full(", (sizes, number_text(value), f"dtype={dtype}"), ")")
    return Chain(Group("torch.full(", (sizes, number_text(value), "dtype=torch.float64"), ")"), f".to({dtype})")


def filled_like(like: str, value: float, shape: Shape, dtype: str) -> Code:
    """A constant tensor on the device of the tensor `like`."""
    wanted = () if dtype == f"{like}.dtype" else (f"dtype={dtype}",)
    word = {"0.0": "zeros", "1.0": "ones"}.get(repr(float(value)))
    if word is None:
        return Group(f"{like}.new_full(", (tuple_text(shape), number_text(value), *wanted), ")")
    sizes = str(shape[0]) if len(shape) == 1 and not wanted else tuple_text(shape)
    return Group(f"{like}.new_{word}(", (sizes, *wanted), ")")


def converted(value: float, dtype: str) -> float:
    """A constant of some dtype as arithmetic takes it: converted only if that is no float."""
    if is_float(dtype):
        return value
    return float(bool(value)) if dtype == "bool" else float(int(value))


def check_cast(arg: Expr, dtype: str) -> None:
    """Refuses casts below arithmetic that change values: only those between floats are without effect there.

    Raises:
        ExportError: the cast is to or from integers, or drops imaginary parts.
    """
    given = dtype_of(arg)
    if not (is_float(given) and is_float(dtype)) or given.startswith("complex") != dtype.startswith("complex"):
        raise ExportError(f"a cast from {given} to {dtype} below arithmetic cannot be exported, only between floats")


def range_items(indices: tuple[int, ...]) -> Iterator[str]:
    """Row numbers as items of a list, three or more that are evenly spaced as a range."""
    start = 0
    while start < len(indices):
        stop = _run_end(indices, start)
        step = indices[start + 1] - indices[start] if stop - start > 2 else 0
        if step == 0:
            yield str(indices[start])
            start += 1
            continue
        last = indices[stop - 1] + (1 if step > 0 else -1)
        yield f"*range({indices[start]}, {last}{f', {step}' if step != 1 else ''})"
        start = stop


def _run_end(indices: tuple[int, ...], start: int) -> int:
    """Where the evenly spaced run that begins at `start` ends."""
    stop = start + 1
    while stop < len(indices) and indices[stop] - indices[stop - 1] == indices[start + 1] - indices[start]:
        stop += 1
    return stop


def wrapped(indices: tuple[int, ...]) -> str:
    """Row numbers as lines of text."""
    return textwrap.fill(" ".join(map(str, indices)), WIDTH)
