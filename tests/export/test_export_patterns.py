"""Names through transformers' own classes: the simulation that the export checks itself with says the same."""

from __future__ import annotations

from typing import Any

import pytest
from cases import ALL_CASES, CASES, plan_of
from exported import module_of
from holder import registered
from hypothesis import given
from hypothesis import strategies as st

from automap.export import export_transformers
from automap.export.entries import Entry
from automap.export.grouping import grouped
from automap.export.patterns import first_astray, pattern, regex
from automap.export.shorten import shortened
from automap.plan.fold import Index

pytestmark = pytest.mark.zoo

words = st.lists(st.sampled_from(["a", "b", "h", "0", "1", "2", "weight", "a_b", "ab"]), min_size=1, max_size=3)
names = words.map(".".join)


@given(st.dictionaries(names, st.tuples(names, st.booleans()), min_size=1, max_size=5))
def test_names_that_are_said_to_arrive_do_so_in_transformers(found: dict[str, tuple[str, bool]]) -> None:
    from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming, rename_source_key

    if len({dest for dest, _ in found.values()}) < len(found):
        return
    known = (list(found), [dest for dest, _ in found.values()])
    entries = [Entry((name,), (dest,), ("Transpose()",) * made) for name, (dest, made) in found.items()]
    whole = grouped(shortened(entries, known), known)
    if first_astray(whole, known) is not None:
        return
    mapping: list[Any] = []
    for entry in whole:
        for member in () if entry.is_idle else [entry] if entry.blocks else entry.members():
            sources, targets = (
                [pattern(name, entry.blocks) for name in side] for side in (member.sources, member.targets)
            )
            mapping.append(
                WeightConverter(sources, targets, [Transpose()])
                if entry.operations
                else WeightRenaming(sources, targets)
            )
    sides = [[one for one in mapping if isinstance(one, kind)] for kind in (WeightRenaming, WeightConverter)]
    for name, (dest, made) in found.items():
        renamed, matched = rename_source_key(name, *sides)
        assert (renamed, matched is not None) == (dest, made)


@pytest.mark.parametrize("name", ALL_CASES)
def test_names_of_real_models_arrive_in_transformers(name: str) -> None:
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    plan = plan_of(name)
    with registered(export_transformers(plan)) as module:
        mapping = module["conversions"]()
    sides = [[one for one in mapping if isinstance(one, kind)] for kind in (WeightRenaming, WeightConverter)]
    for source in plan.sources:
        renamed, _ = rename_source_key(source.name, *sides)
        assert renamed in plan.entries
    assert set(CASES[name].dest().state_dict()) >= set(plan.entries)


def test_a_group_is_not_used_where_it_would_match_others() -> None:
    entry = Entry(("h.{i}.w",), ("l.{i}.w",), (), (Index("i", 0, 1),))
    exact = (["h.0.w", "h.1.w"], ["l.0.w", "l.1.w"])
    (one,) = grouped([entry], exact)
    assert (one.sources, one.blocks) == (("h.{n}.w",), ("0", "1"))
    for more in (([*exact[0], "h.2.w"], exact[1]), (exact[0], [*exact[1], "l.2.w"])):
        assert grouped([entry], more) == [entry]


def test_entries_of_blocks_with_two_numbers_become_one() -> None:
    entries = [
        Entry((f"h.{n}.b.{{i}}.w",), (f"l.{n}.b.{{i}}.x",), (), (Index("i", 0, count),))
        for n, count in ((0, 1), (1, 2))
    ]
    members = [member for entry in entries for member in entry.members()]
    known = ([member.sources[0] for member in members], [member.targets[0] for member in members])
    (one,) = grouped(entries, known)
    assert one.blocks == ("0.b.0", "0.b.1", "1.b.0", "1.b.1", "1.b.2")
    assert pattern(one.sources[0], one.blocks) == r"^h\.(\d+\.b\.\d+)\.w"


@pytest.mark.parametrize(
    ("more", "is_whole"),
    [
        pytest.param([], True, id="whole module"),
        pytest.param([("a.m.scale", "z.scale")], False, id="more in src"),
        pytest.param([("z.scale", "b.m.scale")], False, id="more in dest"),
    ],
)
def test_a_module_is_renamed_only_where_all_that_is_known_goes_along(
    more: list[tuple[str, str]], is_whole: bool
) -> None:
    pairs = [("a.m.weight", "b.m.weight"), ("a.m.bias", "b.m.bias"), ("a.x", "b.y")]
    entries = [Entry((name,), (dest,)) for name, dest in [*pairs, *more]]
    known = ([name for name, _ in [*pairs, *more]], [dest for _, dest in [*pairs, *more]])
    found = shortened(entries, known)
    assert (Entry(("a.m.",), ("b.m.",)) in found) is is_whole
    assert (entries[0] in found) is not is_whole


@pytest.mark.parametrize(
    ("written", "name", "is_match"),
    [
        pytest.param("^a.weight", "a.weight", True, id="itself"),
        pytest.param("^a.weight", "a.weight_g", False, id="longer word"),
        pytest.param("^e.*.w", "e.12.w", True, id="star"),
        pytest.param("^e.", "e.w", True, id="module"),
    ],
)
def test_patterns_match_as_in_transformers(written: str, name: str, is_match: bool) -> None:
    from transformers.core_model_loading import WeightRenaming

    assert bool(regex(written).match(name)) is is_match
    assert (WeightRenaming(written, "x").rename_source_key(name)[1] is not None) is is_match


def test_importing_conversions_registers_them_for_the_class_only() -> None:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    with registered(export_transformers(plan_of("vit"))):
        assert get_checkpoint_conversion_mapping("ViTForImageClassification") is not None
    assert get_checkpoint_conversion_mapping("ViTForImageClassification") is None
    assert "register_checkpoint_conversion_mapping" in module_of(
        "import re\nregister_checkpoint_conversion_mapping = re"
    )
