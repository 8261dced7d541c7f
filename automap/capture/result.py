"""The result of a capture: one torch.fx.Graph of ATen calls with named weights, constants and inputs as leaves."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

Method = Literal["dispatch", "export", "hooks"]
Mode = Literal["real", "fake"]


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter or persistent floating-point buffer: all its names (tied ones too), and the tensor itself.

    `names[0]` is the first name in registration order; `in_state` are those that the state dict knows.
    """

    names: tuple[str, ...]
    tensor: Tensor
    is_parameter: bool
    in_state: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name to show and to plan with: the first one that the state dict knows."""
        return self.in_state[0] if self.in_state else self.names[0]


@dataclass(frozen=True, slots=True)
class Capture:
    """One recorded forward.

    `graph` holds placeholders (inputs), get_attr nodes (weights and constants) and ATen calls. `weights` and
    `constants` are keyed by the get_attr node's name; `inputs` by the placeholder's name, with the value given.
    `outputs` pairs each path in the returned value with its node, and `results` has the values that came out there
    where the model's own forward was recorded over real ones. `is_data_dependent` tells that Python control flow read a
    value computed from the inputs, so that another run may take another path. `is_writing` tells that the forward may
    write to tensors of the model's.
    """

    graph: fx.Graph
    weights: Mapping[str, Weight]
    constants: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    outputs: tuple[tuple[str, fx.Node], ...]
    all_weights: tuple[Weight, ...]
    model_name: str
    method: Method = "dispatch"
    mode: Mode = "real"
    is_data_dependent: bool = False
    elapsed_s: float = 0.0
    notes: tuple[str, ...] = field(default=())
    results: Mapping[str, Tensor] = field(default_factory=dict)
    is_writing: bool = True

    @property
    def op_count(self) -> int:
        """How many ATen calls were recorded."""
        return sum(node.op == "call_function" for node in self.graph.nodes)


def weights_of(model: nn.Module) -> tuple[Weight, ...]:
    """Return every parameter and every persistent floating-point buffer of model once, with all its names.

    Tensors that lie on the same memory in the same shape are one weight, whether one object or several.
    """
    transient = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for name in getattr(module, "_non_persistent_buffers_set", ())
    }
    in_state = set(model.state_dict(keep_vars=True).keys())
    named: list[tuple[str, Tensor, bool]] = [
        (name, parameter, True) for name, parameter in model.named_parameters(remove_duplicate=False)
    ]
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in transient and buffer.is_floating_point() and buffer.layout == torch.strided:
            named.append((name, buffer, False))
    return group_weights(named, in_state)


def group_weights(named: Iterable[tuple[str, Tensor, bool]], in_state: Container[str]) -> tuple[Weight, ...]:
    """Return one Weight for each place in memory, from (name, tensor, whether it is a parameter)."""
    found: dict[object, tuple[list[str], Tensor, bool]] = {}
    for name, tensor, is_parameter in named:
        found.setdefault(_place(tensor), ([], tensor, is_parameter))[0].append(name)
    return tuple(
        Weight(tuple(names), tensor, is_parameter, tuple(name for name in names if name in in_state))
        for names, tensor, is_parameter in found.values()
    )


def _place(tensor: Tensor) -> object:
    """What is equal for two tensors that always hold the same values."""
    if tensor.layout != torch.strided:
        return id(tensor)
    return storage_key(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def storage_key(tensor: Tensor) -> int:
    """Return a number that tensors on the same storage share; tensors without a storage have one of their own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return -tensor._cdata


def node_site(node: fx.Node) -> dict[str, Any]:
    """Return the module path, file and line that ran node, as far as they were recorded."""
    return {key: node.meta[key] for key in ("module_path", "file", "line") if key in node.meta}
