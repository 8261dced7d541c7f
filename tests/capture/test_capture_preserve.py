"""A capture leaves the model, its inputs and the random number generators exactly as found, also when it fails."""

from __future__ import annotations

import functools
import gc
import random
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from capture_replay import Calls, assert_replays, replay
from torch import Tensor, nn

from automap.capture import capture
from automap.capture.preserve import preserved, with_weights
from automap.collector import only_new_garbage
from automap.errors import AutomapError, CaptureError, InputError

METHODS = ["dispatch", "export", "hooks"]


class Cache:
    """A helper object, as generation caches are."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.length = 0


class Restless(nn.Module):
    """Changes whatever a forward can change."""

    def __init__(self, is_failing: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.frozen = nn.Dropout().eval()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("mean", torch.randn(4))
        self.tables: dict[Any, Any] = {"old": [1]}
        self.cache = Cache()
        self.kv = torch.zeros(3, 4)
        self.is_failing = is_failing

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean = self.mean * 0.9
        self.kv[0] = x[0]
        self.linear.weight.data.mul_(0.5)
        self.linear.bias.data = self.linear.bias.data + 1
        self.linear.bias.requires_grad_(False)
        self.tables["new"] = x
        self.tables["old"].append(2)
        self.cache.keys.append(x)
        self.cache.length += 1
        self.surprise = x
        self.linear.register_forward_hook(lambda *_: None)
        torch.rand(1), random.random(), np.random.rand()
        if self.is_failing:
            raise KeyError("boom")
        return self.linear(self.frozen(x)) + self.mean


def fingerprint(model: Restless) -> Any:
    tensors = {name: (id(t), t.clone()) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    return {
        "tensors": {name: (key, value.tolist()) for name, (key, value) in tensors.items()},
        "kv": model.kv.tolist(),
        "modes": [m.training for m in model.modules()],
        "names": [sorted(vars(m)) for m in model.modules()],
        "tables": (id(model.tables), id(model.tables["old"]), {k: list(v) for k, v in model.tables.items()}),
        "cache": (id(model.cache), list(model.cache.keys), model.cache.length),
        "hooks": len(model.linear._forward_hooks),
        "grad": [p.requires_grad for p in model.parameters()],
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
        "flags": (torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()),
    }


@pytest.mark.parametrize("is_failing", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("mode", ["real", "fake"])
@pytest.mark.parametrize("method", ["dispatch", "hooks"])
def test_a_restless_model_is_left_as_found(method: Any, mode: Any, is_failing: bool) -> None:
    model, x = Restless(is_failing), torch.randn(2, 4)
    model.train()
    model.frozen.eval()
    torch.backends.mha.set_fastpath_enabled(True)
    before = fingerprint(model)
    if is_failing:
        with pytest.raises(CaptureError, match="KeyError"):
            capture(model, x, method=method, mode=mode)
    else:
        assert capture(model, x, method=method, mode=mode).mode == mode
    assert fingerprint(model) == before


def test_export_leaves_a_model_as_found() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()), torch.randn(2, 4)
    model[2].eval()
    state = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    capture(model, x, method="export")
    assert [m.training for m in model.modules()] == [True, True, True, False]
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == state[name][0]
        assert torch.equal(tensor, state[name][1])


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_changes_its_buffers_is_captured_with_a_note(method: Any) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            return self.linear(x) * self.count

    model = Counting()
    found = capture(model, torch.randn(2, 3), method=method)
    assert "the forward changes `count` in eval mode; put back as found" in found.notes
    assert model.count == 0


def test_batch_statistics_that_move_in_eval_mode_are_seen_and_put_back() -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Any:
            norm = self.norm
            y = nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)
            return y, norm.running_mean * 2

    model = Moving()
    x = torch.randn(6, 4)
    found = capture(model, x)
    assert found.notes == (
        "the forward changes `norm.running_mean`, `norm.running_var` in eval mode; put back as found",
    )
    assert model.norm.running_mean.abs().sum() == 0
    assert_replays(found, model, x, rtol=1e-6)


def test_a_model_that_is_captured_twice_gives_the_same_graph() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3))
            self.kept: dict[str, Tensor] = OrderedDict()

        def forward(self, x: Tensor) -> Tensor:
            if "w" not in self.kept:
                self.kept["w"] = self.w.exp()
            return x * self.kept["w"]

    model = Cached()
    names = [[str(n.target) for n in capture(model, torch.randn(3)).graph.nodes] for _ in range(2)]
    assert names[0] == names[1]
    assert not model.kept


def test_no_fake_tensor_stays_behind_in_a_cache_of_the_model_library() -> None:
    @functools.lru_cache(maxsize=4)
    def positions(count: int) -> Tensor:
        return torch.arange(count) * 1.5

    model = Calls(lambda m, x: x * m.w + positions(3), w=torch.randn(3))
    capture(model, torch.randn(3), mode="fake")
    assert type(positions(3)) is Tensor


def test_caches_are_found_among_objects_that_were_put_aside() -> None:
    @functools.lru_cache(maxsize=4)
    def positions(count: int) -> Tensor:
        return torch.arange(count) * 1.5

    model = Calls(lambda m, x: x * m.w + positions(3), w=torch.randn(3))
    with only_new_garbage():
        capture(model, torch.randn(3), mode="fake")
        assert gc.get_freeze_count() > 0
    assert type(positions(3)) is Tensor
    assert gc.get_freeze_count() == 0


def test_preserved_restores_after_an_exception_of_the_caller() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    mean = model[1].running_mean.clone()
    with pytest.raises(ZeroDivisionError), preserved(model):
        assert not model.training
        model[1].running_mean.add_(1)
        raise ZeroDivisionError
    assert model.training
    assert torch.equal(model[1].running_mean, mean)


def test_with_weights_gives_back_the_very_memory() -> None:
    model = nn.Linear(3, 2)
    place = model.weight.data_ptr()
    with with_weights(model, {"weight": torch.ones(2, 3)}):
        assert model.weight.sum() == 6
        found = capture(model, torch.randn(1, 3))
        assert torch.equal(next(w.tensor for w in found.weights.values() if w.name == "weight"), torch.ones(2, 3))
    assert model.weight.data_ptr() == place


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "args", [pytest.param((torch.randn(2, 5),), id="shape"), pytest.param((torch.randn(2, 4),) * 3, id="signature")]
)
def test_inputs_that_do_not_fit_are_named_with_the_signature(method: Any, args: Any) -> None:
    with pytest.raises(InputError, match=r"(?s)Linear raised .*Linear.forward\(input\)\n  called with \(f32\[2,"):
        capture(nn.Linear(4, 3), args, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_that_fails_on_its_own_is_a_capture_error(method: Any) -> None:
    with pytest.raises(CaptureError, match=r"boom"):
        capture(Restless(is_failing=True), torch.randn(2, 4), method=method)


def test_an_error_names_the_users_line() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return x @ torch.zeros(9, 9)  # the culprit

    with pytest.raises(InputError, match=r"at test_capture_preserve.py:\d+  return x @ .*# the culprit"):
        capture(Calls(forward), torch.randn(2, 3))


def test_what_is_neither_model_nor_program_is_refused() -> None:
    with pytest.raises(CaptureError, match="a int is neither a model nor an exported program"):
        capture(3, torch.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(AutomapError, match="there is no exported program"):
        capture("nowhere.pt2", torch.zeros(1))


def test_a_scripted_model_is_captured() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        model = torch.jit.trace(nn.Sequential(nn.Linear(3, 4), nn.Tanh()).eval(), torch.randn(2, 3))
    x = torch.randn(2, 3)
    found = capture(model, x)
    assert len(found.weights) == 2
    torch.testing.assert_close(replay(found)[0], model(x))
