from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_strategies import exprs, random_state, same

from automap.errors import PlanError
from automap.plan import Concat, Expr, Fill, Permute, Plan, Reshape, Slice, Source

QKV = Source("blocks.0.qkv", (12, 4))
PLAN = Plan(
    {
        "q": Slice(QKV, (0, 0), (4, 4), (1, 1)),
        "kv.T": Permute(Slice(QKV, (4, 0), (12, 4), (1, 1)), (1, 0)),
        "norm": Source("norm", (4,)),
        "bias": Concat((Source("norm", (4,)), Fill(float("nan"), (2,))), 0),
        "nothing": Fill(0.0, (0, 2)),
    },
    src="timm:a",
    dest="hf:b",
)


def test_apply_gives_every_dest_tensor() -> None:
    state = random_state(PLAN.sources)
    dest = PLAN.apply(state)
    assert {name: tuple(value.shape) for name, value in dest.items()} == PLAN.dest_shapes
    assert same(dest["q"], state["blocks.0.qkv"][:4])
    assert same(dest["kv.T"], state["blocks.0.qkv"][4:].T.contiguous())


def test_applied_tensors_are_contiguous_and_share_no_memory() -> None:
    tied = Plan({**PLAN.entries, "tied": Source("norm", (4,)), "row": Reshape(Source("norm", (4,)), (1, 4))})
    state = {name: torch.nn.Parameter(value) for name, value in random_state(PLAN.sources).items()}
    values = [*state.values(), *(value for value in tied.apply(state).values() if value.numel())]
    assert all(value.is_contiguous() for value in values)
    assert len({value.untyped_storage().data_ptr() for value in values}) == len(values)


def test_applied_tensors_need_no_gradient() -> None:
    state = {name: torch.nn.Parameter(value) for name, value in random_state(PLAN.sources).items()}
    assert not any(value.requires_grad for value in PLAN.apply(state).values())


def test_extra_src_tensors_are_ignored() -> None:
    state = random_state(PLAN.sources)
    assert PLAN.apply({**state, "more": torch.randn(3)}).keys() == PLAN.entries.keys()


def test_all_missing_src_tensors_are_named() -> None:
    with pytest.raises(PlanError, match=r"src has no tensor `blocks\.0\.qkv`, `norm`"):
        PLAN.apply({})


def test_a_src_tensor_of_another_shape_is_named_with_the_dest_tensor() -> None:
    state = {**random_state(PLAN.sources), "norm": torch.randn(5)}
    with pytest.raises(PlanError, match=r"`norm`: `norm` has shape \(5,\), the plan was made for \(4,\)"):
        PLAN.apply(state)


def test_shapes_of_src_are_those_of_the_sources() -> None:
    assert PLAN.src_shapes == {"blocks.0.qkv": (12, 4), "norm": (4,)}


def test_a_plan_with_two_shapes_for_one_source_is_refused() -> None:
    with pytest.raises(PlanError, match=r"`b`: `w` is float32\[3\] here and float32\[2\] elsewhere"):
        Plan({"a": Source("w", (2,)), "b": Source("w", (3,))})


def test_a_plan_with_an_expression_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PlanError, match=r"`a`: dims \(0, 0\) are not a permutation"):
        Plan({"a": Permute(Source("w", (2, 2)), (0, 0))})


def test_a_plan_does_not_change_with_the_dict_it_was_made_from() -> None:
    entries: dict[str, Expr] = {"a": Source("w", (2,))}
    plan = Plan(entries)
    entries.clear()
    assert list(plan.entries) == ["a"]


def test_plans_can_be_copied_and_pickled() -> None:
    plan = Plan({"a": Source("w", (2,))}, src="x")
    assert copy.deepcopy(plan) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    state = random_state(PLAN.sources)
    assert (loaded.src, loaded.dest, list(loaded.entries)) == ("timm:a", "hf:b", list(PLAN.entries))
    assert all(same(value, loaded.apply(state)[name]) for name, value in PLAN.apply(state).items())


@given(st.dictionaries(st.text(), exprs(), max_size=3), st.text())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_plan_survives_its_file(tmp_path: Path, entries: dict[str, Expr], src: str) -> None:
    plan = Plan(entries, src=src)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded.src == src
    assert loaded._text() == plan._text()


