"""The sizes of a plan as unknowns: products of variables, each with its size in the plan, and what relates them.

In: the relations that expressions bring in (products where dims are split, sums where tensors are cut or joined), and
the sizes that are known for another model. Out: the sizes of that model, wherever they follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TypeAlias

from automap.errors import PlanError
from automap.plan.products import Monomial, Products, product

Size: TypeAlias = tuple[int, ...]  # the product of variables; () is 1


@dataclass(frozen=True, slots=True)
class Sum:
    """`total` is the sum of `parts`."""

    total: Size
    parts: tuple[Size, ...]
    why: str


class Unknowns:
    """Variables and their relations."""

    def __init__(self) -> None:
        self.planned: list[int] = []
        self.places: list[str] = []
        self._products = Products()
        self._sums: list[Sum] = []
        self._halves: dict[tuple[int, int], tuple[Size, Size]] = {}
        self._cuts: dict[Size, dict[tuple[int, int], Size]] = {}
        self._marks: dict[Size, tuple[tuple[int, Size], ...]] = {}
        self._values: dict[Size, int] = {}  # what is once determined stays so

    def new(self, size: int, place: str) -> Size:
        """A variable that is `size` in the plan, in the tensor `place`; 1 is 1 in every model."""
        if size == 1:
            return ()
        self.planned.append(size)
        self.places.append(place)
        return (len(self.planned) - 1,)

    def in_plan(self, size: Size) -> int:
        """What `size` is in the plan."""
        return math.prod(self.planned[variable] for variable in size)

    def equate(self, left: Size, right: Size, why: str) -> None:
        """Makes two products equal."""
        if left != right:
            self._products.equate(product(left), product(right), why)

    def know(self, size: Size, value: int, why: str) -> None:
        """Makes a product known.

        Raises:
            PlanError: the other sizes say something else.
        """
        self._products.equate(product(size), product((), value), why)

    def add_up(self, total: Size, parts: Iterable[Size], why: str) -> None:
        """Makes one product the sum of others."""
        self._sums.append(Sum(total, tuple(parts), why))

    def halves(self, variable: int, outer: int) -> tuple[Size, Size]:
        """A variable as the product of an outer one, which is `outer` in the plan, and an inner one."""
        key = variable, outer
        if key not in self._halves:
            place = self.places[variable]
            found = self.new(outer, place), self.new(self.planned[variable] // outer, place)
            self.equate((variable,), (*found[0], *found[1]), f"sizes in `{place}`")
            self._halves[key] = found
        return self._halves[key]

    def grouped(self, sizes: Iterable[Size], shape: Iterable[int]) -> tuple[Size, ...] | None:
        """Dims of `sizes` in row-major order, in the dims of another shape; None without common factors."""
        queue = [variable for size in sizes for variable in size][::-1]
        dims: list[Size] = []
        for size in shape:
            dim: Size = ()
            while size > 1 and queue:
                variable = queue.pop()
                if self.planned[variable] > size and self.planned[variable] % size == 0:
                    (variable,), rest = self.halves(variable, size)
                    queue += rest
                if size % self.planned[variable]:
                    return None
                dim += (variable,)
                size //= self.planned[variable]
            dims.append(dim)
        return tuple(dims)

    def piece(self, size: Size, start: int, stop: int, place: str) -> Size:
        """The length of the piece of a dim that is `start:stop` in the plan; equal ones are one variable."""
        pieces = self._cuts.setdefault(size, {})
        if (start, stop) not in pieces:
            pieces[start, stop] = self.new(stop - start, place)
        return pieces[start, stop]

    def finish_cuts(self) -> None:
        """Relates all pieces of each dim: the intervals between cuts add up to them, and to the dim."""
        for size, pieces in self._cuts.items():
            marks = sorted({0, self.in_plan(size), *(mark for piece in pieces for mark in piece)})
            lengths = [
                pieces.get((start, stop)) or self.new(stop - start, self._place(size))
                for start, stop in pairwise(marks)
            ]
            self._marks[size] = tuple(zip(marks, lengths, strict=False))
            self.add_up(size, lengths, f"the pieces of `{self._place(size)}`")
            for (start, stop), piece in pieces.items():
                inside = [length for mark, length in self._marks[size] if start <= mark < stop]
                if inside != [piece]:
                    self.add_up(piece, inside, f"the pieces of `{self._place(size)}`")

    def _place(self, size: Size) -> str:
        return self.places[size[0]] if size else ""

    def before(self, size: Size, mark: int) -> tuple[Size, ...]:
        """The lengths that add up to what is before a cut, which is at `mark` in the plan."""
        return tuple(length for start, length in self._marks.get(size, ()) if start < mark)

    def _reduced(self, size: Size) -> Monomial:
        return self._products.reduced(product(size))

    def value(self, size: Size) -> int | None:
        """What `size` is in the other model, if it is determined.

        Raises:
            PlanError: it would be no integer.
        """
        if size in self._values:
            return self._values[size]
        found = self._reduced(size)
        if found.exponents:
            return None
        if found.factor.denominator != 1:
            raise PlanError(
                f"the plan does not fit: {self.in_plan(size)} of `{self._place(size)}` would be {found.factor}"
            )
        self._values[size] = int(found.factor)
        return self._values[size]

    def solve(self) -> None:
        """Determines all that sums with one unknown tell.

        Raises:
            PlanError: sizes contradict each other.
        """
        while any(self._solve_sum(one) for one in self._sums):
            pass

    def _solve_sum(self, one: Sum) -> bool:
        """Whether a sum told something new: where all terms but one kind have the same unknown factors."""
        total, parts = self._reduced(one.total), [self._reduced(part) for part in one.parts]
        for like in (total, *parts):
            others = [part for part in parts if part.exponents != like.exponents]
            rest = sum(part.factor for part in parts if part not in others)
            if not others and total.exponents != like.exponents:
                return self._learn(total, Monomial(Fraction(rest), like.exponents), one.why)
            if not others and total.factor != rest:
                raise PlanError(f"the plan does not fit: {one.why} add up to {rest}, not {total.factor}")
            if others and total.exponents == like.exponents and all(part == others[0] for part in others):
                left = (total.factor - rest) / len(others)
                return self._learn(others[0], Monomial(left, like.exponents), one.why)
        return False

    def _learn(self, left: Monomial, right: Monomial, why: str) -> bool:
        if right.factor <= 0:
            raise PlanError(f"the plan does not fit: {why} leave nothing for one of them")
        self._products.equate(left, right, why)
        return self._products.reduced(left) != left

    def fix(self, sizes: Mapping[int, int]) -> None:
        """Gives variables that are open the value that `sizes` has for their size in the plan.

        Raises:
            PlanError: sizes contradict each other.
        """
        for variable in self._open():
            size = self.planned[variable]
            if size in sizes:
                self.know((variable,), sizes[size], f"{size} in `{self.places[variable]}` is {sizes[size]} here")
        self.solve()

    def keep(self, *, is_same_model: bool) -> None:
        """Gives variables that are open their size in the plan, where that fits all they are related to.

        In a model with other sizes, only those that are factors or parts of something known.
        """
        anchored = self._anchored()
        for block in self._blocks():
            if self._fits(block) and (is_same_model or block <= anchored):
                for variable in block:
                    self.know((variable,), self.planned[variable], f"sizes in `{self.places[variable]}`")

    def _fits(self, block: set[int]) -> bool:
        """Whether variables may have their size in the plan."""
        relations = [one for one in self._products.open_equations() if block & one.exponents.keys()]
        sums = [([self._reduced(part) for part in one.parts], self._reduced(one.total)) for one in self._sums]
        touched = [
            (parts, total) for parts, total in sums if any(block & one.exponents.keys() for one in (*parts, total))
        ]
        fits = all(sum(map(self._kept, parts)) == self._kept(total) for parts, total in touched)
        return fits and all(self._kept(one) == 1 for one in relations)

    def _anchored(self) -> set[int]:
        """The open variables that are factors of a known product, or of parts of a known sum."""
        products = [set(one.exponents) for one in self._products.open_equations() if _is_total(one)]
        sums = [
            set(self._reduced(part).exponents)
            for one in self._sums
            if self.value(one.total) is not None
            for part in one.parts
        ]
        return set().union(*products, *sums)

    def _open(self) -> list[int]:
        return [variable for variable in range(len(self.planned)) if self._reduced((variable,)).exponents]

    def _kept(self, one: Monomial) -> Fraction:
        """The value of a monomial where open variables have their size in the plan."""
        value = one.factor
        for variable, exponent in one.exponents.items():
            value *= Fraction(self.planned[variable]) ** exponent
        return value

    def _blocks(self) -> list[set[int]]:
        """The open variables, those together that are related."""
        blocks = [{variable} for variable in self._open()]
        related = [set(one.exponents) for one in self._products.open_equations()]
        for one in self._sums:
            related.append({v for size in (one.total, *one.parts) for v in self._reduced(size).exponents})
        for group in related:
            joined = group.union(*(block for block in blocks if block & group))
            blocks = [block for block in blocks if not block & group] + ([joined] if joined else [])
        return blocks

    def needed(self, size: Size) -> int:
        """The value of a size.

        Raises:
            PlanError: it is not determined; the message has the readings.
        """
        value = self.value(size)
        if value is None:
            raise self._refusal(size)
        return value

    def _refusal(self, size: Size) -> PlanError:
        open_here = self._reduced(size).exponents.keys()
        place = self._place(size)
        for one in self._products.open_equations():
            if open_here & one.exponents.keys() and _is_total(one):
                return self._choice(one, place)
        known = self.in_plan(size)
        return PlanError(f"`{place}`: nothing tells what {known} in the plan is here", help="give src_shapes, or dims")

    def _choice(self, one: Monomial, place: str) -> PlanError:
        """What to say of several factors whose product is known."""
        exponent = next(iter(one.exponents.values()))
        total = one.factor ** (-1 if exponent > 0 else 1)
        factors = [self.planned[v] for v in sorted(one.exponents) for _ in range(abs(one.exponents[v]))]
        readings = []
        for index, factor in enumerate(factors):
            other = total * factor / math.prod(factors)
            if other.denominator == 1:
                readings.append(" x ".join(map(str, (*factors[:index], other, *factors[index + 1 :]))))
        planned = " x ".join(map(str, factors))
        choices = " or ".join(dict.fromkeys([*readings, "others"] if len(readings) < 2 else readings))
        keys = ", ".join(f"{factor}: ..." for factor in dict.fromkeys(factors))
        return PlanError(
            f"`{place}`: {planned} in the plan is {total} here, which may be {choices}",
            help=f"say what it is with some of dims={{{keys}}}, or start from a plan for other sizes",
        )


def _is_total(one: Monomial) -> bool:
    """Whether the equation `one == 1` says what the product of its variables is."""
    return len({exponent > 0 for exponent in one.exponents.values()}) == 1
