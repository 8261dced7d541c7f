"""Runs a model and leaves it exactly as found: mode, caches, buffers, hooks, random number generators, fast paths.

The one door through which the rest of the product calls a user's model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_CONTAINERS = (dict, list, set)


def _attributes(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any], dict[str, Any]]]:
    """Each module with a shallow copy of its attributes, and copies of the containers among them."""
    kept = []
    for module in model.modules():
        attributes = dict(vars(module))
        kept.append((module, attributes, {k: v.copy() for k, v in attributes.items() if type(v) in _CONTAINERS}))
    return kept


def _put_back(kept: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]]) -> None:
    for module, attributes, containers in kept:
        for name, content in containers.items():
            _refill(attributes[name], content)
        current = vars(module)
        for name in set(current) - set(attributes):
            del current[name]
        current.update(attributes)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


@contextmanager
def _random_state() -> Iterator[None]:
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Switch off the fused fast paths, which hide a dozen weights in one op."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel([SDPBackend.MATH]), torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    saved = [(b, b.detach().clone()) for b in model.buffers() if b.device.type != "meta" and b.layout == torch.strided]
    versions = [b._version for b, _ in saved]
    try:
        yield
    finally:
        for (buffer, value), version in zip(saved, versions, strict=True):
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)


@contextmanager
def preserved(model: nn.Module, *, plain: bool = True) -> Iterator[None]:
    """Put model in eval mode without derived caches, and afterwards restore everything a forward can touch.

    Toggling train and eval drops the tables that some models derive from their weights and keep until the mode
    changes. With plain, fused kernels that hide weights are off meanwhile.
    """
    kept = _attributes(model)
    with ExitStack() as stack:
        stack.callback(_put_back, kept)
        stack.enter_context(_random_state())
        stack.enter_context(_buffers(model))
        stack.enter_context(torch.no_grad())
        if plain:
            stack.enter_context(_plain_kernels())
        model.train()
        model.eval()
        yield


@contextmanager
def with_weights(model: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Let model's parameters and buffers hold the values of state meanwhile; tied names share one value.

    Tensors are exchanged through `.data`, so that objects which hold a parameter under another name see it as well.
    """
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    saved = [(tensor, tensor.data) for tensor in {id(t): t for t in named.values()}.values()]
    try:
        for name, value in state.items():
            if name in named:
                named[name].data = value
        yield
    finally:
        for tensor, data in saved:
            tensor.data = data
