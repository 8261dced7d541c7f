"""Products of unknown positive integers, some of them known: what follows for the others.

In: equations `a * b = 4096`, `a * b = c * d`. Out: the value of any product that they determine. Gauss' elimination on
the exponents, exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from automap.errors import PlanError


@dataclass(frozen=True, slots=True)
class Monomial:
    """`factor` times the product of `variable ** exponent`, no exponent 0."""

    factor: Fraction
    exponents: Mapping[int, int]

    def power(self, exponent: int) -> Monomial:
        """The monomial to an exponent that is not 0."""
        return Monomial(self.factor**exponent, {v: e * exponent for v, e in self.exponents.items()})

    def without(self, variable: int) -> Monomial:
        """The monomial divided by all there is of one variable."""
        return Monomial(self.factor, {v: e for v, e in self.exponents.items() if v != variable})

    def times(self, other: Monomial) -> Monomial:
        """The product of both."""
        exponents = Counter(self.exponents)
        exponents.update(other.exponents)
        return Monomial(self.factor * other.factor, {v: e for v, e in exponents.items() if e})


def product(variables: Iterable[int], factor: Fraction | int = 1) -> Monomial:
    """The product of `variables` and a factor."""
    return Monomial(Fraction(factor), dict(Counter(variables)))


class Products:
    """A growing set of equations, each solved for one variable that occurs in no other."""

    def __init__(self) -> None:
        self._solved: dict[int, Monomial] = {}
        self._waiting: list[tuple[Monomial, str]] = []

    def equate(self, left: Monomial, right: Monomial, why: str) -> None:
        """Adds the equation `left == right`.

        Raises:
            PlanError: it contradicts the others; `why` says where it comes from.
        """
        waiting, self._waiting = self._waiting, []
        for one, reason in [(left.times(right.power(-1)), why), *waiting]:
            self._add(one, reason)

    def _add(self, one: Monomial, why: str) -> None:
        """Adds the equation `one == 1`."""
        one = _rooted(self.reduced(one), why)
        if not one.exponents:
            if one.factor != 1:
                raise PlanError(f"the plan does not fit: {why}, other than the other sizes tell")
            return
        pivot = next((variable for variable, exponent in one.exponents.items() if abs(exponent) == 1), None)
        if pivot is None:
            self._waiting.append((one, why))
            return
        self._solved[pivot] = one.without(pivot).power(-one.exponents[pivot])
        for variable, value in self._solved.items():
            if pivot in value.exponents:
                self._solved[variable] = self.reduced(value)

    def reduced(self, monomial: Monomial) -> Monomial:
        """The monomial in terms of variables that are not solved for; without any, its `factor` is its value."""
        for variable, exponent in monomial.exponents.items():
            if variable in self._solved:
                monomial = monomial.without(variable).times(self._solved[variable].power(exponent))
        return monomial

    def open_equations(self) -> Iterator[Monomial]:
        """Every equation `monomial == 1` with more than one variable that is not determined."""
        for variable, value in self._solved.items():
            if value.exponents:
                yield value.times(Monomial(Fraction(1), {variable: -1}))
        for one, _ in self._waiting:
            yield one


def _rooted(one: Monomial, why: str) -> Monomial:
    """`variable ** 2 / 16 == 1` as `variable / 4 == 1`."""
    if len(one.exponents) != 1:
        return one
    ((variable, exponent),) = one.exponents.items()
    value = one.factor ** (-1 if exponent > 0 else 1)
    root = Fraction(round(float(value) ** (1 / abs(exponent))))
    if root < 1 or root ** abs(exponent) != value:
        power = "" if abs(exponent) == 1 else f" to the {abs(exponent)}"
        raise PlanError(f"the plan does not fit: {why}, so that a size{power} would be {value}")
    return Monomial(1 / root, {variable: 1})
