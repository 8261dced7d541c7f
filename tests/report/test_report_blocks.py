"""Both models side by side: every row once, grouped by what its name says and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import match_of, missing, named, of_entries, transfer_of

from automap.findings import Finding, Site
from automap.plan import Concat, Fill, Source
from automap.report import build_report
from automap.report.blocks import Block, blocks_of, part_of


def blocks(match: object) -> tuple[Block, ...]:
    return blocks_of(build_report(match))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("blocks.{i}.attn.q.weight", "blocks.{i}"),
        ("blocks.{i}.experts.{j}.w1.weight", "blocks.{i}.experts.{j}"),
        ("stages.0.layers.{i+1}.conv.weight", "stages.0.layers.{i+1}"),
        ("stages.0.layers.3.conv.weight", "stages.0"),
        ("vit.embeddings.patch.projection.weight", "vit.embeddings"),
        ("head.weight", "head"),
        ("cls_token", ""),
        ("0.weight", "0"),
        ("blocks.7", "blocks"),
    ],
)
def test_a_part_ends_with_the_last_hole_or_the_first_number(name: str, part: str) -> None:
    assert part_of(name) == part


def test_blocks_stand_beside_what_they_are_made_of() -> None:
    found = [(block.src, block.dest, block.indices, block.count, block.copies) for block in blocks(match_of())]
    assert found == [
        (("",), "", "", 1, 1),
        (("blocks.{i}",), "layers.{i}", "i in 0..1", 2, 2),
        (("blocks.2",), "layers.2", "", 1, 1),
        (("fc",), "head", "", 1, 1),
    ]


def test_all_parts_of_src_are_named_that_a_block_is_made_of() -> None:
    q, k, scale = (Source(name, (2, 3)) for name in ("a.q.weight", "b.qkv.weight", "b.qkv.scale"))
    entries = {"x.one.w": q, "x.one.v": k, "x.one.u": Concat((scale, k), 0), "y.zero": Fill(0.0, (2,))}
    found = blocks(of_entries(entries, dict.fromkeys(entries, "proved")))
    assert [(block.src, block.dest) for block in found] == [(("a.q", "b.qkv"), "x.one"), ((), "y")]


NAMES = st.lists(st.sampled_from(["a", "b", "0", "1", "2", "w"]), min_size=1, max_size=4).map(".".join)


@given(st.lists(NAMES, unique=True, max_size=40))
def test_every_weight_is_in_one_block(names: list[str]) -> None:
    match = named(*names)
    found = [member.dest for block in blocks(match) for row in block.rows for member in row.members]
    assert sorted(found) == sorted(names)


def test_blocks_keep_the_order_of_dest() -> None:
    names = ["head.weight", "blocks.0.w", "blocks.2.w", "stem.weight", "head.bias"]
    assert [block.dest for block in blocks(named(*names))] == ["head", "blocks.0", "blocks.2", "stem"]


def test_a_finding_is_told_at_the_block_its_dest_is_in() -> None:
    eps = Finding("attribute-differs", "eps", dest=Site("layers.1", "layer_norm"))
    weight = Finding("not-executed", "head", dest=Site("head.weight", "weight"), severity="warning")
    elsewhere = Finding("op-extra", "elsewhere", dest=Site("layers.9.norm"))
    found = blocks(match_of("differs", (weight, eps, elsewhere, missing(0))))
    assert [(block.dest, block.findings) for block in found if block.findings] == [("layers.{i}", (0,)), ("head", (3,))]


def test_blocks_are_open_as_long_as_there_is_room() -> None:
    names = [f"{block}.part.w{n * n}_{block}" for block in ("a", "b", "c") for n in range(25)]
    assert [(block.dest, block.is_open) for block in blocks(named(*names))] == [
        ("a.part", True), ("b.part", True), ("c.part", False),
    ]  # fmt: skip


def test_very_many_parts_become_coarser_ones() -> None:
    assert len(blocks(named(*(f"a{n % 3}.x{n}z.w" for n in range(1200))))) == 3
    (block,) = blocks(named(*(f"a{n * n}z.w" for n in range(1200))))
    assert (block.dest, block.count) == ("", 1200)


def test_evidence_is_counted_by_weight_and_the_strongest_comes_first() -> None:
    match = replace(match_of(), evidence={"layers.0.k.weight": "assumed", "layers.1.k.weight": "assumed"})
    found = {block.dest: dict(block.evidence) for block in blocks(transfer_of(match))}
    assert found["layers.{i}"] == {"assumed": 3}
    both = blocks(of_entries({n: Source(n, (2,)) for n in ("a.x", "a.y")}, {"a.x": "assumed", "a.y": "proved"}))
    assert list(both[0].evidence.items()) == [("proved", 1), ("assumed", 1)]
