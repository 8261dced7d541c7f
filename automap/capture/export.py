"""Records an exported program: a `torch.export.ExportedProgram`, a saved `.pt2`, or a module exported on the fly.

The program's own calls are run one by one under the dispatch recorder, so that the graph has the same ops, names and
aliases as any other capture. Module paths and lines are those that the export has kept.
"""

from __future__ import annotations

import traceback
import warnings
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from automap.capture.dispatch import Call, own_tensors, record_call
from automap.capture.preserve import preserved
from automap.capture.refusal import refusal
from automap.capture.result import Capture, Mode, Weight, group_weights, weights_of
from automap.capture.site import line_of_trace
from automap.capture.stage import quiet
from automap.capture.structure import tensors_in
from automap.capture.tape import Tape
from automap.errors import CaptureError, FileError, InputError
from automap.inputs import Inputs, describe_call

_PREFIX = "model."


def load_program(path: Path) -> ExportedProgram:
    """Return the program saved in a `.pt2` file.

    Raises:
        FileError: there is no such file.
        CaptureError: it holds no exported program.
    """
    if not path.is_file():
        raise FileError(f"there is no exported program {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as problem:
        raise CaptureError(f"{path} is no exported program: {problem}") from problem


def record_program(program: ExportedProgram, inputs: Inputs, *, mode: Mode = "real") -> Capture:
    """Return what program computes on inputs; its weights are those of its state dict.

    Raises:
        InputError: program was exported for other inputs.
        CaptureError: it raised for another reason.
    """
    module = _module(program)
    weights = _program_weights(program, module)
    call = _caller(program, module, None)
    return record_call(
        module,
        inputs,
        call,
        weights=weights,
        tensors=own_tensors(weights),
        mode=mode,
        method="export",
        name=_name(module),
    )


def record_exported(model: nn.Module, inputs: Inputs, *, mode: Mode = "real") -> Capture:
    """Return what `torch.export` makes of model, recorded; weights and outputs have the names that model gives them.

    Raises:
        InputError: model does not take the inputs.
        CaptureError: model cannot be exported.
    """
    seen = _Seen()
    with preserved(model), quiet():
        program = _exported(_TensorsOnly(model, seen), model, inputs)
    module = _module(program)
    mine = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    weights = weights_of(model)
    tensors = [(w, mine[_PREFIX + name]) for w in weights for name in w.names if _PREFIX + name in mine]
    call = _caller(program, module, seen.paths)
    name = type(model).__name__
    return record_call(
        module,
        inputs,
        call,
        weights=weights,
        tensors=tuple(tensors),
        mode=mode,
        method="export",
        name=name,
        prefix=_PREFIX,
    )


@dataclass(slots=True)
class _Seen:
    """The paths of the tensors that a model returned last."""

    paths: tuple[str, ...] = ()


class _TensorsOnly(nn.Module):
    """A model whose output is the tensors in that of another, since export knows no other kinds of output.

    The paths of those tensors are kept outside: what a model sets on itself, export takes back.
    """

    def __init__(self, model: nn.Module, seen: _Seen) -> None:
        super().__init__()
        self.model = model
        self.training = False
        self._seen = seen

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Return the tensors in the model's output, and tell their paths."""
        found = tensors_in(self.model(*args, **kwargs))
        self._seen.paths = tuple(path for path, _ in found)
        return tuple(tensor for _, tensor in found)


def _exported(wrapper: nn.Module, model: nn.Module, inputs: Inputs) -> ExportedProgram:
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # where torch prints the graph so far
            warnings.simplefilter("ignore")
            return torch.export.export(wrapper, inputs.args, dict(inputs.kwargs), strict=False)
    except Exception as problem:
        found = refusal(model, inputs, problem)
        if isinstance(found, InputError) and _is_own(problem):
            raise found from problem
        reason = str(problem).strip().partition("\n")[0]
        text = f"torch.export refuses {type(model).__name__}: {type(problem).__name__}: {reason}"
        raise CaptureError(text, help="capture it by dispatch, the default") from problem


def _is_own(problem: Exception) -> bool:
    """Whether the model itself raised, and not the machinery of torch.export."""
    frames = traceback.extract_tb(problem.__traceback__)
    return type(problem).__module__ == "builtins" and any(frame.filename == __file__ for frame in frames[1:])


def _module(program: ExportedProgram) -> fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = program.module()
    assert isinstance(module, fx.GraphModule)
    return module


def _name(module: fx.GraphModule) -> str:
    """The class of the model that was exported."""
    stacks = (node.meta.get("nn_module_stack") for node in module.graph.nodes)
    root = next((next(iter(stack.values())) for stack in stacks if stack), ("", "ExportedProgram"))
    return str(root[1]).rpartition(".")[2]


def _program_weights(program: ExportedProgram, module: nn.Module) -> tuple[Weight, ...]:
    """The floating-point entries of program's state dict, as module holds them."""
    parameters = set(program.graph_signature.parameters)
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    named = [
        (name, own.get(name, tensor), name in parameters or isinstance(tensor, nn.Parameter))
        for name, tensor in program.state_dict.items()
    ]
    return group_weights([entry for entry in named if entry[2] or entry[1].is_floating_point()], program.state_dict)


def _caller(program: ExportedProgram, module: fx.GraphModule, paths: tuple[str, ...] | None) -> Call:
    """What runs program's calls; paths are the names of its outputs, if it was made to return a tuple of tensors."""
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    prefix = "" if paths is None else _PREFIX

    def call_model(tape: Tape, given: Inputs) -> Any:
        flat, spec = pytree.tree_flatten((given.args, _in_order(dict(given.kwargs), in_spec)))
        if spec != in_spec:
            raise InputError(f"the program was exported for other inputs\n{describe_call(module, given)}")
        found = _Runner(module, tape, prefix).run(*flat, enable_io_processing=False)
        output = pytree.tree_unflatten(found, out_spec)
        return output if paths is None else dict(zip(paths, output, strict=True))

    return call_model


def _in_order(kwargs: dict[str, Any], in_spec: Any) -> dict[str, Any]:
    names = list(in_spec.children()[1].context or ())
    return {name: kwargs[name] for name in [*(n for n in names if n in kwargs), *(n for n in kwargs if n not in names)]}


class _Runner(fx.Interpreter):
    """Runs a program's calls, and tells the tape which module and line each comes from."""

    def __init__(self, module: fx.GraphModule, tape: Tape, prefix: str) -> None:
        super().__init__(module)
        self.tape = tape
        self.prefix = prefix

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of n."""
        stack = n.meta.get("nn_module_stack")
        path = next(reversed(stack.values()))[0] if stack else ""
        self.tape.path[-1] = (path + ".").removeprefix(self.prefix).rstrip(".")
        self.tape.line = line_of_trace(n.meta.get("stack_trace"))
        return super().run_node(n)
