"""Records one forward below all Python spellings: every ATen call, with weights recognised by where they lie.

Comes in: a model and its inputs. Goes out: a Capture whose graph is functional, in-place ops rewritten as new values
for every alias of the storage they wrote.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from automap.capture.functional import Facts, call_for, facts, needs_cast, rewrite, written_by
from automap.capture.preserve import Originals, preserved
from automap.capture.refusal import refusal
from automap.capture.result import Capture, Method, Mode, Weight, weights_of
from automap.capture.site import module_paths, user_line
from automap.capture.stage import Stage, fake_stage, real_stage
from automap.capture.structure import tensors_in
from automap.capture.tape import Tape
from automap.errors import AutomapError, CaptureError
from automap.inputs import Inputs

aten = torch.ops.aten
_READS_MEMORY = ("tolist", "numpy", "__array__", "__dlpack__")
_PLAIN = {int, bool, float, type(None), torch.dtype, torch.device, str}
_SETS = {aten.set_.source_Tensor}
Call = Callable[[Tape, Inputs], Any]


@contextmanager
def _reads_seen(tape: Tape) -> Iterator[None]:
    """Note when Python reads a tensor's memory, which no dispatched op tells; a function mode would see every call."""

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def noted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            tape.read_by_python(tensor)
            return method(tensor, *args, **kwargs)

        return noted

    own = vars(Tensor)
    before = {name: own.get(name) for name in _READS_MEMORY}
    try:
        for name in _READS_MEMORY:
            setattr(Tensor, name, noting(getattr(Tensor, name)))
        yield
    finally:
        for name, method in before.items():
            if method is None:
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, method)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every op, and writes it on the tape."""

    supports_higher_order_operators = True

    def __init__(self, tape: Tape, stage: Stage, originals: Originals) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape
        self.run, self.run_learned = stage.run, stage.run_learned
        self.originals = originals

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):
            raise CaptureError(f"the forward calls {func}, which is no plain op and cannot be recorded")
        known = facts(func)
        if known.reads_value or known.has_dynamic_shape:
            self._note_read(func, args)
        if known.is_query:
            return func(*args, **kwargs) if known.is_of_looks else self.run(func, args, kwargs)
        if known.is_mutable:
            written = written_by(func, args, kwargs)
            for tensor in written:
                self.originals.save(tensor)
            if written:
                return self._write(func, known, args, kwargs, written)
        if known.is_random:
            result = self.run(func, args, kwargs)
            self._constants(result)
            return result
        node = self._call(func, self._nodes(args), self._nodes(kwargs) if kwargs else kwargs)
        result = (self.run_learned if self.tape.is_learned(node) else self.run)(func, args, kwargs)
        self._results(node, result)
        return result

    def _nodes(self, value: Any) -> Any:
        """Nested arguments with the node of every tensor in its place."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            return self.tape.node(value)
        if isinstance(value, tuple):
            return tuple([self._nodes(item) for item in value])
        if isinstance(value, list):
            return [self._nodes(item) for item in value]
        if isinstance(value, dict):
            return {key: self._nodes(item) for key, item in value.items()}
        return value

    def _call(self, target: Any, args: Any, kwargs: Any) -> fx.Node:
        node = self.tape.call(target, args, kwargs)
        line = self.tape.line or user_line()
        if line is not None:
            node.meta["file"], node.meta["line"] = line
        return node

    def _results(self, node: fx.Node, result: Any) -> None:
        tape = self.tape
        if isinstance(result, Tensor):
            tape.annotate(node, result)
            tape.remember(result, node)
        elif isinstance(result, (tuple, list)):
            for position, part in enumerate(result):
                if isinstance(part, Tensor) and part.numel():  # statistics of a batch norm that does not train are none
                    tape.remember(part, self._part(node, position, part))

    def _part(self, node: fx.Node, position: int, value: Tensor) -> fx.Node:
        item = self.tape.call(getitem, (node, position))
        item.meta |= {key: node.meta[key] for key in ("file", "line") if key in node.meta}
        self.tape.annotate(item, value)
        return item

    def _constants(self, result: Any) -> None:
        """Random values are constants of this run."""
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.tape.remember(tensor, self.tape.constant(tensor))

    def _write(self, func: Any, known: Facts, args: Any, kwargs: Any, written: list[Tensor]) -> Any:
        """Record a call that writes as one that does not, whose value is what was written."""
        tape = self.tape
        if known.is_random:
            for tensor in written:
                tape.node(tensor)
            result = self.run(func, args, kwargs)
            for tensor in written:
                tape.write(tensor, tape.constant(tensor))
            return result
        if func in _SETS:
            source = self._nodes(args[1])
            result = self.run(func, args, kwargs)
            tape.remember(args[0], source)
            return result
        for tensor in written:
            tape.node(tensor)
        nodes, words = self._nodes(args), self._nodes(call_for(func, args, kwargs, written))
        is_cast = needs_cast(func, args, kwargs, written[0])
        node = self._call(rewrite(func).target, nodes, words)
        result = (self.run_learned if self.tape.is_learned(node) else self.run)(func, args, kwargs)
        self._distribute(func, known, node, result, written, is_cast)
        return result

    def _distribute(
        self, func: Any, known: Facts, node: fx.Node, result: Any, written: list[Tensor], is_cast: bool
    ) -> None:
        """Give every written tensor its new value out of node's, and every other result its own."""
        tape = self.tape
        if rewrite(func).form == "one":
            tape.annotate(node, written[0])
            if is_cast:
                node = self._call(aten._to_copy.default, (node,), {"dtype": written[0].dtype})
                tape.annotate(node, written[0])
            tape.remember(written[0], node) if known.is_view_in_place else tape.write(written[0], node)
            return
        mine = {tensor._cdata for tensor in written}
        others = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t._cdata not in mine]
        for position, tensor in enumerate([*others, *written]):
            part = self._part(node, position, tensor)
            tape.remember(tensor, part) if position < len(others) else tape.write(tensor, part)

    def _note_read(self, func: Any, args: Any) -> None:
        """Note where the next step depends on values: a number read by Python, or a number of rows."""
        tensors = [t for t in pytree.tree_leaves(args) if isinstance(t, Tensor)]
        if func is aten.index.Tensor:
            tensors = [t for t in tensors[1:] if t.dtype in (torch.bool, torch.uint8)]
        for tensor in tensors:
            self.tape.read_by_python(tensor)


