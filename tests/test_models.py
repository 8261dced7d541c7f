"""Specs become models, or one clear error."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from automap.errors import MissingExtraError, SpecError
from automap.models import build_model, close_matches, parse_spec, parse_value


@pytest.mark.parametrize(
    ("text", "scheme", "name", "factory", "options"),
    [
        pytest.param("timm:resnet50", "timm", "resnet50", "", {}, id="timm"),
        pytest.param("hf:./a/b", "hf", "./a/b", "", {}, id="hf folder"),
        pytest.param("hf:org/name?pretrained=false", "hf", "org/name", "", {"pretrained": False}, id="hf hub"),
        pytest.param("timm:hf-hub:org/m", "timm", "hf-hub:org/m", "", {}, id="colon in the name"),
        pytest.param("a/b.py:f?x=1&y=(2,3)", "python", "a/b.py", "f", {"x": 1, "y": (2, 3)}, id="file"),
        pytest.param("torch.nn:Linear?bias=False", "python", "torch.nn", "Linear", {"bias": False}, id="module"),
        pytest.param("torch:nn.Linear?name=a%26b", "python", "torch", "nn.Linear", {"name": "a&b"}, id="escaped"),
    ],
)
def test_a_spec_is_taken_apart(text: str, scheme: str, name: str, factory: str, options: dict[str, Any]) -> None:
    spec = parse_spec(text)
    assert (spec.scheme, spec.name, spec.factory, dict(spec.options)) == (scheme, name, factory, options)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-6", 1e-6), ("true", True), ("None", None), ("gelu", "gelu"), ("[1, 2]", [1, 2]), ("'3'", "3")],
)
def test_option_values_are_literals_or_strings(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "message", "advice"),
    [
        pytest.param("resnet50", "is not a model spec", "timm:resnet50", id="no scheme"),
        pytest.param("tim:resnet50", "unknown scheme `tim:`", "did you mean `timm:resnet50`", id="scheme misspelt"),
        pytest.param("torch.nn:Lnear", "torch.nn has no `Lnear`", "did you mean `Linear`", id="factory misspelt"),
        pytest.param("torch.nm:Linear", "no module `torch.nm`", "write one of", id="no such module"),
        pytest.param("torch.nn:Linear?3", "is not `key=value`", "write `?key=value", id="option without value"),
        pytest.param("nowhere/x.py:f", "there is no file nowhere/x.py", "", id="no such file"),
        pytest.param(
            "torch.nn:Linear", r"Linear\(\) raised TypeError: .*in_features", "--debug", id="missing argument"
        ),
        pytest.param("collections:OrderedDict", "not a torch.nn.Module", "factory", id="not a model"),
    ],
)
def test_a_bad_spec_is_named_with_advice(text: str, message: str, advice: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        build_model(text)
    assert advice in (caught.value.help or "")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("broken", r"broken\(\) raised RuntimeError: no such width"),
        ("not_a_model", "gives a int, not a torch.nn.Module"),
        ("Jointed", "has no `Jointed`"),
        ("instance?width=3", "`instance` is no factory"),
    ],
)
def test_a_factory_that_fails_is_reported_with_its_own_text(model_file: Path, factory: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build_model(f"{model_file}:{factory}")


def test_a_file_that_raises_or_exits_on_import_is_a_spec_error(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import sys\nsys.exit(3)")
    (tmp_path / "worse.py").write_text("x = (")
    with pytest.raises(SpecError, match="raised SystemExit: 3"):
        build_model(f"{tmp_path}/bad.py:f")
    with pytest.raises(SpecError, match="raised SyntaxError"):
        build_model(f"{tmp_path}/worse.py:f")


def test_models_come_in_eval_mode_and_seeded(model_file: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = (build_model(f"{model_file}:Joined?width=4", seed=1) for _ in range(2))
    other = build_model(f"{model_file}:Joined?width=4", seed=2)
    assert not first.training
    assert torch.equal(first.get_parameter("stem.weight"), second.get_parameter("stem.weight"))
    assert not torch.equal(first.get_parameter("stem.weight"), other.get_parameter("stem.weight"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_file_may_import_its_neighbours_and_name_an_instance(model_file: Path) -> None:
    (model_file.parent / "beside.py").write_text("from tiny import Joined\nmodel = Joined(width=2)\n")
    assert type(build_model(f"{model_file.parent}/beside.py:model")).__name__ == "Joined"


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingExtraError, match="needs the package timm") as caught:
        build_model("timm:resnet18")
    assert caught.value.help == "pip install 'automap-weights[zoo]'"


def test_close_matches_keeps_only_the_nearest() -> None:
    assert close_matches("hiden_size", ["hidden_size", "image_size"]) == "did you mean `hidden_size`?"
    assert close_matches("zzz", ["hidden_size"]) == ""


@pytest.mark.zoo
class TestZoo:
    @pytest.mark.parametrize(
        ("text", "message", "advice"),
        [
            pytest.param("timm:resnet5", "timm has no model `resnet5`", "`resnet50`", id="timm"),
            pytest.param("torchvision:resnet5", "torchvision has no model", "`resnet50`", id="torchvision"),
            pytest.param("hf:ViTForImageClasification", "no class", "`ViTForImageClassification`", id="hf class"),
            pytest.param("hf:ViTModel?hiden_size=3", "has no `hiden_size`", "`hidden_size`", id="config key"),
            pytest.param("hf:CLIPModel?text_config.hiden_size=3", "has no `hiden_size`", "`hidden_size`", id="nested"),
            pytest.param("hf:ViTModel?hidden_size=abc", "ViTConfig raised", "", id="config value"),
            pytest.param("hf:AutoModel", "no config of its own", "ViTForImageClassification", id="no model class"),
            pytest.param("hf:./nowhere", "there is no folder ./nowhere", "", id="no folder"),
            pytest.param("timm:resnet18?foo=1", "unexpected keyword argument 'foo'", "", id="timm option"),
        ],
    )
    def test_a_bad_zoo_spec_is_named_with_advice(self, text: str, message: str, advice: str) -> None:
        with pytest.raises(SpecError, match=message) as caught:
            build_model(text)
        assert advice in (caught.value.help or "")

    def test_zoo_models_are_built_with_options(self) -> None:
        small = "hidden_size=12&num_attention_heads=2&num_hidden_layers=1&intermediate_size=8&image_size=32"
        vit = build_model(f"hf:ViTForImageClassification?{small}&num_labels=3")
        assert vit.get_parameter("classifier.weight").shape == (3, 12)
        resnet = build_model("timm:resnet18?num_classes=7")
        assert resnet.get_parameter("fc.weight").shape == (7, 512)

    def test_image_classifiers_have_a_thousand_classes_unless_told(self) -> None:
        model = build_model("hf:ResNetForImageClassification?embedding_size=4&hidden_sizes=[4,4]&depths=[1,1]")
        assert model.get_parameter("classifier.1.weight").shape[0] == 1000

    def test_nested_config_keys_reach_the_nested_config(self) -> None:
        config: Any = build_model("hf:CLIPTextModel?hidden_size=16&num_attention_heads=2&num_hidden_layers=1").config
        assert config.hidden_size == 16

    def test_a_saved_folder_gives_its_class_and_weights(self, tmp_path: Path) -> None:
        small = "hidden_size=12&num_attention_heads=2&num_hidden_layers=1&intermediate_size=8&image_size=32"
        saved: Any = build_model(f"hf:ViTForImageClassification?{small}&num_labels=3", seed=1)
        saved.save_pretrained(tmp_path / "vit")
        loaded = build_model(f"hf:{tmp_path}/vit")
        fresh = build_model(f"hf:{tmp_path}/vit?pretrained=false", seed=2)
        assert type(loaded) is type(saved)
        assert torch.equal(loaded.get_parameter("classifier.weight"), saved.get_parameter("classifier.weight"))
        assert not torch.equal(fresh.get_parameter("classifier.weight"), saved.get_parameter("classifier.weight"))

    def test_a_folder_without_config_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=r"has no config\.json"):
            build_model(f"hf:{tmp_path}")
