"""The python export: a readable script that gives bitwise what plan.apply gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ALL_CASES, CASES, plan_of, rows, transposed
from exported import differing, module_of, random_state, reformatted
from hypothesis import given
from hypothesis import strategies as st
from models.pairs import ALL_PAIRS, Pair
from plan_strategies import exprs
from safetensors.torch import load_file, save_file

import automap
from automap.errors import ExportError
from automap.export import export_python
from automap.plan import Add, Cast, Concat, Expr, Fill, Gather, Plan, Reshape, Source

W = Source("w", (4, 3))


def converted(text: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = module_of(text)["convert_state_dict"](state)
    return found


@pytest.mark.zoo
@pytest.mark.parametrize("name", ALL_CASES)
def test_the_script_gives_real_models_the_weights_of_apply(name: str) -> None:
    plan, state = plan_of(name), CASES[name].src().state_dict()
    assert differing(converted(export_python(plan), state), plan.apply(state)) == []


@pytest.mark.zoo
def test_scripts_of_real_models_are_as_ruff_formats_them_and_pass_its_checks() -> None:
    texts = [export_python(plan_of(name)) for name in CASES]
    assert reformatted(*texts) == texts
    for text in texts:
        checked = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E4,E7,E9,F,I", "-q", "-"]
        assert subprocess.run(checked, input=text, capture_output=True, text=True).stdout == ""


@pytest.mark.zoo
def test_blocks_are_loops() -> None:
    text = export_python(plan_of("vit"))
    assert "    for i in range(3):\n" in text
    assert '        q_proj, k_proj, v_proj = src[f"blocks.{i}.attn.qkv.weight"].chunk(3)\n' in text
    assert '            ("norm1.weight", "layernorm_before.weight"),\n' in text
    assert len(text.splitlines()) < 150


@pytest.mark.zoo
def test_stacked_experts_are_comprehensions() -> None:
    text = export_python(plan_of("mixture of experts"))
    assert '[src[f"layers.{i}.feed_forward.experts.{e}.w2.weight"] for e in range(4)],' in text


@pytest.mark.parametrize("pair", ALL_PAIRS)
def test_the_script_is_apply_for_every_spelling(pair: Pair) -> None:
    src = pair.src()
    plan = automap.match(src, pair.dest(), pair.sample(), dest_input=pair.dest_input).plan
    text = export_python(plan)
    assert differing(converted(text, src.state_dict()), plan.apply(src.state_dict())) == []
    assert reformatted(text) == [text]


@given(st.lists(exprs(), min_size=1, max_size=3), st.sampled_from([None, torch.float64, torch.float16]))
def test_the_script_is_bitwise_apply_for_any_expression_and_dtype(made: list[Expr], dtype: torch.dtype | None) -> None:
    plan = Plan({f"out.{number}.weight": expr for number, expr in enumerate(made)})
    if plan.sources:
        state = random_state(plan, dtype=dtype)
        assert differing(converted(export_python(plan), state), plan.apply(state)) == []


def folder_of(state: dict[str, torch.Tensor], folder: Path, kind: str) -> Path:
    """A checkpoint of some kind with the tensors of `state`."""
    folder.mkdir()
    if kind == "safetensors":
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors"
    if kind == "bin":
        torch.save({"state_dict": state}, folder / "weights.bin")
        return folder / "weights.bin"
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: state[name] for name in members}, folder / file)
    placed = ", ".join(f'"{name}": "{file}"' for file, members in shards.items() for name in members)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {' + placed + "}}")
    save_file({"other": torch.zeros(1)}, folder / "consolidated.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "shards", "bin"])
def test_the_script_is_a_command_that_says_what_it_left_out(tmp_path: Path, kind: str) -> None:
    plan = Plan({"fc.weight": transposed("w", 4, 3), "fc.bias": Source("b", (3,))}, src="Old", dest="New")
    state = random_state(plan) | {"head.weight": torch.randn(2)}
    script, out = tmp_path / "convert.py", tmp_path / "out.safetensors"
    script.write_text(export_python(plan))
    command = [sys.executable, script, folder_of(state, tmp_path / "in", kind), out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"wrote 2 tensors to {out}; 1 of src not used\n  not used: head.weight\n"
    assert differing(load_file(out), plan.apply(state)) == []


def test_the_command_says_which_tensor_is_missing(tmp_path: Path) -> None:
    (tmp_path / "convert.py").write_text(export_python(Plan({"b": transposed("w", 4, 3)})))
    save_file({"v": torch.randn(4, 3)}, tmp_path / "v.safetensors")
    command = [sys.executable, tmp_path / "convert.py", tmp_path / "v.safetensors", tmp_path / "out.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path / 'v.safetensors'} holds no tensor 'w'\n"
    assert not (tmp_path / "out.safetensors").exists()


def test_a_checkpoint_of_another_size_is_refused() -> None:
    text = export_python(Plan({f"{n}.weight": rows(Source("qkv", (6, 4)), k, 3) for k, n in enumerate("qkv")}))
    with pytest.raises(ValueError, match="made 108 elements, not 24: another size\\?"):
        converted(text, {"qkv": torch.randn(18, 6)})


def test_tensors_that_are_one_in_src_share_no_memory() -> None:
    made = converted(export_python(Plan({"a": W, "b": W})), {"w": torch.randn(4, 3)})
    assert made["a"].data_ptr() != made["b"].data_ptr()


def test_a_tensor_cut_into_numbered_ones_is_a_loop() -> None:
    packed = Source("up", (4, 2, 3))
    parts = {f"up.{n}.weight": Reshape(rows(packed, n, 4), (2, 3)) for n in range(4)}
    text = export_python(Plan(parts))
    assert '    for e, part in enumerate(up.chunk(4)):\n        dest[f"up.{e}.weight"] = part.reshape(2, 3)\n' in text


def test_constants_have_the_dtype_of_what_they_join() -> None:
    plan = Plan({"b": Concat((W, Fill(0.0, (1, 3)), Fill(0.1, (1, 3))), 0)})
    state = {"w": torch.randn(4, 3, dtype=torch.bfloat16)}
    assert differing(converted(export_python(plan), state), plan.apply(state)) == []


def test_many_irregular_rows_are_a_table_beside_the_function() -> None:
    order = tuple(torch.randperm(200, generator=torch.Generator().manual_seed(0)).tolist())
    plan = Plan({"b": Gather(Source("w", (200, 2)), 0, order)})
    text, state = export_python(plan), random_state(plan)
    assert 'dest["b"] = take(src["w"], 0, ROWS_0)' in text
    assert reformatted(text) == [text]
    assert differing(converted(text, state), plan.apply(state)) == []


def test_names_with_braces_and_other_signs_are_kept() -> None:
    plan = Plan({f"layers.{n}.{{x}}.ä b": Source(f"h.{n + 1}.{{x}}.$", (2,)) for n in range(3)})
    state = random_state(plan)
    assert differing(converted(export_python(plan), state), plan.apply(state)) == []


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        pytest.param(Plan({"b": Fill(0.0, (2,))}), "no dest tensor of the plan is made of a src tensor", id="constant"),
        pytest.param(Plan({}), "no dest tensor of the plan", id="empty"),
        pytest.param(Plan({'a"b': W}), "the name 'a\"b' has quotes, backslashes or control characters", id="quote"),
        pytest.param(Plan({"b": Source("w\n", (2,))}), "has quotes, backslashes or control characters", id="newline"),
        pytest.param(
            Plan({"b": Add(Cast(W, "int32"), W)}),
            "a cast from float32 to int32 below arithmetic cannot be exported",
            id="cast",
        ),
    ],
)
def test_what_no_script_can_hold_is_refused(plan: Plan, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_python(plan)


def test_names_of_models_cannot_break_out_of_the_docstring() -> None:
    text = export_python(Plan({"b": W}, src='"""\nimport os', dest="Ok"))
    assert text.startswith('"""Weights of src as those of Ok.')


def test_nothing_of_a_plan_is_run_as_code() -> None:
    names: dict[str, Any] = {f"{{__import__('os')}}{n}": Source(f"{{x}}.{n}.y", (2,)) for n in range(3)}
    with pytest.raises(ExportError, match="quotes"):
        export_python(Plan(names))
    plan = Plan({f"{{exit()}}.{n}": Source(f"{{exit()}}.{n}.y", (2,)) for n in range(3)})
    assert set(converted(export_python(plan), random_state(plan))) == set(plan.entries)
