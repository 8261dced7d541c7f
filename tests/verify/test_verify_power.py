"""A comparison is worth what it could have shown: inputs, weights and wrong maps that move the outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import WIDTH, noise, randomized
from models import language as lm
from models import transformer as tf
from models.pairs import HIDDEN, IMAGE, PAIRS, SEQUENCE, WORDS
from torch import Tensor, nn

import automap
from automap import MismatchError
from automap.align import solve
from automap.api import compared_outputs
from automap.capture import record
from automap.inputs import Inputs
from automap.results import Parity
from automap.verify import Case, planned_weights
from automap.verify.draw import conditioned_weights
from automap.verify.exchanges import all_exchanges, few_exchanges
from automap.verify.gradients import sketched_uses
from automap.verify.power import Power, Tried, measured_power
from automap.verify.reruns import rerun
from automap.verify.stream import Leaves


def case_of(src: nn.Module, dest: nn.Module, sample: Any) -> Case:
    inputs = Inputs.of(sample)
    plan = automap.match(src, dest, inputs).plan
    solution = solve(record(src, inputs), record(dest, inputs), dest, inputs, seed=0)
    return Case.of(solution, plan, compared_outputs(solution))


def power_of(case: Case, *, everything: bool = True) -> tuple[Power, Leaves]:
    with torch.no_grad():
        weights = planned_weights(case, conditioned_weights(case.src, 5))
        leaves = Leaves(weights, case.dest.inputs)
        wrong = (all_exchanges if everything else few_exchanges)(case.dest, case.plan)
        return measured_power(case.dest, case.dest_nodes, leaves, seed=1, wrong=wrong), leaves


def really(case: Case, leaves: Leaves, tried: list[Tried]) -> dict[Any, float]:
    with torch.no_grad():
        return dict(rerun(case.dest, case.dest_nodes, leaves, [t.exchange for t in tried], budget=10**9))


def parity_of(src: nn.Module, dest: nn.Module, sample: Any, **options: Any) -> Parity:
    parity = automap.transfer(src, dest, sample, **options).parity
    assert parity is not None
    return parity


NETS = [
    pytest.param("split-to-fused", id="attention"),
    pytest.param("depthwise", id="depthwise"),
    pytest.param("batch-norms", id="batch-norms"),
    pytest.param("gate-and-up-to-fused", id="gates"),
    pytest.param("tied-to-untied", id="tied"),
]


# ---------------------------------------------------------------- wrong maps
@pytest.mark.parametrize("name", NETS)
def test_gradients_tell_which_wrong_maps_change_the_outputs(name: str) -> None:
    pair = PAIRS[name]
    case = case_of(pair.src(), pair.dest(), pair.sample())
    power, leaves = power_of(case)
    real = really(case, leaves, list(power.tried))
    assert len(power.tried) > 20
    agree = [(tried.change > 1e-9) == (real[tried.exchange] > 1e-9) for tried in power.tried]
    assert sum(agree) >= 0.98 * len(agree)


def test_pairs_are_weights_of_one_shape_that_the_plan_tells_apart() -> None:
    pair = PAIRS["tied-to-untied"]
    case = case_of(pair.src(), pair.dest(), pair.sample())
    texts = {e.describe(case.dest) for e in all_exchanges(case.dest, case.plan).pairs}
    assert "`block.attn.q.weight` and `block.attn.k.weight`" in texts
    assert not any("words.weight" in text and "out.weight" in text for text in texts)  # both are one src weight


def test_parts_are_what_the_plan_joins() -> None:
    pair = PAIRS["split-to-fused"]
    case = case_of(pair.src(), pair.dest(), pair.sample())
    strips = all_exchanges(case.dest, case.plan).strips
    named = {(case.dest.weights[s.leaf].name, s.dim, s.size) for s in strips}
    assert {("blocks.0.attn.qkv.weight", 0, 1), ("blocks.0.attn.qkv.weight", 0, WIDTH)} <= named
    part = next(s for s in strips if s.size == WIDTH)
    text = part.exchange(1).describe(case.dest)
    assert text == f"[{WIDTH}:{2 * WIDTH}] and [{2 * WIDTH}:{3 * WIDTH}] of `blocks.0.attn.qkv.weight`"


def test_an_exchange_moves_both_spots_and_nothing_else() -> None:
    case = case_of(PAIRS["split-to-fused"].src(), PAIRS["split-to-fused"].dest(), SEQUENCE())
    strip = next(s for s in all_exchanges(case.dest, case.plan).strips if s.size == WIDTH)
    weights = {i: torch.randn(w.tensor.shape) for i, w in case.dest.weights.items()}
    before = {i: w.clone() for i, w in weights.items()}
    changed = strip.exchange(0).applied(weights)
    q, k, v = before[strip.leaf].chunk(3)
    assert torch.equal(changed[strip.leaf], torch.cat([k, q, v]))
    assert all(torch.equal(weights[i], before[i]) for i in weights)


class Twins(nn.Module):
    """Two branches that are added: which is which cannot be told."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x)


def test_a_wrong_map_that_changes_nothing_is_named() -> None:
    parity = parity_of(randomized(Twins(), 1), randomized(Twins(), 2), HIDDEN(), verify="thorough")
    assert parity.is_equal
    assert parity.swaps_missed == ("`one.weight` and `two.weight`",)
    assert parity.swaps_caught == parity.swaps_tried - 1


