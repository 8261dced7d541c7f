from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from canonical_models import flow_of, formula, weight
from models import DIM, HEADS, WIDTH, noise
from torch import Tensor
from torch.nn import functional as F

from automap.align.draw import own_weights
from automap.align.run import Run
from automap.canonical import Flow
from automap.canonical.provenance import Numbering, Part, Trace, parts, traces

X = noise(2, 5, WIDTH).double()


def traced(function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> tuple[Flow, tuple[Trace, ...]]:
    """The paths behind the weight-side result of a function of weights."""
    flow = flow_of(formula(lambda x, **weights: function(**weights), **shapes), X)
    run = Run(flow, own_weights(flow))
    return flow, traces(flow, Numbering.of(flow), flow.outputs[0][1], run.value)


def number(flow: Flow, name: str) -> Tensor:
    return Numbering.of(flow).ids(flow, weight(flow, name))


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        pytest.param(lambda w: w.T, (6, 4), id="transposed"),
        pytest.param(lambda w: w.view(2, 3, 4).permute(1, 2, 0).flatten(1), (6, 4), id="reshaped-and-permuted"),
        pytest.param(lambda w: w[::2, 1:3].flip(0), (6, 4), id="sliced-with-steps"),
        pytest.param(lambda w: w[torch.tensor([3, 0, 3])], (6, 4), id="rows-by-number"),
        pytest.param(lambda w: w.unsqueeze(0).expand(3, -1, -1).reshape(-1), (6, 4), id="repeated"),
        pytest.param(lambda w: torch.stack(w.unbind(1)).roll(1, 0), (6, 4), id="taken-apart-and-stacked"),
        pytest.param(lambda w: w.as_strided((2, 3), (1, 8), 2), (6, 4), id="strided-view"),
        pytest.param(lambda w: torch.cat(w.split(2))[1:], (6, 4), id="split-and-joined"),
    ],
)
def test_a_pure_layout_traces_to_the_elements_it_moves(function: Any, shape: tuple[int, ...]) -> None:
    flow, (trace,) = traced(lambda w: function(w), w=shape)
    assert trace.path == ()
    assert torch.equal(trace.ids, function(number(flow, "w")))


def test_joined_biases_trace_to_both_and_zeros_to_nothing() -> None:
    flow, (trace,) = traced(lambda q, v: torch.cat((q, torch.zeros_like(v), v)), q=(4,), v=(4,))
    assert torch.equal(trace.ids, torch.cat([number(flow, "q"), torch.full((4,), -1), number(flow, "v")]))


def test_padding_traces_to_nothing() -> None:
    flow, (trace,) = traced(lambda w: F.pad(w, (1, 2)), w=(3,))
    assert torch.equal(trace.ids, F.pad(number(flow, "w"), (1, 2), value=-1))


def resized(size: int) -> Callable[[Tensor], Tensor]:
    return lambda w: F.interpolate(w.view(1, 4, 4, 3).permute(0, 3, 1, 2), (size, size), mode="bicubic").permute(
        0, 2, 3, 1
    )


def test_resizing_to_the_same_size_is_no_step_on_the_path() -> None:
    flow, (trace,) = traced(lambda w: resized(4)(w), w=(16, 3))
    assert trace.path == ()
    assert torch.equal(trace.ids, number(flow, "w").view(1, 4, 4, 3))


def test_resizing_to_another_size_has_no_trace() -> None:
    assert traced(lambda w: resized(6)(w), w=(16, 3))[1] == ()


def test_a_sum_of_two_weights_has_a_path_for_each() -> None:
    flow, found = traced(lambda w, b: w + b, w=(3, 4), b=(4,))
    assert len(found) == 2
    assert [trace.path[0] for trace in found] == ["add", "add"]
    assert torch.equal(found[0].ids, number(flow, "w"))
    assert torch.equal(found[1].ids, number(flow, "b").expand(3, 4))


@pytest.mark.parametrize(
    ("function", "path"),
    [
        pytest.param(lambda w: 1 + w, ("add",), id="one-more"),
        pytest.param(lambda w: -w, ("neg",), id="negative"),
        pytest.param(lambda w: w.exp().T, ("exp",), id="a-function-then-layout"),
    ],
)
def test_what_computes_with_a_weight_is_named_on_its_path(function: Any, path: tuple[str, ...]) -> None:
    _, (trace,) = traced(lambda w: function(w), w=(3, 4))
    assert trace.path == path


