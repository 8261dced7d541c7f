from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from canonical_models import data_ops, flow_of, formula, live_ops, node, values_of, weight
from models import ids, noise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from automap.canonical.flow import Role

X, IMAGE = noise(3, 5, 8).double(), noise(2, 8, 4, 4).double()
FLAT = noise(5, 8).double()


def case(function: Callable[..., Any], x: Tensor, ops: str, *, id: str, **shapes: tuple[int, ...]) -> Any:
    """A row: a function of data and weights, and the ops on data that it becomes, layout left out."""
    return pytest.param(function, x, shapes, ops.split(), id=id)


def add_mm(alpha: float = 1, beta: float = 1) -> Callable[..., Tensor]:
    return lambda x, w, b: torch.addmm(b, x, w, alpha=alpha, beta=beta)


RULES = [
    case(lambda x, w: (x * w).permute(0, 2, 1).mean(1), X, "mul mean", id="mean-of-permuted", w=(8,)),
    case(lambda x, w: (x * w).permute(2, 0, 1).mean(0), X, "mul mean", id="mean-over-a-permuted-dim", w=(8,)),
    case(
        lambda x, w: (x * w).permute(2, 1, 0).mean(0), X, "mul mean", id="mean-near-miss-rest-in-another-order", w=(8,)
    ),
    case(lambda x, w: (x * w).mT.mean((-1, 0), True), X, "mul mean", id="mean-of-transposed-kept", w=(8,)),
    case(lambda x, w: (x * w).mean([]), X, "mul mean", id="mean-over-everything", w=(8,)),
    case(add_mm(), FLAT, "matmul add", id="addmm", w=(8, 3), b=(3,)),
    case(add_mm(2.0, 0.5), FLAT, "matmul mul add", id="addmm-near-miss-with-factors", w=(8, 3), b=(3,)),
    case(add_mm(1, 0), FLAT, "matmul", id="addmm-negative-bias-times-zero", w=(8, 3), b=(3,)),
    case(lambda x, w, b: torch.baddbmm(b, x, w, beta=0.5), X, "matmul add", id="baddbmm", w=(3, 8, 4), b=(3, 5, 4)),
    case(lambda x, w, b: torch.baddbmm(b, x, w, beta=0), X, "matmul", id="baddbmm-negative", w=(3, 8, 4), b=(3, 5, 4)),
    case(F.linear, X, "matmul add", id="linear", weight=(4, 8), bias=(4,)),
    case(F.linear, X, "matmul", id="linear-near-miss-without-bias", weight=(4, 8)),
    case(
        lambda x, w, b: F.conv2d(x, w, b, padding=1), IMAGE, "convolution add", id="convolution", w=(6, 8, 3, 3), b=(6,)
    ),
    case(
        lambda x, w: F.conv2d(x, w, groups=2),
        IMAGE,
        "convolution",
        id="convolution-near-miss-without-bias",
        w=(6, 4, 3, 3),
    ),
    case(
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2),
        IMAGE,
        "matmul add",
        id="convolution-transposed-side-by-side",
        w=(8, 6, 2, 2),
        b=(6,),
    ),
    case(
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1),
        IMAGE,
        "convolution add",
        id="convolution-transposed",
        w=(8, 6, 2, 2),
        b=(6,),
    ),
    case(lambda x, w, b: F.layer_norm(x, (8,), w, b), X, "layer_norm mul add", id="layer-norm", w=(8,), b=(8,)),
    case(lambda x, w: F.layer_norm(x, (8,), w), X, "layer_norm mul", id="layer-norm-near-miss-without-shift", w=(8,)),
    case(lambda x: F.layer_norm(x, (8,)), X, "layer_norm", id="layer-norm-negative-without-weights"),
    case(lambda x, w, b: F.group_norm(x, 2, w, b), IMAGE, "group_norm mul add", id="group-norm", w=(8,), b=(8,)),
    case(lambda x: F.group_norm(x, 2), IMAGE, "group_norm", id="group-norm-negative-without-weights"),
    case(
        lambda x, w: F.rms_norm(x, (8,), w, 1e-6), X, "pow mean add rsqrt mul mul", id="rms-norm-of-its-steps", w=(8,)
    ),
    case(
        lambda x, w, b, m, v: F.batch_norm(x, m.detach(), v.detach().square(), w, b),
        IMAGE,
        "mul add",
        id="batch-norm",
        w=(8,),
        b=(8,),
        m=(8,),
        v=(8,),
    ),
    case(
        lambda x, m, v: F.batch_norm(x, m.detach(), v.detach().square()),
        IMAGE,
        "mul add",
        id="batch-norm-near-miss-without-scale",
        m=(8,),
        v=(8,),
    ),
    case(
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        IMAGE,
        "batch_norm mul add",
        id="batch-norm-negative-of-data",
        w=(8,),
        b=(8,),
    ),
    case(
        lambda x, w: F.linear(x, F.batch_norm(w[None], None, None, training=True)[0]),
        X,
        "matmul",
        id="batch-norm-of-a-weight",
        w=(4, 8),
    ),
    case(lambda x, w: (x * w).sum(-1), X, "matmul", id="sum-of-products", w=(8,)),
    case(lambda x, w: (w[:, None] * x).sum(1), X, "matmul", id="sum-of-products-along-another-dim", w=(5,)),
    case(
        lambda x, w: (x.unfold(-1, 3, 1) * w[:, None]).sum(-1),
        X,
        "matmul",
        id="sum-of-products-one-row-a-channel",
        w=(5, 3),
    ),
    case(lambda x, w: (x * w).sum(1), X, "mul sum", id="sum-of-products-near-miss-of-another-dim", w=(8,)),
    case(lambda x, w: (x + w).sum(-1), X, "add sum", id="sum-of-products-negative-of-sums", w=(8,)),
    case(lambda x, w, b: torch.addcmul(b, x, w), X, "mul add", id="addcmul", w=(8,), b=(8,)),
    case(
        lambda x, w, b: torch.addcmul(b, x, w, value=3.0),
        X,
        "mul mul add",
        id="addcmul-near-miss-with-a-factor",
        w=(8,),
        b=(8,),
    ),
    case(lambda x: F.glu(x, -1), X, "sigmoid mul", id="glu"),
    case(lambda x: F.glu(x, 2), X, "sigmoid mul", id="glu-on-another-dim"),
    case(lambda x: torch.rsub(x, 1.0), X, "neg add", id="rsub"),
    case(lambda x: torch.rsub(x, 1.0, alpha=2.0), X, "mul add", id="rsub-near-miss-with-a-factor"),
    case(lambda x, w: x - w, X, "add", id="sub", w=(8,)),
    case(lambda x, w: torch.sub(x, w, alpha=3.0), X, "add", id="sub-near-miss-with-a-factor", w=(8,)),
    case(lambda x, w: x / w, X, "mul", id="div-by-a-weight", w=(8,)),
    case(lambda x, w: w / x, X, "div", id="div-near-miss-weight-by-data", w=(8,)),
    case(lambda x: x / 3.0, X, "div", id="div-negative-by-a-number"),
    case(lambda x, w: x * (x.mean(-1, keepdim=True) * w), X, "mean mul mul", id="reassociated", w=(8,)),
    case(lambda x, w: x * (x.sigmoid() * w), X, "sigmoid mul mul", id="reassociated-near-miss-wide", w=(8,)),
    case(
        lambda x, w: x * x.mean(-1, keepdim=True) * w, X, "mean mul mul", id="reassociated-negative-already-so", w=(8,)
    ),
    case(
        lambda x, w, b: x * w + (b - x.mean(1, keepdim=True) * w),
        X,
        "mean neg add mul add",
        id="common-factor",
        w=(8,),
        b=(8,),
    ),
    case(
        lambda x, w, u, b: x * w + (b - x.mean(1, keepdim=True) * u),
        X,
        "mul mean mul neg add add",
        id="common-factor-near-miss-another-weight",
        w=(8,),
        u=(8,),
        b=(8,),
    ),
]


