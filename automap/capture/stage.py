"""What a forward runs on: the caller's values, copied, or fake tensors that have shapes and no memory.

In between lies a sketch: real values, but for those that would take long, which are zeros (`sketch`).

Comes in: a model in eval mode and its inputs. Goes out: a Stage, with inputs that the forward may spoil, the tensors
that stand for the weights, and how each op is run. Under fake tensors, small values that depend on no weight are
computed for real beside their fakes, so that masks and positions are known and Python may read them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from automap.capture.caches import without_new_results
from automap.capture.functional import facts, written_by
from automap.capture.refill import refilled_buffers
from automap.capture.result import Weight, storage_key
from automap.capture.sketch import run_plainly, run_sketched
from automap.capture.structure import map_tensors
from automap.capture.tape import hold
from automap.inputs import Inputs

aten = torch.ops.aten
_LOGS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
_SHADOW_LIMIT = 100_000  # elements; larger values are not computed beside their fakes


#: executes an op
Run: TypeAlias = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """Inputs and weights of one run; `run` executes an op, `run_learned` one that computes with something learned.

    `value_of` gives a tensor's value, to be kept.
    """

    inputs: Inputs
    tensors: tuple[tuple[Weight, Tensor], ...]
    mode: AbstractContextManager[Any]
    run: Run
    run_learned: Run
    value_of: Callable[[Tensor], Tensor]


def is_weightless(tensors: Iterable[Tensor]) -> bool:
    """Whether any of tensors has a shape and no values."""
    return any(isinstance(tensor, FakeTensor) or tensor.device.type == "meta" for tensor in tensors)


def real_stage(inputs: Inputs, weights: Iterable[tuple[Weight, Tensor]], *, is_sketched: bool = False) -> Stage:
    """Return a stage of real values; sketched, what takes long is not carried out, if anything learned goes into it."""
    learned = run_sketched if is_sketched else run_plainly
    return Stage(_copied(inputs, _fresh), tuple(weights), nullcontext(), run_plainly, learned, _fresh)


@contextmanager
def fake_stage(model: nn.Module, inputs: Inputs, weights: Iterable[tuple[Weight, Tensor]]) -> Iterator[Stage]:
    """Yield a stage of fake tensors; model's parameters and buffers are fakes until the caller restores it."""
    named = [*model.parameters(), *model.buffers()]
    own = next((tensor.fake_mode for tensor in named if isinstance(tensor, FakeTensor)), None)
    mode = own or FakeTensorMode(allow_non_fake_inputs=True)
    allowed, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    shadows = _Shadows(mode)
    with ExitStack() as stack:
        stack.enter_context(quiet())
        stack.enter_context(without_new_results())
        stack.callback(setattr, mode, "allow_non_fake_inputs", allowed)
        learned = {tensor._cdata for _, tensor in weights}
        with mode:
            fakes = {t._cdata: _faked(t) for t in named if t.layout == torch.strided}
        filled = refilled_buffers(model)
        for tensor in named:
            if tensor._cdata not in learned and tensor._cdata in fakes:
                shadows.cast(fakes[tensor._cdata], filled.get(tensor._cdata, tensor))
        stack.callback(exchange, model, {fakes[t._cdata]._cdata: t for t in named if t._cdata in fakes})
        exchange(model, fakes)
        tensors = [(weight, fakes.get(tensor._cdata, tensor)) for weight, tensor in weights]
        yield Stage(_copied(inputs, shadows.faked), tuple(tensors), mode, shadows.run, shadows.run, shadows.value_of)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from logging what goes wrong under fake tensors: it is raised as well."""
    logs = [logging.getLogger(name) for name in _LOGS]
    before = [log.disabled for log in logs]
    try:
        for log in logs:
            log.disabled = True
        yield
    finally:
        for log, was_disabled in zip(logs, before, strict=True):
            log.disabled = was_disabled


def exchange(model: nn.Module, others: dict[int, Tensor]) -> None:
    """Put others in the place of model's tensors, in every attribute and list that holds them."""
    for module in model.modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, value in list(held.items()):
                if isinstance(value, Tensor) and value._cdata in others:
                    held[name] = others[value._cdata]  # type: ignore[assignment]
                elif type(value) is list:
                    value[:] = [others.get(v._cdata, v) if isinstance(v, Tensor) else v for v in value]