# ---------------------------------------------------------------- parts
def parts_of(function: Callable[[Tensor], Any], width: int) -> tuple[Part, ...]:
    """The parts of a linear of this width whose result goes into function."""
    flow = flow_of(formula(lambda x, w: function(F.linear(x, w)), w=(width, WIDTH)), X)
    index = next(i for i, step in enumerate(flow.nodes) if step.op == "matmul")
    channels = torch.arange(width).expand(flow[index].shape)
    return parts(flow, index, channels, Run(flow, own_weights(flow)).value)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


def chunked(flat: Tensor) -> Tensor:
    return attended(*flat.chunk(3, -1))


def by_head(flat: Tensor) -> Tensor:
    return attended(*flat.view(2, 5, 3, HEADS, DIM).transpose(1, 3).unbind(2))


def per_head(flat: Tensor) -> Tensor:
    return attended(*flat.view(2, 5, HEADS, 3, DIM).transpose(1, 2).unbind(3))


def halves(flat: Tensor) -> Tensor:
    a, b = flat.view(2, 5, HEADS, DIM).chunk(2, -1)
    return torch.cat((a.sin() * b, b.cos() * a), -1)


def neighbours(flat: Tensor) -> Tensor:
    a, b = flat.view(2, 5, HEADS, DIM)[..., ::2], flat.view(2, 5, HEADS, DIM)[..., 1::2]
    return torch.stack((a.sin() * b, b.cos() * a), -1).flatten(2)


ROWS = torch.arange(3 * WIDTH)
HEAD = torch.arange(WIDTH).view(HEADS, DIM)


@pytest.mark.parametrize(
    ("function", "width", "expected"),
    [
        pytest.param(chunked, 3 * WIDTH, ROWS.chunk(3), id="qkv-chunked"),
        pytest.param(by_head, 3 * WIDTH, ROWS.chunk(3), id="qkv-viewed-and-unbound"),
        pytest.param(per_head, 3 * WIDTH, ROWS.view(HEADS, 3, DIM).unbind(1), id="qkv-per-head"),
        pytest.param(halves, WIDTH, (HEAD[:, : DIM // 2], HEAD[:, DIM // 2 :]), id="rotary-halves"),
        pytest.param(neighbours, WIDTH, (HEAD[:, ::2], HEAD[:, 1::2]), id="rotary-neighbours"),
        pytest.param(lambda y: F.glu(y), 2 * WIDTH, torch.arange(2 * WIDTH).chunk(2), id="glu"),
        pytest.param(lambda y: y.sin(), WIDTH, (torch.arange(WIDTH),), id="near-miss-read-whole"),
        pytest.param(
            lambda y: y.roll(3, -1).sin(),
            WIDTH,
            (torch.arange(WIDTH).roll(3),),
            id="near-miss-read-whole-in-another-order",
        ),
    ],
)
def test_outputs_are_parted_by_who_reads_them_in_reading_order(function: Any, width: int, expected: Any) -> None:
    found = parts_of(function, width)
    assert [part.channels.tolist() for part in found] == [rows.flatten().tolist() for rows in expected]


def test_what_nobody_reads_is_one_part_without_readers() -> None:
    (part,) = parts_of(lambda y: y, WIDTH)
    assert part.readers == ()


def test_parts_are_told_through_a_bias_and_a_scale() -> None:
    flow = flow_of(formula(lambda x, w, b: chunked(F.linear(x, w, b) * 0.5), w=(3 * WIDTH, WIDTH), b=(3 * WIDTH,)), X)
    index = next(i for i, step in enumerate(flow.nodes) if step.op == "matmul")
    channels = torch.arange(3 * WIDTH).expand(flow[index].shape)
    found = parts(flow, index, channels, Run(flow, own_weights(flow)).value)
    assert [len(part.channels) for part in found] == [WIDTH] * 3
    assert len({part.readers for part in found}) == 3


def test_numbers_of_weights_do_not_overlap() -> None:
    flow = flow_of(formula(lambda x, w, b: F.linear(x, w, b), w=(4, WIDTH), b=(4,)), X)
    found = torch.cat([Numbering.of(flow).ids(flow, i).flatten() for i in flow.weights])
    assert torch.equal(found.sort().values, torch.arange(4 * WIDTH + 4))
