"""Makes a recording in train mode comparable: dropout becomes an op with its rate, whatever noise it drew.

Two models never draw the same noise for the same number, so that what dropout does is replaced by something that
depends on its rate alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from automap.capture import Capture
from automap.explanation.graphs import copied

aten = torch.ops.aten
_DIVISIONS = {aten.div.Scalar, aten.div.Tensor}


class Dropout:
    """Stands for a dropout: another value for each rate, the same in whatever layout."""

    __name__ = "dropout"

    def __str__(self) -> str:
        return self.__name__

    def __call__(self, value: Tensor, *, p: float) -> Tensor:
        """Return a value that tells p."""
        return value + p * value.abs()


_DROPOUT = Dropout()


def comparable(capture: Capture) -> Capture:
    """Return a capture in train mode whose dropouts are ops, and whose batch norms use what is in the batch."""
    capture, _ = copied(capture)
    for node in list(capture.graph.nodes):
        if node.target is aten._native_batch_norm_legit_functional.default:
            node.target = aten.native_batch_norm.default  # the same but for new running statistics, which nothing reads
        elif node.target is aten.mul.Tensor:
            _replace_dropout(capture, node)
    return replace(capture, is_data_dependent=False)


def _replace_dropout(capture: Capture, node: fx.Node) -> None:
    """Put a dropout in the place of a product with noise."""
    for data, noise in (node.args, reversed(node.args)):
        rate = _rate(capture, noise)
        if rate is not None and isinstance(data, fx.Node):
            with capture.graph.inserting_before(node):
                found = capture.graph.create_node("call_function", _DROPOUT, (data,), {"p": rate})
            found.meta = dict(node.meta)
            node.replace_all_uses_with(found)
            return


def _rate(capture: Capture, noise: Any) -> float | None:
    """The rate of a dropout whose noise, zeros and ones over what is kept, a node is; None for anything else."""
    if not isinstance(noise, fx.Node) or noise.target not in _DIVISIONS:
        return None
    drawn, kept = noise.args
    value = capture.constants.get(drawn.name) if isinstance(drawn, fx.Node) else None
    if value is None or not isinstance(kept, float) or not value.is_floating_point():
        return None
    return round(1 - kept, 6) if bool(((value == 0) | (value == 1)).all()) else None