@pytest.mark.parametrize(("function", "x", "shapes", "ops"), RULES)
def test_a_lowered_function_computes_the_same_values(function: Any, x: Tensor, shapes: Any, ops: list[str]) -> None:
    model = formula(function, **shapes)
    (found,) = values_of(flow_of(model, x))
    torch.testing.assert_close(found, model(x).detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("function", "x", "shapes", "ops"), RULES)
def test_a_function_lowers_to_ops_with_one_weight_each(function: Any, x: Tensor, shapes: Any, ops: list[str]) -> None:
    flow = flow_of(formula(function, **shapes), x)
    assert sorted(data_ops(flow)) == sorted(ops)
    for step in flow.nodes:
        is_sum = step.role is Role.ACTIVATION
        assert sum(flow[i].role is Role.WEIGHT for i in step.operands) <= 1 or not is_sum


def test_weight_norm_becomes_a_direction_times_a_factor() -> None:
    model = weight_norm(nn.Linear(8, 4)).double().eval()
    with torch.no_grad():
        model.parametrizations.weight.original0.mul_(1.7)
    flow = flow_of(model, X)
    torch.testing.assert_close(values_of(flow)[0], model(X).detach(), rtol=1e-11, atol=1e-11)
    assert "norm_except" in live_ops(flow)


