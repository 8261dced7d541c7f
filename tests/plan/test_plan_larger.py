from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_strategies import exprs, rows
from torch import Tensor

from automap.errors import PlanError
from automap.plan import (
    Affine,
    Concat,
    ElementMap,
    Expand,
    Expr,
    Fill,
    Gather,
    MatMul,
    Multiply,
    Pad,
    Permute,
    Plan,
    Reshape,
    Shape,
    Slice,
    Source,
    SourceTensor,
    build_expr,
    simplify,
)


def mapped(name: str, shape: Shape, ids: Callable[[Tensor], Tensor]) -> Expr:
    """What `build_expr` makes of elements of one src tensor."""
    chosen = ids(torch.arange(math.prod(shape)).view(shape)).contiguous()
    source = SourceTensor(name, shape, "float32", 0)
    return build_expr(ElementMap(tuple(chosen.shape), "float32", chosen, (source,)))


@dataclass(frozen=True)
class Llama:
    """The sizes of a decoder whose src has qkv fused, interleaved by kv group, and gate and up fused."""

    depth: int
    width: int
    groups: int
    queries: int
    head: int
    hidden: int
    words: int

    def plan(self) -> Plan:
        entries: dict[str, Expr] = {
            "model.embed_tokens.weight": Source("wte.weight", (self.words, self.width)),
            "model.norm.weight": Source("ln_f.weight", (self.width,)),
        }
        for block in range(self.depth):
            entries |= {f"model.layers.{block}.{name}": expr for name, expr in self.block(f"h.{block}").items()}
        return Plan(entries)

    def block(self, src: str) -> dict[str, Expr]:
        fused = self.groups * (self.queries + 2) * self.head
        qkv = f"{src}.qkv.weight", (fused, self.width)
        view = (self.groups, self.queries + 2, self.head, self.width)
        gate_up = Source(f"{src}.gate_up.weight", (2 * self.hidden, self.width))
        return {
            "q_proj.weight": mapped(*qkv, lambda ids: ids.view(view)[:, :-2].reshape(-1, self.width)),
            "k_proj.weight": mapped(*qkv, lambda ids: ids.view(view)[:, -2].reshape(-1, self.width)),
            "v_proj.weight": mapped(*qkv, lambda ids: ids.view(view)[:, -1].reshape(-1, self.width)),
            "o_proj.weight": Source(f"{src}.o.weight", (self.width, self.groups * self.queries * self.head)),
            "gate_proj.weight": rows(gate_up, 0, self.hidden),
            "up_proj.weight": rows(gate_up, self.hidden, 2 * self.hidden),
            "down_proj.weight": Permute(Source(f"{src}.down", (self.hidden, self.width)), (1, 0)),
            "norm.weight": Affine(Source(f"{src}.ln_1.weight", (self.width,)), shift=1.0),
        }


TWIN = Llama(depth=2, width=24, groups=2, queries=3, head=5, hidden=44, words=96)
LARGE = Llama(depth=80, width=512, groups=8, queries=6, head=16, hidden=1376, words=2000)


@pytest.mark.parametrize("dims", [{2: 8}, {5: 16}, {2: 8, 5: 16}], ids=str)
@pytest.mark.parametrize("with_src", [True, False])
def test_the_plan_of_a_two_block_twin_becomes_that_of_its_eighty_block_sibling(
    dims: dict[int, int], with_src: bool
) -> None:
    large = Llama(80, 64, 8, 2, 16, 88, 100).plan()
    made = TWIN.plan().for_model(large.dest_shapes, large.src_shapes if with_src else None, dims=dims)
    assert made == large
    assert list(made.entries) == list(large.entries)


def test_other_widths_of_the_same_heads_need_no_more_than_shapes() -> None:
    large = Llama(5, 512, 2, 7, 5, 1376, 300).plan()
    assert TWIN.plan().for_model(large.dest_shapes, dims={2: 2}) == large


def test_more_layers_of_the_same_sizes_need_no_more_than_shapes() -> None:
    large = Llama(7, 24, 2, 3, 5, 44, 96).plan()
    assert TWIN.plan().for_model(large.dest_shapes) == large


def test_the_number_of_heads_is_refused_where_shapes_do_not_tell_it() -> None:
    large = LARGE.plan()
    with pytest.raises(
        PlanError, match=r"`model\.layers\.0\.q_proj\.weight`: 2 x 15 in the plan is 768 here"
    ) as caught:
        TWIN.plan().for_model(large.dest_shapes, large.src_shapes)
    assert "which may be 2 x 384 or others" in str(caught.value)
    assert caught.value.help is not None
    assert "dims={2: ..., 15: ...}" in caught.value.help


