from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_strategies import exprs

from automap.errors import PlanError
from automap.plan import Concat, Expr, Fill, Permute, Plan, Reshape, Rule, Rules, Slice, Source, expand, fold
from automap.plan.template import instantiate

D = 4


def rows(name: str, part: int) -> Expr:
    return Slice(Source(name, (3 * D, D)), (part * D, 0), ((part + 1) * D, D), (1, 1))


def vector(name: str, size: int = D) -> Source:
    return Source(name, (size,))


def lines(entries: Mapping[str, Expr]) -> list[str]:
    """The rules of a plan as text; that they stand for exactly this plan is checked by the way."""
    plan = Plan(entries, src="a", dest="b")
    assert expand(fold(plan)) == plan
    return str(fold(plan)).splitlines()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_expand_undoes_fold(data: st.DataObject) -> None:
    part = st.sampled_from(["a", "b.", ".c", "{", "}", "{}", "{i}", "0", "1", "2", "3", "12", "007", ".", "\0", "é"])
    names = st.lists(part, max_size=5).map("".join)
    sources = names.map(vector) | names.map(lambda name: rows(f"w{name}", 1))
    entries = data.draw(st.dictionaries(names, sources, max_size=12))
    plan = Plan(entries)
    assert expand(fold(plan)) == plan


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), unique_by=lambda t: t[:2]))
@settings(max_examples=150, deadline=None)
def test_expand_undoes_fold_where_layers_are_missing_or_differ(layers: list[tuple[int, int, int]]) -> None:
    plan = Plan({f"stage{i}.{j}.w": rows(f"s.{i + 1}.b.{j}", part) for i, j, part in layers})
    rules = fold(plan)
    assert expand(rules) == plan
    assert len(rules) <= len(layers)


