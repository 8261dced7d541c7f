from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from canonical_models import flow_of
from models import noise
from torch import Tensor, nn

from automap.canonical.fixed import fixed_buffers
from automap.capture import Capture, record
from automap.inputs import Inputs

X = noise(3, 6)
TABLE = noise(3, seed=11).repeat(2)  # coordinates repeat


class Held(nn.Module):
    """A buffer, and what is done with it."""

    def __init__(self, buffer: Tensor, use: Callable[[Tensor, Tensor], Tensor], is_persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("table", buffer.clone(), persistent=is_persistent)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.table)


def recorded(
    buffer: Tensor, use: Callable[[Tensor, Tensor], Tensor] = torch.mul, is_persistent: bool = True
) -> Capture:
    return record(Held(buffer, use, is_persistent).eval(), Inputs((X,), {}))


ELSE = recorded(noise(6, seed=12))


@pytest.mark.parametrize(
    ("mine", "other", "is_fixed"),
    [
        pytest.param(recorded(TABLE), ELSE, False, id="negative-own-numbers"),
        pytest.param(recorded(TABLE), recorded(TABLE), True, id="the-same-table-on-both-sides"),
        pytest.param(recorded(TABLE), recorded(TABLE, is_persistent=False), True, id="a-constant-of-the-other-side"),
        pytest.param(recorded(TABLE), recorded(TABLE + 1e-3), False, id="near-miss-almost-the-same-table"),
        pytest.param(recorded(torch.zeros(6)), recorded(torch.zeros(6)), False, id="near-miss-all-alike"),
        pytest.param(recorded(torch.tensor([0.0, 1, 1, 0, 1, 0])), ELSE, True, id="zeros-and-ones"),
        pytest.param(recorded(torch.ones(6)), ELSE, False, id="near-miss-ones-only"),
        pytest.param(recorded(torch.zeros(6), torch.add), recorded(noise(1)), True, id="adds-nothing"),
        pytest.param(recorded(torch.zeros(6), torch.add), ELSE, False, id="near-miss-a-tensor-of-its-size"),
        pytest.param(recorded(torch.zeros(6), torch.sub), recorded(noise(1)), False, id="near-miss-a-mean-of-zeros"),
        pytest.param(recorded(TABLE, torch.add), recorded(noise(1)), False, id="near-miss-adds-numbers"),
        pytest.param(recorded(TABLE, lambda x, t: torch.where(t > 0, x, 0.0)), ELSE, True, id="only-compared"),
        pytest.param(
            recorded(TABLE, lambda x, t: torch.where(t[None] > 0, x, t)), ELSE, False, id="near-miss-compared-and-used"
        ),
    ],
)
def test_a_buffer_is_fixed_where_it_is_a_constant_of_the_architecture(
    mine: Capture, other: Capture, is_fixed: bool
) -> None:
    assert fixed_buffers(mine, other) == ({"table"} if is_fixed else set())


def test_a_parameter_is_never_fixed() -> None:
    def made() -> Capture:
        model = nn.Linear(6, 2, bias=False)
        with torch.no_grad():
            model.weight.copy_(noise(2, 6))
        return record(model, Inputs((X,), {}))

    assert fixed_buffers(made(), made()) == frozenset()


def test_a_fixed_buffer_is_a_constant_of_the_flow() -> None:
    model = Held(TABLE, torch.mul).eval()
    assert len(flow_of(model, X).weights) == 1
    flow = flow_of(model, X, fixed=frozenset({"table"}))
    assert not flow.weights
    assert any(torch.equal(value, TABLE) for value in flow.constants.values())
