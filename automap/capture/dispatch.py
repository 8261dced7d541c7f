"""Records one forward below all Python spellings: every ATen call, with weights recognised by identity.

Comes in: a model and its inputs. Goes out: a Capture whose graph is functional, in-place ops rewritten as new values for
every alias of the storage they wrote.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from automap.capture.capture import Capture, Weight, weights_of
from automap.capture.preserve import preserved
from automap.capture.structure import describe, tensors_in
from automap.errors import CaptureError
from automap.inputs import Inputs

aten = torch.ops.aten
_LIBRARY = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_READS_VALUE = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default}
_INDEX, _INDEX_LIMIT = (torch.int64, torch.int32), 100_000  # numbers that may choose rows are kept with their node
_RANDOM = {"rand", "randn", "randint", "bernoulli", "normal", "uniform", "randperm", "multinomial", "exponential"}


@dataclass(slots=True)
class _Storage:
    """What is known of one storage: its flat content once written in place, and how often it was written."""

    keep: Tensor
    flat: fx.Node | None = None
    version: int = 0


@dataclass(slots=True)
class _Known:
    """A tensor seen so far: the node that holds its value as of `version` of its storage."""

    tensor: Tensor
    node: fx.Node
    version: int


@dataclass(slots=True)
class _Tape:
    """The graph under construction and the books kept on tensors and storages."""

    graph: fx.Graph
    weights: dict[int, Weight]
    known: dict[int, _Known] = field(default_factory=dict)
    storages: dict[int, _Storage] = field(default_factory=dict)
    used: dict[str, Weight] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    is_data_dependent: bool = False


def _storage_key(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return -id(tensor)


def _storage(tape: _Tape, tensor: Tensor) -> _Storage:
    return tape.storages.setdefault(_storage_key(tensor), _Storage(keep=tensor))


def _annotate(node: fx.Node, tape: _Tape, value: Any) -> None:
    if isinstance(value, Tensor):
        node.meta["shape"], node.meta["dtype"] = tuple(value.shape), value.dtype
        if value.dtype in _INDEX and 2 <= value.numel() <= _INDEX_LIMIT:
            node.meta["value"] = value.detach().clone()
    node.meta["module_path"] = tape.path[-1] if tape.path else ""


def _user_line() -> tuple[str, int]:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARY):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _remember(tape: _Tape, tensor: Tensor, node: fx.Node) -> fx.Node:
    tape.known[id(tensor)] = _Known(tensor, node, _storage(tape, tensor).version)
    return node


def _leaf(tape: _Tape, tensor: Tensor) -> fx.Node:
    """A node for a tensor never seen as a result: a weight, another view of a known storage, or a constant."""
    weight = tape.weights.get(id(tensor))
    if weight is None:
        relative = _weight_sharing(tape, tensor)
        if relative is not None:
            return _view_of(tape, relative, _node(tape, relative.tensor), tensor)
    name = f"weight_{len(tape.used)}" if weight else f"constant_{len(tape.constants)}"
    node = tape.graph.create_node("get_attr", name, name=name)
    _annotate(node, tape, tensor)
    if weight is not None:
        tape.used[node.name] = weight
    else:
        tape.constants[node.name] = tensor.detach().clone()
    return _remember(tape, tensor, node)


def _weight_sharing(tape: _Tape, tensor: Tensor) -> Weight | None:
    """The weight whose storage tensor looks into without being it (`.data`, `detach` behind the recorder's back)."""
    if tensor.layout != torch.strided:
        return None
    key = _storage_key(tensor)
    return next(
        (w for w in tape.weights.values() if w.tensor.layout == torch.strided and _storage_key(w.tensor) == key), None
    )


def _view_of(tape: _Tape, weight: Weight, base: fx.Node, tensor: Tensor) -> fx.Node:
    if tuple(tensor.shape) == tuple(weight.tensor.shape) and tensor.stride() == weight.tensor.stride():
        return _remember(tape, tensor, base)
    flat = _flattened(tape, base, weight.tensor)
    size, stride = list(tensor.shape), list(tensor.stride())
    offset = int(tensor.storage_offset()) - int(weight.tensor.storage_offset())
    node = tape.graph.call_function(aten.as_strided.default, (flat, size, stride, offset))
    _annotate(node, tape, tensor)
    return _remember(tape, tensor, node)


def _node(tape: _Tape, tensor: Tensor) -> fx.Node:
    """The node that holds tensor's value now, after all in-place writes to its storage."""
    known = tape.known.get(id(tensor))
    if known is None:
        return _leaf(tape, tensor)
    storage = _storage(tape, tensor)
    if known.version == storage.version or storage.flat is None:
        return known.node
    size, stride = list(tensor.shape), list(tensor.stride())
    node = tape.graph.call_function(aten.as_strided.default, (storage.flat, size, stride, int(tensor.storage_offset())))
    _annotate(node, tape, tensor)
    return _remember(tape, tensor, node)


def _flat_storage(tape: _Tape, tensor: Tensor) -> fx.Node:
    """A 1-d node with the whole content of tensor's storage, in storage order, before the write at hand."""
    storage = _storage(tape, tensor)
    if storage.flat is not None:
        return storage.flat
    base = _covering(tape, storage, tensor)
    node = _node(tape, base)
    if base.is_contiguous():
        return _flattened(tape, node, base)
    length = storage.keep.untyped_storage().nbytes() // base.element_size()
    zeros = _derived(tape, aten.zeros.default, ([length],), (length,), base.dtype)
    zeros.kwargs = {"dtype": base.dtype}
    args = (zeros, node, list(base.shape), list(base.stride()), int(base.storage_offset()))
    return _derived(tape, aten.as_strided_scatter.default, args, (length,), base.dtype)


def _derived(tape: _Tape, target: Any, args: tuple[Any, ...], shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
    """A node that the recorder adds itself to keep aliases right."""
    node = tape.graph.call_function(target, args)
    node.meta |= {"shape": shape, "dtype": dtype, "module_path": tape.path[-1] if tape.path else ""}
    return node


def _flattened(tape: _Tape, node: fx.Node, tensor: Tensor) -> fx.Node:
    return _derived(tape, aten.reshape.default, (node, [-1]), (tensor.numel(),), tensor.dtype)


def _covering(tape: _Tape, storage: _Storage, tensor: Tensor) -> Tensor:
    """The largest known tensor on a storage: the one whose value tells all of its content."""
    key = _storage_key(tensor)
    owners = [
        k.tensor for k in tape.known.values() if k.tensor.numel() >= tensor.numel() and _storage_key(k.tensor) == key
    ]
    return max(owners, key=lambda t: t.numel(), default=storage.keep)


def _write(tape: _Tape, tensor: Tensor, result: fx.Node) -> None:
    """Let result be tensor's value from now on, and be seen through every alias of its storage."""
    _node(tape, tensor)
    storage = _storage(tape, tensor)
    flat = _flat_storage(tape, tensor)
    args = (flat, result, list(tensor.shape), list(tensor.stride()), int(tensor.storage_offset()))
    storage.flat = _derived(tape, aten.as_strided_scatter.default, args, tuple(flat.meta["shape"]), tensor.dtype)
    storage.version += 1
    tape.known[id(tensor)] = _Known(tensor, result, storage.version)


def _functional(func: Any) -> Any:
    """The overload that returns what func writes in place or into `out`."""
    name = func._schema.name.split("::")[1]
    packet = getattr(aten, name.rstrip("_") if not name.startswith("__") else name, None)
    if packet is None:
        raise CaptureError(f"in-place op {func} has no functional form")
    overload = func._overloadname.removesuffix("_out").removesuffix("out") or "default"
    overloads = packet.overloads()
    return getattr(
        packet,
        overload if overload in overloads else func._overloadname if func._overloadname in overloads else overloads[0],
    )


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tape = self.tape
        if func in _READS_VALUE:
            tape.is_data_dependent = tape.is_data_dependent or _depends_on_input(tape, args)
            return func(*args, **kwargs)
        written = _written(func, args, kwargs)
        nodes = pytree.tree_map_only(
            Tensor, lambda t: _node(tape, t), (args, {} if written and "out" in kwargs else kwargs)
        )
        result = func(*args, **kwargs)
        if func._schema.name.split("::")[1].rstrip("_").split(".")[0] in _RANDOM:
            self._constant(result, written)
        else:
            self._record(func, nodes, result, written)
        return result

    def _constant(self, result: Any, written: list[Tensor]) -> None:
        """Random values are constants of this run."""
        for tensor in written or [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]:
            name = f"constant_{len(self.tape.constants)}"
            node = self.tape.graph.create_node("get_attr", name, name=name)
            self.tape.constants[node.name] = tensor.detach().clone()
            _annotate(node, self.tape, tensor)
            if written:
                _write(self.tape, tensor, node)
            else:
                _remember(self.tape, tensor, node)

    def _record(self, func: Any, nodes: Any, result: Any, written: list[Tensor]) -> None:
        node = self.tape.graph.call_function(_functional(func) if written else func, *nodes)
        _annotate(node, self.tape, written[0] if written else result)
        node.meta["file"], node.meta["line"] = _user_line()
        if written:
            if len(written) > 1:
                raise CaptureError(f"{func} writes {len(written)} tensors at once, which cannot be made functional")
            _write(self.tape, written[0], node)
        elif isinstance(result, Tensor):
            _remember(self.tape, result, node)
        else:
            self._unpack(node, result)

    def _unpack(self, node: fx.Node, result: Any) -> None:
        for position, part in enumerate(result if isinstance(result, (tuple, list)) else ()):
            if isinstance(part, Tensor):
                item = self.tape.graph.call_function(_getitem, (node, position))
                item.meta |= {k: v for k, v in node.meta.items() if k in ("file", "line")}
                _annotate(item, self.tape, part)
                _remember(self.tape, part, item)


from operator import getitem as _getitem  # noqa: E402  (the fx convention for parts of a result)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    if not func._schema.is_mutable:
        return []
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = (
                kwargs.get(argument.name)
                if argument.kwarg_only
                else args[position]
                if position < len(args)
                else kwargs.get(argument.name)
            )
            if isinstance(value, Tensor):
                found.append(value)
    return found


def _depends_on_input(tape: _Tape, args: Any) -> bool:
    """Whether a value that Python is about to read was computed from an input or a weight."""
    stack = [tape.known[id(t)].node for t in pytree.tree_leaves(args) if isinstance(t, Tensor) and id(t) in tape.known]
    seen: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node.name in tape.used and tape.used[node.name].tensor.is_floating_point():
            return True
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return False


@contextmanager
def _module_paths(model: nn.Module, tape: _Tape) -> Iterator[None]:
    """Keep tape.path at the module that is running, through global hooks that are taken off again."""
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        tape.path.append(names.get(id(module), tape.path[-1] if tape.path else ""))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if tape.path:
            tape.path.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _placeholders(tape: _Tape, inputs: Inputs) -> None:
    for path, tensor in tensors_in({"args": inputs.args, "kwargs": dict(inputs.kwargs)}):
        node = tape.graph.placeholder(path.replace(".", "_"))
        tape.inputs[node.name] = tensor
        _annotate(node, tape, tensor)
        _remember(tape, tensor, node)


def record(model: nn.Module, inputs: Inputs) -> Capture:
    """Return the ATen calls of one forward of model in eval mode, as a functional graph.

    Raises:
        CaptureError: the forward raised, or an op cannot be made functional.
    """
    started = time.perf_counter()
    weights = weights_of(model)
    tape = _Tape(fx.Graph(), {id(w.tensor): w for w in weights})
    with preserved(model), _module_paths(model, tape):
        _placeholders(tape, inputs)
        try:
            with _Recorder(tape):
                output = model(*inputs.args, **inputs.kwargs)
        except CaptureError:
            raise
        except Exception as problem:
            raise CaptureError(
                f"{type(model).__name__} raised {type(problem).__name__}: {problem} (called with {describe(inputs.args)}, "
                f"{describe(dict(inputs.kwargs))})"
            ) from problem
        outputs = tuple((path, _node(tape, tensor)) for path, tensor in tensors_in(output))
    tape.graph.output(tuple(node for _, node in outputs))
    return Capture(
        graph=tape.graph,
        weights=tape.used,
        constants=tape.constants,
        inputs=tape.inputs,
        outputs=outputs,
        all_weights=weights,
        model_name=type(model).__name__,
        is_data_dependent=tape.is_data_dependent,
        elapsed_s=time.perf_counter() - started,
    )