@given(st.lists(exprs(), max_size=4))
@settings(max_examples=50, deadline=None)
def test_expand_undoes_fold_for_any_expression(some: list[Expr]) -> None:
    plan = Plan({f"layers.{place}.w": expr for place, expr in enumerate(some)})
    assert expand(fold(plan)) == plan
    assert expand(fold(plan, cuts=True)) == plan


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 4)), unique_by=lambda t: t[:2]))
@settings(max_examples=150, deadline=None)
def test_expand_undoes_fold_where_cuts_follow_an_index_or_do_not(experts: list[tuple[int, int, int]]) -> None:
    packed = [Source(f"h.{i}.packed", (9, 4)) for i in range(3)]
    cuts = {(i, j): j + more for i, j, more in experts}
    plan = Plan({f"e.{i}.{j}.w": Slice(packed[i], (n, 0), (n + 2, 4), (1, 1)) for (i, j), n in cuts.items()})
    rules = fold(plan, cuts=True)
    assert expand(rules) == plan
    assert len(rules) <= len(experts)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param(
            {f"layers.{i}.attention.q_proj.weight": rows(f"blocks.{i}.attn.qkv.weight", 0) for i in range(12)},
            ["layers.{i}.attention.q_proj.weight <- blocks.{i}.attn.qkv.weight[0:4]   for i in 0..11"],
            id="one-index",
        ),
        pytest.param(
            {f"layers.{i}.w": vector(f"blocks.{i - 1}.w") for i in range(1, 4)},
            ["layers.{i}.w <- blocks.{i-1}.w   for i in 1..3"],
            id="shifted-down",
        ),
        pytest.param(
            {f"layers.{i}.w": vector(f"blocks.{i + 1}.w") for i in range(3)},
            ["layers.{i}.w <- blocks.{i+1}.w   for i in 0..2"],
            id="shifted-up",
        ),
        pytest.param(
            {f"layers.{i}.w": vector(f"seq.{2 * i + 1}.w") for i in range(3)},
            ["layers.{i}.w <- seq.{2i+1}.w   for i in 0..2"],
            id="every-second",
        ),
        pytest.param(
            {f"layer{i + 1}.{j}.w": vector(f"stages.{i}.layers.{j}.w") for i in range(4) for j in range(3)},
            ["layer{i}.{j}.w <- stages.{i-1}.layers.{j}.w   for i in 1..4, j in 0..2"],
            id="stage-and-block",
        ),
        pytest.param(
            {f"layers.{i}.{j}.w": vector(f"blocks.{3 * i + j}.w") for i in range(4) for j in range(3)},
            ["layers.{i}.{j}.w <- blocks.{3i+j}.w   for i in 0..3, j in 0..2"],
            id="stages-numbered-through",
        ),
        pytest.param(
            {f"stages.{i}.{j}.w": vector(f"s.{i}.{j}.w") for i, depth in enumerate((2, 3, 2)) for j in range(depth)},
            [
                "stages.0.{i}.w <- s.0.{i}.w   for i in 0..1",
                "stages.1.{i}.w <- s.1.{i}.w   for i in 0..2",
                "stages.2.{i}.w <- s.2.{i}.w   for i in 0..1",
            ],
            id="stages-of-different-depth",
        ),
        pytest.param(
            {f"layers.{i}.w": vector(f"blocks.{i}.w") for i in (0, 1, 2, 4, 5)},
            ["layers.{i}.w <- blocks.{i}.w   for i in 0..2", "layers.{i}.w <- blocks.{i}.w   for i in 4..5"],
            id="a-missing-layer-is-not-bridged",
        ),
        pytest.param(
            {f"layers.{i}.w": rows(f"blocks.{i}.w", 2 if i == 2 else 0) for i in range(5)},
            [
                "layers.{i}.w <- blocks.{i}.w[0:4]   for i in 0..1",
                "layers.2.w <- blocks.2.w[8:12]",
                "layers.{i}.w <- blocks.{i}.w[0:4]   for i in 3..4",
            ],
            id="a-layer-that-differs-stays-alone",
        ),
        pytest.param(
            {f"layers.{i}.w": vector(f"blocks.{i}.w", 4 + i // 2) for i in range(4)},
            ["layers.{i}.w <- blocks.{i}.w   for i in 0..1", "layers.{i}.w <- blocks.{i}.w   for i in 2..3"],
            id="other-shapes-do-not-fold",
        ),
        pytest.param(
            {f"layers.{i}.w": vector(f"blocks.{3 - i}.w") for i in range(4)},
            [f"layers.{i}.w <- blocks.{3 - i}.w" for i in range(4)],
            id="backwards-does-not-fold",
        ),
        pytest.param(
            {f"layers.{i}.{j}.w": vector(f"blocks.{i * (j + 1)}.w") for i in range(1, 3) for j in range(2)},
            ["layers.1.{i}.w <- blocks.{i+1}.w   for i in 0..1", "layers.2.{i}.w <- blocks.{2i+2}.w   for i in 0..1"],
            id="two-indices-that-multiply-do-not-fold",
        ),
        pytest.param(
            {f"layers.0{i}.w": vector(f"blocks.0{i}.w") for i in range(3)},
            [f"layers.0{i}.w <- blocks.0{i}.w" for i in range(3)],
            id="leading-zeros-are-text",
        ),
        pytest.param(
            {f"layers.{i}.bias": Fill(0.0, (3,)) for i in range(4)},
            ["layers.{i}.bias <- zeros(3)   for i in 0..3"],
            id="constants",
        ),
        pytest.param(
            {f"layers.{i}.w": vector("shared.0.w") for i in range(4)},
            ["layers.{i}.w <- shared.0.w   for i in 0..3"],
            id="one-source-for-all",
        ),
        pytest.param(
            {"block.norm1.w": vector("ln_1.w"), "block.norm2.w": vector("ln_2.w")},
            ["block.norm1.w <- ln_1.w", "block.norm2.w <- ln_2.w"],
            id="two-numbered-words-are-no-series",
        ),
        pytest.param({"layers.3.w": vector("blocks.7.w")}, ["layers.3.w <- blocks.7.w"], id="single-layer"),
        pytest.param({}, [], id="nothing"),
        pytest.param(
            {
                f"layers.{i}.experts": Concat(
                    tuple(Reshape(Permute(Source(f"b.{i}.e.{e}.w", (6, 4)), (1, 0)), (1, 4, 6)) for e in range(8)), 0
                )
                for i in range(3)
            },
            ["layers.{i}.experts <- stack(b.{i}.e.{e}.w.T for e in 0..7, dim=0)   for i in 0..2"],
            id="experts-of-every-layer",
        ),
    ],
)
def test_rules(entries: dict[str, Expr], expected: list[str]) -> None:
    assert lines(entries) == expected


def test_the_order_of_entries_does_not_matter() -> None:
    entries = {f"layers.{i}.w": vector(f"blocks.{i}.w") for i in range(12)}
    assert lines(dict(reversed(entries.items()))) == lines(entries)


def test_rules_keep_the_names_of_both_models() -> None:
    rules = fold(Plan({}, src="timm:x", dest="hf:y"))
    assert (rules.src, rules.dest) == ("timm:x", "hf:y")


@pytest.mark.parametrize("template", ["a.{j}", "a.{}", "a.{i*2}", "a.{-i}", "a.{3}"])
def test_a_hole_that_is_no_number_is_refused(template: str) -> None:
    with pytest.raises(PlanError, match="is not a number of i"):
        instantiate(template, {"i": 1})
    with pytest.raises(PlanError, match="is not a number of no variable"):
        expand(Rules((Rule(template, vector("w")),)))
