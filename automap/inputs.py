"""Sample inputs: what a model is called with, as one value, and how given values find their place in a signature.

Values come in with a name or without; they go out as the positional and keyword arguments of one forward call. Nothing
is called here, and torch is not imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from automap.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}
_NAMED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The positional and keyword arguments of one forward call."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, sample_input: Any) -> Inputs:
        """Return sample_input as Inputs: an Inputs as it is, a tuple as args, a dict as kwargs, else one argument."""
        if isinstance(sample_input, Inputs):
            return sample_input
        if isinstance(sample_input, tuple):
            return cls(args=sample_input)
        if isinstance(sample_input, Mapping) and all(isinstance(key, str) for key in sample_input):
            return cls(kwargs=dict(sample_input))
        return cls(args=(sample_input,))


def bind(values: Sequence[tuple[str | None, Any]], model: nn.Module) -> Inputs:
    """Return values as the arguments of model's forward.

    A value whose name is a parameter of forward goes there. The others fill the parameters that are left, in order: a
    transformers model's main input first and by keyword, other models by position.

    Raises:
        InputError: there are more values than parameters.
    """
    names = parameter_names(model)
    kwargs = {name: value for name, value in values if name is not None and takes(model, name)}
    unplaced = [value for name, value in values if name is None or not takes(model, name)]
    if not unplaced:
        return Inputs(kwargs=kwargs)
    main = _main_input_name(model)
    if main is None and takes_any_position(model):
        return Inputs(tuple(unplaced), kwargs)
    order = [main, *names] if main else names
    free = [name for name in dict.fromkeys(order) if name not in kwargs]
    if len(unplaced) > len(free):
        call = describe_call(model, Inputs(tuple(value for _, value in values)))
        raise InputError(f"there are more sample inputs than {type(model).__name__} takes\n{call}")
    if main is None and free[: len(unplaced)] == names[: len(unplaced)]:
        return Inputs(tuple(unplaced), kwargs)
    return Inputs(kwargs=kwargs | dict(zip(free, unplaced, strict=False)))


def parameter_names(model: nn.Module) -> list[str]:
    """Return the names of forward's parameters, without `*args` and `**kwargs`."""
    return [p.name for p in _parameters(model) if p.kind in _NAMED_KINDS]


def takes(model: nn.Module, name: str) -> bool:
    """Whether forward has a parameter called name, or takes keywords of any name and declares none itself."""
    names = parameter_names(model)
    return name in names or (not names and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _parameters(model)))


def takes_any_position(model: nn.Module) -> bool:
    """Whether forward has `*args`."""
    return any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in _parameters(model))


def describe_call(model: nn.Module, inputs: Inputs) -> str:
    """Return two lines for an error: model's forward as declared, and what it was called with.

    Example:
        >>> import torch
        >>> print(describe_call(torch.nn.Linear(3, 2), Inputs((torch.zeros(1, 3),))))
        Linear.forward(input)
          called with (f32[1,3])
    """
    words = [*map(describe_value, inputs.args), *(f"{k}={describe_value(v)}" for k, v in inputs.kwargs.items())]
    declared = ", ".join(map(_describe_parameter, _parameters(model)))
    return f"{type(model).__name__}.forward({declared})\n  called with ({', '.join(words)})"


def describe_value(value: Any) -> str:
    """Return an argument in short: a tensor as `f32[1,3,224,224]`, containers by their items, else its repr."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return short_size(value.dtype, value.shape)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {describe_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"({_join(map(describe_value, value))})"
    return _join([repr(value)])


def short_size(dtype: object, shape: Sequence[int]) -> str:
    """Return a tensor's dtype and shape as `f32[2304,768]`."""
    return f"{short_dtype(dtype)}[{','.join(map(str, shape))}]"


def short_dtype(dtype: object) -> str:
    """Return a dtype as `f32`, `bf16`, `i64`, `bool`."""
    name = str(dtype).removeprefix("torch.")
    word = name.rstrip("0123456789")
    return f"{_SHORT[word]}{name[len(word) :]}" if word in _SHORT and word != name else name


def _join(words: Iterable[str], limit: int = 60) -> str:
    text = ", ".join(words)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _describe_parameter(parameter: inspect.Parameter) -> str:
    stars = "*" * (parameter.kind is inspect.Parameter.VAR_POSITIONAL) or "**" * (
        parameter.kind is inspect.Parameter.VAR_KEYWORD
    )
    default = "" if parameter.default is inspect.Parameter.empty else f"={_join([repr(parameter.default)], 20)}"
    return f"{stars}{parameter.name}{default}"


def _main_input_name(model: nn.Module) -> str | None:
    """Return what a transformers model calls its main input, or None for other models."""
    name = getattr(model, "main_input_name", None)
    return name if isinstance(name, str) and name in parameter_names(model) else None
