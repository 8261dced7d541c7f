"""The shell's promises on real runs of the core: exit statuses, what is written, and one clear error for bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from automap.models import build_model
from automap.plan import Plan

Run = Callable[..., tuple[int, str, str]]

MODES = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, mode: str = "", width: int = 8, blocks: int = 2, act: str = "tanh", eps: float = 1e-5):
        super().__init__()
        self.mode, self.act = mode, getattr(torch, act)
        self.stem = nn.Linear(6, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.mode == "counts":
            self.calls += 1
        x = self.stem(x)
        for block in self.blocks:
            x = x + self.act(block(x))
        x = self.head(self.norm(x))
        match self.mode:
            case "nan":
                return torch.log(-x.abs())
            case "squashed":
                return torch.tanh(x)
            case "text":
                return "nothing to compare"
            case "dict":
                return {"logits": x, "more": {"total": x.sum(-1)}}
        return x


class Renamed(nn.Module):
    def __init__(self, act: str = "tanh", eps: float = 1e-5):
        super().__init__()
        self.act = getattr(torch, act)
        self.out = nn.Linear(8, 4)
        self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))
        self.second, self.first, self.into = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(6, 8)
        self.eps = eps

    def forward(self, inputs):
        x = self.into(inputs)
        x = x + self.act(self.first(x))
        x = self.act(self.second(x)) + x
        return self.out(nn.functional.layer_norm(x, (8,), self.scale, self.shift, self.eps))


def poisoned():
    net = Net()
    with torch.no_grad():
        net.blocks[1].weight[0, 0] = float("nan")
    return net


def tiny_vit():
    import timm

    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=5
    )
"""

TINY_VIT = (
    "hf:ViTForImageClassification?image_size=32&hidden_size=24&num_hidden_layers=2&num_attention_heads=2"
    "&intermediate_size=96&num_labels=5&layer_norm_eps=1e-6"
)


@pytest.fixture
def net(tmp_path: Path) -> str:
    """The spec of a file with the models of MODES, up to the colon."""
    (tmp_path / "nets.py").write_text(MODES)
    return f"{tmp_path / 'nets.py'}:"


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("nets.py", "__pycache__"))


