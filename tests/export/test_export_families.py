"""Families: what belongs together when a plan is written as code."""

from __future__ import annotations

import pytest
from cases import rows
from hypothesis import given
from hypothesis import strategies as st
from plan_strategies import exprs

from automap.export.families import Family, closed_families, families_of, numbered
from automap.export.names import common_prefix, string, variable
from automap.export.parts import count_of, cut_of
from automap.plan import Concat, Expr, Fill, Permute, Plan, Reshape, Slice, Source
from automap.plan.fold import Index
from automap.plan.template import instantiate, rename_sources

QKV = Source("h.{i}.qkv", (6, 4))
LAYERS = (Index("i", 0, 2),)


def fused(count: int = 3) -> Plan:
    entries: dict[str, Expr] = {}
    for layer in range(count):
        for part, name in enumerate("qkv"):
            entries[f"l.{layer}.{name}"] = rows(Source(f"h.{layer}.qkv", (6, 4)), part, 3)
    return Plan(entries)


def test_parts_of_one_tensor_are_one_family_for_all_blocks() -> None:
    (family,) = families_of(fused())
    parts = tuple((f"l.{{i}}.{n}", Slice(Source("h.{i}.qkv", (3,)), (k,), (k + 1,), (1,))) for k, n in enumerate("qkv"))
    assert family == Family(parts, LAYERS)


def test_even_cuts_fold_whatever_their_widths() -> None:
    entries: dict[str, Expr] = {}
    for stage, width in enumerate((4, 8, 16)):
        for part, name in enumerate("qkv"):
            start = (0, part * width)
            whole = Source(f"h.{stage}.qkv", (2, 3 * width))
            entries[f"l.{stage}.{name}"] = Slice(whole, start, (2, start[1] + width), (1, 1))
    (family,) = families_of(Plan(entries))
    cut = cut_of(family)
    assert family.indices == LAYERS
    assert cut is not None
    assert (cut.dim, cut.sizes) == (1, (1, 1, 1))
    uneven = {**entries, "l.2.v": Slice(Source("h.2.qkv", (2, 48)), (0, 33), (2, 48), (1, 1))}
    assert [family.indices for family in families_of(Plan(uneven))] == [(Index("i", 0, 1),), ()]


def test_a_block_that_is_made_in_another_way_is_a_family_of_its_own() -> None:
    plan = fused()
    last = Plan({**plan.entries, "l.2.q": Permute(rows(Source("h.2.qkv", (6, 4)), 0, 3), (0, 1))})
    assert [family.indices for family in closed_families(last)] == [(Index("i", 0, 1),), ()]


def test_a_tensor_that_all_blocks_read_is_one_family_when_closed() -> None:
    plan = Plan({f"l.{n}.w": Source("w", (2,)) for n in range(3)})
    assert [family.indices for family in families_of(plan)] == [LAYERS]
    (family,) = closed_families(plan)
    assert [dest for dest, _ in family.entries] == ["l.0.w", "l.1.w", "l.2.w"]


def test_a_constant_belongs_to_its_neighbour_when_closed() -> None:
    plan = Plan({"a.w": Source("v", (2,)), "b.bias": Fill(0.0, (2,)), "b.weight": Source("w", (2,))})
    assert [[dest for dest, _ in family.entries] for family in closed_families(plan)] == [
        ["a.w"],
        ["b.bias", "b.weight"],
    ]


def test_renamed_tensors_fold_whatever_their_shapes() -> None:
    (family,) = closed_families(Plan({f"l.{n}.w": Source(f"h.{n}.w", (n + 2,)) for n in range(3)}))
    assert (family.renamed, family.indices) == (("h.{i}.w", "l.{i}.w"), LAYERS)


@given(st.dictionaries(st.sampled_from([f"{a}.{n}.w" for a in "xy" for n in range(4)]), exprs(max_steps=2), min_size=1))
def test_families_hold_every_entry_once(entries: dict[str, Expr]) -> None:
    plan = Plan(entries)
    for families in (families_of(plan), closed_families(plan)):
        found = {}
        for family in families:
            for values in family.members():
                for dest, expr in family.entries:
                    found[instantiate(dest, values)] = rename_sources(
                        expr, lambda name, values=values: instantiate(name, values)
                    )
        assert list(map(len, (found, plan.entries))) == [len(plan.entries)] * 2
        for name, expr in plan.entries.items():
            same = found[name] == expr
            assert same or (
                isinstance(expr, Source) and isinstance(found[name], Source) and found[name].name == expr.name
            )


@given(st.dictionaries(st.sampled_from([f"{a}.{n}.w" for a in "xy" for n in range(4)]), exprs(max_steps=2), min_size=1))
def test_closed_families_share_no_src_tensor(entries: dict[str, Expr]) -> None:
    read = [
        instantiate(source.name, values)
        for family in closed_families(Plan(entries))
        for values in family.members()
        for source in family.sources
    ]
    assert len(set(read)) == len(read)


