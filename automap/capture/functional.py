"""What an op writes to, and the functional call that computes the same without writing.

Comes in: an op as torch dispatches it. Goes out: the tensors it writes in place or into `out`, and a Rewrite: a target
with the same value, and where in its result each written tensor finds its new value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

aten = torch.ops.aten
_FACTORY_OPTIONS = {"dtype", "layout", "device", "pin_memory"}
# declared as functional, yet they move their running statistics when they train: (positions of both, of the switch)
_UNDECLARED = {aten.native_batch_norm.default: ((3, 4), 5)}
_TAKES_DTYPE_OF_SELF = {"copy", "fill", "zero", "masked_fill"}
_RANDOM = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "random", "bernoulli", "normal",
    "uniform", "multinomial", "exponential", "geometric", "cauchy", "log_normal", "poisson", "binomial",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A functional call that stands for a writing one.

    `form` says where the written tensors find their values: the result is the "one" value, it is a "list" of them all,
    or they are the "tail" of it, after what the op itself returns.
    """

    target: Any
    form: Literal["one", "list", "tail"]
    takes_dtype: bool = False
    keeps_dtype: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to know of an op before it runs.

    A query gives no tensor; one of the looks of a tensor (`is_of_looks`) need not know what is in it.
    """

    is_query: bool
    is_of_looks: bool
    is_mutable: bool
    is_random: bool
    is_view_in_place: bool
    reads_value: bool
    has_dynamic_shape: bool


@dataclass(frozen=True)
class Copied:
    """Calls an op that has no functional form on copies of what it writes; returns the copies, then its own results."""

    op: Any

    @property
    def __name__(self) -> str:
        return f"functional_{self.op._schema.name.split('::')[1]}"

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return what op would have written, and what it returns besides."""
        copies = {id(tensor): tensor.clone() for tensor in written_by(self.op, args, kwargs)}

        def copied(value: Any) -> Any:
            return copies.get(id(value), value)

        args, kwargs = pytree.tree_map(copied, args), pytree.tree_map(copied, kwargs)
        result = self.op(*args, **kwargs)
        written = written_by(self.op, args, kwargs)
        known = {id(tensor) for tensor in written}
        return (*(t for t in pytree.tree_leaves(result) if id(t) not in known), *written)


@cache
def facts(op: Any) -> Facts:
    """Return what there is to know of op."""
    name = _plain_name(op)
    tags = getattr(op, "tags", ())
    is_mutable = op._schema.is_mutable or op in _UNDECLARED
    gives_tensor = any("Tensor" in str(returned.type) for returned in op._schema.returns)
    return Facts(
        is_query=not gives_tensor and not is_mutable,
        is_of_looks=op.namespace == "prim",
        is_mutable=is_mutable,
        is_random=op.namespace == "aten" and name in _RANDOM,
        is_view_in_place=torch.Tag.inplace_view in tags,
        reads_value=torch.Tag.data_dependent_output in tags or op is aten.equal.default,
        has_dynamic_shape=torch.Tag.dynamic_output_shape in tags,
    )


def written_by(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that this call of op writes to, each once, in the order of its signature."""
    if op in _UNDECLARED:
        positions, switch = _UNDECLARED[op]
        return [args[p] for p in positions if args[p] is not None] if args[switch] else []
    found: list[Tensor] = []
    for position, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += [t for t in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(t, Tensor)]
    return list({id(tensor): tensor for tensor in found}.values())


@cache
def rewrite(op: Any) -> Rewrite:
    """Return the functional call for an op that writes."""
    if op is aten.native_batch_norm.default:
        return Rewrite(aten._native_batch_norm_legit_functional.default, "tail")
    target = _counterpart(op)
    if target is None:
        return Rewrite(Copied(op), "tail")
    returns = target._schema.returns
    names = {argument.name for argument in target._schema.arguments}
    is_one = len(returns) == 1 and str(returns[0].type) == "Tensor"
    is_tail = target._schema.name.endswith("_functional")
    own = not _outs(op) and _plain_name(target) in _TAKES_DTYPE_OF_SELF
    keeps = own or (not _outs(op) and torch.Tag.pointwise not in target.tags)
    form: Literal["one", "list", "tail"] = "one" if is_one else "tail" if is_tail else "list"
    return Rewrite(target, form, takes_dtype=bool(_outs(op)) and "dtype" in names, keeps_dtype=keeps)


def call_for(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[Tensor]) -> dict[str, Any]:
    """Return the keyword arguments for the functional form of a call: without `out`, with the dtype that `out` had."""
    form = rewrite(op)
    if isinstance(form.target, Copied):
        return kwargs
    outs = _outs(op)
    mine = {name: value for name, value in kwargs.items() if name not in outs}
    return mine | ({"dtype": written[0].dtype, "device": written[0].device} if form.takes_dtype else {})


def needs_cast(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: Tensor) -> bool:
    """Whether the functional form may give another dtype than what is written to has."""
    form = rewrite(op)
    if form.keeps_dtype or form.takes_dtype or form.form != "one":
        return False
    outs = {id(kwargs.get(name)) for name in _outs(op)}
    leaves = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and id(t) not in outs]
    return not leaves or any(t.dtype != written.dtype for t in leaves)


def _plain_name(op: Any) -> str:
    name = str(op._schema.name.split("::")[1])
    return name if name.startswith("__") else name.rstrip("_")


def _outs(op: Any) -> tuple[str, ...]:
    return tuple(a.name for a in op._schema.arguments if a.is_out)


def _counterpart(op: Any) -> Any:
    """The overload that takes the same arguments and writes nothing."""
    name = op._schema.name.split("::")[1]
    space = getattr(torch.ops, op.namespace)
    wanted = [(a.name, str(a.type)) for a in op._schema.arguments if not a.is_out]
    names = [_plain_name(op), name.replace("__i", "__", 1)]
    for candidate in names if _outs(op) else [*names, f"{_plain_name(op)}_functional"]:
        packet = getattr(space, candidate, None)
        for overload in packet.overloads() if packet is not None else ():
            found = getattr(packet, overload)
            if found._schema.is_mutable or not found._schema.returns:
                continue
            taken = [(a.name, str(a.type)) for a in found._schema.arguments]
            if wanted == taken or wanted == [entry for entry in taken if entry[0] not in _FACTORY_OPTIONS]:
                return found
    return None
