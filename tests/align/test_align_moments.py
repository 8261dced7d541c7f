from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import noise
from torch import Tensor

from automap.align.moments import EXACT, bijection, injection, moments

SEEDS = st.integers(0, 10_000)


def table(rows: int, seed: int = 0) -> Tensor:
    """Moments of as many random groups of numbers."""
    return moments(noise(rows, 40, seed=seed).double(), (1,))


def shuffled(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


@given(seed=SEEDS, size=st.integers(1, 30))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_permutation_of_rows_is_found(seed: int, size: int) -> None:
    mine, order = table(size, seed), shuffled(size, seed)
    found = bijection(mine[order], mine)
    assert found is not None
    assert torch.equal(found[0], order)
    assert found[1] <= EXACT


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_the_order_within_a_group_does_not_matter(seed: int) -> None:
    x = noise(6, 40, seed=seed).double()
    assert bijection(moments(x[:, shuffled(40, seed)], (1,)), moments(x, (1,))) is not None


@given(seed=SEEDS, extra=st.integers(1, 50))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_padding_with_zeros_or_masked_numbers_changes_nothing(seed: int, extra: int) -> None:
    x = noise(6, 40, seed=seed).double()
    for filling in (0.0, -torch.inf, -1e30):
        padded = torch.cat([x, torch.full((6, extra), filling).double()], 1)
        torch.testing.assert_close(moments(padded, (1,)), moments(x, (1,)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "is_found"),
    [
        pytest.param(1e-14, True, id="rounding"),
        pytest.param(1e-6, False, id="near-miss"),
        pytest.param(1.0, False, id="other"),
    ],
)
def test_noise_up_to_rounding_is_taken_for_the_same(scale: float, is_found: bool) -> None:
    mine = table(12)
    other = mine * (1 + scale * noise(12, 3, seed=3).double())
    assert (bijection(mine, other) is not None) == is_found


def test_equal_rows_keep_their_own_order() -> None:
    mine = table(8)
    mine[[2, 5, 6]] = 0.0
    found = bijection(mine, mine.clone())
    assert found is not None
    assert found[0].tolist() == list(range(8))


def test_equal_rows_do_not_keep_the_others_from_being_found() -> None:
    mine, order = table(9), shuffled(9, 4)
    mine[[2, 5]] = 0.0
    found = bijection(mine[order], mine)
    assert found is not None
    torch.testing.assert_close(mine[found[0]], mine[order])
    assert sorted(found[0].tolist()) == list(range(9))


def test_rows_of_another_number_are_no_bijection() -> None:
    assert bijection(table(4), table(5)) is None


def test_one_row_that_differs_is_no_bijection() -> None:
    other = table(8)
    other[3] = table(1, seed=9)
    assert bijection(table(8), other) is None


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_an_injection_finds_each_row_and_leaves_strangers_out(seed: int) -> None:
    whole = table(20, seed)
    chosen = shuffled(20, seed)[:7]
    found = injection(torch.cat([whole[chosen], table(2, seed + 1) + 5]), whole)
    assert found.tolist() == [*chosen.tolist(), -1, -1]
