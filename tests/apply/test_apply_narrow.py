"""Rows of an expression are the rows of its value, whatever it is made of, and read no more than they need."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from apply_cases import entries, is_bitwise, random_state, source
from hypothesis import given, settings
from hypothesis import strategies as st

from automap.apply.narrow import narrowed
from automap.apply.places import Files, Place
from automap.apply.recipe import recipe_of
from automap.apply.stored import Part, dense_strides, span_of, whole
from automap.apply.strided import reshaped_strides
from automap.apply.views import Leaves, View, read_view
from automap.plan import Concat, Expr, Fill, Gather, MatMul, Permute, Reshape, Slice, Source, evaluate, shape_of
from automap.plan.expr import args_of, with_args

STATE = random_state()
CASES = entries(STATE) | {
    "matmul": MatMul(source(STATE, "up"), Permute(source(STATE, "up"), (1, 0))),
    "stepped": Slice(Reshape(source(STATE, "qkv"), (24, 32)), (1, 3), (24, 30), (2, 3)),
    "merged": Reshape(Gather(source(STATE, "qkv"), 1, (5, 4, 3, 3)), (16, 12)),
    "torn": Reshape(Permute(source(STATE, "up"), (1, 0)), (4, 15)),
}


def over_leaves(expr: Expr, leaves: Leaves) -> Expr:
    """The expression with every Source a leaf; its name is then a number."""
    if isinstance(expr, Source):
        sizes = expr.shape
        part = Part(Place(expr.name), 0, (0,) * len(sizes), sizes, dense_strides(sizes))
        dtype = str(STATE[expr.name].dtype).removeprefix("torch.")
        return leaves.add(View(part, 0, dtype, sizes, dense_strides(sizes)))
    return with_args(expr, tuple(over_leaves(arg, leaves) for arg in args_of(expr)))


def values(leaves: Leaves) -> dict[str, torch.Tensor]:
    """What each leaf stands for, cut from the state."""
    found = {}
    for number, view in enumerate(leaves.views):
        value = STATE[view.part.place.text]
        found[str(number)] = value.as_strided(view.sizes, view.strides, view.offset // value.element_size())
    return found


@given(data=st.data())
@settings(max_examples=150)
def test_rows_of_an_expression_are_the_rows_of_its_value(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name in CASES if shape_of(CASES[name])]))
    expr, leaves = CASES[name], Leaves()
    cut, wanted = over_leaves(expr, leaves), evaluate(expr, STATE)
    for _ in range(data.draw(st.integers(1, 3))):
        dim = data.draw(st.integers(0, wanted.dim() - 1))
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, wanted.shape[dim])] * 2)))
        cut = narrowed(cut, dim, start, stop, leaves)
        wanted = wanted.narrow(dim, start, stop - start)
    assert shape_of(cut) == tuple(wanted.shape)
    found = evaluate(cut, values(leaves))
    if name in ("normed", "mean", "matmul"):  # sums may be taken in another order
        assert torch.allclose(found, wanted)
    else:
        assert is_bitwise({"": found}, {"": wanted})


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        pytest.param("up.t", 10, id="a row of a transposed matrix is a column"),
        pytest.param("q", 16, id="a row of a slice is a row"),
        pytest.param("beside", 6, id="of a concatenation beside it, each part's"),
        pytest.param("by_head", 16, id="through a reshape, a permute and a reshape"),
        pytest.param("picked", 6, id="of a gather, the row it takes"),
        pytest.param("normed", 7, id="of a norm, what it is the norm of"),
        pytest.param("torn", 60, id="where no row of the argument fits, all"),
    ],
)
def test_one_row_reads_no_more_than_it_needs(name: str, elements: int) -> None:
    tensors = {n: whole(str(v.dtype).removeprefix("torch."), tuple(v.shape), Place(n), 0) for n, v in STATE.items()}
    recipe = recipe_of(name, CASES[name], tensors)
    cut = narrowed(recipe.expr, 0, 0, 1, Leaves(list(recipe.views)))

    def read(expr: Expr) -> int:
        own = torch.Size(expr.shape).numel() if isinstance(expr, Source) else 0
        return own + sum(map(read, args_of(expr)))

    assert read(cut) == elements


def test_a_concat_keeps_its_dtype_where_a_part_of_it_is_cut_away() -> None:
    expr = Concat((source(STATE, "half"), Fill(0.1, (2, 8))), 0)
    leaves = Leaves()
    last = narrowed(over_leaves(expr, leaves), 0, 12, 14, leaves)
    found = evaluate(last, values(leaves))
    assert found.dtype == torch.bfloat16
    assert is_bitwise({"": found}, {"": evaluate(expr, STATE)[12:]})


@given(data=st.data())
@settings(max_examples=80)
def test_a_strided_view_is_read_as_torch_strides_it(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes = tuple(data.draw(st.lists(st.integers(0, 5), max_size=4)))
    strides = tuple(data.draw(st.lists(st.integers(0, 30), min_size=len(sizes), max_size=len(sizes))))
    offset = data.draw(st.integers(0, 7))
    flat = torch.randn(offset + span_of(sizes, strides) + 3)
    path = tmp_path_factory.mktemp("view") / "bytes"
    path.write_bytes(flat.numpy().tobytes())
    part = Part(Place(str(path)), 0, (0,), tuple(flat.shape), (1,))
    with Files() as files:
        found = read_view(View(part, 4 * offset, "float32", sizes, strides), files)
    assert is_bitwise({"": found}, {"": flat.as_strided(sizes, strides, offset)})


@given(data=st.data())
@settings(max_examples=150)
def test_a_reshape_is_a_view_exactly_where_torch_has_one(data: st.DataObject) -> None:
    factors = data.draw(st.lists(st.sampled_from([1, 2, 2, 3]), max_size=5))
    base = torch.arange(math.prod(factors) * 4.0).view(*factors, 4)[..., : data.draw(st.integers(1, 4))]
    value = base.permute(data.draw(st.permutations(range(base.dim()))))
    if data.draw(st.booleans()):
        value = value[..., :1].expand(*value.shape[:-1], 3)
    shape = tuple(data.draw(st.sampled_from(splits(value.numel()))))
    strides = reshaped_strides(tuple(value.shape), tuple(value.stride()), shape)
    if strides is None:
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            value.view(shape)
    else:
        assert torch.equal(value.as_strided(shape, strides), value.reshape(shape))


def splits(count: int) -> list[list[int]]:
    """Shapes with so many elements, with a 1 in front, behind, or not."""
    found = [[count]]
    found += [[first, *rest] for first in (2, 3, 4) if count % first == 0 for rest in splits(count // first)[:4]]
    return [*found, [1, *found[-1]], [*found[-1], 1]]


def test_long_runs_are_read_without_what_lies_between(tmp_path: Path) -> None:
    flat = torch.randn(6, 3, 2**14)
    path = tmp_path / "bytes"
    path.write_bytes(flat.numpy().tobytes())
    part = Part(Place(str(path)), 0, (0,) * 3, tuple(flat.shape), tuple(flat.stride()))
    view = View(part, 4 * 2**14, "float32", (6, 1, 2**14), tuple(flat.stride()))
    with Files() as files:
        assert torch.equal(read_view(view, files), flat[:, 1:2])
        assert files.read_bytes == view.read_bytes == view.size_bytes
