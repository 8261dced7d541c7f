"""Expressions as JSON values and back. Reading is strict: whatever is not exactly an expression is refused, with the
place named; nothing that is read can make later stages allocate without bound or recurse too deep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeVar, assert_never

from automap.errors import PlanError
from automap.plan.dtypes import DTYPES
from automap.plan.expr import (
    MATRIX_FUNCTIONS,
    POINTWISE,
    Add,
    Affine,
    Cast,
    Concat,
    Divide,
    Expand,
    Expr,
    Fill,
    Gather,
    MatMul,
    MatrixFunction,
    Mean,
    Multiply,
    Norm,
    Pad,
    Permute,
    Pointwise,
    Reshape,
    Shape,
    Slice,
    Source,
    Sqrt,
    Subtract,
    Tril,
    args_of,
    depth_of,
)
from automap.plan.shapes import node_shape

MAX_DEPTH = 64
MAX_RANK = 64
MAX_ELEMENTS = 2**42

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Map: TypeAlias = Pointwise | MatrixFunction | Tril
OneArgument: TypeAlias = Slice | Permute | Reshape | Gather | Pad | Expand | Cast | Affine | Sqrt | Norm | Mean | Map
T = TypeVar("T")


def to_json(expr: Expr) -> dict[str, Json]:
    """The expression as JSON objects: `op` names the node, the other fields are the node's own.

    Raises:
        PlanError: the expression is nested deeper than `from_json` reads.
    """
    if depth_of(expr) > MAX_DEPTH:
        raise PlanError(f"the expression is nested {depth_of(expr)} deep, more than {MAX_DEPTH}")
    return _encoded(expr)


def _encoded(expr: Expr) -> dict[str, Json]:
    args: list[Json] = [_encoded(arg) for arg in args_of(expr)]
    match expr:
        case Source(name, shape, dtype):
            return {"op": "source", "name": name, "shape": [*shape], "dtype": dtype}
        case Fill(value, shape, dtype):
            return {"op": "fill", "value": _number(value), "shape": [*shape], "dtype": dtype}
        case Concat(_, dim):
            return {"op": "concat", "args": args, "dim": dim}
        case Add() | Subtract() | Multiply() | Divide() | MatMul():
            return {"op": type(expr).__name__.lower(), "left": args[0], "right": args[1]}
        case _:
            return {"op": _op(expr), "arg": args[0], **_encoded_fields(expr)}


def _op(expr: OneArgument) -> str:
    return "matrix_function" if isinstance(expr, MatrixFunction) else type(expr).__name__.lower()


def _encoded_fields(expr: OneArgument) -> dict[str, Json]:
    """The fields of a node but for its one argument."""
    match expr:
        case Slice(_, start, stop, step):
            return {"start": [*start], "stop": [*stop], "step": [*step]}
        case Permute(_, dims) | Norm(_, dims) | Mean(_, dims):
            return {"dims": [*dims]}
        case Reshape(_, shape) | Expand(_, shape):
            return {"shape": [*shape]}
        case Gather(_, dim, indices):
            return {"dim": dim, "indices": [*indices]}
        case Pad(_, before, after):
            return {"before": [*before], "after": [*after]}
        case Cast(_, dtype):
            return {"dtype": dtype}
        case Affine(_, scale, shift):
            return {"scale": _number(scale), "shift": _number(shift)}
        case Sqrt():
            return {}
        case Pointwise(_, function) | MatrixFunction(_, function):
            return {"function": function}
        case Tril(_, diagonal):
            return {"diagonal": diagonal}
        case _:
            assert_never(expr)


def _number(value: float) -> float | str:
    """A JSON number; infinities and NaN, which JSON has not, by name."""
    return float(value) if math.isfinite(value) else str(float(value))


def from_json(data: object, *, place: str = "expr") -> Expr:
    """The expression that `to_json` made `data` from.

    Raises:
        PlanError: `data` is anything else; the message names the place, such as `expr.args[0].dim`.

    Example:
        >>> from_json({"op": "source", "name": "w", "shape": [2, 3], "dtype": "float32"})
        Source(name='w', shape=(2, 3), dtype='float32')
    """
    return _decoded(data, place, 1)[0]


class Fields:
    """The fields of one JSON object, each taken once; what is missing, left over or of another type is refused.

    Raises:
        PlanError: from every method, with the place of the field.
    """

    def __init__(self, data: object, place: str) -> None:
        if not isinstance(data, dict):
            raise PlanError(f"{place} is {_kind(data)}, not an object")
        self.place = place
        self._left: dict[str, object] = dict(data)

    def take(self, name: str, read: Callable[[object, str], T]) -> T:
        """The field `name` as `read(value, place)` gives it."""
        if name not in self._left:
            raise PlanError(f"{self.place} has no field `{name}`")
        return read(self._left.pop(name), f"{self.place}.{name}")

    def finish(self) -> None:
        """Refuses fields that nobody took."""
        if self._left:
            raise PlanError(f"{self.place} has unknown fields: {', '.join(f'`{name}`' for name in self._left)}")


def _decoded(data: object, place: str, depth: int) -> tuple[Expr, Shape]:
    """One node and its shape, arguments first."""
    if depth > MAX_DEPTH:
        raise PlanError(f"{place} is nested more than {MAX_DEPTH} deep")
    fields = Fields(data, place)
    op = fields.take("op", read_text)
    if op not in _READERS:
        raise PlanError(f"{place}.op is `{op}`, which is no kind of expression")
    shapes: list[Shape] = []

    def read_arg(value: object, where: str) -> Expr:
        arg, shape = _decoded(value, where, depth + 1)
        shapes.append(shape)
        return arg

    expr = _READERS[op](fields, read_arg)
    fields.finish()
    try:
        shape = node_shape(expr, tuple(shapes))
    except PlanError as error:
        raise PlanError(f"{place}: {error}") from error
    if len(shape) > MAX_RANK or math.prod(shape) > MAX_ELEMENTS:
        raise PlanError(f"{place} has shape {shape}, more than {MAX_RANK} dims or {MAX_ELEMENTS} elements")
    return expr, shape


ArgReader: TypeAlias = Callable[[object, str], Expr]

_READERS: Mapping[str, Callable[[Fields, ArgReader], Expr]] = {
    "source": lambda f, arg: Source(
        f.take("name", read_text), f.take("shape", read_sizes), f.take("dtype", _read_dtype)
    ),
    "slice": lambda f, arg: Slice(
        f.take("arg", arg), f.take("start", read_sizes), f.take("stop", read_sizes), f.take("step", read_sizes)
    ),
    "concat": lambda f, arg: Concat(f.take("args", _each(arg)), f.take("dim", read_size)),
    "permute": lambda f, arg: Permute(f.take("arg", arg), f.take("dims", read_sizes)),
    "reshape": lambda f, arg: Reshape(f.take("arg", arg), f.take("shape", read_sizes)),
    "gather": lambda f, arg: Gather(f.take("arg", arg), f.take("dim", read_size), f.take("indices", read_sizes)),
    "fill": lambda f, arg: Fill(
        f.take("value", _read_number), f.take("shape", read_sizes), f.take("dtype", _read_dtype)
    ),
    "cast": lambda f, arg: Cast(f.take("arg", arg), f.take("dtype", _read_dtype)),
    "affine": lambda f, arg: Affine(f.take("arg", arg), f.take("scale", _read_number), f.take("shift", _read_number)),
    "pad": lambda f, arg: Pad(f.take("arg", arg), f.take("before", read_sizes), f.take("after", read_sizes)),
    "expand": lambda f, arg: Expand(f.take("arg", arg), f.take("shape", read_sizes)),
    "sqrt": lambda f, arg: Sqrt(f.take("arg", arg)),
    "norm": lambda f, arg: Norm(f.take("arg", arg), f.take("dims", read_sizes)),
    "mean": lambda f, arg: Mean(f.take("arg", arg), f.take("dims", read_sizes)),
    "pointwise": lambda f, arg: Pointwise(f.take("arg", arg), f.take("function", _one_of(POINTWISE))),
    "matrix_function": lambda f, arg: MatrixFunction(f.take("arg", arg), f.take("function", _one_of(MATRIX_FUNCTIONS))),
    "tril": lambda f, arg: Tril(f.take("arg", arg), f.take("diagonal", _read_offset)),
    "add": lambda f, arg: Add(f.take("left", arg), f.take("right", arg)),
    "subtract": lambda f, arg: Subtract(f.take("left", arg), f.take("right", arg)),
    "multiply": lambda f, arg: Multiply(f.take("left", arg), f.take("right", arg)),
    "divide": lambda f, arg: Divide(f.take("left", arg), f.take("right", arg)),
    "matmul": lambda f, arg: MatMul(f.take("left", arg), f.take("right", arg)),
}


def _each(read: Callable[[object, str], T]) -> Callable[[object, str], tuple[T, ...]]:
    def read_list(data: object, place: str) -> tuple[T, ...]:
        if not isinstance(data, list):
            raise PlanError(f"{place} is {_kind(data)}, not a list")
        return tuple(read(item, f"{place}[{index}]") for index, item in enumerate(data))

    return read_list


def read_text(data: object, place: str) -> str:
    """`data` if it is a string."""
    if not isinstance(data, str):
        raise PlanError(f"{place} is {_kind(data)}, not a string")
    return data


def read_size(data: object, place: str) -> int:
    """`data` if it is an integer from 0 to MAX_ELEMENTS."""
    if type(data) is not int:
        raise PlanError(f"{place} is {_kind(data)}, not an integer")
    if not 0 <= data <= MAX_ELEMENTS:
        raise PlanError(f"{place} is not between 0 and {MAX_ELEMENTS}")
    return data


def read_sizes(data: object, place: str) -> tuple[int, ...]:
    """`data` if it is a list of integers from 0 to MAX_ELEMENTS."""
    if isinstance(data, list) and all(type(item) is int and 0 <= item <= MAX_ELEMENTS for item in data):
        return tuple(data)
    return _each(read_size)(data, place)


def _one_of(names: tuple[str, ...]) -> Callable[[object, str], str]:
    def read_name(data: object, place: str) -> str:
        name = read_text(data, place)
        if name not in names:
            raise PlanError(f"{place} is `{name}`, not one of {', '.join(names)}")
        return name

    return read_name


def _read_offset(data: object, place: str) -> int:
    return -read_size(-data, place) if type(data) is int and data < 0 else read_size(data, place)


def _read_dtype(data: object, place: str) -> str:
    dtype = read_text(data, place)
    if dtype not in DTYPES:
        raise PlanError(f"{place} is `{dtype}`, which is no dtype")
    return dtype


def _read_number(data: object, place: str) -> float:
    if data in ("nan", "inf", "-inf"):
        return float(str(data))
    if (type(data) is int and abs(data) <= 2**63) or (type(data) is float and math.isfinite(data)):
        return float(data)
    raise PlanError(f"{place} is {_kind(data)}, not a finite number")


def _kind(data: object) -> str:
    """What a JSON value is, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(data), "a number" if isinstance(data, int | float) else f"a {type(data).__name__}")