def test_a_saved_plan_has_one_line_for_each_dest_tensor(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    assert sum(line.startswith("  ") for line in text.splitlines()) == len(PLAN.entries)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    PLAN.save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Plan({}).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


HEAD = '{"format": "automap-plan", "version": 1, "src": "", "dest": "", "entries": {'
SOURCE = '{"op": "source", "name": "w", "shape": [2], "dtype": "float32"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "plan is not JSON", id="empty"),
        pytest.param("[]", "plan is a list, not an object", id="list"),
        pytest.param("{}", "plan has no field `format`", id="no-fields"),
        pytest.param('{"format": "other"}', r"plan\.format is not `automap-plan`", id="other-format"),
        pytest.param(
            HEAD.replace('"version": 1', '"version": 2') + "}}",
            r"plan\.version is 2, this automap reads version 1",
            id="newer-version",
        ),
        pytest.param(HEAD + '}, "extra": 1}', "plan has unknown fields: `extra`", id="unknown-field"),
        pytest.param(HEAD[:-1] + "[]}", r"plan\.entries is not an object", id="entries-no-object"),
        pytest.param(
            HEAD + f'"a.b": {SOURCE[:-1]}, "x": 1}}}}}}',
            r'plan\.entries\["a\.b"\] has unknown fields',
            id="place-in-entry",
        ),
        pytest.param(HEAD + f'"a": {SOURCE}, "a": {SOURCE}}}}}', 'has the field "a" twice', id="duplicate-entry"),
        pytest.param(
            HEAD + '"a": {"op": "fill", "value": NaN, "shape": [], "dtype": "float32"}}}',
            "has the number NaN",
            id="nan",
        ),
        pytest.param("[" * 100_000, "plan is nested too deep", id="deep-nesting"),
        pytest.param("1" * 5000, "plan is not JSON", id="huge-number"),
        pytest.param(
            HEAD + f'"a": {SOURCE}, "b": {SOURCE.replace("[2]", "[3]")}}}}}',
            r"`w` is float32\[3\] here",
            id="two-shapes",
        ),
    ],
)
def test_what_is_not_a_plan_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=message):
        Plan.load(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="can't decode"):
        Plan.load(tmp_path / "plan.json")


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read plan .*none\.json: No such file"):
        Plan.load(tmp_path / "none.json")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PLAN.save(tmp_path / "plan.json")
    monkeypatch.setattr("automap.plan.plan.MAX_FILE_BYTES", 100)
    with pytest.raises(PlanError, match="larger than 100 bytes"):
        Plan.load(tmp_path / "plan.json")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=60, deadline=None)
def test_cut_and_damaged_plans_are_refused_or_plans(noise: bytes) -> None:
    text = PLAN._text().encode()
    for damaged in (text[: len(noise) * 5] + noise, text.replace(b"shape", noise, 1), noise):
        with contextlib.suppress(PlanError):
            Plan.from_text(damaged.decode("utf-8", "replace"))


def test_repr_is_one_line() -> None:
    assert repr(PLAN) == "<Plan: 5 dest tensors from 2 of src, 'timm:a' -> 'hf:b'>"


def test_html_is_escaped_and_short() -> None:
    entries: dict[str, Expr] = {f"<script>{chr(97 + n)}": Source(f"</pre>{n}", (2,)) for n in range(26)}
    text = Plan(entries, src="<b>")._repr_html_()
    assert "<script>" not in text
    assert "</pre>0" not in text
    assert "... 6 more" in text


def test_rules_fold_the_plan() -> None:
    plan = Plan({f"layers.{i}.w": Source(f"blocks.{i}.w", (2,)) for i in range(12)})
    assert str(plan.rules()) == "layers.{i}.w <- blocks.{i}.w   for i in 0..11"


def test_dtypes_of_the_state_are_kept() -> None:
    dest = PLAN.apply({name: value.bfloat16() for name, value in random_state(PLAN.sources).items()})
    assert {dest[name].dtype for name in ("q", "kv.T", "norm", "bias")} == {torch.bfloat16}


def test_json_is_plain_json(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text(), parse_constant=pytest.fail)
    assert data["entries"]["bias"]["args"][1]["value"] == "nan"
