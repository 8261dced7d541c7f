"""Writing in place: whatever alias is written or read, the graph computes what the model does, on any input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from capture_replay import Calls, assert_replays
from torch import Tensor

from automap.capture import capture


def relu_on_a_view(m: Any, x: Tensor) -> Tensor:
    h = x * m.w
    h.view(-1)[3:].relu_()
    return h


def view_of_a_view(m: Any, x: Tensor) -> Any:
    h = x + m.w
    inner = h.t()[1:].t()[:, 1]
    inner.mul_(3)
    return h, inner


def read_through_an_older_view(m: Any, x: Tensor) -> Tensor:
    h = x * m.w
    view = h[:, ::2]
    h.add_(1)
    return view * 2


def write_to_a_column_of_a_transposed(m: Any, x: Tensor) -> Tensor:
    h = (x * m.w).t().contiguous().t()
    h[:, 0] = m.w.sum()
    return h


def copies_into_slices(m: Any, x: Tensor) -> Tensor:
    out = torch.empty(4, 10)
    out[:, :5] = x
    out[:, 5:].copy_(x * m.w)
    return out


def overlapping_writes(m: Any, x: Tensor) -> Any:
    h = x * m.w
    h[1:3] += 1
    h[2:] *= x[2:]
    return h, h[2]


def index_put(m: Any, x: Tensor) -> Tensor:
    h = x * m.w
    h[torch.tensor([0, 2]), 1:3] = m.w[:2, 1:3]
    h.index_put_((torch.tensor([1, 1]), torch.tensor([0, 4])), x[0, :2], accumulate=True)
    return h


def masked_write(m: Any, x: Tensor) -> Tensor:
    h = x * m.w
    h[x > 0] = 7.0
    h.masked_fill_(x < -1, -1.0)
    return h


def out_of_the_same_shape(m: Any, x: Tensor) -> Any:
    out = torch.zeros(4, 5)
    view = out[1]
    torch.mul(x, m.w, out=out)
    return out, view


def out_that_is_resized(m: Any, x: Tensor) -> Tensor:
    out = torch.empty(0)
    torch.mul(x, m.w, out=out)
    return out[1:] + 1


def out_of_another_dtype(m: Any, x: Tensor) -> Tensor:
    out = torch.empty(4, 5, dtype=torch.float64)
    torch.mul(x, m.w, out=out)
    return out / 3


def two_outs(m: Any, x: Tensor) -> Any:
    values, indices = torch.empty(4), torch.empty(4, dtype=torch.int64)
    torch.max(x * m.w, 1, out=(values, indices))
    return values * 2, indices + 1


def factory_out(m: Any, x: Tensor) -> Tensor:
    steps = torch.empty(5)
    torch.arange(5, out=steps)
    return x * m.w + steps


def foreach(m: Any, x: Tensor) -> Any:
    a, b = x * m.w, x + m.w
    row = a[0]
    torch._foreach_mul_([a, b], 2.0)
    return row, b


def in_place_with_promotion(m: Any, x: Tensor) -> Tensor:
    h = x * m.w
    h.add_(x.double() / 3)
    return h


def data_of_an_activation(m: Any, x: Tensor) -> Tensor:
    h = x * m.w
    h.data.mul_(2)
    return h


def data_of_a_weight(m: Any, x: Tensor) -> Tensor:
    return x * m.w.data[:, 0:1] + m.w.detach().t()[0, 0]


def exchanged_data(m: Any, x: Tensor) -> Tensor:
    h = x * m.w
    h.data = (x + m.w).t()
    return h @ x


def set_to_another(m: Any, x: Tensor) -> Tensor:
    h = torch.empty(0)
    source = x * m.w
    h.set_(source)
    h.neg_()
    return source


def transposed_in_place(m: Any, x: Tensor) -> Any:
    h = x * m.w
    alias = h[0]
    h.t_()
    h[0].zero_()
    return h, alias


def squeezed_in_place(m: Any, x: Tensor) -> Tensor:
    return (x * m.w).unsqueeze_(0).squeeze_(0).relu_()


def complex_parts(m: Any, x: Tensor) -> Tensor:
    z = torch.view_as_complex((x * m.w)[:, :4].reshape(4, 2, 2).contiguous())
    torch.view_as_real(z)[..., 0] = 0.5
    z.imag.mul_(2)
    return torch.view_as_real(z.conj() * z)


def conjugate_view(m: Any, x: Tensor) -> Tensor:
    z = torch.view_as_complex((x * m.w)[:, :4].reshape(4, 2, 2).contiguous())
    conjugate = z.conj()
    z.mul_(2)
    return torch.view_as_real(conjugate * 1)


def bits(m: Any, x: Tensor) -> Tensor:
    h = (x * m.w).contiguous()
    h.view(torch.int32).bitwise_and_(0x7FFFFFFF)
    return h


def through_numpy_like_views(m: Any, x: Tensor) -> Tensor:
    h = x * m.w
    for row in h.unbind(0)[::2]:
        row.sub_(row.mean())
    for part in h.chunk(2, dim=1):
        part.div_(2)
    return h


def a_loop_of_cells(m: Any, x: Tensor) -> Tensor:
    state = torch.zeros(4, 5)
    for step in range(4):
        state[step] = torch.tanh(x[step] @ m.w.t() @ m.w + state.sum(0))[:5]
    return state


def writes_to_its_input(m: Any, x: Tensor) -> Tensor:
    x[0] = 1.0
    return x * m.w


def writes_to_a_weight(m: Any, x: Tensor) -> Tensor:
    m.w.data.clamp_(min=0)
    return x * m.w


def fills_and_zeros(m: Any, x: Tensor) -> Tensor:
    h = x * m.w
    h[0].fill_(2.0)
    h[1].zero_()
    h[2].fill_(x.sum())
    return h.cumsum_(0)


def expanded_constant(m: Any, x: Tensor) -> Tensor:
    table = torch.arange(5.0).expand(4, 5)
    kept = table.clone()
    kept += x
    return table * m.w + kept


def op_without_functional_form(m: Any, x: Tensor) -> Tensor:
    h = (x * m.w)[:, :4].contiguous()
    h.fill_diagonal_(3.0)
    return torch.polygamma(1, h.abs_().add_(1)).polygamma_(1)


CASES = [
    relu_on_a_view,
    view_of_a_view,
    read_through_an_older_view,
    write_to_a_column_of_a_transposed,
    copies_into_slices,
    overlapping_writes,
    index_put,
    masked_write,
    out_of_the_same_shape,
    out_that_is_resized,
    out_of_another_dtype,
    two_outs,
    factory_out,
    foreach,
    in_place_with_promotion,
    data_of_an_activation,
    data_of_a_weight,
    exchanged_data,
    set_to_another,
    transposed_in_place,
    squeezed_in_place,
    complex_parts,
    conjugate_view,
    bits,
    through_numpy_like_views,
    a_loop_of_cells,
    writes_to_its_input,
    writes_to_a_weight,
    fills_and_zeros,
    expanded_constant,
    op_without_functional_form,
]


@pytest.mark.parametrize("mode", ["real", "fake"])
@pytest.mark.parametrize("forward", CASES, ids=lambda forward: forward.__name__)
def test_replaying_the_graph_gives_the_models_own_output(forward: Any, mode: Any) -> None:
    model, x = Calls(forward, w=torch.randn(4, 5)), torch.randn(4, 5)
    given, weight = x.clone(), model.w.detach().clone()
    found = capture(model, x, mode=mode)
    assert torch.equal(x, given)
    assert torch.equal(model.w, weight)
    assert found.mode == mode, found.notes
    assert_replays(found, model, x)


@pytest.mark.parametrize("forward", [f for f in CASES if f is not data_of_a_weight], ids=lambda f: f.__name__)
def test_no_graph_has_a_mutating_op(forward: Any) -> None:
    found = capture(Calls(forward, w=torch.randn(4, 5)), torch.randn(4, 5))
    for node in found.graph.nodes:
        assert not getattr(getattr(node.target, "_schema", None), "is_mutable", False), node.target


def test_an_unwritten_view_costs_no_extra_node() -> None:
    model = Calls(lambda m, x: (x * m.w).view(5, 4).relu_().sum(), w=torch.randn(4, 5))
    names = [str(n.target) for n in capture(model, torch.randn(4, 5)).graph.nodes if n.op == "call_function"]
    assert names == ["aten.mul.Tensor", "aten.view.default", "aten.relu.default", "aten.sum.default"]


def test_turning_a_tensor_in_place_leaves_its_aliases_as_they_are() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = x * m.w
        row = h[0]
        h.t_()
        return row + 1

    found = capture(Calls(forward, w=torch.randn(4, 5)), torch.randn(4, 5))
    assert "aten.as_strided.default" not in [str(n.target) for n in found.graph.nodes]


def test_an_alias_of_the_same_shape_reads_the_new_value_itself() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = x * m.w
        h.detach().relu_()
        return h + 1

    found = capture(Calls(forward, w=torch.randn(4, 5)), torch.randn(4, 5))
    assert [str(n.target) for n in found.graph.nodes if n.op == "call_function"][-2:] == [
        "aten.relu.default",
        "aten.add.Tensor",
    ]
