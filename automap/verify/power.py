"""What a comparison of outputs could have shown: how far inputs, weights and wrong maps move them.

One backward pass from the outputs gives all of it, to first order. Figures are relative: 1 means that outputs change by
as much as they are large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from automap.canonical.flow import Flow, Role
from automap.verify.exchanges import Exchange, Strip, Wrong
from automap.verify.gradients import felt, sketched_uses
from automap.verify.stream import Leaves, Schedule

_NO_EFFECT = 1e-12  # beside the weight that moves outputs most


@dataclass(frozen=True, slots=True)
class Tried:
    """A wrong map and how far it moves the outputs."""

    exchange: Exchange
    change: float


@dataclass(frozen=True, slots=True)
class Power:
    """The outputs, what moves them, and the weights that do not.

    `effects` tells for each dest weight how far outputs move when one of its elements moves by its own size, `inputs`
    how far they move when every input is drawn anew (None without inputs). `tried` are the wrong maps, except those
    that only exchange what moves no output. `replaced` tells how far they move when a weight takes the value that is
    asked about.
    """

    outputs: tuple[Tensor, ...]
    effects: Mapping[int, float]
    inputs: float | None
    tried: tuple[Tried, ...]
    replaced: Mapping[int, float] = field(default_factory=dict)

    @property
    def still(self) -> tuple[int, ...]:
        """The weights that move no output."""
        limit = _no_effect(self.effects)
        return tuple(index for index, effect in self.effects.items() if effect <= limit)


def _no_effect(effects: Mapping[int, float]) -> float:
    return _NO_EFFECT * (max(effects.values(), default=0.0) + 1e-30)


@dataclass(slots=True)
class _Ledger:
    """What the backward pass tells, one gradient at a time, so that no two are held at once. Mutable on purpose."""

    weights: Mapping[int, Tensor]
    effects: dict[int, float] = field(default_factory=dict)
    pairs: dict[Exchange, float] = field(default_factory=dict)
    strips: dict[Strip, tuple[Tensor, Tensor]] = field(default_factory=dict)
    inputs: list[float] = field(default_factory=list)
    pairs_of: dict[int, list[Exchange]] = field(default_factory=dict)
    strips_of: dict[int, list[Strip]] = field(default_factory=dict)
    others: Mapping[int, Tensor] = field(default_factory=dict)
    replaced: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: Mapping[int, Tensor], wrong: Wrong, others: Mapping[int, Tensor]) -> _Ledger:
        """Return an empty ledger for the given wrong maps, and for other values of some weights."""
        ledger = cls(weights, others=others)
        for pair in wrong.pairs:
            for leaf in pair.leaves:
                ledger.pairs_of.setdefault(leaf, []).append(pair)
        for strip in wrong.strips:
            ledger.strips_of.setdefault(strip.leaf, []).append(strip)
        return ledger

    def weight(self, index: int, gradient: Tensor) -> None:
        """Enter the gradient of a weight."""
        if not gradient.numel():
            return
        value, gradient = self.weights[index], torch.nan_to_num(gradient)
        size = (value.abs() + 1e-3).mul_(gradient).abs_()
        self.effects[index] = float(size.max())
        if index in self.others:
            self.replaced[index] = abs(float((gradient * (self.others[index] - value)).sum()))
        for strip in self.strips_of.get(index, ()):
            self.strips[strip] = _strip_changes(strip, gradient, value, size)
        if index in self.pairs_of:
            own = float(torch.dot(gradient.reshape(-1), value.reshape(-1)))
        for pair in self.pairs_of.get(index, ()):
            other = pair.second.leaf if index == pair.first.leaf else pair.first.leaf
            moved = float(torch.dot(gradient.reshape(-1), self.weights[other].reshape(-1)))
            self.pairs[pair] = self.pairs.get(pair, 0.0) + moved - own

    def rows(self, index: int, effects: Tensor) -> None:
        """Enter what a random direction of each row of a weight does."""
        size = float(torch.linalg.vector_norm(self.weights[index])) * self.weights[index].numel() ** -0.5
        self.effects[index] = float(torch.nan_to_num(effects).abs().max()) * (size + 1e-3)

    def input(self, value: Tensor, gradient: Tensor) -> None:
        """Enter the gradient of an input, or of the first numbers that are made of one."""
        spread = value - value.mean() if value.numel() > 1 else value
        self.inputs.append(float((gradient * spread.abs().clamp(min=1e-3 * float(spread.abs().max()))).norm()))

    def tried(self) -> tuple[Tried, ...]:
        """Return the wrong maps with what they do, but for those between things that move nothing."""
        limit = _no_effect(self.effects)
        found = [
            Tried(pair, abs(change))
            for pair, change in self.pairs.items()
            if any(self.effects.get(leaf, 0.0) > limit for leaf in pair.leaves)
        ]
        for strip, (changes, sizes) in self.strips.items():
            moves = sizes > limit
            alive = torch.nonzero(moves[1:] | moves[:-1]).reshape(-1).tolist()
            found += [Tried(strip.exchange(number), float(changes[number])) for number in alive]
        return tuple(found)


def _strip_changes(strip: Strip, gradient: Tensor, value: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """What each exchange of neighbours does to the outputs, and how far each block moves them.

    Two single numbers may be alike by chance: how far they are apart on average counts.
    """
    slopes, blocks = strip.blocks(gradient), strip.blocks(value)
    apart = blocks[1:] - blocks[:-1] if blocks.shape[1] > 1 else blocks.std().expand(len(blocks) - 1, 1)
    changes = ((slopes[:-1] - slopes[1:]) * apart).sum(1).abs()
    return changes, strip.blocks(size).amax(1)


def measured_power(
    flow: Flow,
    wanted: Sequence[int],
    leaves: Leaves,
    *,
    seed: int,
    wrong: Wrong | None = None,
    others: Mapping[int, Tensor] | None = None,
) -> Power:
    """Return the values of nodes, and what moves them, by one forward and one backward pass.

    Args:
        flow: the computation.
        wanted: the nodes.
        leaves: what it is computed from.
        seed: for the direction in which the values are looked at.
        wrong: wrong maps to try.
        others: other values for some weights, to be told what they would do.
    """
    ledger = _Ledger.of(leaves.weights, wrong or Wrong(), others or {})
    with torch.enable_grad():
        values = _watched(flow, wanted, leaves, ledger)
        total = _summed(values, seed)
        if total is not None:
            torch.autograd.backward(total)
    for index in leaves.weights:
        ledger.effects.setdefault(index, 0.0)
    inputs = sum(move**2 for move in ledger.inputs) ** 0.5 if flow.inputs else None
    return Power(tuple(v.detach() for v in values), ledger.effects, inputs, ledger.tried(), ledger.replaced)


def _watched(flow: Flow, wanted: Sequence[int], leaves: Leaves, ledger: _Ledger) -> list[Tensor]:
    """Compute the wanted values from weights and inputs whose gradients go into the ledger."""

    def tell(index: int) -> Callable[[Tensor], None]:
        def told(leaf: Tensor) -> None:
            assert leaf.grad is not None
            gradient, leaf.grad = leaf.grad, None
            ledger.weight(index, gradient)

        return told

    schedule, values = Schedule.of(flow, wanted), dict[int, Any]()
    exact = ledger.pairs_of.keys() | ledger.strips_of.keys() | ledger.others.keys()
    sketched = sketched_uses(flow, schedule.order, exact)
    weights = {index: value.detach() for index, value in leaves.weights.items()}
    for index in weights.keys() - set(sketched.values()):
        weights[index].requires_grad_(True).register_post_accumulate_grad_hook(tell(index))  # type: ignore[no-untyped-call]
    counted: set[int] = set()  # inputs and what is made of inputs alone, as long as it is no floating-point number
    for index in schedule.order:
        result = None
        if index in sketched:
            data, weight = (values[i] for i in flow[index].operands[:2])
            result = felt(flow[index], data, weight, partial(ledger.rows, sketched[index]))
        found = schedule.step(index, Leaves(weights, leaves.inputs), values, result)
        if _is_given(flow, index, counted) and isinstance(found, Tensor):
            if not found.is_floating_point():
                counted.add(index)
            elif index in values:
                values[index] = _entered(found, ledger)
    return [values[index] for index in wanted]


def _is_given(flow: Flow, index: int, counted: set[int]) -> bool:
    """Whether a node is an input, or computed from counts alone: where it is a number, the input's effect begins."""
    data = [i for i in flow[index].operands if flow[i].role is Role.ACTIVATION]
    return index in flow.inputs or (bool(data) and all(i in counted for i in data))


def _entered(value: Tensor, ledger: _Ledger) -> Tensor:
    """The same value, whose gradient is told to the ledger."""
    known = value.detach()
    value = value if value.requires_grad else known.clone().requires_grad_(True)
    value.register_hook(lambda gradient: ledger.input(known, gradient))  # type: ignore[no-untyped-call]
    return value


def _summed(values: Sequence[Tensor], seed: int) -> Tensor | None:
    """One number that depends on every element of values in its own way, each value weighted by its size."""
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | None = None
    for value in values:
        if value.is_complex():
            value = torch.view_as_real(value)
        if value.is_floating_point() and value.requires_grad and value.numel():
            finite = torch.nan_to_num(value, posinf=0.0, neginf=0.0)
            scale = float(finite.detach().abs().max()) * value.numel() ** 0.5 or 1.0
            probe = torch.randn(value.shape, generator=generator, dtype=value.dtype) / scale
            part = (finite * probe).sum()
            total = part if total is None else total + part
    return total
