"""A sketch has the ops of a forward and not what its large products come to."""

from __future__ import annotations

import torch
from models import noise, randomized
from torch import Tensor, nn

import automap
from automap.capture import record
from automap.inputs import Inputs


class Large(nn.Module):
    """Products large enough to be left out; perhaps Python looks at what they come to."""

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self.stem, self.head, self.other = nn.Conv2d(3, 64, 7, stride=2), nn.Linear(64, 8), nn.Linear(64, 8)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.relu(self.stem(x)).flatten(2).transpose(1, 2)
        rows = rows @ rows.transpose(1, 2) @ rows
        is_other = self.reads and bool(rows.abs().max() > 0)
        return (self.other if is_other else self.head)(rows).mean(1)


def test_a_sketch_has_the_ops_and_shapes_of_the_forward_and_no_results() -> None:
    model, inputs = randomized(Large(), 1), Inputs.of(noise(1, 3, 64, 64))
    whole, sketch = record(model, inputs), record(model, inputs, is_sketched=True)
    ops = [
        [(node.target, node.meta.get("shape"), node.meta.get("dtype")) for node in found.graph.nodes]
        for found in (whole, sketch)
    ]
    assert ops[0] == ops[1]
    assert whole.results
    assert not sketch.results


def test_large_products_of_a_sketch_are_zeros_and_small_ones_are_computed() -> None:
    seen: list[Tensor] = []

    class Seen(nn.Module):
        def forward(self, x: Tensor, small: Tensor) -> Tensor:
            seen.extend((x @ x, small @ small))
            return seen[0]

    record(Seen(), Inputs((noise(200, 200), noise(4, 4)), {}), is_sketched=True)
    large, small = seen
    assert not bool(large.any())
    assert bool(small.any())


def test_a_forward_that_reads_what_it_computes_is_recorded_in_full() -> None:
    src, dest = randomized(Large(reads=True), 1), randomized(Large(reads=True), 2)
    assert automap.transfer(src, dest, noise(1, 3, 64, 64)).is_equal
    assert torch.equal(src.other.weight, dest.other.weight)
