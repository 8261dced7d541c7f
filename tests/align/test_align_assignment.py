from __future__ import annotations

from functools import partial

import pytest
import torch
from models import noise, randomized
from torch import Tensor, nn
from torch.nn import functional as F

from automap.align.assignment import ONE, UNKNOWN, ZERO, Assignment, Claim
from automap.align.draw import own_weights
from automap.align.side import Side
from automap.align.table import Source
from automap.canonical import lower
from automap.canonical.flow import Role
from automap.capture import record
from automap.inputs import Inputs

X = noise(3, 4)


class Joined(nn.Module):
    """One bias made of two, the second one shorter than its place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.empty(2)), nn.Parameter(torch.empty(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cat((self.a, self.b))


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Scaled(Shift):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.softplus(self.bias)


def side(model: nn.Module, kind: type[Side] = Side) -> Side:
    flow = lower(record(randomized(model), Inputs((X,), {})))
    return kind(flow, own_weights(flow))


def added(one: Side) -> int:
    """The weight-side operand of the sum with data."""
    (found,) = [
        i for n in one.flow.nodes if n.role is Role.ACTIVATION for i in n.operands if one.flow[i].role is Role.WEIGHT
    ]
    return found


@pytest.fixture
def book() -> Assignment:
    """Dest adds two joined biases where src adds one."""
    return Assignment(side(Joined()), side(Shift(), Source))  # type: ignore[arg-type]


def claim(book: Assignment, dest: list[int], src: list[int]) -> Claim:
    return Claim(added(book.dest), torch.tensor(dest), added(book.src), torch.tensor(src))


def decided(book: Assignment) -> list[list[int]]:
    return [ids.tolist() for ids in book.ids.values()]


def test_nothing_is_known_at_first(book: Assignment) -> None:
    assert decided(book) == [[UNKNOWN] * 2] * 2
    assert not any(bool(known.any()) for known in book.known().values())


def test_a_claim_is_carried_to_the_stored_weights(book: Assignment) -> None:
    assert book.take(claim(book, [0, 1, 2, 3], [3, 2, 1, 0]), step=1)
    assert decided(book) == [[3, 2], [1, 0]]


def test_what_is_taken_is_computed_with(book: Assignment) -> None:
    book.take(claim(book, [0, 1, 2, 3], [3, 2, 1, 0]), step=1)
    assert torch.equal(book.dest.run.value(added(book.dest)), book.src.run.value(added(book.src)).flip(0))


def test_the_first_claim_on_an_element_stands(book: Assignment) -> None:
    assert book.take(claim(book, [0, 1], [0, 1]), step=1)
    assert not book.take(claim(book, [0, 1], [2, 3]), step=2)
    assert decided(book)[0] == [0, 1]


def test_undo_takes_back_one_step_only(book: Assignment) -> None:
    book.take(claim(book, [0, 1], [0, 1]), step=1)
    book.take(claim(book, [2, 3], [2, 3]), step=2)
    book.undo({2})
    assert decided(book) == [[0, 1], [UNKNOWN] * 2]
    assert not book.dest.run.is_resolved(added(book.dest))


def test_undo_then_take_is_take(book: Assignment) -> None:
    whole = partial(claim, book, [0, 1, 2, 3])
    book.take(whole([0, 1, 2, 3]), step=1)
    book.undo({1})
    book.take(whole([3, 2, 1, 0]), step=1)
    assert decided(book) == [[3, 2], [1, 0]]


@pytest.mark.parametrize(
    ("fill", "number", "value"), [pytest.param(0.0, ZERO, 0.0, id="zeros"), pytest.param(1.0, ONE, 1.0, id="ones")]
)
def test_a_constant_fills_in_for_src(book: Assignment, fill: float, number: int, value: float) -> None:
    places = torch.tensor([0, 1, 2, 3])
    book.take(Claim(added(book.dest), places, None, places, fill), step=1)
    assert decided(book) == [[number] * 2] * 2
    assert book.dest.run.value(added(book.dest)).tolist() == [value] * 4


@pytest.mark.parametrize(
    ("dest", "src", "is_accepted"),
    [
        pytest.param([0, 1], [0, 1], True, id="positive-what-is-known"),
        pytest.param([2, 3], [0, 1], True, id="positive-src-twice"),
        pytest.param([0, 1], [1, 0], False, id="negative-contradicts"),
        pytest.param([2, 2], [2, 3], False, id="negative-two-sources-for-one"),
        pytest.param([2, 2], [3, 3], True, id="near-miss-one-source-twice"),
    ],
)
def test_a_claim_is_accepted_unless_it_contradicts(
    book: Assignment, dest: list[int], src: list[int], is_accepted: bool
) -> None:
    book.take(claim(book, [0, 1], [0, 1]), step=1)
    assert book.accepts(claim(book, dest, src)) == is_accepted


def test_a_claim_goes_through_the_same_function_on_both_sides() -> None:
    book = Assignment(side(Scaled()), side(Scaled(), Source))  # type: ignore[arg-type]
    book.take(claim(book, [0, 1, 2, 3], [1, 0, 3, 2]), step=1)
    assert decided(book) == [[1, 0, 3, 2]]