def record(
    model: nn.Module,
    inputs: Inputs,
    *,
    mode: Mode = "real",
    is_training: bool = False,
    is_sketched: bool = False,
) -> Capture:
    """Return the ATen calls of one forward of model in eval (or train) mode, as a functional graph.

    Sketched, large products are recorded and not carried out: for a forward of which only the ops are wanted.

    Raises:
        InputError: model does not take the inputs.
        CaptureError: the forward raised for another reason, or calls what cannot be recorded.
    """

    def call_model(tape: Tape, given: Inputs) -> Any:
        with module_paths(model, tape.path):
            return model(*given.args, **given.kwargs)

    weights = weights_of(model)
    tensors = own_tensors(weights)
    options: dict[str, Any] = {"mode": mode, "is_training": is_training, "is_sketched": is_sketched}
    return record_call(model, inputs, call_model, weights=weights, tensors=tensors, **options)


def own_tensors(weights: Iterable[Weight]) -> tuple[tuple[Weight, Tensor], ...]:
    """Return each weight with its own tensor."""
    return tuple((weight, weight.tensor) for weight in weights)


def record_call(
    model: nn.Module,
    inputs: Inputs,
    call: Call,
    *,
    weights: tuple[Weight, ...],
    tensors: tuple[tuple[Weight, Tensor], ...],
    mode: Mode,
    method: Method = "dispatch",
    name: str = "",
    prefix: str = "",
    is_training: bool = False,
    is_sketched: bool = False,
) -> Capture:
    """Return what call computes with model, recorded.

    `tensors` pairs weights with those of model's that hold them; prefix is what model puts before their names.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        originals = stack.enter_context(preserved(model, is_training=is_training, is_watched=False))
        faked = stack.enter_context(fake_stage(model, inputs, tensors)) if mode == "fake" else None
        stage = faked or real_stage(inputs, tensors, is_sketched=is_sketched)
        tape = Tape(stage.tensors, stage.value_of)
        tape.take(inputs, stage.inputs)
        output = _run(model, inputs, call, tape, stage, originals)
        given = tensors_in(output)
        outputs = tuple((path, tape.node(tensor)) for path, tensor in given)
        is_own = method == "dispatch" and mode == "real" and not is_training and not is_sketched
        results = {path: tensor.detach().clone() for path, tensor in given if is_own}
        del output, given
    tape.graph.output(tuple(node for _, node in outputs))
    return Capture(
        graph=tape.graph,
        weights=tape.used,
        constants=tape.constants,
        inputs=tape.inputs,
        outputs=outputs,
        all_weights=weights,
        model_name=name or type(model).__name__,
        method=method,
        mode=mode,
        is_data_dependent=tape.is_data_dependent,
        elapsed_s=time.perf_counter() - started,
        notes=mutation_notes(originals, prefix),
        results=results,
        is_writing=originals.is_written,
    )


def _run(model: nn.Module, inputs: Inputs, call: Call, tape: Tape, stage: Stage, originals: Originals) -> Any:
    try:
        with stage.mode, _reads_seen(tape), _Recorder(tape, stage, originals):
            return call(tape, stage.inputs)
    except AutomapError:
        raise
    except Exception as problem:
        raise refusal(model, inputs, problem) from problem


def mutation_notes(originals: Originals, prefix: str = "") -> tuple[str, ...]:
    """Return a note where a forward has changed the model it ran."""
    names = [name.removeprefix(prefix) for name in originals.changed]
    if not names:
        return ()
    shown = ", ".join(f"`{name}`" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (f"the forward changes {shown} in eval mode; put back as found",)
