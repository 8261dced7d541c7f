"""The command line: exit statuses, one clear error, nothing half written."""

from __future__ import annotations

import gc
import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from automap import cli
from automap.cli import app, commands
from automap.errors import AutomapError, CaptureError, OutputError
from automap.jobs import Job, prepare
from automap.plan import Plan, Source
from automap.results import CaptureSummary, Explanation, Match, OutputParity, Parity, ParityCheck, Transfer, Verdict

Run = Callable[..., tuple[int, str, str]]
needs_core = pytest.mark.skipif(importlib.util.find_spec("automap.api") is None, reason="the core is not there yet")


class Core:
    """Stands in for automap.api: answers with a set verdict, places the weights, remembers how it was called."""

    def __init__(self) -> None:
        self.verdict: Verdict = "complete"
        self.max_rel = 0.0
        self.problem: Exception | None = None
        self.options: dict[str, Any] = {}

    def match(self, src: torch.nn.Module, dest: torch.nn.Module, sample_input: Any, **options: Any) -> Match:
        if self.problem is not None:
            raise self.problem
        self.options = {**options, "sample_input": sample_input}
        own = dest.state_dict()
        entries = {name: Source(name, tuple(value.shape)) for name, value in src.state_dict().items() if name in own}
        capture = CaptureSummary(type(src).__name__, "dispatch", "real", 3, 4, 5, 0.1)
        return Match(Plan(entries), (), self.verdict, dict.fromkeys(entries, "proved"), capture, capture)

    def explain(self, src: torch.nn.Module, dest: torch.nn.Module, sample_input: Any, **options: Any) -> Explanation:
        return Explanation(self.match(src, dest, sample_input, **options), ())

    def transfer(self, src: torch.nn.Module, dest: torch.nn.Module, sample_input: Any, **options: Any) -> Transfer:
        match = self.match(src, dest, sample_input, **options)
        dest.load_state_dict(match.plan.apply(src.state_dict()))
        output = OutputParity("", "", (1,), "float32", self.max_rel, self.max_rel, 1e-6)
        parity = Parity((ParityCheck("own", "sample", (output,)),))
        return Transfer(match, parity, match.evidence, is_applied=True, tolerance=1e-6)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    stand_in = Core()
    module = types.ModuleType("automap.api")
    for name in ("match", "transfer", "explain"):
        setattr(module, name, getattr(stand_in, name))
    monkeypatch.setitem(sys.modules, "automap.api", module)
    return stand_in


@pytest.fixture
def pair(model_file: Path) -> tuple[str, str, str, str]:
    return f"{model_file}:Joined", f"{model_file}:Joined", "-i", "2x6"


def test_no_arguments_show_help_with_three_examples(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    status, text, _ = run()
    assert status == 0
    assert sum(line.strip().startswith("automap ") and " -" in line for line in text.splitlines()) == 3
    assert "Exit status: 0 complete and equal" in text


@pytest.mark.parametrize("words", [["--help"], ["trace", "--help"], ["explain", "--help"], ["apply", "--help"]])
def test_every_command_has_help(run: Run, words: list[str]) -> None:
    status, text, _ = run(*words)
    assert status == 0
    assert f"Usage: automap {words[0] if len(words) > 1 else '[OPTIONS] '}" in text


def test_version(run: Run) -> None:
    status, text, _ = run("--version")
    assert (status, text.split()[0]) == (0, "automap")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from automap.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print({'torch', 'numpy', 'transformers', 'networkx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_python_m_automap_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "automap", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("automap ")


def test_every_field_of_a_job_can_be_asked_for() -> None:
    callback = app.registered_commands[0].callback
    assert callback is not None
    explaining = next(command.callback for command in commands.registered_commands if command.name == "explain")
    assert explaining is not None
    assert {field.name for field in fields(Job)} <= set(callback.__annotations__) | set(explaining.__annotations__)
    assert {command.name for command in commands.registered_commands} == {"trace", "explain", "apply", "export"}


@pytest.mark.parametrize(
    ("words", "slug"),
    [
        pytest.param(["nonsense", "{file}:Joined", "-i", "2x6"], "bad-spec", id="spec"),
        pytest.param(["{file}:broken", "{file}:Joined", "-i", "2x6"], "bad-spec", id="factory raises"),
        pytest.param(["{file}:Joined", "{file}:Joined", "-i", "2y6"], "bad-input", id="input"),
        pytest.param(["{file}:Joined", "{file}:Joined", "-i", "y=2x6"], "bad-input", id="input name"),
        pytest.param(["{file}:Joined", "{file}:Joined", "-i", "x.npy"], "bad-file", id="input file"),
        pytest.param(["{file}:Joined", "{file}:Joined", "-i", "2x6", "--dtype", "f31"], "bad-input", id="dtype"),
        pytest.param(["{file}:Joined", "{file}:Joined", "-i", "2x6", "--pin", "a"], "bad-input", id="pin"),
        pytest.param(
            ["{file}:Joined", "{file}:Joined", "-i", "2x6", "--src-checkpoint", "no.pt"], "bad-file", id="checkpoint"
        ),
        pytest.param(["{file}:Joined", "{file}:Joined", "-i", "2x6", "--out", "{folder}"], "bad-file", id="out in use"),
        pytest.param(
            ["{file}:Joined", "{file}:Joined", "-i", "2x6", "--plan", "no/plan.json"], "bad-file", id="no folder"
        ),
        pytest.param(["trace", "nonsense", "-i", "2x6"], "bad-spec", id="trace"),
        pytest.param(["explain", "nonsense", "nonsense", "-i", "2x6"], "bad-spec", id="explain"),
    ],
)
def test_bad_usage_is_one_error_and_status_2(
    run: Run, core: Core, model_file: Path, words: list[str], slug: str
) -> None:
    status, text, errors = run(*(word.format(file=model_file, folder=model_file.parent) for word in words))
    assert status == 2
    assert text == ""
    assert errors.startswith(f"error[{slug}]: ")
    assert "Traceback" not in errors


@pytest.mark.parametrize("words", [["a"], ["a", "b"], ["a", "b", "-i", "1", "--wrong"], ["apply", "a"]])
def test_missing_or_unknown_arguments_are_status_2(run: Run, words: list[str]) -> None:
    status, _, errors = run(*words)
    assert status == 2
    assert "Usage: automap" in errors


@pytest.mark.parametrize(
    ("problem", "status", "line"),
    [
        pytest.param(OutputError("two outputs", help="name one"), 2, "error[outputs-not-comparable]: two", id="usage"),
        pytest.param(CaptureError("it failed"), 1, "error[capture-failed]: it failed", id="automap"),
        pytest.param(MemoryError("17 GB"), 1, "error[system]: MemoryError: 17 GB", id="memory"),
        pytest.param(KeyError("x"), 1, "error[internal]: KeyError: 'x'", id="fault"),
        pytest.param(KeyboardInterrupt(), 130, "error[interrupted]: stopped before the end", id="interrupted"),
    ],
)
def test_what_goes_wrong_in_the_core_is_one_error(
    run: Run, core: Core, pair: tuple[str, ...], tmp_path: Path, problem: Exception, status: int, line: str
) -> None:
    core.problem = problem
    before = sorted(tmp_path.iterdir())
    found, text, errors = run(*pair, "--out", tmp_path / "out", "--json", tmp_path / "r.json")
    assert (found, text) == (status, "")
    assert errors.startswith(line)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_debug_lets_the_traceback_through(core: Core, pair: tuple[str, ...]) -> None:
    from automap.cli import main

    core.problem = CaptureError("it failed")
    with pytest.raises(AutomapError, match="it failed"):
        main([*pair, "--debug"])


def test_a_complete_and_equal_run_writes_everything(
    run: Run, core: Core, pair: tuple[str, ...], tmp_path: Path
) -> None:
    out, plan, report = tmp_path / "out", tmp_path / "plan.json", tmp_path / "report.json"
    status, text, errors = run(*pair, "--out", out, "--plan", plan, "--json", report)
    assert (status, errors) == (0, "")
    assert "verdict: complete, outputs equal" in text
    assert f"wrote the model to {out}" in text
    assert "stem.weight" in load_file(out / "model.safetensors")
    assert Plan.load(plan).entries["stem.weight"] == Source("stem.weight", (8, 6))
    assert json.loads(report.read_text())["verdict"] == "complete"


@pytest.mark.parametrize(
    ("verdict", "max_rel", "words", "is_written"),
    [
        pytest.param("impossible", 0.0, [], False, id="impossible"),
        pytest.param("ambiguous", 0.0, [], False, id="ambiguous"),
        pytest.param("differs", 0.5, [], False, id="differs"),
        pytest.param("differs", 0.5, ["--allow-differences"], True, id="differs, allowed"),
        pytest.param("complete", 0.5, ["--allow-differences"], False, id="outputs differ"),
        pytest.param("complete", float("nan"), [], False, id="nan"),
        pytest.param("impossible", 0.0, ["--allow-differences"], False, id="impossible is never allowed"),
    ],
)
def test_anything_else_is_status_1_and_writes_the_json_report_alone(
    run: Run,
    core: Core,
    pair: tuple[str, ...],
    tmp_path: Path,
    verdict: Verdict,
    max_rel: float,
    words: list[str],
    is_written: bool,
) -> None:
    core.verdict, core.max_rel = verdict, max_rel
    out, plan, report = tmp_path / "out", tmp_path / "plan.json", tmp_path / "report.json"
    status, text, _ = run(*pair, "--out", out, "--plan", plan, "--json", report, *words)
    assert status == 1
    assert f"verdict: {verdict}" in text
    assert (out.exists(), plan.exists(), report.exists()) == (is_written, is_written, True)


def test_quiet_prints_nothing_but_the_refusal(run: Run, core: Core, pair: tuple[str, ...]) -> None:
    assert run(*pair, "--quiet") == (0, "", "")
    core.verdict = "impossible"
    status, text, errors = run(*pair, "-q")
    assert (status, text) == (1, "")
    assert errors.startswith("error[mismatch]: the verdict is impossible")


def test_options_reach_the_core(run: Run, core: Core, pair: tuple[str, ...]) -> None:
    words = ["--seed", 3, "--pin", "a=b", "--pin", "c=d[0:2]", "--capture", "export", "--verify", "quick"]
    run(*pair, *words, "--tolerance", "1e-3", "--src-output", "0.a", "--dest-output", "logits", "--dtype", "float64")
    inputs = core.options.pop("dest_input")
    assert inputs.args[0].dtype is torch.float64
    assert core.options.pop("sample_input").args[0].shape == (2, 6)
    assert core.options == {
        "strict": False,
        "verify": "quick",
        "tolerance": 1e-3,
        "seed": 3,
        "pins": ("a=b", "c=d[0:2]"),
        "capture": "export",
        "algebra": True,
        "src_output": "0.a",
        "dest_output": "logits",
    }


def test_both_models_are_drawn_from_different_seeds(pair: tuple[str, ...]) -> None:
    sides = prepare(Job(src=pair[0], dest=pair[1], sample_input=("2x6",)))
    src, dest = sides.src.state_dict(), sides.dest.state_dict()
    assert not any(torch.equal(src[name], dest[name]) for name in src)


def test_a_src_checkpoint_is_loaded_and_what_it_drops_is_told(
    run: Run, core: Core, pair: tuple[str, ...], tmp_path: Path, model_file: Path
) -> None:
    from automap.models import build_model

    state = {name: torch.randn(value.shape) for name, value in build_model(pair[0]).state_dict().items()}
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "run.pt")
    status, text, _ = run(*pair, "--src-checkpoint", tmp_path / "run.pt", "--out", tmp_path / "out")
    assert status == 0
    assert "note: read `model`, beside epoch" in text
    assert "note: dropped the prefix `module.`" in text
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["head.bias"], state["head.bias"])


def test_a_corrupt_checkpoint_is_status_1(run: Run, core: Core, pair: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "run.pt").write_bytes(b"PK")
    status, _, errors = run(*pair, "--src-checkpoint", tmp_path / "run.pt")
    assert status == 1
    assert errors.startswith("error[bad-checkpoint]: ")


def test_explain_shows_findings_and_verdict_only(run: Run, core: Core, pair: tuple[str, ...]) -> None:
    status, text, _ = run("explain", *pair)
    assert status == 0
    assert "Joined -> Joined: compared on equal weights, dest leaves src nowhere" in text
    assert "verdict: complete" in text
    core.verdict = "differs"
    assert run("explain", *pair)[0] == 1


def test_explain_hands_on_that_weights_are_loaded_and_the_mode(run: Run, core: Core, pair: tuple[str, ...]) -> None:
    run("explain", *pair, "--loaded", "--train")
    assert (core.options["loaded"], core.options["train"]) == (True, True)


def test_no_algebra_reaches_the_core(run: Run, core: Core, pair: tuple[str, ...]) -> None:
    run(*pair, "--no-algebra")
    assert core.options["algebra"] is False


@pytest.mark.parametrize("out", ["new.safetensors", "new"])
def test_apply_sends_a_checkpoint_through_a_plan(run: Run, tmp_path: Path, out: str) -> None:
    value = torch.randn(2, 3)
    Plan({"b": Source("a", (2, 3))}).save(tmp_path / "plan.json")
    torch.save({"state_dict": {"a": value}}, tmp_path / "run.pt")
    status, text, _ = run("apply", tmp_path / "plan.json", tmp_path / "run.pt", "-o", tmp_path / out)
    file = tmp_path / out if out.endswith("s") else tmp_path / out / "model.safetensors"
    assert status == 0
    assert f"wrote 1 tensor to {file}" in text
    assert torch.equal(load_file(file)["b"], value)
    again = run("apply", tmp_path / "plan.json", tmp_path / "run.pt", "-o", tmp_path / out)
    assert (again[0], again[1]) == (2, "")
    assert run("apply", tmp_path / "plan.json", tmp_path / "run.pt", "-o", tmp_path / out, "--overwrite")[0] == 0


def test_apply_without_its_plan_is_status_2(run: Run, tmp_path: Path) -> None:
    status, _, errors = run("apply", tmp_path / "no.json", tmp_path / "run.pt", "-o", tmp_path / "new")
    assert status == 2
    assert errors.startswith("error[bad-file]: there is no plan")


def test_apply_refuses_a_plan_that_does_not_fit(run: Run, tmp_path: Path) -> None:
    Plan({"b": Source("a", (2, 3))}).save(tmp_path / "plan.json")
    torch.save({"c": torch.randn(2, 3)}, tmp_path / "run.pt")
    status, _, errors = run("apply", tmp_path / "plan.json", tmp_path / "run.pt", "-o", tmp_path / "new")
    assert status == 1
    assert errors.startswith("error[bad-plan]: src has no tensor `a`")
    assert not (tmp_path / "new").exists()


@needs_core
class TestEndToEnd:
    def test_two_spellings_of_one_model(self, run: Run, model_file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        status, text, errors = run(f"{model_file}:Joined", f"{model_file}:Apart", "-i", "2x6", "--out", out)
        assert (status, errors) == (0, "")
        assert "verdict: complete, outputs equal" in text
        assert "classifier.weight" in load_file(out / "model.safetensors")

    @pytest.mark.parametrize("options", ["act=tanh", "blocks=2", "blocks=4"])
    def test_models_that_differ_are_refused(self, run: Run, model_file: Path, tmp_path: Path, options: str) -> None:
        words = [f"{model_file}:Joined", f"{model_file}:Apart?{options}", "-i", "2x6", "--out", tmp_path / "out"]
        status, text, _ = run(*words)
        assert status == 1
        assert "error[" in text
        assert not (tmp_path / "out").exists()
        assert run("explain", *words[:4])[0] == 1

    def test_an_input_that_does_not_fit_shows_the_signatures(self, run: Run, model_file: Path) -> None:
        status, _, errors = run(f"{model_file}:Joined", f"{model_file}:Apart", "-i", "2x7")
        assert status == 2
        assert "Joined.forward(x)" in errors
        assert "called with (f32[2,7])" in errors

    @pytest.mark.parametrize("form", ["table", "json", "graphml"])
    def test_trace_prints_each_form(self, run: Run, model_file: Path, form: str) -> None:
        status, text, _ = run("trace", f"{model_file}:Tokens", "-i", "ids=1x5:int64", "--format", form)
        assert status == 0
        assert "words.weight" in text
        if form == "json":
            data = json.loads(text)
            assert data["schema"] == "automap-trace/1"
            assert {node["kind"] for node in data["nodes"]} >= {"input", "weight", "call"}


def test_the_garbage_collector_waits_longer_while_a_command_runs_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []
    monkeypatch.setattr(cli, "app", lambda **_: seen.append(gc.get_threshold()))
    before = gc.get_threshold()
    with pytest.raises(SystemExit):
        cli.main(["SRC", "DEST"])
    assert seen[0][0] > before[0]
    assert gc.get_threshold() == before
