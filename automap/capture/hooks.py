"""Records the leaf modules that run, in call order, by forward hooks: for models whose ops cannot be recorded.

The graph has one call for each call of a leaf module. An edge is what the tensors show: the module whose output, or
whose memory, another reads; where an op between two modules hides that, it follows the order of calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

from automap.capture.dispatch import mutation_notes, own_tensors
from automap.capture.preserve import Originals, preserved
from automap.capture.refusal import refusal
from automap.capture.result import Capture, Mode, Weight, weights_of
from automap.capture.site import user_line
from automap.capture.stage import Stage, fake_stage, real_stage
from automap.capture.structure import map_tensors, tensors_in
from automap.capture.tape import Tape
from automap.inputs import Inputs

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class ModuleCall:
    """One call of a leaf module, as an op: its arguments, and then its weights in the order of `weight_names`.

    Two are equal if the modules are of one kind with equal attributes.
    """

    kind: str
    attributes: tuple[tuple[str, Any], ...]
    weight_names: tuple[str, ...]
    module: nn.Module = field(repr=False, compare=False)

    @property
    def __name__(self) -> str:
        words = ", ".join(f"{name}={value}" for name, value in self.attributes)
        return f"{self.kind}[{words}]" if words else self.kind

    def __str__(self) -> str:
        return self.kind

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output in eval mode on other arguments and weights: a tensor, or a tuple of them all."""
        count = len(args) - len(self.weight_names)
        weights = dict(zip(self.weight_names, args[count:], strict=True))
        with preserved(self.module):
            output = torch.func.functional_call(self.module, weights, args[:count], kwargs)
        return output if isinstance(output, Tensor) else tuple(tensor for _, tensor in tensors_in(output))


@dataclass(slots=True)
class _Tracker:
    """What the hooks write to: the tape, the calls that are under way, and how many edges are guesses."""

    tape: Tape
    paths: Mapping[int, str]
    pending: list[tuple[Any, Any]] = field(default_factory=list)
    last: fx.Node | None = None
    edge_count: int = 0
    guess_count: int = 0

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a leaf module runs: what its arguments are."""
        self.pending.append((map_tensors(args, self._edge), map_tensors(kwargs, self._edge)))

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """After it has run: a call, and what it returned."""
        nodes, words = self.pending.pop()
        if self.pending:
            return
        tape, path = self.tape, self.paths[id(module)]
        tape.path[-1] = path
        named = _weights_in(module)
        target = ModuleCall(type(module).__name__, _attributes(module), tuple(named), module)
        node = tape.call(target, (*nodes, *(tape.node(t) for t in named.values())), words, name=target.kind.lower())
        line = user_line()
        if line is not None:
            node.meta["file"], node.meta["line"] = line
        self._results(node, output)
        self.last = node

    def _results(self, node: fx.Node, output: Any) -> None:
        if isinstance(output, Tensor):
            self.tape.annotate(node, output)
            self._hold(output, node)
            return
        for position, (_, tensor) in enumerate(tensors_in(output)):
            part = self.tape.call(getitem, (node, position))
            self.tape.annotate(part, tensor)
            self._hold(tensor, part)

    def _hold(self, tensor: Tensor, node: fx.Node) -> None:
        if tensor.layout == torch.strided:
            self.tape.write(tensor, node)
        else:
            self.tape.remember(tensor, node)

    def _edge(self, tensor: Tensor) -> fx.Node:
        self.edge_count += 1
        found = self.tape.holder(tensor)
        if found is None:
            self.guess_count += 1
            found = self.last or self.tape.constant(tensor)
        return found

    def outputs(self, output: Any) -> tuple[tuple[str, fx.Node], ...]:
        """Return the node of every tensor that the model returned."""
        return tuple((path, self._edge(tensor)) for path, tensor in tensors_in(output))


def record_modules(model: nn.Module, inputs: Inputs, *, mode: Mode = "real") -> Capture:
    """Return the calls of model's leaf modules in one forward in eval mode.

    Raises:
        InputError: model does not take the inputs.
        CaptureError: the forward raised for another reason.
    """
    started = time.perf_counter()
    weights = weights_of(model)
    with ExitStack() as stack:
        originals = stack.enter_context(preserved(model))
        tensors = own_tensors(weights)
        faked = stack.enter_context(fake_stage(model, inputs, tensors)) if mode == "fake" else None
        stage = faked or real_stage(inputs, tensors)
        tracker = _Tracker(Tape(stage.tensors, stage.value_of), {id(m): path for path, m in model.named_modules()})
        tracker.tape.take(inputs, stage.inputs)
        with _hooked(model, tracker), stage.mode:
            outputs = tracker.outputs(_run(model, inputs, stage))
    tape = tracker.tape
    tape.graph.output(tuple(node for _, node in outputs))
    return Capture(
        graph=tape.graph,
        weights=tape.used,
        constants=tape.constants,
        inputs=tape.inputs,
        outputs=outputs,
        all_weights=weights,
        model_name=type(model).__name__,
        method="hooks",
        mode=mode,
        elapsed_s=time.perf_counter() - started,
        notes=_notes(tracker, weights, originals),
    )


def _run(model: nn.Module, inputs: Inputs, stage: Stage) -> Any:
    try:
        return model(*stage.inputs.args, **stage.inputs.kwargs)
    except Exception as problem:
        raise refusal(model, inputs, problem) from problem


@contextmanager
def _hooked(model: nn.Module, tracker: _Tracker) -> Iterator[None]:
    with ExitStack() as stack:
        for module in model.modules():
            if _is_leaf(module):
                enter = module.register_forward_pre_hook(tracker.enter, with_kwargs=True)
                leave = module.register_forward_hook(tracker.leave, with_kwargs=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
        yield


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module's calls are recorded, and not those of its children."""
    return isinstance(module, nn.MultiheadAttention) or all(
        name == "parametrizations" for name, _ in module.named_children()
    )


def _weights_in(module: nn.Module) -> dict[str, Tensor]:
    """A leaf's parameters and floating-point buffers, as far as they are kept, by their names in it."""
    return {name: weight.tensor for weight in weights_of(module) for name in weight.in_state[:1]}


def _attributes(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """The public attributes that say how a module computes: numbers, words, and tuples of them."""
    return tuple(
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _is_plain(value)
    )


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(type(item) in _PLAIN for item in value))


def _notes(tracker: _Tracker, weights: tuple[Weight, ...], originals: Originals) -> tuple[str, ...]:
    notes = [f"hooks see modules only: {tracker.guess_count} of {tracker.edge_count} edges follow the order of calls"]
    unseen = len(weights) - len({weight.name for weight in tracker.tape.used.values()})
    if unseen:
        notes.append(f"{unseen} of {len(weights)} weights are used by no leaf module")
    return (*notes, *mutation_notes(originals))
