"""Pins: what a user decides where the computation leaves a choice, as `DEST=SRC` or `DEST=SRC[slices]`.

A pin keeps candidates that contradict it from being tried. It is checked like any other decision: by what follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from automap.align.side import Side
from automap.align.table import Source
from automap.canonical.flow import Flow
from automap.errors import InputError

_PIN = re.compile(r"^(?P<dest>[^=]+)=(?P<src>[^=\[]+)(\[(?P<slices>[-\d:,\s]*)\])?$")


@dataclass(frozen=True, slots=True, eq=False)
class Pin:
    """Dest weight `dest` takes elements of src weight `src` only: those of `places` (flat), or any where None."""

    text: str
    dest: int
    src: int
    places: Tensor | None

    def allows(self, numbers: Tensor, source: Source) -> bool:
        """Return whether all src numbers are of the src weight, and of the places, that the pin names."""
        start = source.numbering.offsets[self.src]
        local = numbers - start
        if bool((local < 0).any()) or bool((local >= source.numbering.sizes[self.src]).any()):
            return False
        return self.places is None or bool(torch.isin(local, self.places).all())


def parsed_pins(texts: Sequence[str], src: Flow, dest: Flow) -> tuple[Pin, ...]:
    """Return the pins that texts such as `blocks.0.q.weight=layers.0.qkv.weight[0:768]` name.

    Raises:
        InputError: a text has another form, or names a weight that does not run, or rows that are not there.
    """
    return tuple(_parsed(text, src, dest) for text in texts)


def _parsed(text: str, src: Flow, dest: Flow) -> Pin:
    found = _PIN.match(text)
    if found is None:
        raise InputError(f"the pin {text!r} has not the form DEST=SRC or DEST=SRC[0:768]")
    leaf = _leaf(dest, found["dest"].strip(), text, "dest")
    other = _leaf(src, found["src"].strip(), text, "src")
    return Pin(text, leaf, other, _places(src, other, found["slices"], text))


def _leaf(flow: Flow, name: str, text: str, side: str) -> int:
    for index, weight in flow.weights.items():
        if name in weight.names:
            return index
    raise InputError(
        f"the pin {text!r}: {side} runs no weight called {name!r}", help=f"`automap trace` lists the weights of {side}"
    )


def _places(src: Flow, leaf: int, slices: str | None, text: str) -> Tensor | None:
    if not slices:
        return None
    shape = src[leaf].shape
    count = 1
    for size in shape:
        count *= size
    numbers = torch.arange(count).view(shape)
    try:
        chosen = numbers[tuple(_slice(part) for part in slices.split(","))]
    except (IndexError, ValueError) as problem:
        raise InputError(f"the pin {text!r}: [{slices}] does not fit shape {list(shape)}: {problem}") from problem
    if not chosen.numel():
        raise InputError(f"the pin {text!r}: [{slices}] of shape {list(shape)} holds nothing")
    return chosen.reshape(-1)


def _slice(part: str) -> slice | int:
    bounds = [int(p) if p.strip() else None for p in part.split(":")]
    if len(bounds) == 1:
        if bounds[0] is None:
            raise ValueError("an empty index")
        return bounds[0]
    return slice(*bounds)


def fits_pins(pins: Sequence[Pin], dest: Side, source: Source, shares: Sequence[tuple[int, Tensor, Tensor]]) -> bool:
    """Return whether what is claimed of stored dest weights contradicts no pin; constants contradict none."""
    for pin in pins:
        for leaf, _, numbers in shares:
            if leaf == pin.dest and not pin.allows(numbers[numbers >= 0], source):
                return False
    return True
