"""Values of buffers in models built without any: those that the model's own library computes when it loads weights.

Rotary frequencies and the like are in no checkpoint. transformers fills them by `_init_weights`; here that is called
on a stand-in for each module that has such buffers, so that the model itself stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes


def is_valueless(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and no values."""
    return isinstance(tensor, FakeTensor) or tensor.device.type == "meta"


def stand_in(value: Tensor) -> Tensor:
    """Return numbers for a tensor without values: the same for all of its shape, since nothing speaks for others."""
    generator = torch.Generator().manual_seed(sum(value.shape))
    if value.is_floating_point() or value.is_complex():
        kind = torch.complex128 if value.is_complex() else torch.float64
        return torch.randn(tuple(value.shape), generator=generator, dtype=kind)
    return (
        torch.arange(value.numel()).remainder(2 if value.dtype == torch.bool else 7).view(value.shape).to(value.dtype)
    )


def refilled_buffers(model: nn.Module) -> dict[int, Tensor]:
    """Return values for model's buffers that have none, as far as they can be had, by the buffers' `_cdata`."""
    found: dict[int, Tensor] = {}
    for owner, module in _with_owners(model, None):
        missing = {n: b for n, b in module._buffers.items() if b is not None and is_valueless(b)}
        transient = module._non_persistent_buffers_set
        if owner is not None and missing and all(n in transient and b.is_floating_point() for n, b in missing.items()):
            filled = _filled(owner, module, missing)
            found |= {missing[name]._cdata: value for name, value in filled.items()}
    return found


def _with_owners(module: nn.Module, owner: nn.Module | None) -> Iterator[tuple[nn.Module | None, nn.Module]]:
    """Every module with the nearest one above it that knows how to fill others."""
    owner = module if callable(getattr(module, "_init_weights", None)) else owner
    yield owner, module
    for child in module.children():
        yield from _with_owners(child, owner)


def _filled(owner: nn.Module, module: nn.Module, missing: dict[str, Tensor]) -> dict[str, Tensor]:
    """What owner puts into the buffers of a stand-in for a module; nothing where it leaves one of them open."""
    stand_in = copy.copy(module)
    with _disable_current_modes(), torch.no_grad(), torch.device("cpu"):
        blank = {n: torch.full(tuple(b.shape), torch.nan, dtype=b.dtype) for n, b in missing.items()}
        stand_in._buffers = {**module._buffers, **blank}
        stand_in._parameters = {}
        try:
            owner._init_weights(stand_in)  # type: ignore[operator]
        except Exception:  # another library's code over half a module: what it cannot do is left out
            return {}
        filled = {name: stand_in._buffers[name] for name in missing}
    return {n: v for n, v in filled.items() if v is not None and not is_valueless(v) and not bool(torch.isnan(v).any())}
