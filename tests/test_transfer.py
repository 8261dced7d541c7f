from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from models import noise, randomized
from models import transformer as tf
from models.pairs import ALL_PAIRS, IMAGE, PAIRS, SEQUENCE, Pair
from torch import Tensor, nn

import automap
from automap import MismatchError, Transfer
from automap.align import solve
from automap.capture import record
from automap.inputs import Inputs
from automap.matching import compared_outputs
from automap.plan import Plan
from automap.results import Parity
from automap.verify import random_test


def transferred(pair: Pair, **options: Any) -> tuple[nn.Module, nn.Module, Transfer]:
    src, dest = pair.src(), pair.dest()
    return src, dest, automap.transfer(src, dest, pair.sample(), dest_input=pair.dest_input, **options)


def first(output: Any) -> Tensor:
    return output["logits"] if isinstance(output, dict) else output


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("pair", ALL_PAIRS)
def test_after_a_transfer_dest_computes_what_src_computes(pair: Pair) -> None:
    src, dest, found = transferred(pair)
    assert found.is_equal
    x = pair.sample()
    x = x.roll(1, 0) if x.is_floating_point() else x.flip(0)
    with torch.no_grad():
        torch.testing.assert_close(first(dest(x)), first(src(x)), rtol=1e-4, atol=1e-5)


def test_src_is_left_as_it_was_and_shares_nothing_with_dest() -> None:
    pair = PAIRS["tied-to-untied"]
    before = state_of(pair.src())
    src, dest, _ = transferred(pair)
    assert same_state(state_of(src), before)
    with torch.no_grad():
        for parameter in dest.parameters():
            parameter.add_(1)
    assert same_state(state_of(src), before)


def test_dest_keeps_its_mode_and_its_parameters() -> None:
    pair = PAIRS["batch-norms"]
    src, dest = pair.src(), pair.dest().train()
    held = {name: id(parameter) for name, parameter in dest.named_parameters()}
    counted = dest.block.bn1.num_batches_tracked.clone()
    automap.transfer(src, dest, IMAGE())
    assert all(module.training for module in dest.modules())
    assert {name: id(parameter) for name, parameter in dest.named_parameters()} == held
    assert all(parameter.requires_grad for parameter in dest.parameters())
    assert torch.equal(dest.block.bn1.num_batches_tracked, counted)


