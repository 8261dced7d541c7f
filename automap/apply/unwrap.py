"""Unwrapping: what a file holds becomes one state dict, with notes on where it was and what was left out.

Values are tensors, or stand for tensors that were not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from automap.apply.stored import StoredTensor
from automap.errors import CheckpointError

Value = TypeVar("Value")
_NOT_WEIGHTS = ("optim", "scheduler", "lr_sched", "scaler", "amp")
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrap(content: Any, key_path: tuple[str, ...], place: object) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the one state dict inside content, and notes on where it was and what lay beside it.

    Raises:
        CheckpointError: there is none, or more than one, or nothing at key_path.
    """
    content = _at(content, key_path, place)
    inner, state = _only_state(list(_states(content, ())), key_path, place)
    notes = []
    if inner:
        beside = [key for key in content if key != inner[0]]
        notes.append(f"read `{'.'.join(inner)}`" + (f", beside {some(list(map(str, beside)))}" if beside else ""))
    tensors = {name: value for name, value in state.items() if _is_tensor(value)}
    others = [name for name in state if name not in tensors]
    if others:
        notes.append(f"{len(others)} that are no tensors, dropped: {some(others)}")
    return tensors, tuple(notes)


def strip_prefixes(state: Mapping[str, Value]) -> tuple[dict[str, Value], tuple[str, ...]]:
    """Drop what wrappers of modules add to names: `module.` in front of all, and those of torch.compile and FSDP."""
    notes: list[str] = []
    state = dict(state)
    for wrapper in _WRAPPERS:
        renamed = {
            ".".join(part for part in name.split(".") if part != wrapper): value for name, value in state.items()
        }
        if len(renamed) == len(state) and renamed.keys() != state.keys():
            state, notes = renamed, [*notes, f"dropped `{wrapper}.` from the names"]
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
        notes.append("dropped the prefix `module.`")
    return state, tuple(notes)


def some(names: list[str], limit: int = 4) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _at(content: Any, key_path: tuple[str, ...], place: object) -> Any:
    for depth, key in enumerate(key_path):
        if not isinstance(content, Mapping) or key not in content:
            keys = some(list(map(str, content))) if isinstance(content, Mapping) else type(content).__name__
            raise CheckpointError(f"{place} has no `{'.'.join(key_path[: depth + 1])}`; it has {keys}")
        content = content[key]
    return content


def _only_state(
    found: list[tuple[tuple[str, ...], Mapping[str, Any]]], key_path: tuple[str, ...], place: object
) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    if not found:
        raise CheckpointError(
            f"{place} holds no weights", help="is it a checkpoint of an optimizer or of settings alone?"
        )
    if len(found) > 1:
        places = [".".join((*key_path, *keys)) for keys, _ in found]
        name = str(place).rpartition("/")[2]
        raise CheckpointError(
            f"{place} holds more than one set of weights: {some(places)}", help=f"name one: {name}:{places[0]}"
        )
    return found[0]


def _is_tensor(value: object) -> bool:
    from torch import Tensor

    return isinstance(value, Tensor | StoredTensor)


def _states(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield each mapping of names to tensors inside content with the keys that lead to it, outermost only."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content) or len(keys) > 3:
        return
    if any(map(_is_tensor, content.values())):
        yield keys, content
        return
    for key, value in content.items():
        if not key.lower().startswith(_NOT_WEIGHTS):
            yield from _states(value, (*keys, key))
