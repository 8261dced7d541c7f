from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automap.errors import PlanError
from automap.plan.products import Monomial, Products, product
from automap.plan.unknowns import Unknowns


def solved(*equations: tuple[list[int], list[int], int]) -> Products:
    products = Products()
    for left, right, value in equations:
        products.equate(product(left), product(right, value), "an equation")
    return products


def number(products: Products, *variables: int) -> Fraction | None:
    found = products.reduced(product(variables))
    return None if found.exponents else found.factor


def test_a_quotient_of_known_products_is_known_though_its_terms_are_not() -> None:
    queries, keys, groups, each, size = range(5)
    products = solved(
        ([queries], [groups, each, size], 1), ([keys], [groups, size], 1), ([queries], [], 64), ([keys], [], 16)
    )
    assert number(products, each) == 4
    assert number(products, groups, size) == 16
    assert number(products, groups) is None
    products.equate(product([size]), product([], 8), "size")
    assert number(products, groups) == 2


def test_powers_have_roots() -> None:
    assert number(solved(([0, 0], [], 49)), 0) == 7
    assert number(solved(([0, 0, 1, 1], [], 36), ([1], [], 2)), 0) == 3
    with pytest.raises(PlanError, match="an equation, so that a size to the 2 would be 50"):
        solved(([0, 0], [], 50))


def test_contradictions_are_refused_with_where_they_come_from() -> None:
    products = solved(([0, 1], [], 12), ([0], [], 3))
    with pytest.raises(PlanError, match="the plan does not fit: that, other than the other sizes tell"):
        products.equate(product([1]), product([], 5), "that")
    with pytest.raises(PlanError, match="so that a size would be 12/5"):
        solved(([0, 1], [], 12), ([0], [], 5))


@given(st.lists(st.integers(2, 9), min_size=4, max_size=4), st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_is_determined_is_right(values: list[int], data: st.DataObject) -> None:
    products, terms = Products(), st.lists(st.integers(0, 3), max_size=3)
    for _ in range(5):
        left, right = data.draw(terms), data.draw(terms)
        quotient = Monomial(Fraction(1), {}).factor
        for variable in left:
            quotient *= values[variable]
        for variable in right:
            quotient /= values[variable]
        products.equate(product(left), product(right, quotient), "true")
    for variable, value in enumerate(values):
        assert number(products, variable) in (None, value)
    for equation in products.open_equations():
        total = equation.factor
        for variable, exponent in equation.exponents.items():
            total *= Fraction(values[variable]) ** exponent
        assert total == 1


def test_pieces_add_up_though_what_all_have_in_common_is_unknown() -> None:
    unknowns = Unknowns()
    rows, groups, block = unknowns.new(50, "w"), unknowns.new(2, "w"), unknowns.new(25, "w")
    unknowns.equate(rows, (*groups, *block), "rows")
    pieces = [unknowns.piece(block, start, stop, "w") for start, stop in ((0, 15), (15, 20), (20, 25))]
    for piece, value in zip(pieces, (120, 24, 24), strict=True):
        unknowns.know((*groups, *piece), value, "dest")
    unknowns.finish_cuts()
    unknowns.solve()
    assert unknowns.value(rows) == 168
    assert unknowns.value(block) is None
    unknowns.fix({2: 8})
    assert [unknowns.needed(size) for size in (block, *pieces)] == [21, 15, 3, 3]
    assert sum(map(unknowns.needed, unknowns.before(block, 20))) == 18


def test_a_gap_is_what_the_pieces_leave() -> None:
    unknowns = Unknowns()
    rows = unknowns.new(12, "w")
    piece = unknowns.piece(rows, 4, 8, "w")
    unknowns.know(rows, 60, "rows")
    unknowns.know(piece, 20, "piece")
    unknowns.finish_cuts()
    unknowns.solve()
    with pytest.raises(PlanError, match="nothing tells what 4 in the plan is here"):
        unknowns.needed(unknowns.before(rows, 4)[0])


def test_a_size_of_one_is_one() -> None:
    unknowns = Unknowns()
    assert unknowns.new(1, "w") == ()
    with pytest.raises(PlanError, match="dim 0 of `w` is 4, other than"):
        unknowns.know((), 4, "dim 0 of `w` is 4")
