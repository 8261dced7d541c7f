"""The timm export: a checkpoint_filter_fn that timm's own loading takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES, plan_of
from exported import differing, module_of, reformatted
from safetensors.torch import save_file
from torch import nn

from automap.errors import ExportError
from automap.export import export_timm
from automap.plan import Fill, Permute, Plan, Source

pytestmark = pytest.mark.zoo
W = Source("w", (4, 3))


def filter_of(plan: Plan) -> Any:
    return module_of(export_timm(plan))["checkpoint_filter_fn"]


@pytest.mark.parametrize("name", ["vit", "beit", "swin", "resnet"])
def test_timm_loads_checkpoints_of_transformers_through_the_filter(name: str, tmp_path: Any) -> None:
    from timm.models import load_checkpoint

    plan = plan_of(name).invert()
    src, dest = CASES[name].dest(), CASES[name].src()
    save_file(src.state_dict(), tmp_path / "model.safetensors")
    load_checkpoint(dest, str(tmp_path / "model.safetensors"), filter_fn=filter_of(plan), strict=True)
    expected = plan.apply(src.state_dict())
    assert differing({key: dest.state_dict()[key] for key in expected}, expected) == []
    with torch.no_grad():
        outputs = [model(CASES[name].sample()) for model in (src.eval(), dest.eval())]
    torch.testing.assert_close(outputs[0].logits, outputs[1], rtol=1e-4, atol=1e-4)


def test_a_state_dict_of_the_model_itself_passes_unchanged() -> None:
    dest = CASES["vit"].src()
    state = dict(dest.state_dict())
    assert filter_of(plan_of("vit").invert())(state, dest) is state


class Counted(nn.Module):
    """A weight, a constant in the state and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("index", torch.arange(3))
        self.register_buffer("table", torch.randn(3), persistent=False)


def test_the_model_keeps_its_own_constants() -> None:
    dest = Counted()
    made = filter_of(Plan({"weight": Permute(W, (1, 0))}))({"w": torch.randn(4, 3)}, dest)
    assert set(made) == {"weight", "index"}
    assert torch.equal(made["index"], torch.arange(3))


def test_a_filter_whose_names_are_the_models_own_converts_always() -> None:
    made = filter_of(Plan({"w": Permute(Source("w", (3, 3)), (1, 0))}))({"w": torch.eye(3)[[1, 2, 0]]}, Counted())
    assert torch.equal(made["w"], torch.eye(3)[[1, 2, 0]].T)


def test_the_filters_are_as_ruff_formats_them() -> None:
    texts = [export_timm(plan_of(name).invert()) for name in ("vit", "beit", "swin", "resnet")]
    assert reformatted(*texts) == texts


def test_a_plan_without_src_tensors_is_refused() -> None:
    with pytest.raises(ExportError, match="cannot export to timm: no dest tensor of the plan is made of a src tensor"):
        export_timm(Plan({"w": Fill(0.0, (3,))}))