class Tied(nn.Module):
    """Words and head are one parameter with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(ids)))


def test_tied_weights_are_put_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    src, dest = randomized(Tied(), 1), randomized(Tied(), 2)
    before = state_of(dest)
    monkeypatch.setattr("automap.api.prove", lambda *_, **__: Parity(()))
    with pytest.raises(MismatchError):
        automap.transfer(src, dest, torch.tensor([[1, 4, 2]]))
    assert same_state(state_of(dest), before)


def test_exchanging_weights_within_one_module_does_not_lose_any() -> None:
    class Steps(nn.Module):
        def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))

    a, b = randomized(nn.Linear(4, 4), 1), randomized(nn.Linear(4, 4), 2)
    src, dest = Steps(a, b).eval(), Steps(b, a).eval()  # type: ignore[arg-type]
    held = a.weight.detach().clone(), b.weight.detach().clone()
    automap.transfer(src, dest, noise(3, 4))
    assert (torch.equal(b.weight, held[0]), torch.equal(a.weight, held[1])) == (True, True)


def test_a_transfer_twice_is_a_transfer() -> None:
    src, dest, _ = transferred(PAIRS["fused-to-split"])
    before = state_of(dest)
    automap.transfer(src, dest, SEQUENCE())
    assert same_state(state_of(dest), before)


# ---------------------------------------------------------------- strict
OTHER_EPS = Pair(tf.Tower, partial(tf.Tower, norm=partial(tf.layer_norm, 1e-12)), SEQUENCE, dict)
NO_NORM = Pair(tf.Tower, partial(tf.Tower, final=nn.Identity), SEQUENCE, dict)


@pytest.mark.parametrize("pair", [pytest.param(OTHER_EPS, id="differs"), pytest.param(NO_NORM, id="impossible")])
def test_strict_raises_with_the_transfer_and_leaves_dest_untouched(pair: Pair) -> None:
    src, dest = pair.src(), pair.dest()
    before = state_of(dest)
    with pytest.raises(MismatchError, match="Tower and Tower do not match") as raised:
        automap.transfer(src, dest, pair.sample())
    found = raised.value.transfer
    assert isinstance(found, Transfer)
    assert not found.is_applied
    assert not found.is_equal
    assert any(f.severity == "error" for f in found.match.findings)
    assert same_state(state_of(dest), before)


def test_strict_puts_dest_back_where_the_outputs_differ() -> None:
    pair = PAIRS["split-to-fused"]
    src, dest = pair.src(), pair.dest()
    before = state_of(dest)
    with pytest.raises(MismatchError, match="outputs differ") as raised:
        automap.transfer(src, dest, pair.sample(), tolerance=-1.0)
    assert not raised.value.transfer.is_equal
    assert same_state(state_of(dest), before)


def test_without_strict_what_is_known_is_placed() -> None:
    src, dest = NO_NORM.src(), NO_NORM.dest()
    before = state_of(dest)
    found = automap.transfer(src, dest, SEQUENCE(), strict=False)
    assert (found.match.verdict, found.is_applied, found.is_equal) == ("impossible", True, False)
    assert torch.equal(dest.state_dict()["blocks.1.mlp.fc2.weight"], src.state_dict()["blocks.1.mlp.fc2.weight"])
    assert torch.equal(dest.state_dict()["head.weight"], before["head.weight"])
    assert "proved" not in set(found.evidence.values())


# ---------------------------------------------------------------- parity
@pytest.mark.parametrize(
    ("verify", "checks"),
    [
        pytest.param("quick", [("own", "sample")], id="quick"),
        pytest.param("default", [("random", "sample"), ("random", "random"), ("own", "sample")], id="default"),
        pytest.param("thorough", [("random", "sample"), ("random", "random")] * 3 + [("own", "sample")], id="thorough"),
    ],
)
def test_parity_is_checked_as_often_as_asked(verify: Any, checks: list[tuple[str, str]]) -> None:
    _, _, found = transferred(PAIRS["split-to-fused"], verify=verify)
    assert found.parity is not None
    assert [(c.weights, c.inputs) for c in found.parity.checks] == checks
    assert found.parity.is_equal


def test_parity_tells_how_far_off_and_against_what() -> None:
    src, dest, found = transferred(PAIRS["einsum-to-scaled-query"])
    assert found.parity is not None
    (own,) = found.parity.checks[-1].outputs
    with torch.no_grad():
        gap = float((src(SEQUENCE()).double() - dest(SEQUENCE()).double()).abs().max())
    assert own.max_abs == pytest.approx(gap, abs=1e-6)  # src's output is the recorded one, whose attention is unfused
    assert (own.shape, own.dtype, own.src_path, own.dest_path) == ((2, 5, 4), "float32", "", "")
    assert 0 <= own.max_rel <= own.tolerance == found.tolerance <= 5e-2
    assert found.parity.input_sensitivity is not None
    assert found.parity.input_sensitivity > 1e-3


def test_nothing_is_drawn_anew_where_control_flow_depends_on_values() -> None:
    _, _, found = transferred(PAIRS["experts-to-packed"])
    assert found.parity is not None
    assert [c.weights for c in found.parity.checks] == ["own"]


def test_weights_that_move_no_output_are_listed() -> None:
    """A key bias shifts all scores of a row alike."""
    _, _, found = transferred(PAIRS["split-to-packed"])
    assert found.parity is not None
    assert found.parity.unverifiable == ()  # the packed bias moves the output by its other two thirds
    _, _, found = transferred(PAIRS["fused-to-split"])
    assert found.parity is not None
    assert found.parity.unverifiable == ("blocks.0.attn.k.bias", "blocks.1.attn.k.bias")


def test_weights_that_move_no_output_are_assumed() -> None:
    src, dest = PAIRS["fused-to-split"].src(), PAIRS["fused-to-split"].dest()
    found = automap.transfer(src, dest, noise(1, 1, 6))
    assert found.parity is not None
    assert {found.evidence[name] for name in found.parity.unverifiable} == {"assumed"}


# ---------------------------------------------------------------- a wrong plan is caught
def insensitive(model: nn.Module) -> nn.Module:
    """Batch norm statistics that make all but nothing of what comes in: outputs hardly depend on the kernels."""
    with torch.no_grad():
        for norm in (model.bn1, model.bn2):
            norm.running_var.fill_(1e6)
            norm.weight.fill_(1e-2)
    return model


def swapped(plan: Plan, a: str, b: str) -> Plan:
    entries = dict(plan.entries)
    entries[a], entries[b] = entries[b], entries[a]
    return Plan(entries, plan.src, plan.dest)


def difference(src: nn.Module, dest: nn.Module) -> float:
    with torch.no_grad():
        return float((src(IMAGE()) - dest(IMAGE())).abs().max() / src(IMAGE()).abs().max())


@pytest.mark.parametrize("is_insensitive", [pytest.param(False, id="sensitive"), pytest.param(True, id="insensitive")])
def test_kernels_swapped_by_hand_are_caught(is_insensitive: bool) -> None:
    src, dest = PAIRS["depthwise"].src(), PAIRS["depthwise"].dest()
    if is_insensitive:
        src = insensitive(src)
    found = automap.match(src, dest, IMAGE())
    wrong = swapped(found.plan, "first.weight", "second.weight")
    inputs = Inputs.of(IMAGE())
    solution = solve(record(src, inputs), record(dest, inputs), dest, inputs, seed=0)
    right, caught = (random_test(solution, plan, compared_outputs(solution), seed=1) for plan in (found.plan, wrong))
    assert all(check.is_equal for check in right.checks)
    assert not any(check.is_equal for check in caught.checks)
    other = copy.deepcopy(dest)
    other.load_state_dict(wrong.apply(src.state_dict()), strict=False)
    assert (difference(src, other) < 1e-4) == is_insensitive  # what comparing outputs alone would say


def test_nan_from_src_is_refused() -> None:
    src, dest = PAIRS["same-class"].src(), PAIRS["same-class"].dest()
    with torch.no_grad():
        src.blocks[1].mlp.fc1.weight[0, 0] = torch.nan
    with pytest.raises(automap.AutomapError, match=r"`blocks\.1\.mlp\.fc1\.weight`"):
        automap.transfer(src, dest, SEQUENCE())


def test_a_double_model_goes_into_a_float_one() -> None:
    src, dest = PAIRS["split-to-fused"].src().double(), PAIRS["split-to-fused"].dest()
    assert automap.transfer(src, dest, SEQUENCE().double(), dest_input=SEQUENCE()).is_equal


def test_units_that_the_sample_never_turns_on_are_transferred_right_or_not_claimed() -> None:
    src, dest = randomized(Sparse(), 1), randomized(Sparse(is_turned=True), 2)
    try:
        automap.transfer(src, dest, noise(20, 3, 6))
    except MismatchError:
        return
    with torch.no_grad():
        torch.testing.assert_close(dest(noise(400, 3, 6, seed=5)), src(noise(400, 3, 6, seed=5)))


class Sparse(nn.Module):
    """Units that are seldom on, read in another order."""

    def __init__(self, is_turned: bool = False) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 32), nn.Linear(32, 4)
        self.is_turned = is_turned

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(x) - 1.5).unflatten(-1, (4, 8))
        return self.head((x.mT if self.is_turned else x).flatten(-2))


def test_a_transfer_with_cuts_of_src_is_refused_without_a_crash() -> None:
    src, dest = (randomized(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, n)), n) for n in (10, 5))
    with pytest.raises(MismatchError):
        automap.transfer(src, dest, noise(5, 6))
