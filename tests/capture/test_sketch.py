"""A sketch has the ops of a forward and not what its large products come to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import noise, randomized
from models.nets import Net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import automap
from automap.capture import record
from automap.inputs import Inputs

aten = torch.ops.aten


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


def sketched(function: Callable[[Tensor, Tensor], Any], x: Tensor) -> tuple[Any, Any]:
    """What a function of data and a weight gives within a forward, and within a sketch of it."""
    found: list[Any] = []

    def forward(net: Any, x: Tensor) -> Tensor:
        found.append(function(x, net.w))
        return found[-1] if isinstance(found[-1], Tensor) else found[-1][0]

    model = Net(forward, w=nn.Parameter(torch.ones(x.shape[-1])))
    for is_sketched in (False, True):
        record(model, Inputs.of(x), is_sketched=is_sketched)
    whole, sketch = found
    return whole, sketch


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x, w: (x * w) @ x.transpose(1, 2), id="bmm"),
        pytest.param(lambda x, w: (x * w)[0] @ x[0].T, id="mm"),
        pytest.param(lambda x, w: F.conv1d(x * w, x[:, :, :3]), id="convolution"),
        pytest.param(lambda x, w: F.gelu(x * w, approximate="tanh"), id="gelu"),
        pytest.param(lambda x, w: F.gelu((x * w).transpose(1, 2)), id="gelu-of-moved-data"),
        pytest.param(lambda x, w: F.silu(x * w), id="silu"),
        pytest.param(lambda x, w: (x * w).softmax(-1), id="softmax"),
        pytest.param(lambda x, w: (x * w).transpose(1, 2).softmax(-1), id="softmax-of-moved-data"),
        pytest.param(lambda x, w: (x * w).softmax(-1, dtype=torch.float64), id="softmax-in-another-precision"),
        pytest.param(lambda x, w: aten._safe_softmax(x * w, -1), id="safe-softmax"),
        pytest.param(lambda x, w: F.layer_norm(x, w.shape, w), id="layer-norm"),
        pytest.param(lambda x, w: aten.native_layer_norm(x * w, x.shape[1:], None, None, 1e-5), id="layer-norm-parts"),
        pytest.param(lambda x, w: F.batch_norm((x * w).mT, w, w), id="batch-norm"),
        pytest.param(
            lambda x, w: aten.native_batch_norm((x * w).mT.contiguous(), w, w, w, w, False, 0.1, 1e-5),
            id="batch-norm-parts",
        ),
        pytest.param(lambda x, w: (x * w).transpose(1, 2).contiguous(), id="contiguous"),
        pytest.param(lambda x, w: (x * w).transpose(1, 2).clone(), id="clone"),
        pytest.param(lambda x, w: F.layer_norm((x * w).mT, (300,)), id="layer-norm-of-moved-data"),
        pytest.param(lambda x, w: (x * w).view(2, 3, 100, 200)[:, 1:].sigmoid(), id="sigmoid-of-a-part"),
        pytest.param(lambda x, w: (x * w).view(2, 300, 4, 50).permute(2, 0, 1, 3)[0] * 2, id="times-a-number"),
        pytest.param(lambda x, w: (x * w).mT * w[:1], id="times-one"),
        pytest.param(lambda x, w: torch.view_as_real((x * w) * 1j), id="times-i"),
        pytest.param(lambda x, w: (x * w).bfloat16() * 2, id="narrow-numbers"),
        pytest.param(lambda x, w: (x * w).mT * w[:, None], id="times-columns-of-moved-data"),
        pytest.param(lambda x, w: (x * w) + x, id="plus-data"),
        pytest.param(lambda x, w: (x * w).mT + x.mT, id="plus-moved-data"),
        pytest.param(lambda x, w: (x * w).mT + x.mT.contiguous(), id="plus-data-laid-out-otherwise"),
        pytest.param(lambda x, w: (x * w)[None].mT + x[None].mT.contiguous(), id="plus-one-laid-out-otherwise"),
        pytest.param(lambda x, w: w[:, None] * (x * w).mT, id="columns-times-moved-data"),
        pytest.param(lambda x, w: (x * w).expand(3, 2, 300, 200) + x, id="spread-data-plus-data"),
        pytest.param(lambda x, w: (x * w) + x[:1], id="plus-one-of-a-batch"),
        pytest.param(lambda x, w: (x * w) + x[:, :1].double(), id="plus-another-precision"),
        pytest.param(lambda x, w: (x * w)[:1] + x[:, :, :1].expand(2, 300, 200), id="spread-over-a-batch"),
        pytest.param(lambda x, w: torch.cat([x * w, (x + w)[:, 1:]], 1), id="cat-with-a-part"),
        pytest.param(lambda x, w: torch.cat([x * w, x + w], -1), id="cat"),
        pytest.param(lambda x, w: (x * w).roll((1, 2), (1, 2)), id="roll"),
        pytest.param(lambda x, w: (x * w).mT.roll(1, 1), id="roll-of-moved-data"),
        pytest.param(lambda x, w: F.pad(x * w, (0, 0, 0, 0)), id="pad-by-nothing"),
        pytest.param(lambda x, w: F.pad((x * w).mT, (0, 0, 0, 0)), id="pad-by-nothing-of-moved-data"),
        pytest.param(lambda x, w: F.pad(x * w, (1, 0)), id="pad"),
        pytest.param(lambda x, w: F.relu6(x * w), id="relu6"),
        pytest.param(lambda x, w: F.relu((x * w).mT, inplace=True), id="relu-in-place"),
        pytest.param(lambda x, w: (x * w).mT.add_(x.mT), id="add-in-place"),
        pytest.param(lambda x, w: F.max_pool2d((x * w)[None], 3, 2, 1, return_indices=True), id="max-pool"),
        pytest.param(lambda x, w: F.conv2d((x * w)[None], x[:, None, :3, :3].contiguous(), groups=2), id="grouped"),
    ],
)
def test_results_in_a_sketch_look_as_they_do_in_a_forward(function: Any) -> None:
    for whole, sketch in zip(*map(pytree.tree_leaves, sketched(function, noise(2, 300, 200))), strict=True):
        assert (sketch.shape, sketch.stride(), sketch.dtype) == (whole.shape, whole.stride(), whole.dtype)


@pytest.mark.parametrize(
    ("function", "is_computed"),
    [
        pytest.param(lambda x, w: (x * w) @ x.transpose(1, 2), False, id="a-large-product"),
        pytest.param(lambda x, w: F.gelu(x * w), False, id="a-large-gelu"),
        pytest.param(lambda x, w: x @ x.transpose(1, 2), True, id="with-nothing-learned"),
        pytest.param(lambda x, w: (x[:, :9, :9] * w[:9]) @ x[:, :9, :9].transpose(1, 2), True, id="a-small-product"),
        pytest.param(lambda x, w: F.gelu(x * w)[:, :9, :9], False, id="a-part-of-a-large-gelu"),
        pytest.param(lambda x, w: F.gelu(x[:, :9, :9] * w[:9]), True, id="a-small-gelu"),
    ],
)
def test_what_takes_long_and_is_learned_is_zeros_in_a_sketch(function: Any, is_computed: bool) -> None:
    whole, sketch = sketched(function, noise(2, 300, 200))
    assert torch.equal(whole, sketch) == is_computed
    assert bool(sketch.any()) == is_computed


def test_a_forward_that_reads_what_it_computes_is_recorded_in_full() -> None:
    src, dest = randomized(Large(reads=True), 1), randomized(Large(reads=True), 2)
    assert automap.transfer(src, dest, noise(1, 3, 64, 64)).is_equal
    assert torch.equal(src.other.weight, dest.other.weight)


def test_a_forward_that_writes_to_its_own_buffers_is_recorded_in_full() -> None:
    """Zeros that are added change nothing, and there would be nothing to tell."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = x * net.w
        net.seen.add_(y)
        return y

    def made() -> nn.Module:
        model = Net(forward, w=nn.Parameter(torch.ones(200)))
        model.register_buffer("seen", torch.zeros(300, 200))
        return model

    found = automap.match(randomized(made(), 1), randomized(made(), 2), noise(300, 200))
    assert "`seen`" in found.dest_capture.notes[0]
