"""The ways in: dispatch, export and hooks; real and fake tensors; programs saved and loaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from capture_replay import Calls, assert_replays, inputs_of, replay, run, targets
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from automap.capture import capture
from automap.capture.hooks import ModuleCall
from automap.errors import CaptureError, InputError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.scale = nn.Parameter(torch.randn(8))
        self.register_buffer("offset", torch.randn(8), persistent=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> dict[str, Any]:
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0] * self.scale
        x = x + self.mlp(x).add_(self.offset)
        return {"last": x, "all": (h, x if mask is None else x * mask)}


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.rnn = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        return self.head(self.rnn(x.flatten(2).transpose(1, 2))[0])


def test_export_gives_the_ops_names_and_paths_that_dispatch_gives() -> None:
    model, given = Block(), inputs_of(torch.randn(2, 5, 8), mask=torch.rand(2, 5, 1))
    ours, theirs = capture(model, given), capture(model, given, method="export")
    assert (theirs.method, theirs.mode, theirs.model_name) == ("export", "real", "Block")
    aliases = {"aten.alias.default", "aten.detach.default", "aten.reshape.default"}
    counts = [Counter(name for name in targets(c) if name not in aliases) for c in (ours, theirs)]
    assert counts[0] == counts[1]
    assert {w.names for w in ours.weights.values()} == {w.names for w in theirs.weights.values()}
    assert [w.names for w in ours.all_weights] == [w.names for w in theirs.all_weights]
    assert list(ours.inputs) == list(theirs.inputs)
    assert [p for p, _ in ours.outputs] == [p for p, _ in theirs.outputs] == ["last", "all.0", "all.1"]
    sites = [{n.meta.get("module_path") for n in c.graph.nodes if n.op == "call_function"} for c in (ours, theirs)]
    assert sites[0] == sites[1]
    assert any(n.meta.get("file") == __file__ for n in theirs.graph.nodes)
    for mine, other in zip(replay(ours), replay(theirs), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("is_saved", [False, True], ids=["object", "pt2"])
def test_a_program_is_captured_without_its_module(is_saved: bool, tmp_path: Path) -> None:
    model, x = Block().eval(), torch.randn(2, 5, 8)
    program: Any = torch.export.export(model, (x,), strict=False)
    if is_saved:
        torch.export.save(program, tmp_path / "block.pt2")
        program = str(tmp_path / "block.pt2")
    found = capture(program, x)
    assert (found.method, found.model_name, list(found.inputs)) == ("export", "Block", ["args_0"])
    assert {w.name for w in found.all_weights} == set(model.state_dict())
    assert "unused.weight" not in {w.name for w in found.weights.values()}
    assert all(w.is_parameter for w in found.all_weights)
    assert [path for path, _ in found.outputs][:2] == ["last", "all.0"]
    for mine, expected in zip(replay(found), run(model, x), strict=False):
        torch.testing.assert_close(mine, expected)
    with pytest.raises(InputError, match="Guard failed"):
        capture(program, torch.randn(2, 6, 8))
    with pytest.raises(InputError, match="the program was exported for other inputs"):
        capture(program, (x, x))


def test_what_export_refuses_is_an_error_that_names_the_way_out(capfd: pytest.CaptureFixture[str]) -> None:
    model = Calls(lambda m, x: x * m.w if (x * m.w).sum() > 0 else x, w=torch.randn(3))
    with pytest.raises(CaptureError, match=r"torch.export refuses Calls: .*data-dependent") as caught:
        capture(model, torch.randn(3), method="export")
    assert caught.value.help == "capture it by dispatch, the default"
    assert capfd.readouterr() == ("", "")


def test_hooks_give_one_call_for_each_leaf_module() -> None:
    model, x = Chain(), torch.randn(2, 3, 9, 9)
    found = capture(model, x, method="hooks")
    calls = [n for n in found.graph.nodes if isinstance(n.target, ModuleCall)]
    assert [n.target.kind for n in calls] == ["Conv2d", "BatchNorm2d", "ReLU", "LSTM", "ParametrizedLinear"]
    assert [n.meta["module_path"] for n in calls] == ["conv", "norm", "act", "rnn", "head"]
    assert ("stride", (2, 2)) in calls[0].target.attributes
    assert "stride=(2, 2)" in calls[0].target.__name__
    assert {w.name for w in found.weights.values()} == {w.name for w in found.all_weights}
    assert calls[1].all_input_nodes[0] is calls[0]
    assert calls[2].meta["shape"] == (2, 4, 4, 4)
    assert calls[0].meta["file"] == __file__


def test_hooks_graphs_replay_where_modules_feed_each_other() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.BatchNorm1d(3)), torch.randn(5, 4)
    found = capture(model, x, method="hooks")
    assert_replays(found, model, x)
    assert found.notes == ("hooks see modules only: 0 of 4 edges follow the order of calls",)


def test_hooks_follow_a_view_to_the_module_that_wrote_it_last() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.second = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            pairs = h.view(-1, 2)
            self.act(h)
            return self.second(pairs)

    found = capture(Viewed(), torch.randn(2, 4), method="hooks")
    calls = [n for n in found.graph.nodes if isinstance(n.target, ModuleCall)]
    assert calls[2].all_input_nodes[0] is calls[1]


def test_hooks_say_how_much_they_guess() -> None:
    found = capture(Block(), torch.randn(2, 5, 8), method="hooks")
    kinds = [n.target.kind for n in found.graph.nodes if isinstance(n.target, ModuleCall)]
    assert kinds == ["LayerNorm", "MultiheadAttention", "Linear", "GELU", "Linear"]
    assert found.notes[0].startswith("hooks see modules only: 2 of ")
    assert found.notes[1] == "3 of 13 weights are used by no leaf module"


@pytest.mark.parametrize("method", ["dispatch", "hooks", "export"])
def test_fake_tensors_give_the_graph_that_real_ones_give(method: Any) -> None:
    model, x = Block(), torch.randn(2, 5, 8)
    real, fake = capture(model, x, method=method), capture(model, x, method=method, mode="fake")
    assert (real.mode, fake.mode) == ("real", "fake")
    assert targets(real) == targets(fake)
    assert [n.meta.get("shape") for n in real.graph.nodes] == [n.meta.get("shape") for n in fake.graph.nodes]
    assert all(type(c) is Tensor for c in fake.constants.values())
    assert [w.tensor.data_ptr() for w in real.weights.values()] == [w.tensor.data_ptr() for w in fake.weights.values()]


@pytest.mark.parametrize("build", [lambda: torch.device("meta"), FakeTensorMode], ids=["meta", "fake"])
@pytest.mark.parametrize("make", [Block, lambda: nn.LSTM(8, 4)], ids=["block", "lstm"])
def test_a_model_without_values_is_captured_over_fake_tensors(make: Any, build: Any) -> None:
    with build():
        model = make()
    before = {name: id(t) for name, t in model.state_dict(keep_vars=True).items()}
    found = capture(model, torch.randn(2, 5, 8))
    assert found.mode == "fake"
    assert found.notes == ("captured over fake tensors: no weight has values",)
    assert Counter(targets(found)) == Counter(targets(capture(make(), torch.randn(2, 5, 8))))
    assert {name: id(t) for name, t in model.state_dict(keep_vars=True).items()} == before
    with pytest.raises(CaptureError, match="no values, so that nothing real can be computed"):
        capture(model, torch.randn(2, 5, 8), mode="real")


def test_masks_and_lengths_may_be_read_under_fake_tensors() -> None:
    def forward(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        length = int(mask.sum(-1).max())
        rows = mask[0].nonzero()[:, 0]
        return x[:, :length] * m.w + x[:, rows] * (1 if mask.all() else 2)

    model = Calls(forward, w=torch.randn(3))
    x, mask = torch.randn(1, 4, 3), torch.tensor([[1, 1, 0, 0]])
    found = capture(model, (x, mask), mode="fake")
    assert (found.mode, found.is_data_dependent) == ("fake", False)
    assert torch.equal(replay(found)[0], run(model, x, mask)[0])


def test_a_known_value_is_forgotten_once_a_weight_is_written_to_it() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        total = torch.zeros(3)
        view = total[:2]
        total.add_(m.w)
        return x if view.sum() > 0 else -x

    model = Calls(forward, w=torch.ones(3))
    found = capture(model, torch.randn(3), mode="fake")
    assert (found.mode, found.is_data_dependent) == ("real", True)


def test_weights_in_a_plain_list_are_found_without_values() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3))
            self.held = [self.w]

        def forward(self, x: Tensor) -> Tensor:
            return x * self.held[0]

    with torch.device("meta"):
        model = Listed()
    found = capture(model, torch.randn(3))
    assert [w.name for w in found.weights.values()] == ["w"]
    assert model.held[0] is model.w


def test_what_depends_on_weights_falls_back_to_real_tensors() -> None:
    model = Calls(lambda m, x: x[(x * m.w) > 0] * 2, w=torch.randn(3))
    found = capture(model, torch.randn(3), mode="fake")
    assert found.mode == "real"
    assert found.notes[-1].startswith("captured over real tensors, since fake ones failed: Calls raised DynamicOutput")
    with torch.device("meta"):
        model = Calls(lambda m, x: x[(x * m.w) > 0] * 2, w=torch.randn(3))
    with pytest.raises(CaptureError, match="DynamicOutputShape") as caught:
        capture(model, torch.randn(3))
    assert caught.value.help == "the forward needs values: give the model weights, and capture with real tensors"
