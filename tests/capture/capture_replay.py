"""A tiny interpreter of captured graphs, and models made of one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from automap.capture import Capture
from automap.capture.preserve import preserved
from automap.capture.structure import tensors_in
from automap.inputs import Inputs


class Calls(nn.Module):
    """A model whose forward is the function it is given, called with the model and its inputs."""

    def __init__(self, function: Callable[..., Any], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def replay(
    capture: Capture, inputs: Mapping[str, Tensor] | None = None, state: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """Return the outputs of a captured graph, on other inputs or with other weights if they are given."""
    env: dict[fx.Node, Any] = {}
    for node in capture.graph.nodes:
        if node.op == "placeholder":
            env[node] = (inputs or capture.inputs)[node.name].detach().clone()
        elif node.op == "get_attr" and node.name in capture.weights:
            weight = capture.weights[node.name]
            env[node] = (state[weight.name] if state else weight.tensor).detach().clone()
        elif node.op == "get_attr":
            env[node] = capture.constants[node.name].clone()
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return [env[node] for _, node in capture.outputs]


def run(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    """Return the tensors of model's output in eval mode."""
    with preserved(model):
        return [tensor.clone() for _, tensor in tensors_in(model(*args, **kwargs))]


def assert_replays(capture: Capture, model: nn.Module, *args: Tensor, rtol: float = 0.0) -> None:
    """Assert that capture computes what model does: on the same input, on another, and with other weights."""
    other = [torch.randn_like(a) if a.is_floating_point() else a.flip(-1) for a in args]
    for given in (args, other):
        names = dict(zip(capture.inputs, given, strict=True))
        _assert_equal(replay(capture, names), run(model, *[a.clone() for a in given]), rtol)
    changed = {name: torch.randn_like(t) if _is_drawn(t) else t for name, t in model.state_dict().items()}
    changed = {name: t.abs() + 0.1 if "running_var" in name else t for name, t in changed.items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(changed)
    names = dict(zip(capture.inputs, args, strict=True))
    expected = run(model, *[a.clone() for a in args])
    model.load_state_dict(before)
    _assert_equal(replay(capture, names, changed), expected, rtol)


def _assert_equal(found: list[Tensor], expected: list[Tensor], rtol: float) -> None:
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol)


def targets(capture: Capture) -> list[str]:
    """Return the names of the ops that a capture calls."""
    return [str(node.target) for node in capture.graph.nodes if node.op == "call_function"]


def inputs_of(*args: Any, **kwargs: Any) -> Inputs:
    """Return args and kwargs as Inputs."""
    return Inputs(args, kwargs)


def _is_drawn(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided
