"""The benchmark's own parts: fair use of the peers, one rule for what is solved, sections that leave others alone."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import automap

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_importable():
    """Put the scripts' folder on the path, as running one of them does."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


class Ordered(nn.Module):
    """Two linears that run in the order they are named in, registered the other way round."""

    def __init__(self, first: str, second: str, width: int = 4) -> None:
        super().__init__()
        self.names = (first, second)
        self.add_module(second, nn.Linear(width, 2))
        self.add_module(first, nn.Linear(3, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x


def side(model: nn.Module) -> Any:
    return load("peer_tools").Side(model, (torch.randn(2, 3),), {}, lambda result: result)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def is_same_function(state: dict[str, torch.Tensor], src: nn.Module, dest: nn.Module) -> bool:
    dest.load_state_dict(state)
    x = torch.randn(5, 3)
    return torch.equal(src(x), dest(x))


def test_hook_order_pairs_modules_by_when_they_run():
    src, dest = plain(), Ordered("a", "b")
    state = load("peer_tools").hook_order(side(src), side(dest))
    assert is_same_function(state, src, dest)
    assert not any(module._forward_hooks for model in (src, dest) for module in model.modules())


@pytest.mark.parametrize(
    ("dest", "reason"),
    [
        pytest.param(nn.Sequential(nn.Linear(3, 2)), "unequal numbers of modules run: 2 in src, 1 in dest", id="count"),
        pytest.param(Ordered("a", "b", width=5), "hold unequal shapes: 0 and a", id="shape"),
    ],
)
def test_hook_order_refuses_what_does_not_line_up(dest, reason):
    tools = load("peer_tools")
    with pytest.raises(tools.Refusal, match=reason):
        tools.hook_order(side(plain()), side(dest))


@pytest.mark.zoo
def test_timm_remap_goes_by_order_of_registration():
    src, dest = plain(), plain()
    state = load("peer_tools").timm_remap(side(src), side(dest))
    assert is_same_function(state, src, dest)


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("dest", "reason"),
    [
        pytest.param(nn.Sequential(nn.Linear(3, 2)), "unequal numbers of tensors: 4 in src, 2 in dest", id="count"),
        pytest.param(Ordered("a", "b"), "unequal sizes", id="size"),
    ],
)
def test_timm_remap_refuses_what_does_not_line_up(dest, reason):
    tools = load("peer_tools")
    with pytest.raises(tools.Refusal, match=reason):
        tools.timm_remap(side(plain()), side(dest))


def test_weightbridge_gets_a_second_try_that_leaves_src_tensors_over(monkeypatch):
    tries: list[dict[str, Any]] = []

    def adapt(values: dict[str, Any], wanted: dict[str, Any], **options: Any) -> dict[str, Any]:
        tries.append(options)
        if not options:
            raise ValueError("Failed to pair")
        return values

    monkeypatch.setitem(sys.modules, "weightbridge", SimpleNamespace(adapt=adapt))
    src = plain()
    state = load("peer_tools").weightbridge(side(src), side(plain()))
    assert tries == [{}, {"ignore_unmatched_inputs": True}]
    assert state.keys() == src.state_dict().keys()


class Scored:
    """Stands for lit-wsl's mapper: names are mapped onto themselves, with a result that says what the test wants."""

    unmatched_targets: tuple[str, ...] = ()
    output_validation = SimpleNamespace(validation_passed=True, error_message=None, output_cosine_sim=1.0)

    def __init__(self, src: nn.Module, dest: nn.Module, *, buffer_matching_mode: str, dummy_input: Any) -> None:
        self.names = {name: name for name, _ in src.named_parameters()}
        assert src(dummy_input).shape == dest(dummy_input).shape == (2, 2)  # any tensor will do as input

    def suggest_mapping(self, *, strategy: str) -> Scored:
        logging.getLogger("scored").critical("not to be seen")
        return self

    def get_mapping(self) -> dict[str, str]:
        return self.names


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        pytest.param({}, None, id="whole"),
        pytest.param({"unmatched_targets": ("0.bias",)}, "listed as unmatched: 1, 0.bias first", id="unmatched"),
        pytest.param({"unmatched_targets": ("not.state",)}, None, id="unmatched-but-no-state"),
        pytest.param(
            {"output_validation": SimpleNamespace(validation_passed=False, error_message=None, output_cosine_sim=0.5)},
            "check of the outputs failed: cosine similarity 0.500",
            id="own-check",
        ),
    ],
)
def test_lit_wsl_is_taken_at_its_word(monkeypatch, caplog, said, reason):
    tools = load("peer_tools")
    mapper = type("WeightMapper", (Scored,), said)
    monkeypatch.setitem(sys.modules, "lit_wsl.mapper.weight_mapper", SimpleNamespace(WeightMapper=mapper))
    src, dest = plain(), plain()
    if reason is None:
        assert is_same_function(tools.lit_wsl(side(src), side(dest)), src, dest)
    else:
        with pytest.raises(tools.Refusal, match=reason):
            tools.lit_wsl(side(src), side(dest))
    assert type(src) is type(dest) is nn.Sequential
    assert not caplog.records