def test_a_plain_model_is_written_as_safetensors_and_computes_the_same(run: Run, net: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, text, errors = run(f"{net}Net", f"{net}Renamed", "-i", "2x6", "--out", out)
    assert (status, errors) == (0, "")
    assert "verdict: complete, outputs equal" in text
    src, dest = build_model(f"{net}Net", seed=0), build_model(f"{net}Renamed")
    dest.load_state_dict(load_file(out / "model.safetensors"))
    x = torch.randn(3, 6)
    assert torch.allclose(src(x), dest(x), atol=1e-6)
    assert torch.equal(dest.get_parameter("second.weight"), src.get_parameter("blocks.1.weight"))


@pytest.mark.zoo
def test_a_transformers_model_is_written_so_that_from_pretrained_loads_it(run: Run, net: str, tmp_path: Path) -> None:
    out = tmp_path / "vit"
    status, text, _ = run(f"{net}tiny_vit", TINY_VIT, "-i", "1x3x32x32", "--out", out, "--plan", tmp_path / "plan.json")
    assert status == 0
    assert "qkv" in text
    src, dest = build_model(f"{net}tiny_vit", seed=0), build_model(f"hf:{out}")
    image = torch.randn(2, 3, 32, 32)
    assert torch.allclose(src(image), dest(image).logits, atol=1e-5)


def test_a_saved_plan_takes_another_checkpoint_across(run: Run, net: str, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "new.safetensors"
    assert run(f"{net}Net", f"{net}Renamed", "-i", "2x6", "--plan", plan, "-q")[0] == 0
    other, dest = build_model(f"{net}Net", seed=9), build_model(f"{net}Renamed")
    torch.save({"state_dict": {f"module.{k}": v for k, v in other.state_dict().items()}}, tmp_path / "run.pt")
    status, text, _ = run("apply", plan, tmp_path / "run.pt", "-o", out)
    assert status == 0
    assert "dropped the prefix `module.`" in text
    dest.load_state_dict(load_file(out))
    x = torch.randn(3, 6)
    assert torch.allclose(other(x), dest(x), atol=1e-6)


def test_models_without_weights_give_a_plan_for_a_checkpoint(run: Run, net: str, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "new.safetensors"
    status, text, errors = run(f"{net}Net", f"{net}Renamed", "-i", "2x6", "--meta", "--plan", plan)
    assert (status, errors) == (0, "")
    assert ("verdict: complete" in text, "nothing was carried over or tried" in text, "proved" in text) == (
        True,
        True,
        False,
    )
    other, dest = build_model(f"{net}Net", seed=9), build_model(f"{net}Renamed")
    save_file(other.state_dict(), tmp_path / "run.safetensors")
    assert run("apply", plan, tmp_path / "run.safetensors", "-o", out)[0] == 0
    dest.load_state_dict(load_file(out))
    x = torch.randn(3, 6)
    assert torch.allclose(other(x), dest(x), atol=1e-6)


@pytest.mark.parametrize(
    ("option", "value"),
    [pytest.param("--out", "dir", id="out"), pytest.param("--src-checkpoint", "a.pt", id="weights")],
)
def test_without_weights_nothing_that_is_about_weights(
    run: Run, net: str, tmp_path: Path, option: str, value: str
) -> None:
    status, _, errors = run(f"{net}Net", f"{net}Renamed", "-i", "2x6", "--meta", option, tmp_path / value)
    assert status == 2
    assert f"{option} is about weights" in errors
    assert list(tmp_path.glob("dir")) == []


def test_a_checkpoint_with_a_prefix_is_what_is_carried_over(run: Run, net: str, tmp_path: Path) -> None:
    trained = build_model(f"{net}Net", seed=5).state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in trained.items()}}, tmp_path / "run.pt")
    words = ["--src-checkpoint", tmp_path / "run.pt", "--out", tmp_path / "out"]
    status, text, _ = run(f"{net}Net", f"{net}Renamed", "-i", "2x6", *words)
    assert status == 0
    assert "note: dropped the prefix `module.`" in text
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["out.bias"], trained["head.bias"])


def test_the_json_report_has_its_schema(run: Run, net: str, tmp_path: Path) -> None:
    assert run(f"{net}Net", f"{net}Renamed", "-i", "2x6", "--json", tmp_path / "a.json")[0] == 0
    assert run(f"{net}Net", f"{net}Renamed", "-i", "2x6", "--json", tmp_path / "b.json", "-q")[0] == 0
    text = (tmp_path / "a.json").read_text()
    assert text == (tmp_path / "b.json").read_text()
    assert str(tmp_path) not in text
    data = json.loads(text)
    assert list(data) == [
        *("schema", "verdict", "is_applied", "is_equal", "captures", "weights", "unused", "kept", "missing"),
        *("findings", "parity", "op_parity", "next_steps", "notes"),
    ]
    assert (data["schema"], data["verdict"], data["is_equal"]) == ("automap-report/1", "complete", True)
    assert {weight["dest"] for weight in data["weights"]} == set(build_model(f"{net}Renamed").state_dict())
    assert {weight["evidence"] for weight in data["weights"]} <= {"proved", "tested"}
    assert [check["weights"] for check in data["parity"]["checks"]] == ["random", "random", "own"]
    assert all(output["is_equal"] for check in data["parity"]["checks"] for output in check["outputs"])


@pytest.mark.parametrize(
    ("src", "dest"),
    [
        pytest.param("Net", "Renamed?act=sigmoid", id="activation"),
        pytest.param("Net", "Renamed?eps=0.1", id="eps"),
        pytest.param("Net", "Net?blocks=3", id="dest has a block more"),
        pytest.param("Net?blocks=3", "Net", id="src has a block more"),
        pytest.param("Net", "Net?width=12", id="width"),
    ],
)
def test_what_must_not_match_is_refused_and_nothing_is_written(
    run: Run, net: str, tmp_path: Path, src: str, dest: str
) -> None:
    words = [f"{net}{src}", f"{net}{dest}", "-i", "2x6"]
    status, text, errors = run(*words, "--out", tmp_path / "out", "--plan", tmp_path / "plan.json")
    assert (status, errors, written(tmp_path)) == (1, "", [])
    assert "error[" in text
    assert "verdict: complete" not in text
    assert run("explain", *words)[0] == 1


