"""Runs a model and leaves it exactly as found: mode, attributes, values, hooks, random number generators, fast paths.

The one door through which the rest of the product calls a user's model. Values are copied when they are about to be
written to, and not before: a model that changes nothing costs no memory.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from automap.capture.functional import facts, written_by
from automap.capture.result import storage_key
from automap.capture.snapshot import Snapshot, snapshot


class Originals(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the content of a model's storages from before the first write to each, and puts it back.

    `changed` names what a forward has left different, once it has been put back.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: dict[int, tuple[str, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.changed: tuple[str, ...] = ()
        self._held = [(tensor, _alias(tensor), tensor.requires_grad) for _, tensor in tensors.values()]
        self._names: dict[int, str] = {}
        for name, tensor in tensors.values():
            self._names.setdefault(storage_key(tensor), name)
        self._saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, OpOverload) and facts(func).is_mutable:
            for tensor in written_by(func, args, kwargs):
                self.save(tensor)
        return func(*args, **kwargs)

    @property
    def is_written(self) -> bool:
        """Whether anything of the model's was written to."""
        return bool(self._saved)

    def save(self, tensor: Tensor) -> None:
        """Keep the content of a tensor's storage, if it is one of the model's: it is about to be written to."""
        key = storage_key(tensor)
        if key in self._names and key not in self._saved and tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            if storage.device.type != "meta":
                self._saved[key] = (storage, storage.clone())  # type: ignore[no-untyped-call]

    def put_back(self, replaced: tuple[str, ...]) -> None:
        """Restore all values; replaced are names already known to have changed."""
        changed = dict.fromkeys(replaced)
        for tensor, data, requires_grad in self._held:
            if data is not None and tensor.data_ptr() != data.data_ptr():
                tensor.data = data
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
        for key, (storage, content) in self._saved.items():
            if storage.nbytes() != content.nbytes():
                storage.resize_(content.nbytes())
            if not _same(storage, content):
                changed[self._names[key]] = None
                storage.copy_(content)
        self.changed = tuple(changed)


def _alias(tensor: Tensor) -> Tensor | None:
    """Another tensor on the same memory, to find it again where a forward exchanges `.data`."""
    is_plain = tensor.layout == torch.strided and tensor.device.type != "meta"
    return tensor.data if is_plain and type(tensor.data) is Tensor else None


def _same(a: torch.UntypedStorage, b: torch.UntypedStorage) -> bool:
    views = [torch.empty(0, dtype=torch.uint8, device=s.device).set_(s) for s in (a, b)]
    return torch.equal(*views)


@contextmanager
def _random_state() -> Iterator[None]:
    python, array = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Switch off the fused fast paths, which hide a dozen weights in one op."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags would also touch TF32, and warn
    try:
        with sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch._C._set_mkldnn_enabled(onednn)
        torch.backends.mha.set_fastpath_enabled(fast)


def _settle(model: nn.Module, *, is_training: bool) -> None:
    """Put model in a mode without tables derived from its weights, which some models keep until the mode changes."""
    modules = list(model.modules())
    if all(type(module).train is nn.Module.train for module in modules):  # none of them does more than keep the mode
        for module in modules:
            if module.training is not is_training:
                module.training = is_training
        return
    try:
        model.train(not is_training)
        model.train(is_training)
    except Exception:  # exported programs refuse; a model's own `train` may raise whatever it likes
        for module in modules:
            module.training = is_training


def _restore(taken: Snapshot, originals: Originals) -> None:
    replaced = tuple(taken.replaced())
    taken.restore()
    with _disable_current_modes():
        originals.put_back(replaced)


@contextmanager
def preserved(
    model: nn.Module, *, plain: bool = True, is_training: bool = False, is_watched: bool = True
) -> Iterator[Originals]:
    """Put model in eval (or train) mode without derived caches, and afterwards restore everything a forward can touch.

    Yields what knows, afterwards, which of model's tensors the forward changed. With plain, fused kernels that hide
    weights are off meanwhile. Where is_watched is false, the caller sees every op and calls `save` before each write,
    or knows that there is none.
    """
    taken = snapshot(model)
    originals = Originals(taken.tensors)
    with ExitStack() as stack:
        stack.enter_context(_random_state())
        stack.callback(_restore, taken, originals)
        stack.enter_context(torch.no_grad())
        if plain:
            stack.enter_context(_plain_kernels())
        with originals:
            _settle(model, is_training=is_training)
        if is_watched:
            stack.enter_context(originals)
        yield originals


@contextmanager
def with_weights(model: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Let model's parameters and buffers hold the values of state meanwhile; tied names share one value.

    Tensors are exchanged through `.data`, so that objects which hold a parameter under another name see it as well.
    """
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    saved = [(tensor, tensor.data) for tensor in {id(t): t for t in named.values()}.values()]
    with contextlib.ExitStack() as stack:
        for tensor, data in saved:
            stack.callback(setattr, tensor, "data", data)
        for name, value in state.items():
            if name in named:
                named[name].data = value
        yield
