"""What the tests of the canonical form share: a model made of one function, its flow graph, and the flow's values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models import randomized
from torch import Tensor, nn

from automap.align.draw import own_weights
from automap.align.run import Run
from automap.canonical import Flow, lower
from automap.canonical.flow import Role
from automap.capture import record
from automap.inputs import Inputs

LEAVES = {"input", "weight", "constant"}


class Formula(nn.Module):
    """`function(*inputs, **weights)` with weights of the given shapes."""

    def __init__(self, function: Callable[..., Any], shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.function = function
        self.held = nn.ParameterDict({name: torch.empty(shape) for name, shape in shapes.items()})

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, **dict(self.held.items()))


def formula(function: Callable[..., Any], dtype: torch.dtype = torch.float64, **shapes: tuple[int, ...]) -> nn.Module:
    return randomized(Formula(function, shapes)).to(dtype)


def flow_of(model: nn.Module, *inputs: Tensor, fixed: frozenset[str] = frozenset()) -> Flow:
    return lower(record(model, Inputs(inputs, {})), fixed)


def values_of(flow: Flow) -> list[Tensor]:
    """The flow's outputs, computed on the model's own weights."""
    run = Run(flow, own_weights(flow))
    for index in sorted(flow.ancestors([i for _, i in flow.outputs])):
        run.value(index)
    return [run.value(index) for _, index in flow.outputs]


def live_ops(flow: Flow) -> list[str]:
    """The names of the ops that reach an output, in order."""
    return [flow[i].op for i in sorted(flow.ancestors([i for _, i in flow.outputs])) if flow[i].op not in LEAVES]


def node(flow: Flow, op: str) -> int:
    """The number of the only live node with this op."""
    (found,) = [i for i in sorted(flow.ancestors([i for _, i in flow.outputs])) if flow[i].op == op]
    return found


def weight(flow: Flow, name: str) -> int:
    return next(i for i, w in flow.weights.items() if w.name == f"held.{name}")


def data_ops(flow: Flow) -> list[str]:
    """The live ops that compute with data, layout left out."""
    from automap.canonical.rules.layout import MOVES

    live = sorted(flow.ancestors([i for _, i in flow.outputs]))
    return [flow[i].op for i in live if flow[i].role is Role.ACTIVATION and flow[i].op not in LEAVES | MOVES]