class Runner:
    """Stands for the pairs' run.py: it scores whatever `automap.match` is at the time."""

    @staticmethod
    def flat(output: torch.Tensor) -> torch.Tensor:
        return output.reshape(-1)

    @staticmethod
    def score(pair: Any) -> dict[str, Any]:
        src, dest = plain(), plain()
        inputs = automap.Inputs((torch.randn(2, 3),))
        found = automap.match(src, dest, inputs, dest_input=inputs)
        dest.load_state_dict(found.plan.apply(src.state_dict()))
        equal = torch.equal(src(inputs.args[0]), dest(inputs.args[0]))
        outcome = ("solved" if equal else "WRONG") if found.verdict == "complete" else "refused"
        return {"outcome": outcome, "differs_from_gold": [], "findings": []}


def crash(src: Any, dest: Any) -> Any:
    raise KeyError("layers.0")


def work_on(src: Any, dest: Any) -> None:
    started = time.process_time()
    while time.process_time() < started + 5:
        pass


@pytest.mark.parametrize(
    ("tool", "outcome", "reason"),
    [
        pytest.param(lambda src, dest: src.model.state_dict(), "solved", "", id="right"),
        pytest.param(lambda src, dest: dest.model.state_dict(), "wrong", "", id="wrong"),
        pytest.param(lambda src, dest: {}, "refused", "crashed, RuntimeError", id="not-loadable"),
        pytest.param(crash, "refused", "crashed, KeyError: 'layers.0'", id="crash"),
        pytest.param(work_on, "refused", "the time limit of 0 s", id="slow"),
    ],
)
def test_every_tool_is_scored_by_the_runner(monkeypatch, tool, outcome, reason):
    peers = load("peers")
    match = automap.match
    monkeypatch.setitem(peers.PEERS, "hook-order", tool)
    row = peers.trial(Runner, "hook-order", SimpleNamespace(name="pair"), 0.2)
    assert (row.outcome, row.reason.startswith(reason)) == (outcome, True)
    assert row.seconds < 2
    assert automap.match is match


def test_automap_is_scored_the_same_way():
    row = load("peers").trial(Runner, "automap", SimpleNamespace(name="pair"), 60.0)
    assert row.outcome == "solved"


def test_tables_count_what_happened():
    report = load("peer_report")
    rows = [
        report.Row("one", "automap", "solved", 1.0, group="vision"),
        report.Row("two", "automap", "wrong", 3.0, group="language"),
        report.Row("one", "lit-wsl", "refused", 0.5, "crashed, KeyError: x", group="vision"),
        report.Row("two", "lit-wsl", "solved", 0.5, unseen=2, group="language"),
    ]
    totals = report.totals(rows, ["lit-wsl", "automap"])
    assert "| automap | 1 | 0 | 1 | 1/0/0 | 0/0/1 | 4.0 | 2.00 | 3.0 |" in totals
    assert "| lit-wsl: crashed, KeyError | 1 |" in report.reasons(rows, ["lit-wsl", "automap"])
    assert "| two | solved* 0.50 | **wrong** 3.00 |" in report.by_pair(rows, ["lit-wsl", "automap"])


def test_a_run_without_the_pairs_says_so_in_one_line(monkeypatch, capsys, tmp_path):
    peers = load("peers")
    monkeypatch.setattr(peers, "PAIRS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["peers.py"])
    assert peers.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_restricted_run_is_no_whole_run():
    peers = load("peers")
    assert peers.read_options([]).is_whole
    assert not peers.read_options(["--tools", "automap"]).is_whole
    with pytest.raises(SystemExit):
        peers.read_options(["--tools", "magic"])


def test_a_section_is_replaced_and_the_rest_kept(tmp_path):
    results = load("results")
    path = tmp_path / "RESULTS.md"
    for name, text in (("a", "one"), ("b", "two"), ("a", "three\n")):
        results.write_section(name, text, path)
    assert path.read_text(encoding="utf-8") == results.HEADER + (
        "\n<!-- a:start -->\nthree\n<!-- a:end -->\n\n<!-- b:start -->\ntwo\n<!-- b:end -->\n"
    )
    assert [found.name for found in tmp_path.iterdir()] == ["RESULTS.md"]


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        pytest.param("<!-- a:start -->\n", "new", id="no-end"),
        pytest.param("<!-- a:start --><!-- a:end -->" * 2, "new", id="twice"),
        pytest.param("", "<!-- a:end -->", id="mark-in-text"),
    ],
)
def test_a_section_with_stray_marks_is_refused(text, markdown):
    with pytest.raises(ValueError, match="section a"):
        load("results").with_section(text, "a", markdown)


def test_scaling_chart_has_a_mark_for_every_size():
    svg = load("speed_report").scaling_svg({1000: 0.5, 10000: 5.0, 50000: 40.0})
    assert svg.count("<circle") == 3
    assert "50000 ops, 40 s" in svg


def test_speed_sections_say_what_failed():
    report = load("speed_report")
    stages = dict.fromkeys(("capture", *report.MATCHING), 0.5)
    whole = {"src_ops": 10, "dest_ops": 20, "verdict": "complete", "stages": stages, "peak_mb": 700.0}
    text = report.matching({10: whole, 99: {"failed": "not within 1 s"}})
    assert "| 10, 20 | complete | 0.50 | 0.50 | 0.50 | 0.50 | 20 | 700 |" in text
    assert "| about 99 | not within 1 s | - |" in text


def test_help_of_both_commands_imports_what_it_needs():
    for name in ("peers.py", "speed.py"):
        done = subprocess.run([sys.executable, BENCHMARKS / name, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