def _copied(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Inputs with function applied to every tensor, the same for the same, and copies of whatever else has a state."""
    done: dict[int, Tensor] = {}

    def once(tensor: Tensor) -> Tensor:
        if id(tensor) not in done:
            done[id(tensor)] = function(tensor)
        return done[id(tensor)]

    args, kwargs = map_tensors((inputs.args, dict(inputs.kwargs)), once)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in done.values()}
    try:
        args, kwargs = copy.deepcopy((args, kwargs), memo)
    except Exception:  # something that cannot be copied goes in as it is
        return Inputs(args, kwargs)
    return Inputs(args, kwargs)


def _fresh(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.detach().clone()


def _faked(tensor: Tensor) -> Tensor:
    """A fake of tensor's shape, made under a fake mode; of a meta tensor, one that computes on the CPU."""
    if isinstance(tensor, FakeTensor):
        return tensor
    device = "cpu" if tensor.device.type == "meta" else tensor.device
    fake = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, nn.Parameter):  # what its constructor does to tensors of other kinds, but for a copy
        fake.requires_grad_(tensor.requires_grad)._is_param = True
    return fake


class _Shadows:
    """Runs ops on fake tensors, and beside them for real on those whose values are known."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._real: dict[int, tuple[Any, Tensor]] = {}

    def faked(self, tensor: Tensor) -> Tensor:
        """Return a fake of tensor that is known to have its value."""
        if isinstance(tensor, FakeTensor):
            return tensor
        with self._mode:
            fake = _faked(tensor)
        self.cast(fake, tensor)
        return fake

    def cast(self, fake: Tensor, real: Tensor) -> None:
        """Let real be the value of fake."""
        is_real = not isinstance(real, FakeTensor) and real.device.type != "meta"
        if is_real and real.numel() <= _SHADOW_LIMIT and real.layout == torch.strided:
            with _disable_current_modes():
                self._set(fake, _fresh(real))

    def value_of(self, tensor: Tensor) -> Tensor:
        """Return a copy of tensor's value, or tensor itself where it has none."""
        known = self._get(tensor)
        with _disable_current_modes():
            return _fresh(known) if known is not None else tensor if isinstance(tensor, FakeTensor) else _fresh(tensor)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the fake result of an op, its value being known where those of its operands are."""
        is_known = all(self._get(leaf) is not None for leaf in _tensors((*args, *kwargs.values())))
        real = self._compute(func, args, kwargs) if is_known else None
        if not is_known or isinstance(real, Exception):
            if facts(func).is_mutable:
                self._forget(written_by(func, args, kwargs))
            return func(*args, **kwargs)
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return map_tensors(real, self.faked)
        for fake, value in zip(pytree.tree_leaves(result), pytree.tree_leaves(real), strict=True):
            if isinstance(fake, Tensor) and value.numel() <= _SHADOW_LIMIT:
                self._set(fake, value)
        return result

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        def real(value: Any) -> Any:
            return self._get(value) if isinstance(value, Tensor) else value

        if func.is_view or not _is_large(args, kwargs):
            with _disable_current_modes():
                try:
                    return func(*pytree.tree_map(real, args), **pytree.tree_map(real, kwargs))
                except (RuntimeError, TypeError) as problem:
                    return problem
        return RuntimeError("too large")

    def _get(self, tensor: Tensor) -> Tensor | None:
        entry = self._real.get(tensor._cdata)
        if entry is not None:
            return entry[1]
        if isinstance(tensor, FakeTensor) or tensor.device.type == "meta" or tensor.numel() > _SHADOW_LIMIT:
            return None
        if tensor.layout != torch.strided or isinstance(tensor, nn.Parameter):
            return None
        with _disable_current_modes():
            return self._set(tensor, _fresh(tensor))

    def _set(self, fake: Tensor, real: Tensor) -> Tensor:
        self._real[fake._cdata] = hold(fake), real
        return real

    def _forget(self, written: list[Tensor]) -> None:
        """Drop the values of what is written to, and of every view of it."""
        keys = {storage_key(known) for t in written if (known := self._get(t)) is not None}
        if keys:
            self._real = {k: entry for k, entry in self._real.items() if storage_key(entry[1]) not in keys}


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _is_large(args: Any, kwargs: Any) -> bool:
    """Whether a factory is asked for more than is computed beside its fake."""
    sizes = [a for a in args if isinstance(a, (list, tuple)) and a and all(type(n) is int for n in a)]
    return any(torch.Size(size).numel() > _SHADOW_LIMIT for size in sizes) or (
        bool(args) and type(args[0]) is int and args[0] > _SHADOW_LIMIT
    )
