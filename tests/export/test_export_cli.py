"""automap export: to the terminal or to a file, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cases import transposed
from exported import module_of

from automap.export import export_python, export_timm, export_transformers, export_vllm
from automap.plan import Plan, Source

Run = Callable[..., tuple[int, str, str]]
RENAMED = Plan({"b.weight": Source("a.weight", (3, 4))}, src="Old", dest="New")


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    RENAMED.save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


@pytest.mark.parametrize(
    ("form", "export"),
    [
        pytest.param("python", export_python, id="python"),
        pytest.param("transformers", export_transformers, id="transformers"),
        pytest.param("timm", export_timm, id="timm"),
        pytest.param("vllm", export_vllm, id="vllm"),
    ],
)
def test_each_form_is_printed(run: Run, plan_file: Path, form: str, export: Callable[[Plan], str]) -> None:
    assert run("export", plan_file, "--format", form) == (0, export(RENAMED), "")


def test_python_is_the_form_where_none_is_named(run: Run, plan_file: Path) -> None:
    assert run("export", plan_file)[1] == export_python(RENAMED)


def test_the_class_of_dest_can_be_named(run: Run, plan_file: Path) -> None:
    status, text, _ = run("export", plan_file, "--format", "transformers", "--model-class", "Other")
    assert status == 0
    assert 'register_checkpoint_conversion_mapping("Other", conversions(), overwrite=True)' in text


def test_a_file_is_written_and_said_so(run: Run, plan_file: Path) -> None:
    out = plan_file.with_name("convert.py")
    assert run("export", plan_file, "-o", out) == (0, f"wrote python code for 1 tensors to {out}\n", "")
    assert "convert_state_dict" in module_of(out.read_text())
    assert {path.name for path in plan_file.parent.iterdir()} == {"plan.json", "convert.py"}


def test_a_file_that_is_there_stays_unless_overwritten(run: Run, plan_file: Path) -> None:
    out = plan_file.with_name("convert.py")
    out.write_text("mine")
    status, text, errors = run("export", plan_file, "-o", out)
    assert (status, text, out.read_text()) == (2, "", "mine")
    assert errors.startswith(f"error[bad-file]: the file {out} is there already")
    assert run("export", plan_file, "-o", out, "--overwrite")[0] == 0
    assert out.read_text() == export_python(RENAMED)


def test_what_does_not_fit_is_one_error_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    Plan({"b": transposed("a", 3, 4)}).save(tmp_path / "plan.json")
    status, text, errors = run("export", tmp_path / "plan.json", "--format", "vllm", "-o", tmp_path / "out.py")
    assert (status, text) == (1, "")
    assert errors.startswith("error[cannot-export]: cannot export to vllm: ")
    assert "\n   = help: convert the checkpoint with `--format python`" in errors
    assert not (tmp_path / "out.py").exists()


@pytest.mark.parametrize(
    ("words", "slug"),
    [
        pytest.param(["{folder}/none.json"], "bad-file", id="no plan"),
        pytest.param(["{folder}/plan.json", "-o", "{folder}/no/out.py"], "bad-file", id="no folder"),
    ],
)
def test_bad_places_are_usage_errors(run: Run, plan_file: Path, words: list[str], slug: str) -> None:
    status, text, errors = run("export", *(word.format(folder=plan_file.parent) for word in words))
    assert (status, text) == (2, "")
    assert errors.startswith(f"error[{slug}]: ")