@pytest.mark.parametrize(
    ("src", "dest", "said"),
    [
        pytest.param("Net", "Net?blocks=4", "`blocks.3`", id="dest"),
        pytest.param("Net?blocks=3", "Net", "`blocks.2`", id="src"),
    ],
)
def test_another_depth_is_said_first_and_can_never_be_allowed(
    run: Run, net: str, tmp_path: Path, src: str, dest: str, said: str
) -> None:
    words = [f"{net}{src}", f"{net}{dest}", "-i", "2x6", "--out", tmp_path / "out", "--allow-differences"]
    status, text, _ = run(*words)
    assert (status, written(tmp_path)) == (1, [])
    first = next(line for line in text.splitlines() if line.startswith("error["))
    assert " block" in first
    assert said in first
    assert "verdict: impossible" in text


def test_differences_that_are_allowed_are_written_and_still_status_1(run: Run, net: str, tmp_path: Path) -> None:
    words = [f"{net}Renamed", f"{net}Net?mode=squashed", "-i", "2x6", "--out", tmp_path / "out"]
    assert run(*words)[0] == 1
    assert not (tmp_path / "out").exists()
    status, text, _ = run(*words, "--allow-differences", "--plan", tmp_path / "plan.json")
    assert status == 1
    assert "verdict: differs, outputs differ" in text
    src = build_model(f"{net}Renamed", seed=0).state_dict()
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["blocks.0.weight"], src["first.weight"])
    assert Plan.load(tmp_path / "plan.json").entries.keys() == build_model(f"{net}Net").state_dict().keys() - {"calls"}


def test_a_pin_that_the_computation_contradicts_is_refused(run: Run, net: str, tmp_path: Path) -> None:
    words = [f"{net}Net", f"{net}Renamed", "-i", "2x6", "--out", tmp_path / "out"]
    status, text, _ = run(*words, "--pin", "first.weight=blocks.1.weight")
    assert (status, (tmp_path / "out").exists()) == (1, False)
    assert "the pin `first.weight=blocks.1.weight` contradicts what the computation shows" in text
    assert run(*words, "--pin", "first.weight=blocks.0.weight")[0] == 0


def test_outputs_are_picked_by_their_paths(run: Run, net: str) -> None:
    words = [f"{net}Net?mode=dict", f"{net}Net?mode=dict", "-i", "2x6"]
    status, text, _ = run(*words, "--src-output", "more.total", "--dest-output", "more.total")
    assert status == 0
    assert "more.total f32[2]" in text
    assert "logits f32" not in text
    status, _, errors = run(*words, "--dest-output", "pooled")
    assert status == 2
    assert errors.startswith("error[outputs-not-comparable]: dest Net gives nothing at 'pooled'")
    assert "--dest-output takes one of 'logits', 'more.total'" in errors


def test_outputs_that_cannot_be_compared_are_named(run: Run, net: str) -> None:
    words = [f"{net}Net", f"{net}Net?mode=dict", "-i", "2x6", "--dest-output", "more"]
    status, text, _ = run(*words)
    assert status == 1
    assert "src gives `result` f32[2,4]; dest gives `more.total` f32[2]" in text
    assert "--src-output and --dest-output" in text
    assert "verdict: complete" not in text
    status, _, errors = run(f"{net}Net", f"{net}Net?mode=text", "-i", "2x6")
    assert status == 2
    assert errors.startswith("error[outputs-not-comparable]: dest Net gives no tensors to compare")


@pytest.mark.parametrize(
    ("src", "cause"),
    [
        pytest.param("Net?mode=nan", "no weight has NaN, so its forward makes it", id="forward"),
        pytest.param("poisoned", "NaN is in its `blocks.1.weight`", id="weight"),
    ],
)
def test_nan_in_src_is_one_error_with_its_cause(run: Run, net: str, tmp_path: Path, src: str, cause: str) -> None:
    status, text, errors = run(f"{net}{src}", f"{net}Net", "-i", "2x6", "--out", tmp_path / "out")
    assert (status, text, written(tmp_path)) == (1, "", [])
    assert errors.startswith("error[nan-output]: src Net gives NaN in `result`, which is equal to nothing: ")
    assert cause in errors


def test_nan_in_dest_is_never_complete(run: Run, net: str, tmp_path: Path) -> None:
    status, text, _ = run(f"{net}Net", f"{net}Net?mode=nan", "-i", "2x6", "--out", tmp_path / "out")
    assert (status, written(tmp_path)) == (1, [])
    assert "verdict: complete" not in text


def test_buffers_that_a_forward_changes_are_told_and_put_back(run: Run, net: str, tmp_path: Path) -> None:
    status, text, _ = run(f"{net}Net?mode=counts", f"{net}Net?mode=counts", "-i", "2x6", "--out", tmp_path / "out")
    assert status == 0
    assert "note: src: the forward changes `calls` in eval mode; put back as found" in text
    assert load_file(tmp_path / "out" / "model.safetensors")["calls"] == 0


def test_an_input_that_does_not_fit_shows_both_signatures(run: Run, net: str) -> None:
    status, text, errors = run(f"{net}Net", f"{net}Renamed", "-i", "2x7")
    assert (status, text) == (2, "")
    assert "Net.forward(x)" in errors
    assert "Renamed.forward(inputs)" in errors
    assert errors.count("called with (f32[2,7])") == 2
    assert "Traceback" not in errors


@pytest.mark.parametrize("side", ["src", "dest"])
def test_a_factory_that_raises_is_named_with_its_reason(run: Run, net: str, side: str) -> None:
    words = [f"{net}Net?width=wide", f"{net}Net"][:: 1 if side == "src" else -1]
    status, _, errors = run(*words, "-i", "2x6")
    assert status == 2
    assert "Net?width=wide`: Net() raised TypeError" in errors


def test_a_truncated_checkpoint_is_one_error(run: Run, net: str, tmp_path: Path) -> None:
    torch.save(build_model(f"{net}Net").state_dict(), tmp_path / "run.pt")
    content = (tmp_path / "run.pt").read_bytes()
    (tmp_path / "run.pt").write_bytes(content[: len(content) // 2])
    words = ["--src-checkpoint", tmp_path / "run.pt", "--out", tmp_path / "out"]
    status, text, errors = run(f"{net}Net", f"{net}Renamed", "-i", "2x6", *words)
    assert (status, text, written(tmp_path)) == (1, "", ["run.pt"])
    assert errors.startswith("error[bad-checkpoint]: ")
    assert "Traceback" not in errors


def test_a_checkpoint_of_another_model_is_one_error(run: Run, net: str, tmp_path: Path) -> None:
    torch.save(build_model(f"{net}Renamed").state_dict(), tmp_path / "run.pt")
    status, _, errors = run(f"{net}Net", f"{net}Renamed", "-i", "2x6", "--src-checkpoint", tmp_path / "run.pt")
    assert status == 1
    assert errors.startswith("error[bad-checkpoint]: the checkpoint does not fit Net: ")


def test_a_missing_extra_is_named(run: Run, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    status, _, errors = run("timm:resnet18", f"{net}Net", "-i", "2x6")
    assert status == 2
    assert errors.startswith("error[missing-extra]: `timm:resnet18` needs the package timm, which is not installed")
    assert "pip install 'automap-weights[zoo]'" in errors


def test_modules_alone_prove_nothing_and_what_lies_between_them_is_tested(run: Run, net: str) -> None:
    words = ["-i", "2x6", "--capture", "hooks"]
    status, text, _ = run(f"{net}Net", f"{net}Net", *words)
    assert status == 0
    assert "proved" not in text
    status, text, _ = run(f"{net}Net", f"{net}Net?act=sigmoid", *words)
    assert status == 1
    assert "something between the modules is not the same" in text
    assert run("explain", f"{net}Net", f"{net}Net?act=sigmoid", *words)[0] == 1


def test_an_exported_program_gives_the_same_map(run: Run, net: str) -> None:
    status, text, _ = run(f"{net}Net", f"{net}Renamed", "-i", "2x6", "--capture", "export")
    assert status == 0
    assert "export over real tensors" in text
