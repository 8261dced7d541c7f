"""Walks the nested values that models take and return: tensors with the path that reaches each, in order.

Containers are tuples, lists, mappings (model outputs are mappings), dataclasses and simple namespaces; anything else
that is not a tensor is left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), item) for key, item in value.items())
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None) or [str(i) for i in range(len(value))]
        yield from zip(names, value, strict=True)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, SimpleNamespace):
        yield from vars(value).items()


def tensors_in(value: Any, path: str = "") -> list[tuple[str, Tensor]]:
    """Return every tensor in value with its dotted path, in order, each object once."""
    found: list[tuple[str, Tensor]] = []
    seen: set[int] = set()

    def visit(item: Any, where: str) -> None:
        if id(item) in seen:
            return
        if isinstance(item, Tensor):
            seen.add(id(item))
            found.append((where, item))
            return
        for key, child in _children(item):
            visit(child, f"{where}.{key}" if where else key)

    visit(value, path)
    return found


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return value with function applied to every tensor in its containers, the containers rebuilt alike."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping) and type(value) is dict:
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if type(value) in (tuple, list):
        return type(value)(map_tensors(item, function) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: map_tensors(getattr(value, f.name), function) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    return value


def pick(value: Any, path: str) -> Any:
    """Return what the dotted path reaches in value: keys, attributes and positions.

    Raises:
        KeyError: nothing is there.
    """
    for part in path.split(".") if path else ():
        children = dict(_children(value))
        if part in children:
            value = children[part]
        elif hasattr(value, part):
            value = getattr(value, part)
        else:
            raise KeyError(f"no {part!r} in {type(value).__name__}: there are {sorted(children) or 'no parts'}")
    return value


def describe(value: Any) -> str:
    """Return a short text for value: shape and dtype of tensors, the type of the rest."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    children = list(_children(value))
    if children:
        return f"{type(value).__name__}({', '.join(f'{key}={describe(item)}' for key, item in children[:8])})"
    return repr(value) if isinstance(value, (int, float, str, bool, type(None))) else type(value).__name__


def is_number(value: Any) -> bool:
    """Whether value is a Python or symbolic number."""
    return isinstance(value, (int, float, bool, complex, torch.SymInt, torch.SymFloat, torch.SymBool))