@pytest.mark.parametrize("name", NETS)
def test_by_default_a_few_wrong_maps_are_tried_and_thorough_tries_all(name: str) -> None:
    pair = PAIRS[name]
    found = [parity_of(pair.src(), pair.dest(), pair.sample(), verify=verify) for verify in ("default", "thorough")]
    few, every = (parity.swaps_tried for parity in found)
    assert 10 < few < every
    assert all(parity.swaps_caught >= 0.99 * parity.swaps_tried for parity in found)


def test_quick_tries_none_and_says_that_it_compared_once() -> None:
    pair = PAIRS["split-to-fused"]
    parity = parity_of(pair.src(), pair.dest(), pair.sample(), verify="quick")
    assert (parity.swaps_tried, parity.input_sensitivity, len(parity.checks)) == (0, None, 1)
    assert parity.notes == (
        "compared once, with the weights as they are on the sample input: nothing else was verified",
    )


# ---------------------------------------------------------------- weights
@pytest.mark.parametrize("name", [*NETS, pytest.param("fused-to-split", id="key-biases")])
def test_a_random_direction_tells_of_the_same_weights_as_the_whole_gradient(name: str) -> None:
    """Weights that no wrong map is tried of are only asked whether they move anything."""
    pair = PAIRS[name]
    case = case_of(pair.src(), pair.dest(), pair.sample())
    with torch.no_grad():
        weights = planned_weights(case, conditioned_weights(case.src, 5))
        leaves = Leaves(weights, case.dest.inputs)
        whole = measured_power(case.dest, case.dest_nodes, leaves, seed=1, others=weights)  # asks for every gradient
        sketch = measured_power(case.dest, case.dest_nodes, leaves, seed=1)
    assert sketched_uses(case.dest, tuple(range(len(case.dest))), set())
    assert sketch.effects.keys() == whole.effects.keys()
    assert sketch.still == whole.still
    assert sketch.inputs == pytest.approx(whole.inputs)
    moving = [index for index in whole.effects if index not in whole.still]
    assert all(1e-2 < sketch.effects[index] / whole.effects[index] < 1e2 for index in moving)


def test_rows_that_the_sample_does_not_read_are_not_tried() -> None:
    src, dest = randomized(lm.Tokens(is_tied=False), 1), randomized(lm.Tokens(is_tied=False), 2)
    sample = torch.tensor([[3, 4, 7, 11]])
    case = case_of(src, dest, sample)
    power, _ = power_of(case)
    words = next(i for i, w in case.dest.weights.items() if w.name == "words.weight")
    rows = {t.exchange.first.start for t in power.tried if t.exchange.leaves == (words,)}
    assert rows == {2, 3, 4, 6, 7, 10, 11}  # one of the two neighbours is read


def test_weights_behind_nothing_are_still() -> None:
    pair = PAIRS["fused-to-split"]
    power, _ = power_of(case := case_of(pair.src(), pair.dest(), pair.sample()))
    names = {case.dest.weights[index].name for index in power.still}
    assert names == {"blocks.0.attn.k.bias", "blocks.1.attn.k.bias"}


# ---------------------------------------------------------------- inputs
class Deaf(nn.Module):
    """Gives the same whatever it hears: a ReLU that nothing passes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x) * 0 - 1))


def test_a_comparison_that_could_not_fail_proves_nothing() -> None:
    src, dest = randomized(Deaf(), 1), randomized(Deaf(), 2)
    found = automap.transfer(src, dest, HIDDEN(), strict=False)
    assert found.parity is None or not found.parity.is_equal
    if found.match.is_complete:
        assert found.parity is not None
        assert found.parity.is_powerless
    assert set(found.evidence.values()) <= {"assumed"}


class Constant(nn.Module):
    """Adds what it is given times nothing to a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, 5, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.table + 0 * x


def test_a_powerless_test_is_refused_as_such() -> None:
    src, dest = randomized(Constant(), 1), randomized(Constant(), 2)
    before = dest.table.detach().clone()
    with pytest.raises(
        MismatchError, match="do not depend on the input, so that comparing them proves nothing"
    ) as told:
        automap.transfer(src, dest, noise(2, 5, WIDTH))
    assert told.value.transfer.parity is not None
    assert told.value.transfer.parity.is_powerless
    assert torch.equal(dest.table, before)


SAMPLES: list[Any] = [
    pytest.param(tf.Tower, SEQUENCE, id="numbers"),
    pytest.param(lm.Tokens, WORDS, id="ids"),
    pytest.param(lm.ManyOutputs, HIDDEN, id="hidden"),
]


@pytest.mark.parametrize(("made", "sample"), SAMPLES)
def test_the_backward_pass_tells_that_inputs_move_outputs(made: Callable[[], nn.Module], sample: Any) -> None:
    power, _ = power_of(case_of(randomized(made(), 1), randomized(made(), 2), sample()), everything=False)
    assert power.inputs is not None
    assert 1e-2 < power.inputs < 1e2


def test_the_power_of_a_test_does_not_depend_on_poor_weights() -> None:
    src, dest = PAIRS["depthwise"].src(), PAIRS["depthwise"].dest()
    with torch.no_grad():
        for norm in (src.bn1, src.bn2):
            norm.running_var.fill_(1e6)
            norm.weight.fill_(1e-2)
    parity = parity_of(src, dest, IMAGE())
    assert parity.input_sensitivity is not None
    assert parity.input_sensitivity > 1e-3
