from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from automap.errors import PlanError
from automap.plan import (
    Add,
    Affine,
    Cast,
    Concat,
    Divide,
    Expand,
    Expr,
    Fill,
    Gather,
    MatMul,
    MatrixFunction,
    Mean,
    Multiply,
    Norm,
    Pad,
    Permute,
    Plan,
    Pointwise,
    Reshape,
    Slice,
    Source,
    Sqrt,
    Subtract,
    Tril,
    from_json,
    to_json,
)
from automap.plan.codec import _READERS
from automap.plan.dtypes import DTYPES

W = Source("w", (4, 6))
SOURCE = {"op": "source", "name": "w", "shape": [4, 6], "dtype": "float32"}
DOCUMENT = Path(__file__).parents[2] / "docs" / "plan-format.md"

NODES: list[tuple[Expr, dict[str, Any]]] = [
    (W, SOURCE),
    (Fill(0.5, (2,), "int8"), {"op": "fill", "value": 0.5, "shape": [2], "dtype": "int8"}),
    (
        Slice(W, (1, 0), (3, 6), (1, 2)),
        {"op": "slice", "arg": SOURCE, "start": [1, 0], "stop": [3, 6], "step": [1, 2]},
    ),
    (Concat((W, W), 1), {"op": "concat", "args": [SOURCE, SOURCE], "dim": 1}),
    (Permute(W, (1, 0)), {"op": "permute", "arg": SOURCE, "dims": [1, 0]}),
    (Reshape(W, (24,)), {"op": "reshape", "arg": SOURCE, "shape": [24]}),
    (Gather(W, 1, (5, 0)), {"op": "gather", "arg": SOURCE, "dim": 1, "indices": [5, 0]}),
    (Pad(W, (1, 0), (0, 2)), {"op": "pad", "arg": SOURCE, "before": [1, 0], "after": [0, 2]}),
    (Expand(W, (3, 4, 6)), {"op": "expand", "arg": SOURCE, "shape": [3, 4, 6]}),
    (Cast(W, "bfloat16"), {"op": "cast", "arg": SOURCE, "dtype": "bfloat16"}),
    (Affine(W, 2.0, float("inf")), {"op": "affine", "arg": SOURCE, "scale": 2.0, "shift": "inf"}),
    (Add(W, W), {"op": "add", "left": SOURCE, "right": SOURCE}),
    (Subtract(W, W), {"op": "subtract", "left": SOURCE, "right": SOURCE}),
    (Multiply(W, W), {"op": "multiply", "left": SOURCE, "right": SOURCE}),
    (Divide(W, W), {"op": "divide", "left": SOURCE, "right": SOURCE}),
    (
        MatMul(W, Permute(W, (1, 0))),
        {"op": "matmul", "left": SOURCE, "right": {"op": "permute", "arg": SOURCE, "dims": [1, 0]}},
    ),
    (Sqrt(W), {"op": "sqrt", "arg": SOURCE}),
    (Pointwise(W, "exp"), {"op": "pointwise", "arg": SOURCE, "function": "exp"}),
    (
        MatrixFunction(MatMul(W, Permute(W, (1, 0))), "inverse"),
        {
            "op": "matrix_function",
            "arg": {"op": "matmul", "left": SOURCE, "right": {"op": "permute", "arg": SOURCE, "dims": [1, 0]}},
            "function": "inverse",
        },
    ),
    (Tril(W, -1), {"op": "tril", "arg": SOURCE, "diagonal": -1}),
    (Norm(W, (1,)), {"op": "norm", "arg": SOURCE, "dims": [1]}),
    (Mean(W, (0, 1)), {"op": "mean", "arg": SOURCE, "dims": [0, 1]}),
]


@pytest.mark.parametrize(("expr", "data"), NODES, ids=[data["op"] for _, data in NODES])
def test_a_node_is_written_and_read_as_in_every_plan_of_version_1(expr: Expr, data: dict[str, Any]) -> None:
    assert to_json(expr) == data
    assert from_json(data) == expr


def test_every_kind_of_node_is_pinned_and_documented() -> None:
    kinds = {data["op"] for _, data in NODES}
    documented = [match for line in DOCUMENT.read_text().splitlines() for match in re.findall(r"^\| (`.*?) \|", line)]
    ops = {op for cell in documented for op in re.findall(r"`(\w+)`", cell)}
    assert kinds == set(_READERS)
    assert kinds == ops - {"format", "version", "src", "dest", "entries"}


def test_every_field_is_documented_beside_its_op() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    for _, data in NODES:
        row = next(row for row in rows if f"`{data['op']}`" in row.split("|")[1])
        assert re.findall(r"`(\w+)`", row.split("|")[2]) == [name for name in data if name != "op"]


def test_every_dtype_is_documented() -> None:
    section = DOCUMENT.read_text().split("## Dtypes")[1].split("1. ")[0]
    assert set(re.findall(r"`(\w+)`", section)) == DTYPES


def test_the_documented_plan_is_one() -> None:
    text = DOCUMENT.read_text().split("```json\n")[1].split("```")[0]
    plan = Plan.from_text(text)
    assert plan.dest_shapes == {"layer.0.query.weight": (768, 768), "layer.0.norm.weight": (768,)}
    assert json.loads(plan._text()) == json.loads(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param({"op": "sqrt", "arg": SOURCE, "eps": 1e-5}, "^expr has unknown fields: `eps`", id="unknown-field"),
        pytest.param({"op": "norm", "arg": SOURCE}, "^expr has no field `dims`", id="missing-field"),
        pytest.param({"op": "mean", "arg": SOURCE, "dims": []}, r"^expr: dims \(\) are not some dims", id="no-dims"),
        pytest.param({"op": "divide", "left": SOURCE, "right": None}, r"^expr\.right is null", id="right"),
        pytest.param(
            {"op": "pad", "arg": SOURCE, "before": [-1, 0], "after": [0, 0]}, r"^expr\.before\[0\] is not", id="pad"
        ),
        pytest.param(
            {"op": "expand", "arg": SOURCE, "shape": [2**40, 4, 6]}, "^expr has shape .* more than", id="too-large"
        ),
        pytest.param({"op": "matmul", "left": SOURCE, "right": SOURCE}, "^expr: shapes .* as matrices", id="matmul"),
    ],
)
def test_what_is_not_a_node_is_refused_with_its_place(data: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        from_json(data)