def test_a_linear_without_weight_norm_has_no_factor() -> None:
    assert "norm_except" not in live_ops(flow_of(nn.Linear(8, 4).double(), X))


def token_and(join: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A token before the data, then `join` with a table."""
    return lambda x, token, table: join(torch.cat((token.expand(len(x), -1, -1), x), 1), table)


def test_a_table_added_to_joined_tokens_is_added_to_each_part() -> None:
    model = formula(token_and(torch.add), token=(1, 1, 8), table=(1, 6, 8))
    flow = flow_of(model, X)
    torch.testing.assert_close(values_of(flow)[0], model(X).detach())
    assert data_ops(flow) == ["add"]  # the other one is of two weights
    assert flow[flow.outputs[0][1]].op == "cat"


@pytest.mark.parametrize(
    ("join", "table"),
    [
        pytest.param(torch.add, (1, 1, 8), id="near-miss-one-row-for-all"),
        pytest.param(torch.mul, (1, 6, 8), id="negative-a-product"),
    ],
)
def test_other_tables_stay_outside_the_join(join: Any, table: tuple[int, ...]) -> None:
    model = formula(token_and(join), token=(1, 1, 8), table=table)
    flow = flow_of(model, X)
    torch.testing.assert_close(values_of(flow)[0], model(X).detach())
    assert flow[flow.outputs[0][1]].op in ("add", "mul")


def test_data_joined_to_data_keeps_its_table_whole() -> None:
    model = formula(lambda x, table: torch.cat((x, x.sin()), 1) + table, table=(1, 10, 8))
    flow = flow_of(model, X)
    torch.testing.assert_close(values_of(flow)[0], model(X).detach())
    assert flow[flow.outputs[0][1]].op == "add"


LAYOUTS = [
    pytest.param(lambda x: F.pad(x, (0, 0, 0, 0)), None, id="pad-by-nothing"),
    pytest.param(lambda x: F.pad(x, (0, 0, 1, 0)), "constant_pad_nd", id="pad-near-miss"),
    pytest.param(lambda x: F.pad(x, (0, 0, 1, -1)), "constant_pad_nd", id="pad-near-miss-of-the-same-shape"),
    pytest.param(lambda x: x[:, 0:9:1], None, id="slice-of-everything"),
    pytest.param(lambda x: x[:, 1:], "slice", id="slice-near-miss"),
    pytest.param(lambda x: x.permute(0, -2, 2), None, id="permute-to-the-same-order"),
    pytest.param(lambda x: x.permute(0, 2, 1), "permute", id="permute-near-miss"),
    pytest.param(lambda x: x.roll((0, 0), (1, 2)), None, id="roll-by-nothing"),
    pytest.param(lambda x: x.roll((0, 1), (1, 2)), "roll", id="roll-near-miss"),
]


@pytest.mark.parametrize(("layout", "op"), LAYOUTS)
def test_layout_that_moves_nothing_is_no_op(layout: Callable[[Tensor], Tensor], op: str | None) -> None:
    flow = flow_of(formula(lambda x: layout(x).sin()), X)
    torch.testing.assert_close(values_of(flow)[0], layout(X).sin())
    assert live_ops(flow) == ([op] if op else []) + ["sin"]


# ---------------------------------------------------------------- number types
def test_casts_between_floating_point_types_vanish() -> None:
    model = formula(lambda x, w: ((x.float() * w.float()).half().double() + 1).float(), w=(8,))
    assert data_ops(flow_of(model, X)) == ["mul", "add"]


def test_a_cast_to_integers_stays() -> None:
    flow = flow_of(formula(lambda x: (x * 3).long() * 0.5), X)
    assert "cast" in data_ops(flow)
    torch.testing.assert_close(values_of(flow)[0], (X * 3).long() * 0.5, check_dtype=False)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda x: torch.zeros_like(x, dtype=torch.float16), id="zeros_like"),
        pytest.param(lambda x: torch.full((8,), 0.1, dtype=torch.float32), id="full"),
        pytest.param(lambda x: torch.arange(8, dtype=torch.float32), id="arange"),
        pytest.param(lambda x: torch.linspace(0, 1, 8), id="linspace"),
        pytest.param(lambda x: x.float().mean(-1, keepdim=True), id="mean"),
        pytest.param(lambda x: x.new_ones(8, dtype=torch.bfloat16), id="new_ones"),
    ],
)
def test_what_a_factory_makes_is_float64(make: Any) -> None:
    flow = flow_of(formula(lambda x: x + make(x)), X.float())
    assert values_of(flow)[0].dtype == torch.float64


def test_what_a_factory_makes_of_integers_stays_integers() -> None:
    flow = flow_of(formula(lambda x, w: w[torch.arange(5) + 1] + x, w=(9, 8)), X)
    torch.testing.assert_close(values_of(flow)[0].shape, X.shape)


# ---------------------------------------------------------------- lookups
def rows_of(chosen: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda tokens, table: F.embedding(chosen(tokens), table)


@pytest.mark.parametrize(
    ("chosen", "tokens", "op"),
    [
        pytest.param(lambda t: t, ids(2, 5), "lookup", id="positive-chosen-by-data"),
        pytest.param(lambda t: torch.arange(t.shape[1]) + 2, ids(2, 5), "index", id="negative-counted"),
        pytest.param(
            lambda t: torch.cumsum(torch.ones_like(t), 1), ids(2, 5), "index", id="near-miss-counted-from-data"
        ),
        pytest.param(lambda t: torch.zeros_like(t), ids(2, 5), "index", id="near-miss-one-row"),
        pytest.param(lambda t: t.flip(1), ids(2, 5), "lookup", id="positive-data-reversed"),
    ],
)
def test_rows_chosen_by_data_are_a_lookup_and_counted_ones_layout(chosen: Any, tokens: Tensor, op: str) -> None:
    model = formula(rows_of(chosen), table=(20, 8))
    flow = flow_of(model, tokens)
    torch.testing.assert_close(values_of(flow)[0], model(tokens).detach())
    found = live_ops(flow)
    assert op in found
    assert ("lookup" in found) == (op == "lookup")


@pytest.mark.parametrize(
    ("function", "role"),
    [
        pytest.param(lambda x, w: torch.zeros_like(w), Role.CONSTANT, id="positive-zeros-like"),
        pytest.param(lambda x, w: w.new_full((8,), 2.0), Role.CONSTANT, id="positive-new-full"),
        pytest.param(lambda x, w: w * 0, Role.WEIGHT, id="near-miss-times-zero"),
        pytest.param(lambda x, w: torch.zeros_like(x) + w, Role.WEIGHT, id="near-miss-zeros-plus-a-weight"),
        pytest.param(lambda x, w: x + w, Role.ACTIVATION, id="negative-data"),
    ],
)
def test_what_reads_a_shape_only_is_made_of_nothing(function: Any, role: Role) -> None:
    flow = flow_of(formula(function, w=(8,)), X)
    assert flow[flow.outputs[0][1]].role is role


def test_a_product_with_a_weight_is_data_even_of_weights_alone() -> None:
    flow = flow_of(formula(lambda x, w, q: x + q @ w, w=(8, 8), q=(5, 8)), X)
    assert flow[node(flow, "matmul")].role is Role.ACTIVATION


def test_a_dead_branch_is_not_lowered() -> None:
    def wasteful(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
        (x * u).exp()
        return x * w

    flow = flow_of(formula(wasteful, w=(8,), u=(8,)), X)
    assert [held.name for held in flow.weights.values()] == ["held.w"]
    assert weight(flow, "w") in flow.weights
