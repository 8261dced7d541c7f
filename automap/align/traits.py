"""What a node computes apart from which weights and in which shapes: the parts of the keys that ops are compared by."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from automap.canonical.flow import Flow, Node, Ref, Role
from automap.canonical.rules.layout import MOVES

#: ops that leave all elements in their order
_RESHAPING = {"reshape", "squeeze", "unsqueeze"}
#: ops that do the same to every row, whatever the leading dims
_ROW_BY_ROW = {"layer_norm", "rms_norm"}
#: ops that compute each element of the result from the elements at the same place
ELEMENTWISE = {
    "abs", "add", "clamp", "cos", "div", "elu", "erf", "exp", "expm1", "gelu", "hardsigmoid", "hardswish", "hardtanh",
    "leaky_relu", "log", "log1p", "maximum", "minimum", "mish", "mul", "neg", "pow", "reciprocal", "relu", "relu6",
    "rsqrt", "sigmoid", "silu", "sin", "softplus", "sqrt", "square", "sub", "tanh",
}  # fmt: skip
#: ops whose result has elements of their operands in an order that shapes alone decide
_MOVING = MOVES - {"as_strided", "as_strided_scatter", "constant_pad_nd", "part", "copy"}


class Unlike(Exception):
    """A value that has no counterpart, or an argument that cannot be compared."""


def is_reshaped(node: Node) -> bool:
    """Whether data or a weight goes on in another shape, all of it in the same order."""
    return node.role is not Role.CONSTANT and node.op in _RESHAPING


def is_moving(flow: Flow, node: Node) -> bool:
    """Whether an op lays out data, and nothing but data, in an order that no number decides."""
    others = [flow[i] for i in node.operands if flow[i].role is not Role.ACTIVATION]
    is_plain = all(n.role is Role.CONSTANT and n.op == "constant" and _is_count(flow, n.index) for n in others)
    return node.role is Role.ACTIVATION and node.op in _MOVING and is_plain


def _is_count(flow: Flow, index: int) -> bool:
    return index in flow.constants and flow.constants[index].dtype in (torch.int32, torch.int64)


def data_of(flow: Flow, node: Node) -> list[int]:
    """Return the operands of a node that are data."""
    return [i for i in node.operands if flow[i].role is Role.ACTIVATION]


def trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the dims of size one in front."""
    return shape[next((dim for dim, size in enumerate(shape) if size != 1), len(shape)) :]


def is_shapeless(flow: Flow, node: Node, data: list[tuple[int, ...]]) -> bool:
    """Whether an op does the same to its data in whatever shape they come, given that the elements are in order."""
    if node.op in _ROW_BY_ROW:
        return True
    if node.op == "matmul":
        return len(data) == 1 and len(data[0]) > 1 and len(flow[node.operands[1]].shape) == 2
    if node.op not in ELEMENTWISE or any(shape != node.shape for shape in data):
        return False
    others = [flow[i].shape for i in node.operands if flow[i].role is not Role.ACTIVATION]
    return all(len(shape) < 2 and shape in ((), (1,), node.shape[-1:]) for shape in others)


def channels_of(flow: Flow, node: Node) -> tuple[int, Tensor, Tensor] | None:
    """Return a product or convolution without groups with its output channels, in order on both sides."""
    if node.op not in ("matmul", "convolution") or len(node.shape) < 2:
        return None
    is_convolution = node.op == "convolution"
    if node.args[8] != 1 if is_convolution else any(len(flow[i].shape) != 2 for i in _weights_of(flow, node)):
        return None
    is_first = not is_convolution and flow[node.operands[0]].role is Role.WEIGHT
    order = torch.arange(node.shape[1 if is_convolution else -2 if is_first else -1])
    return node.index, order, order


def _weights_of(flow: Flow, node: Node) -> list[int]:
    return [i for i in node.operands if flow[i].role is Role.WEIGHT]


def leaves_behind(flow: Flow, node: Node) -> list[int]:
    """Return the stored weights that a node computes with, in the order of its arguments, as often as it does."""
    found: list[int] = []
    stack = _weights_of(flow, node)[::-1]
    while stack:
        index = stack.pop()
        if flow[index].op == "weight":
            found.append(index)
        else:
            stack.extend(reversed(_weights_of(flow, flow[index])))
    return found


def frozen(value: Any, operand: Callable[[int], Hashable]) -> Any:
    """Return nested arguments as something that can be hashed, every Ref as what operand gives for it."""
    kind = type(value)
    if kind is Ref:
        return ("ref", operand(value.index))
    if kind is int or kind is float or value is None:
        return value
    if isinstance(value, (tuple, list)):
        return tuple([frozen(item, operand) for item in value])
    if isinstance(value, Mapping):
        return tuple([(name, frozen(item, operand)) for name, item in value.items()])
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    if isinstance(value, Tensor):
        return content_of(value)
    return value


def content_of(value: Any) -> Hashable:
    """Return what tells a constant from others: its numbers."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, Hashable) else id(value)
    flat = value.detach().reshape(-1)
    if flat.is_complex() or flat.layout != torch.strided:
        raise Unlike
    return ("constant", tuple(value.shape), str(value.dtype), hash(flat.contiguous().numpy().tobytes()))
