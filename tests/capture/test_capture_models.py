"""What a capture holds for whole models: weights and constants, fused kernels apart, sites, data-dependence."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from capture_replay import Calls, assert_replays, inputs_of, replay, run, targets
from torch import Tensor, nn

from automap.capture import capture, record
from automap.errors import CaptureError

ENCODER = {"d_model": 8, "nhead": 2, "dim_feedforward": 12, "batch_first": True}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.other = nn.Linear(4, 7, bias=False)
        self.other.weight.data = self.embed.weight.data

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        return self.head(h) + self.other(h)


class MixedBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.randn(4), persistent=False)
        self.register_buffer("index", torch.tensor([3, 1, 0, 2]))
        self.register_buffer("mask", torch.eye(4).to_sparse())
        self.plain = torch.randn(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.mask, (self.norm(x) + self.table)[:, self.index].t()).t() * self.plain


def test_a_tied_weight_appears_once_with_all_its_names() -> None:
    model, ids = Tied(), torch.tensor([[1, 2, 5]])
    found = capture(model, ids)
    (weight,) = found.weights.values()
    assert weight.names == ("embed.weight", "head.weight", "other.weight")
    assert found.all_weights == (weight,)
    assert torch.equal(replay(found)[0], run(model, ids)[0])


def test_weights_are_parameters_and_persistent_float_buffers_the_rest_are_constants() -> None:
    model, x = MixedBuffers(), torch.randn(3, 4)
    found = capture(model, x)
    assert {w.name for w in found.weights.values()} == {
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
    }
    assert any(torch.equal(c, model.table) for c in found.constants.values() if c.layout == torch.strided)
    assert any(c.layout == torch.sparse_coo for c in found.constants.values())
    assert_replays(found, model, x)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        pytest.param(nn.LSTM(3, 4, num_layers=2, bidirectional=True), torch.randn(5, 2, 3), id="lstm"),
        pytest.param(nn.GRU(3, 4), torch.randn(5, 2, 3), id="gru"),
        pytest.param(nn.TransformerEncoderLayer(**ENCODER), torch.randn(2, 5, 8), id="encoder-layer"),
        pytest.param(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(**ENCODER), 2), torch.randn(2, 5, 8), id="encoder"
        ),
    ],
)
@pytest.mark.parametrize("mode", ["real", "fake"])
def test_fused_kernels_fall_apart(model: nn.Module, x: Tensor, mode: Any) -> None:
    found = capture(model, x, mode=mode)
    most = max(
        sum(node.name in found.weights for node in call.all_input_nodes)
        for call in found.graph.nodes
        if call.op == "call_function"
    )
    assert most <= 3  # addmm and layer_norm take two; nothing takes a dozen
    assert found.mode == mode
    assert {w.name for w in found.weights.values()} == set(model.state_dict())
    assert_replays(found, model, x, rtol=1e-5)


def test_packed_attention_falls_apart() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    found = record(model, inputs_of(x, x, x, need_weights=False))
    assert not any("multi_head" in name or "flash" in name for name in targets(found))
    torch.testing.assert_close(replay(found)[0], run(model, x, x, x)[0])


def test_random_values_are_constants_of_the_run() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        noise = torch.empty(3).normal_()
        return x * m.w + torch.rand(3) + torch.randn_like(x) + noise + nn.functional.dropout(x, 0.5)

    found = capture(Calls(forward, w=torch.randn(3)), torch.randn(2, 3))
    assert torch.equal(replay(found)[0], replay(found)[0])
    assert not any("rand" in name or "normal" in name or "bernoulli" in name for name in targets(found))
    assert len(found.constants) == 4


def test_ops_know_their_module_and_the_users_line() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Calls(lambda m, x: torch.tanh(x) * m.w, w=torch.randn(4)))
    found = capture(model, torch.randn(2, 3))
    tanh = next(n for n in found.graph.nodes if str(n.target) == "aten.tanh.default")
    assert tanh.meta["module_path"] == "1"
    assert tanh.meta["file"] == __file__
    assert tanh.meta["shape"] == (2, 4)
    linear = next(n for n in found.graph.nodes if str(n.target) == "aten.addmm.default")
    assert linear.meta["module_path"] == "0"
    assert "file" not in linear.meta  # no line of the user's own called it


def test_a_library_beside_torch_is_not_torch() -> None:
    found = capture(torchvision.models.resnet.BasicBlock(4, 4), torch.randn(1, 4, 8, 8))
    add = next(n for n in found.graph.nodes if str(n.target) == "aten.add.Tensor")
    assert add.meta["file"].endswith("torchvision/models/resnet.py")


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        pytest.param(lambda m, x: x * m.w if (x * m.w).sum() > 0 else x, True, id="branch"),
        pytest.param(lambda m, x: x[(x * m.w) > 0], True, id="rows-chosen"),
        pytest.param(lambda m, x: torch.stack([x * v for v in m.w.tolist()]), True, id="tolist"),
        pytest.param(lambda m, x: x * float((m.w * 2).numpy()[0]), True, id="numpy"),
        pytest.param(lambda m, x: x * float(np.asarray(m.w * 2)[0]), True, id="array"),
        pytest.param(lambda m, x: x * float(np.from_dlpack(m.w * 2)[0]), True, id="dlpack"),
        pytest.param(lambda m, x: m.w * float((x * 2).numpy()[0]), False, id="numpy-of-an-input"),
        pytest.param(lambda m, x: x * m.w if x.sum() > 0 else x + m.w, False, id="branch-on-the-input"),
        pytest.param(lambda m, x: x * m.w, False, id="none"),
    ],
)
def test_control_flow_that_reads_the_weights_is_noticed(forward: Any, expected: bool) -> None:
    assert capture(Calls(forward, w=torch.randn(3)), torch.randn(3)).is_data_dependent is expected


def test_small_index_tables_keep_their_value() -> None:
    for mode in ("real", "fake"):
        found = capture(Calls(lambda m, x: m.w[torch.arange(2, 5)] + x, w=torch.randn(6)), torch.randn(3), mode=mode)
        values = [n.meta["value"].tolist() for n in found.graph.nodes if "value" in n.meta]
        assert [2, 3, 4] in values


@pytest.mark.parametrize("fails", [False, True])
def test_what_sees_reads_of_memory_is_gone_afterwards(fails: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        seen.append(Tensor.tolist)
        if fails:
            raise ZeroDivisionError
        return x * m.w

    seen: list[Any] = []
    before = dict(vars(Tensor))
    with pytest.raises(CaptureError) if fails else contextlib.nullcontext():
        record(Calls(forward, w=torch.randn(3)), inputs_of(torch.randn(3)))
    assert seen[0] is not Tensor.tolist
    assert dict(vars(Tensor)) == before


def test_inputs_and_outputs_have_their_paths() -> None:
    def forward(m: Any, x: Tensor, *, extra: dict[str, Tensor]) -> dict[str, Any]:
        return {"logits": x * m.w, "states": (extra["a"], x)}

    found = capture(
        Calls(forward, w=torch.randn(3)), inputs_of(torch.randn(3), extra={"a": torch.randn(2), "b": torch.randn(2)})
    )
    assert list(found.inputs) == ["args_0", "kwargs_extra_a", "kwargs_extra_b"]
    assert [path for path, _ in found.outputs] == ["logits", "states.0", "states.1"]


def test_a_capture_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("dispatch", "export", "hooks"):
            capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 8, 8), method=method)


def test_activations_are_freed_as_the_forward_goes_on() -> None:
    import weakref

    seen: list[Any] = []

    def forward(m: Any, x: Tensor) -> Tensor:
        for _ in range(5):
            x = torch.tanh(x * m.w)
            seen.append(weakref.ref(x.untyped_storage()))
        assert sum(torch.UntypedStorage is type(ref()) for ref in seen) <= 2
        return x

    capture(Calls(forward, w=torch.randn(3)), torch.randn(3))
