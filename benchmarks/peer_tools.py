"""The other tools that carry weights from one model to another, each called as its own documentation advises.

A tool is a function from two sides (a model and its call) to dest's state, by name. It raises `Refusal` where it says
itself that it has no answer or only a part of one; whatever else it raises is a crash. Both models are left as found.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


class Refusal(Exception):
    """A tool gave no map, or one that it calls incomplete or wrong itself: `kind: detail`."""


@dataclass(frozen=True, slots=True)
class Side:
    """A model, what it is called with, and which numbers of its result are compared."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Callable[[Any], Tensor]


Tool = Callable[[Side, Side], State]


def hook_order(src: Side, dest: Side) -> State:
    """Return dest's state from the leaf modules that run, paired in the order in which they run.

    Our own short writing of an idea known as `Tracker` and `ModuleTransfer` from conversion scripts of transformers.
    """
    mine, theirs = _leaves_in_order(src), _leaves_in_order(dest)
    if len(mine) != len(theirs):
        raise Refusal(f"unequal numbers of modules run: {len(mine)} in src, {len(theirs)} in dest")
    state: State = {}
    for (src_name, src_leaf), (dest_name, dest_leaf) in zip(mine, theirs, strict=True):
        values, wanted = src_leaf.state_dict(), dest_leaf.state_dict()
        if [v.shape for v in values.values()] != [v.shape for v in wanted.values()]:
            raise Refusal(f"modules paired by order hold unequal shapes: {src_name} and {dest_name}")
        state |= {f"{dest_name}.{name}": value for name, value in zip(wanted, values.values(), strict=True)}
    return state


def _leaves_in_order(side: Side) -> list[tuple[str, nn.Module]]:
    """The modules without children that hold tensors, once for each time that they run."""
    ran: list[tuple[str, nn.Module]] = []
    hooks = []
    for name, module in side.model.named_modules():
        if name and not list(module.children()) and module.state_dict():
            hooks.append(module.register_forward_hook(lambda m, _, __, name=name: ran.append((name, m))))
    try:
        with torch.no_grad():
            side.model(*side.args, **side.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return ran


def timm_remap(src: Side, dest: Side) -> State:
    """Return what timm's `remap_state_dict` makes of the two state dicts: equal sizes in order."""
    from timm.models._helpers import remap_state_dict

    values, wanted = src.model.state_dict(), dest.model.state_dict()
    if len(values) != len(wanted):  # timm itself stops at the end of the shorter one without a word
        raise Refusal(f"unequal numbers of tensors: {len(values)} in src, {len(wanted)} in dest")
    try:
        return remap_state_dict(values, dest.model)
    except AssertionError as problem:
        raise Refusal(f"tensors paired by order have unequal sizes: {problem}") from problem


def weightbridge(src: Side, dest: Side) -> State:
    """Return what weightbridge pairs by names and shapes; tensors of src may be left over, those of dest may not."""
    import weightbridge as bridge

    values, wanted = src.model.state_dict(), dest.model.state_dict()
    with _silence():
        try:
            return dict(bridge.adapt(values, wanted))
        except ValueError:
            pass  # the one option that its documentation has for a src with more than dest needs
        try:
            return dict(bridge.adapt(values, wanted, ignore_unmatched_inputs=True))
        except ValueError as problem:
            raise Refusal(f"some tensors could not be paired by name and shape: {problem}") from problem


def lit_wsl(src: Side, dest: Side) -> State:
    """Return what lit-wsl scores best: buffers included, order of execution known, its own check of outputs passed."""
    from lit_wsl.mapper.weight_mapper import WeightMapper

    with _silence(), _called_alone(src), _called_alone(dest):
        sample = torch.zeros(1)
        mapper = WeightMapper(src.model, dest.model, buffer_matching_mode="strict", dummy_input=sample)
        result = mapper.suggest_mapping(strategy="optimal")
    values, wanted = src.model.state_dict(), dest.model.state_dict()
    without = [name for name in result.unmatched_targets if name in wanted and wanted[name].is_floating_point()]
    if without:
        raise Refusal(f"tensors of dest are listed as unmatched: {len(without)}, {without[0]} first")
    check = result.output_validation
    if not check.validation_passed:
        words = check.error_message or f"cosine similarity {check.output_cosine_sim:.3f}"
        raise Refusal(f"its own check of the outputs failed: {words}")
    return {to: values[name] for name, to in result.get_mapping().items() if name in values and to in wanted}


@contextlib.contextmanager
def _called_alone(side: Side) -> Iterator[None]:
    """Let the model be called with any one tensor and give the one that is compared: lit-wsl knows no other models."""
    kind = type(side.model)

    class Alone(kind):
        def forward(self, _: Tensor) -> Tensor:
            return side.output(super().forward(*side.args, **side.kwargs))

    side.model.__class__ = Alone
    try:
        yield
    finally:
        side.model.__class__ = kind


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what a tool prints and logs off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


PEERS: dict[str, Tool] = {
    "hook-order": hook_order,
    "timm-remap": timm_remap,
    "weightbridge": weightbridge,
    "lit-wsl": lit_wsl,
}
