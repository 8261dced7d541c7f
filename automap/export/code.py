"""Expressions in, Python statements out that compute bitwise what `plan.apply` gives.

A Writer collects the statements of one block. Code that gets too long for a line is bound to a variable, so that every
statement has a form of text.py. Arithmetic is written as evaluate computes it: in float64, rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import assert_never

from automap.export.families import numbered
from automap.export.names import MAX_VARIABLE, unique, variable
from automap.export.needs import Needs
from automap.export.spelling import (
    EXACT_EVERYWHERE,
    check_cast,
    converted,
    filled,
    filled_like,
    number_text,
    permute_text,
    range_items,
    sizes_text,
    slice_text,
    tuple_text,
)
from automap.export.text import WIDTH, Chain, Code, Each, Group, Lookup, Operation, assignment, flat
from automap.plan.dtypes import dtype_of, voting_args
from automap.plan.expr import (
    Add,
    Affine,
    Arithmetic,
    Binary,
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
    Move,
    Multiply,
    Norm,
    Pad,
    Permute,
    Pointwise,
    Reshape,
    Slice,
    Source,
    Sqrt,
    Subtract,
    Tril,
    args_of,
    sources_of,
)
from automap.plan.simplify import unstacked

MAX_LISTED = 48
_EXACT, _EXACT_COMPLEX = ".double()", ".to(torch.complex128)"
_SIGNS: dict[type[Expr], str] = {Add: "+", Subtract: "-", Multiply: "*", Divide: "/", MatMul: "@"}


class Writer:
    """Writes the statements of one block, indented by `indent`; `leaf` gives the code for the src tensor of a name.

    Where it `counts`, leaf also takes names with a variable for a number, `experts.{e}.weight`.
    """

    def __init__(
        self,
        needs: Needs,
        leaf: Callable[[str], Code],
        indent: int,
        *,
        taken: Iterable[str] = (),
        counts: bool = True,
    ) -> None:
        self.lines: list[str] = []
        self._needs = needs
        self._leaf = leaf
        self._indent = indent
        self._counts = counts
        self._taken = set(taken)
        self._bound: dict[str, str] = {}

    def assign(self, target: str | Lookup, code: Code, hint: str = "tensor") -> None:
        """Adds `target = code`, in two statements where one is too long."""
        lines = assignment(target, code, self._indent)
        if lines is None and isinstance(target, Lookup):
            lines = assignment(target, self.bind(code, hint), self._indent)
        elif lines is None and isinstance(code, Chain):
            lines = assignment(target, Chain(self.bind(code.base, hint), code.suffix), self._indent)
        self.lines += lines or [f"{' ' * self._indent}{flat(target)} = {flat(code)}"]

    def bind(self, code: Code, hint: str) -> str:
        """The variable that holds the value of `code`; a new one called `hint` if there is none."""
        if isinstance(code, str):
            return code
        text = flat(code)
        if text not in self._bound:
            name = self._bound[text] = self.fresh(hint)
            self.assign(name, code)
        return self._bound[text]

    def fresh(self, hint: str) -> str:
        """A variable that is not in use yet."""
        (name,) = unique([hint], self._taken)
        self._taken.add(name)
        return name

    def source(self, name: str) -> str:
        """The variable that holds the src tensor of that name."""
        return self.bind(self._leaf(name), variable(name))

    # values
    def value(self, expr: Expr) -> Code:
        """The code for an expression in its own dtype."""
        match expr:
            case Source(name):
                return self._leaf(name)
            case Fill(value, shape, dtype):
                code = filled(value, shape, f"torch.{dtype}")
                return self._chain(code.base, code.suffix, expr) if isinstance(code, Chain) else code
            case Cast(arg, dtype):
                return self._cast(arg, dtype)
            case Slice() | Concat() | Permute() | Reshape() | Gather() | Pad() | Expand():
                return self._moved(expr, self.value)
            case Affine() | Add() | Subtract() | Multiply() | Divide() | MatMul() | Sqrt() | Norm() | Mean():
                return self._chain(self._exact(expr), f".to({self._dtype(expr)})", expr)
            case Pointwise() | MatrixFunction() | Tril():
                return self._chain(self._exact(expr), f".to({self._dtype(expr)})", expr)
            case _:
                assert_never(expr)

    def _exact(self, expr: Expr) -> Code:
        """The code for the value in float64 or complex128."""
        match expr:
            case Source(name, _, dtype):
                return f"{self.source(name)}{_EXACT_COMPLEX if dtype.startswith('complex') else _EXACT}"
            case Fill(value, shape, dtype):
                return filled(converted(value, dtype), shape, "torch.float64")
            case Cast(arg, dtype):
                check_cast(arg, dtype)
                return self._exact(arg)
            case Slice() | Concat() | Permute() | Reshape() | Gather() | Pad() | Expand():
                return self._moved(expr, self._exact)
            case Affine() | Add() | Subtract() | Multiply() | Divide() | MatMul() | Sqrt() | Norm() | Mean():
                return self._computed(expr)
            case Pointwise() | MatrixFunction() | Tril():
                return self._computed(expr)
            case _:
                assert_never(expr)

    def _cast(self, arg: Expr, dtype: str) -> Code:
        self._needs.helpers.add("cast")
        return Group("cast(", (self.value(arg), f"torch.{dtype_of(arg)}", f"torch.{dtype}"), ")")

    def _moved(self, expr: Move, value: Callable[[Expr], Code]) -> Code:
        match expr:
            case Slice(arg):
                return self._chain(value(arg), slice_text(expr), arg)
            case Concat():
                return self._joined(expr, value)
            case Permute(arg, dims):
                return self._chain(value(arg), permute_text(dims), arg)
            case Reshape(arg, shape):
                return self._chain(value(arg), f".reshape({sizes_text(shape)})", arg)
            case Gather(arg, dim, indices):
                self._needs.helpers.add("take")
                return Group("take(", (value(arg), str(dim), self._rows(indices)), ")")
            case Pad(arg, before, after):
                pads = [size for pair in zip(before[::-1], after[::-1], strict=True) for size in pair]
                return Group("torch.nn.functional.pad(", (value(arg), tuple_text(pads)), ")")
            case Expand(arg, shape):
                return self._chain(value(arg), f".expand({sizes_text(shape)})", arg)
            case _:
                assert_never(expr)

    def _computed(self, expr: Arithmetic) -> Code:
        match expr:
            case Affine(arg, scale, shift):
                return self._scaled(arg, scale, shift)
            case Sqrt(arg):
                return f"{self._operand(arg)}.sqrt()"
            case Pointwise(arg, function) | MatrixFunction(arg, function):
                return f"{self._operand(arg)}.{function}()"
            case Tril(arg, diagonal):
                return f"{self._operand(arg)}.tril({diagonal or ''})"
            case Norm(arg, dims):
                items = (self._operand(arg), f"dim={tuple_text(dims)}", "keepdim=True")
                return Group("torch.linalg.vector_norm(", items, ")")
            case Mean(arg, dims):
                return f"{self._operand(arg)}.mean({tuple_text(dims)}, keepdim=True)"
            case Add() | Subtract() | Multiply() | Divide() | MatMul():
                left, right = (self._operand(arg, expr) for arg in args_of(expr))
                return Operation(f"{left} {_SIGNS[type(expr)]} {right}")
            case _:
                assert_never(expr)

    def _scaled(self, arg: Expr, scale: float, shift: float) -> Code:
        """A product and a sum with constants; factors of 1 and shifts of 0 are left out, as they would change -0.0."""
        if scale == 1 and shift == 0:
            return self._exact(arg)
        text = self._operand(arg)
        text = f"{text} * {number_text(scale)}" if scale != 1 else text
        return Operation(f"{text} + {number_text(shift)}" if shift != 0 else text)

    # pieces
    @property
    def _room(self) -> int:
        """The characters that code may have beside an ordinary target."""
        return WIDTH - self._indent - MAX_VARIABLE - 6

    def _chain(self, base: Code, suffix: str, arg: Expr) -> Code:
        if isinstance(base, Operation) and len(flat(base)) + len(suffix) + 2 <= self._room:
            return Chain(f"({flat(base)})", suffix)
        if isinstance(base, Operation) or len(flat(base)) + len(suffix) > self._room:
            base = self.bind(base, self._hint(arg))
        return Chain(base, suffix)

    def _operand(self, expr: Expr, joined: Binary | None = None) -> str:
        """What arithmetic is done on: in parentheses where it has to be, a variable where it is long."""
        code = self._argument(expr, joined, self._exact) if joined else self._exact(expr)
        if len(flat(code)) > self._room // 2 - 4:
            return self.bind(code, self._hint(expr))
        return f"({flat(code)})" if isinstance(code, Operation) else flat(code)

    def _hint(self, expr: Expr) -> str:
        sources = sources_of(expr)
        return variable(sources[0].name) if sources else "constant"

    def _joined(self, expr: Concat, value: Callable[[Expr], Code]) -> Code:
        """`torch.cat` or `torch.stack` of the arguments; numbered ones as a comprehension."""
        plain = [unstacked(arg, expr.dim) for arg in expr.args]
        is_stack = None not in plain
        args = [arg for arg in plain if arg is not None] if is_stack else list(expr.args)
        items = self._each(args) if value == self.value else None
        items = items or Group("[", tuple(self._item(arg, expr, value) for arg in args), "]")
        dim = (f"dim={expr.dim}",) if expr.dim else ()
        return Group("torch.stack(" if is_stack else "torch.cat(", (items, *dim), ")")

    def _each(self, args: Sequence[Expr]) -> Code | None:
        """A comprehension for numbered arguments, if their code is short enough to stand in one."""
        many = numbered(args) if len(args) > 2 and self._counts else None
        if many is None:
            return None
        inner = Writer(self._needs, self._leaf, self._indent)
        element = inner.value(many.template)
        if inner.lines or not (isinstance(element, Lookup) or len(flat(element)) <= self._room):
            return None
        return Each(element, f"for {many.variable} in range({many.count})")

    def _item(self, arg: Expr, joined: Concat, value: Callable[[Expr], Code]) -> Code:
        """An argument of a Concat; brackets in brackets are a variable of their own where they are long."""
        code = self._argument(arg, joined, value)
        return self.bind(code, self._hint(arg)) if isinstance(code, Group) and len(flat(code)) > self._room else code

    def _argument(self, arg: Expr, joined: Concat | Binary, value: Callable[[Expr], Code]) -> Code:
        """An argument of `joined`; a constant in the dtype and on the device of the weights that it joins."""
        sources = sources_of(joined)
        if not sources or sources_of(arg):
            return value(arg)
        like = self.source(sources[0].name)
        dtype = self._dtype(joined) if value == self.value else "torch.float64"
        if not isinstance(arg, Fill):
            return self._chain(value(arg), f".to({like}.device, {dtype})", arg)
        number = arg.value if value == self.value else converted(arg.value, arg.dtype)
        if value == self.value and number not in EXACT_EVERYWHERE:
            return self._chain(value(arg), f".to({like}.device, {dtype})", arg)
        return filled_like(like, number, arg.shape, dtype)

    def _dtype(self, expr: Expr) -> str:
        """The code for the dtype that an expression has with the weights at hand."""
        match expr:
            case Source(name):
                return f"{self.source(name)}.dtype"
            case Fill(_, _, dtype):
                return f"torch.{dtype}"
            case Cast(arg, dtype):
                self._needs.helpers.add("cast_dtype")
                items = (self._dtype(arg), f"torch.{dtype_of(arg)}", f"torch.{dtype}")
                return self.bind(Group("cast_dtype(", items, ")"), "dtype")
            case Concat() | Add() | Subtract() | Multiply() | Divide() | MatMul():
                return self._promoted([self._dtype(arg) for arg in voting_args(expr)])
            case _:
                return self._dtype(args_of(expr)[0])

    def _promoted(self, dtypes: Iterable[str]) -> str:
        first, *others = dict.fromkeys(dtypes)
        if not others:
            return first
        self._needs.helpers.add("promoted")
        return self.bind(Group("promoted(", (first, *others), ")"), "dtype")

    def _rows(self, indices: tuple[int, ...]) -> Code:
        """Row numbers as a list of ranges, or the name of a table where these are many."""
        items = tuple(range_items(indices))
        if len(items) <= MAX_LISTED:
            return Group("[", items, "]")
        return self._needs.table(indices)
