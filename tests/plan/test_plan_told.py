"""Architectures of symbolic sizes, written down for a twin and its sibling: what is told from the twin is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_strategies import random_state, rows, same

from automap.errors import PlanError
from automap.plan import (
    Affine,
    Concat,
    Divide,
    Expand,
    Expr,
    Fill,
    MatMul,
    Norm,
    Pad,
    Permute,
    Plan,
    Reshape,
    Source,
    simplify,
)
from automap.plan.template import rename_sources


@dataclass(frozen=True)
class Symbol:
    """A size in the twin and in its sibling."""

    small: int
    large: int


Dim = tuple[Symbol, ...]


@st.composite
def architectures(
    draw: st.DrawFn, symbols: tuple[Symbol, ...], most: int = 3
) -> tuple[dict[str, Expr], dict[str, Expr]]:
    """The entries of one block for twin and sibling, both written directly: cuts of one fused tensor, re-laid-out."""
    names = st.sampled_from(symbols)
    monomials = st.lists(names, min_size=1, max_size=2).map(tuple)
    outer, parts, inner = draw(monomials), draw(st.lists(monomials, min_size=1, max_size=most)), draw(monomials)
    is_interleaved = draw(st.booleans())
    models: tuple[dict[str, Expr], dict[str, Expr]] = ({}, {})
    starts = [0, 0]
    for place, part in enumerate(parts):
        chain = draw(chains((*outer, *part, *inner) if is_interleaved else (*part, *inner)))
        for which, entries in enumerate(models):

            def size(dim: Dim, which: int = which) -> int:
                return math.prod((symbol.small, symbol.large)[which] for symbol in dim)

            total = sum(map(size, parts))
            fused: Expr = Source("fused", (size(outer) * total if is_interleaved else total, size(inner)))
            if is_interleaved:
                fused = Permute(Reshape(fused, (size(outer), total, size(inner))), (1, 0, 2))
            piece = rows(fused, starts[which], starts[which] + size(part))
            starts[which] += size(part)
            piece = Permute(piece, (1, 0, 2)) if is_interleaved else piece
            entries[f"part{'abc'[place]}"] = simplify(chain(piece, size))
    return models


@st.composite
def chains(draw: st.DrawFn, atoms: tuple[Symbol, ...]) -> Callable[[Expr, Callable[[Dim], int]], Expr]:
    """Splits a tensor into atoms, permutes and groups them anew; then perhaps more."""
    order = draw(st.permutations(range(len(atoms))))
    cuts = sorted(draw(st.sets(st.integers(1, len(atoms) - 1)))) if len(atoms) > 1 else []
    groups = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(atoms)], strict=True)]
    more = draw(st.sampled_from(["", "affine", "pad", "expand", "norm", "fill", "self"]))

    def chain(arg: Expr, size: Callable[[Dim], int]) -> Expr:
        split = Reshape(arg, tuple(size((atom,)) for atom in atoms))
        shape = tuple(size(tuple(atoms[atom] for atom in group)) for group in groups)
        expr: Expr = Reshape(Permute(split, tuple(order)), shape)
        match more:
            case "affine":
                return Affine(expr, 3.1, 1.0)
            case "pad":
                return Pad(expr, (1,) * len(shape), (0,) * len(shape))
            case "expand":
                return Reshape(
                    Expand(Reshape(expr, (1, *shape)), (size((atoms[0],)), *shape)),
                    (size((atoms[0],)) * shape[0], *shape[1:]),
                )
            case "norm":
                return Divide(expr, Norm(expr, (0,)))
            case "fill":
                return Concat((Fill(0.0, shape), expr), 0)
            case "self":
                return MatMul(expr, Permute(expr, tuple(reversed(range(len(shape)))))) if len(shape) == 2 else expr
            case _:
                return expr

    return chain


def block_plan(entries: Mapping[str, Expr], depth: int) -> Plan:
    def renamed(expr: Expr, block: int) -> Expr:
        return rename_sources(expr, lambda name: f"h.{block}.{name}")

    return Plan({f"blocks.{n}.{name}": renamed(expr, n) for n in range(depth) for name, expr in entries.items()})


def check_told(twin: Plan, large: Plan, with_src: bool, dims: dict[int, int] | None) -> bool:
    """Whether the plan is told; if so, it is the right one."""
    try:
        made = twin.for_model(large.dest_shapes, large.src_shapes if with_src else None, dims=dims)
    except PlanError:
        return False
    if made.src_shapes != large.src_shapes:  # nothing shows that src is another one, until the plan is applied
        assert not with_src
        assert all(
            shape == twin.dest_shapes[name] for name, shape in large.dest_shapes.items() if name in twin.dest_shapes
        )
        return True
    state = random_state(large.sources)
    assert all(same(value, made.apply(state)[name]) for name, value in large.apply(state).items())
    return True


PRIMES = (2, 3, 5, 7, 11)


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_what_is_told_from_shapes_is_right_or_refused(data: st.DataObject) -> None:
    smalls = data.draw(st.lists(st.integers(2, 4), min_size=3, max_size=3))
    symbols = tuple(Symbol(small, small + data.draw(st.integers(0, 3))) for small in smalls)
    twin, large = data.draw(architectures(symbols))
    check_told(block_plan(twin, 2), block_plan(large, 3), data.draw(st.booleans()), None)


@pytest.mark.parametrize("most", [1, 3])
@given(st.data())
@settings(max_examples=120, deadline=None)
def test_a_twin_of_distinct_primes_with_all_factors_given_tells_everything(most: int, data: st.DataObject) -> None:
    smalls = data.draw(st.permutations(PRIMES[1:]))[:3]
    symbols = tuple(Symbol(small, small + data.draw(st.integers(0, 3))) for small in smalls)
    twin, large = data.draw(architectures(symbols, most))
    products = [group for count in (1, 2, 3, 4) for group in combinations_with_replacement(symbols, count)]
    dims = {math.prod(s.small for s in group): math.prod(s.large for s in group) for group in products}
    is_told = check_told(block_plan(twin, 2), block_plan(large, 3), True, dims)
    assert is_told or most > 1  # a sum of parts may be equal to another product by chance