@pytest.mark.parametrize(
    ("entries", "sizes"),
    [
        pytest.param([("a", rows(QKV, 0, 3)), ("b", rows(QKV, 1, 3)), ("c", rows(QKV, 2, 3))], (2, 2, 2), id="even"),
        pytest.param([("a", rows(QKV, 1, 2)), ("b", rows(QKV, 0, 2))], (3, 3), id="in another order"),
        pytest.param(
            [("a", Permute(rows(QKV, 0, 2), (1, 0))), ("b", rows(QKV, 1, 2))], (3, 3), id="changed after the cut"
        ),
        pytest.param([("a", rows(QKV, 0, 3)), ("b", rows(QKV, 2, 3))], None, id="a gap"),
        pytest.param([("a", rows(QKV, 0, 2)), ("b", rows(QKV, 0, 2))], None, id="one part twice"),
        pytest.param([("a", rows(QKV, 0, 2)), ("b", QKV)], None, id="a part and the whole"),
        pytest.param(
            [("a", rows(QKV, 0, 2)), ("b", Slice(QKV, (0, 0), (6, 2), (1, 1)))], None, id="cut along two dims"
        ),
        pytest.param([("a", Slice(QKV, (0, 0), (6, 4), (2, 1))), ("b", rows(QKV, 1, 2))], None, id="with a step"),
        pytest.param([("a", Concat((rows(QKV, 0, 2), rows(QKV, 1, 2)), 0))], None, id="one tensor only"),
    ],
)
def test_a_cut_is_found_where_pieces_are_whole(entries: list[tuple[str, Expr]], sizes: tuple[int, ...] | None) -> None:
    cut = cut_of(Family(tuple(entries)))
    assert (cut.sizes if cut else None) == sizes


def test_arguments_that_count_have_one_template() -> None:
    many = numbered([Permute(Source(f"e.{n}.w", (2, 3)), (1, 0)) for n in range(3)])
    assert many is not None
    assert (many.template, many.variable, many.count) == (Permute(Source("e.{e}.w", (2, 3)), (1, 0)), "e", 3)
    assert numbered([Source("e.0.w", (2,)), Source("e.2.w", (2,)), Source("e.3.w", (2,))]) is None
    assert numbered([Source("a.w", (2,)), Source("b.w", (2,))]) is None


@pytest.mark.parametrize(
    ("template", "literal", "name"),
    [
        pytest.param("blocks.{i}.attn.qkv.weight", 'f"blocks.{i}.attn.qkv.weight"', "qkv", id="weight"),
        pytest.param("blocks.{2i+1}.attn.qkv.bias", 'f"blocks.{2 * i + 1}.attn.qkv.bias"', "qkv_bias", id="bias"),
        pytest.param("{{x}}.y", '"{x}.y"', "y", id="braces"),
        pytest.param("layers.{i-1}.{{x}}", 'f"layers.{i - 1}.{{x}}"', "x", id="both"),
        pytest.param("a.class", '"a.class"', "class_", id="keyword"),
        pytest.param("a.src", '"a.src"', "src_", id="taken"),
        pytest.param("a.k", '"a.k"', "k_", id="index"),
        pytest.param("relative_position_bias_table", '"relative_position_bias_table"', "bias_table", id="long"),
        pytest.param("0.1", '"0.1"', "tensor", id="numbers"),
    ],
)
def test_names_as_literals_and_variables(template: str, literal: str, name: str) -> None:
    assert (string(template), variable(template)) == (literal, name)


def test_a_common_prefix_ends_with_a_dot() -> None:
    assert common_prefix(["a.{i}.bc.x", "a.{i}.bd.x"]) == "a.{i}."
    assert common_prefix(["a", "a"]) == ""


PACKED = Source("up", (3, 4, 2))


def expert(number: int, start: int = 0, stop: int = 4) -> Expr:
    return Reshape(Slice(PACKED, (number, start, 0), (number + 1, stop, 2), (1, 1, 1)), (stop - start, 2))


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        pytest.param({f"e.{n}.w": expert(n) for n in range(3)}, ("e", 0, 1, ["e.{e}.w"]), id="one each"),
        pytest.param(
            {f"e.{n}.w{k}": expert(n, 2 * k, 2 * k + 2) for n in range(3) for k in range(2)},
            ("e", 0, 1, ["e.{e}.w0", "e.{e}.w1"]),
            id="two halves each",
        ),
        pytest.param(
            {f"e.{n}.w": rows(Source("up", (6, 2)), n, 3) for n in range(3)}, ("e", 0, 2, ["e.{e}.w"]), id="rows"
        ),
        pytest.param(
            {f"e.{n}.{w}": rows(Source("up", (12, 2)), 2 * n + k, 6) for n in range(3) for k, w in enumerate("ab")},
            ("e", 0, 4, ["e.{e}.a", "e.{e}.b"]),
            id="two in turn",
        ),
        pytest.param({f"e.{n}.w": expert(2 - n) for n in range(3)}, None, id="backwards"),
        pytest.param({f"e.{n + 1}.w": expert(n) for n in range(3)}, None, id="from 1"),
        pytest.param({f"e.{n}.w": expert(n) for n in range(2)}, None, id="not all"),
        pytest.param({n: rows(Source("up", (6, 2)), k, 3) for k, n in enumerate("qkv")}, None, id="not numbered"),
        pytest.param(
            {f"e.{n}.w": Permute(expert(n), (1, 0)) if n else expert(n) for n in range(3)}, None, id="not alike"
        ),
        pytest.param(
            {f"{'ab'[n // 3]}.{n % 3}": rows(Source("up", (6, 2)), n, 6) for n in range(6)}, None, id="two halves"
        ),
    ],
)
def test_a_count_is_found_where_all_pieces_are_treated_alike(
    entries: dict[str, Expr], found: tuple[str, int, int, list[str]] | None
) -> None:
    count = count_of(Family(tuple(entries.items())))
    assert (
        None if count is None else (count.variable, count.dim, count.size, [dest for dest, _ in count.made])
    ) == found