def test_both_readings_are_named() -> None:
    def plan(heads: int, size: int) -> Plan:
        def interleaved(ids: Tensor) -> Tensor:
            return ids.view(heads, 2, size // 2).transpose(1, 2).reshape(-1)

        return Plan({f"blocks.{n}.q": mapped(f"h.{n}.q", (heads * size,), interleaved) for n in range(2)})

    twin, large = plan(4, 10), plan(16, 20)
    message = r"`blocks.0.q`: 4 x 2 x 5 in the plan is 320 here, which may be 32 x 2 x 5 or 4 x 16 x 5 or 4 x 2 x 40"
    with pytest.raises(PlanError, match=message):
        twin.for_model(large.dest_shapes, large.src_shapes)
    with pytest.raises(PlanError, match="2 x 5 in the plan is 20 here, which may be 4 x 5 or 2 x 10"):
        twin.for_model(large.dest_shapes, dims={4: 16})
    assert twin.for_model(large.dest_shapes, dims={4: 16, 2: 2}) == large


def test_a_size_that_stands_for_two_things_is_refused() -> None:
    def plan(heads: int, size: int) -> Plan:
        return Plan({"q": mapped("w", (heads * size,), lambda ids: ids.view(heads, size).T.reshape(-1))})

    assert plan(4, 5).for_model({"q": (16 * 20,)}, dims={4: 16}) == plan(16, 20)
    with pytest.raises(PlanError, match="does not fit: 4 in `q` is 16 here, other than the other sizes tell"):
        plan(4, 4).for_model({"q": (16 * 20,)}, dims={4: 16})


@given(st.lists(exprs(), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_a_plan_for_its_own_model_is_the_plan(some: list[Expr]) -> None:
    plan = Plan({f"blocks.{n}.w{place}": expr for place, expr in enumerate(some) for n in range(2)})
    made = plan.for_model(plan.dest_shapes, plan.src_shapes)
    assert {name: simplify(expr) for name, expr in made.entries.items()} == {
        name: simplify(expr) for name, expr in plan.entries.items()
    }


def experts(depth: int, count: int, width: int, hidden: int) -> Plan:
    """Experts of which src has all in one tensor: by rows, gate beside up in each, and as a stack."""
    entries: dict[str, Expr] = {}
    for block in range(depth):
        gate_up = Source(f"h.{block}.gate_up", (count * 2 * hidden, width))
        down = Source(f"h.{block}.down", (count, hidden, width))
        for expert in range(count):
            name, first = f"layers.{block}.experts.{expert}", 2 * hidden * expert
            entries[f"{name}.gate"] = rows(gate_up, first, first + hidden)
            entries[f"{name}.up"] = rows(gate_up, first + hidden, first + 2 * hidden)
            entries[f"{name}.down"] = Permute(Reshape(rows(down, expert, expert + 1), (hidden, width)), (1, 0))
    return Plan(entries)


def test_more_experts_are_cut_from_the_packed_tensor() -> None:
    large = experts(5, 8, 64, 24)
    assert experts(2, 3, 10, 7).for_model(large.dest_shapes, large.src_shapes) == large


def test_how_many_experts_are_packed_is_not_guessed() -> None:
    large = experts(5, 8, 64, 24)
    with pytest.raises(PlanError, match=r"`layers.0.experts.0.gate`: nothing tells what 42 in the plan is here"):
        experts(2, 3, 10, 7).for_model(large.dest_shapes)


def test_an_expert_that_src_does_not_have_is_refused() -> None:
    twin, large = experts(2, 3, 10, 7), experts(2, 8, 10, 7)
    shapes = {**large.dest_shapes, "layers.0.experts.8.down": (10, 7)}
    with pytest.raises(PlanError, match=r"`layers.0.experts.8.down` would be read from 8 on of dim 0, which has 8"):
        twin.for_model(shapes, large.src_shapes)


def stacked(depth: int, count: int, width: int, hidden: int) -> Plan:
    def layer(name: str) -> Expr:
        return Reshape(Permute(Source(name, (width, hidden)), (1, 0)), (1, hidden, width))

    return Plan(
        {
            f"layers.{n}.experts": Concat(
                tuple(
                    Reshape(Permute(Source(f"h.{n}.e.{e}.w", (width, hidden)), (1, 0)), (1, hidden, width))
                    for e in range(count)
                ),
                0,
            )
            for n in range(depth)
        }
    )


@pytest.mark.parametrize("with_src", [True, False])
def test_more_experts_are_stacked(with_src: bool) -> None:
    large = stacked(5, 8, 64, 24)
    assert stacked(2, 2, 10, 7).for_model(large.dest_shapes, large.src_shapes if with_src else None) == large


def fused(depth: int, q: int, kv: int, width: int) -> Plan:
    """q, k and v joined in dest, with a bias that has zeros for k, a number moved into q, and heads repeated."""
    entries: dict[str, Expr] = {}
    for n in range(depth):
        parts = [Source(f"h.{n}.{name}.w", (size, width)) for name, size in zip("qkv", (q, kv, kv), strict=True)]
        entries[f"layers.{n}.qkv"] = Concat((Affine(parts[0], 0.1), *parts[1:]), 0)
        biases: list[Expr] = [Source(f"h.{n}.{name}.b", (size,)) for name, size in (("q", q), ("v", kv))]
        entries[f"layers.{n}.bias"] = Concat((biases[0], Fill(0.0, (kv,)), biases[1]), 0)
        entries[f"layers.{n}.scaled"] = Multiply(Reshape(Source(f"h.{n}.gamma", (q,)), (q, 1)), parts[0])
        entries[f"layers.{n}.repeated"] = Reshape(
            Expand(Reshape(parts[1], (1, kv, width)), (q // kv, kv, width)), (q, width)
        )
    return Plan(entries)


def test_joined_tensors_have_the_sizes_that_src_has() -> None:
    large = fused(5, 64, 16, 128)
    assert fused(2, 12, 4, 10).for_model(large.dest_shapes, large.src_shapes) == large


def test_how_many_rows_of_a_joined_tensor_are_of_which_is_not_guessed() -> None:
    large = fused(5, 64, 16, 128)
    shapes = {name: shape for name, shape in large.dest_shapes.items() if name.endswith("qkv")}
    with pytest.raises(PlanError, match=r"`layers.0.qkv`: nothing tells what 12 in the plan is here"):
        fused(2, 12, 4, 10).for_model(shapes)


TABLE = Source("table", (6, 4))


@pytest.mark.parametrize(
    ("expr", "dest", "src", "message"),
    [
        pytest.param(TABLE, (6, 4, 1), None, r"`w` has shape \(6, 4, 1\), in the plan \(6, 4\)", id="rank"),
        pytest.param(TABLE, (6, 8), {"table": (6, 9)}, "dim 1 of `table` is 9", id="src-and-dest-differ"),
        pytest.param(TABLE, (6, 8), {}, "src has no tensor `table`, which `w` needs", id="missing-src"),
        pytest.param(Reshape(TABLE, (24, 1)), (48, 2), None, "dim 1 of `w` is 2", id="a-size-of-one-tells-nothing"),
        pytest.param(
            Gather(TABLE, 0, (5, 0, 3)), (3, 8), {"table": (9, 8)}, "takes 3 positions in a way", id="positions"
        ),
        pytest.param(
            Reshape(Source("t", (6, 35)), (10, 21)), (20, 21), None, "is reshaped in a way", id="no-common-factors"
        ),
        pytest.param(Slice(TABLE, (0, 0), (4, 4), (2, 1)), (4, 4), None, "takes 2 positions in a way", id="odd-steps"),
        pytest.param(Affine(TABLE, 6**-0.5), (12, 4), None, "number 0.408248, which may stand for 6", id="scale"),
        pytest.param(
            Multiply(TABLE, Fill(2.0, (4,))), (6, 8), None, r"the number 2, which may stand for 4 \*\* 0.5", id="fill"
        ),
        pytest.param(
            MatMul(TABLE, Source("m", (4, 5))),
            (9, 5),
            None,
            "nothing tells what 4 in the plan is here",
            id="contracted",
        ),
        pytest.param(Concat((TABLE, TABLE), 0), (15, 4), None, "so that a size would be 15/2", id="half"),
        pytest.param(
            Concat((TABLE, Fill(0.0, (2, 4))), 0), (7, 4), {"table": (8, 4)}, "leave nothing for one", id="negative"
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    expr: Expr, dest: Shape, src: dict[str, Shape] | None, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        Plan({"w": expr}).for_model({"w": dest}, src)


@pytest.mark.parametrize(
    ("expr", "here", "dims"),
    [
        pytest.param(Gather(TABLE, 0, (5, 0, 3)), Gather(Source("table", (6, 9)), 0, (5, 0, 3)), {}, id="positions"),
        pytest.param(
            Slice(TABLE, (1, 0), (6, 4), (2, 1)),
            Slice(Source("table", (8, 9)), (1, 0), (8, 9), (2, 1)),
            {2: 2},
            id="steps",
        ),
        pytest.param(
            Affine(TABLE, -(6**-0.5)), Affine(Source("table", (12, 9)), -(12**-0.5)), {6: 12}, id="scale-of-a-size"
        ),
        pytest.param(
            Pad(Source("k", (6, 4, 1, 1)), (0, 0, 1, 1), (0, 0, 1, 1)),
            Pad(Source("k", (8, 9, 1, 1)), (0, 0, 1, 1), (0, 0, 1, 1)),
            {},
            id="kernel",
        ),
        pytest.param(
            Pad(TABLE, (0, 0), (3, 0)), Pad(Source("table", (50, 9)), (0, 0), (14, 0)), {}, id="padded-vocabulary"
        ),
        pytest.param(Fill(0.0, (6, 4)), Fill(0.0, (7, 9)), {}, id="constant"),
        pytest.param(Fill(0.0, (0, 4)), Fill(0.0, (0, 4)), {}, id="empty"),
    ],
)
def test_other_sizes(expr: Expr, here: Expr, dims: dict[int, int]) -> None:
    large = Plan({"w": here})
    assert Plan({"w": expr}).for_model(large.dest_shapes, large.src_shapes, dims=dims) == large
