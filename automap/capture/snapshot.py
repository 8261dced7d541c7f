"""What a forward can change in a model besides the values of tensors: attributes, caches, containers, helper objects.

`snapshot` copies the structure, not the tensors; `Snapshot.restore` puts every object back in place, so that whoever
else holds one of them sees the old content as well.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import is_
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

_CONTAINERS = {dict, OrderedDict, defaultdict, list, set, deque}
_PLAIN = {int, str, bool, float, type(None), FunctionType}
_DEPTH = 4  # a cache in a list in a helper object of a module
_FOREIGN = {"builtins", "torch", "numpy", "logging", "threading", "_thread", "functools", "inspect", "typing"}


@dataclass(slots=True)
class Snapshot:
    """The attributes of every module, and the content of what they hold; `tensors` are those found, with a name."""

    modules: list[tuple[str, nn.Module, dict[str, Any]]] = field(default_factory=list)
    containers: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    objects: dict[int, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    empties: list[Any] = field(default_factory=list)
    tensors: dict[int, tuple[str, Tensor]] = field(default_factory=dict)

    def replaced(self) -> Iterator[str]:
        """Yield the names of parameters and buffers that another tensor has taken the place of."""
        for path, module, _ in self.modules:
            for kind in (module._parameters, module._buffers):
                before = self.containers.get(id(kind), (kind, {}))[1]
                yield from (f"{path}.{n}" if path else n for n, t in kind.items() if before.get(n) is not t)

    def restore(self) -> None:
        """Put everything back as it was."""
        for empty in self.empties:
            if empty:
                empty.clear()
        for container, content in self.containers.values():
            _refill(container, content)
        for thing, attributes in self.objects.values():
            _reset(vars(thing), attributes)
        for _, module, attributes in self.modules:
            _reset(vars(module), attributes)


def snapshot(model: nn.Module) -> Snapshot:
    """Return what there is to restore of model."""
    taken = Snapshot()
    for path, module in model.named_modules():
        attributes = dict(vars(module))
        taken.modules.append((path, module, attributes))
        for name, value in attributes.items():
            kind = type(value)
            if kind in _CONTAINERS and not value:
                taken.empties.append(value)
            elif kind not in _PLAIN:
                inner = name in ("_parameters", "_buffers")
                _visit(value, path if inner else f"{path}.{name}" if path else name, taken, _DEPTH)
    return taken


def _visit(value: Any, where: str, taken: Snapshot, depth: int) -> None:
    if isinstance(value, Tensor):
        taken.tensors.setdefault(id(value), (where, value))
        return
    kind = type(value)
    if depth == 0 or kind in _PLAIN:
        return
    if kind in _CONTAINERS:
        if id(value) not in taken.containers:
            taken.containers[id(value)] = (value, value.copy())
            _visit_items(value, where, taken, depth - 1)
    elif kind is tuple:
        _visit_items(value, where, taken, depth - 1)
    elif _is_helper(value) and id(value) not in taken.objects:
        taken.objects[id(value)] = (value, dict(vars(value)))
        _visit_items(vars(value), where, taken, depth - 1)


def _visit_items(value: Any, where: str, taken: Snapshot, depth: int) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        _visit(item, f"{where}.{key}" if where else str(key), taken, depth)


def _is_helper(value: Any) -> bool:
    """Whether value is an object of the model's own, such as a cache: one that has attributes and no better home."""
    if isinstance(value, (nn.Module, type, FunctionType, ModuleType)) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in _FOREIGN and not callable(value)


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, (list, deque)):
        if len(container) != len(content) or not all(map(is_, container, content)):
            container.clear()
            container.extend(content)
    elif isinstance(container, dict):
        _reset(container, content)
    elif container != content:
        container.clear()
        container.update(content)


def _reset(current: dict[Any, Any], before: dict[Any, Any]) -> None:
    same = len(current) == len(before) and all(map(is_, current, before))
    if not same:
        current.clear()
    elif all(map(is_, current.values(), before.values())):
        return
    current.update(before)
