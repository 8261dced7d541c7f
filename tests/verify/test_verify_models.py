"""The models themselves: compared within their own rounding, called seldom, and left as they were whatever happens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from models import noise, randomized
from models import transformer as tf
from models.pairs import IMAGE, PAIRS, SEQUENCE
from models.poor import Inverted, Poor, Squeezed, impoverished
from torch import Tensor, nn

import automap
from automap import MismatchError, Transfer
from automap.align import solve
from automap.canonical.lower import lower
from automap.capture import record
from automap.inputs import Inputs
from automap.matching import compared_outputs
from automap.plan import Plan
from automap.verify import Case, Models, RandomTest, own_check, run_test
from automap.verify import stream as streams

FUSED = PAIRS["split-to-fused"]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def own_figures(found: Transfer) -> tuple[float, float]:
    assert found.parity is not None
    (own,) = found.parity.checks[-1].outputs
    return own.max_rel, own.tolerance


# ---------------------------------------------------------------- number types and tolerances
DTYPES = [
    pytest.param(torch.float64, torch.float32, 1e-6, id="double-to-float"),
    pytest.param(torch.float32, torch.float64, 1e-6, id="float-to-double"),
    pytest.param(torch.bfloat16, torch.float32, 0.1, id="bfloat16-to-float"),
    pytest.param(torch.float32, torch.bfloat16, 0.1, id="float-to-bfloat16"),
    pytest.param(torch.bfloat16, torch.bfloat16, 0.1, id="bfloat16"),
    pytest.param(torch.float16, torch.float32, 0.01, id="half-to-float"),
    pytest.param(torch.float64, torch.float64, 1e-13, id="double"),
]


@pytest.mark.parametrize(("src_dtype", "dest_dtype", "most"), DTYPES)
def test_weights_go_between_number_types_and_are_held_to_the_coarser(
    src_dtype: torch.dtype, dest_dtype: torch.dtype, most: float
) -> None:
    src, dest = FUSED.src().to(src_dtype), FUSED.dest().to(dest_dtype)
    found = automap.transfer(src, dest, SEQUENCE().to(src_dtype), dest_input=SEQUENCE().to(dest_dtype))
    off, tolerance = own_figures(found)
    assert off <= tolerance <= most
    assert found.parity is not None
    assert all(output.max_rel < 1e-12 for check in found.parity.checks[:-1] for output in check.outputs)
    assert dest.head.weight.dtype is dest_dtype
    assert torch.equal(dest.head.weight, src.head.weight.to(dest_dtype))


class Island(nn.Module):
    """A double model that rounds to a narrower type inside, as norms written for half precision do."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(6, 16), nn.Linear(16, 4), kind

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).to(self.kind).to(x.dtype))


def test_the_tolerance_follows_the_coarsest_rounding_inside() -> None:
    wide, narrow = randomized(Island(torch.float64), 1).double(), randomized(Island(torch.float32), 2).double()
    off, tolerance = own_figures(automap.transfer(wide, narrow, SEQUENCE().double()))
    assert 1e-12 < off <= tolerance < 1e-5


class Centred(nn.Module):
    """Takes the mean away; where `is_steep`, of numbers far from zero, so that every rounding counts a thousandfold."""

    def __init__(self, is_steep: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.is_steep = nn.Linear(64, 64), nn.Linear(64, 4), is_steep

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.is_steep:
            y = y + 1000 * y.square().sum(-1, keepdim=True)
        return self.b(y - y.mean(-1, keepdim=True))


@pytest.mark.parametrize("is_steep_in_src", [True, False])
def test_where_one_side_amplifies_roundings_the_tolerance_is_measured(is_steep_in_src: bool) -> None:
    src, dest = randomized(Centred(is_steep_in_src), 1), randomized(Centred(not is_steep_in_src), 2)
    off, tolerance = own_figures(automap.transfer(src, dest, noise(3, 64)))
    assert 1e-5 < off <= tolerance < 5e-2


def test_a_wrong_weight_is_not_within_the_measured_tolerance() -> None:
    src, dest = FUSED.src().bfloat16(), FUSED.dest().bfloat16()
    automap.transfer(src, dest, SEQUENCE().bfloat16())
    with torch.no_grad():
        dest.blocks[0].mlp.fc1.weight.mul_(-1)
    inputs = Inputs.of(SEQUENCE().bfloat16())
    assert not own_check(Models(src, dest, inputs, inputs), [("", "")]).is_equal


# ---------------------------------------------------------------- cost
@contextmanager
def counted(*models: nn.Module) -> Iterator[list[int]]:
    counts = [0] * len(models)

    def count(number: int, *_: object) -> None:
        counts[number] += 1

    handles = [model.register_forward_pre_hook(partial(count, number)) for number, model in enumerate(models)]
    yield counts
    for handle in handles:
        handle.remove()


@contextmanager
def computed_flows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The recorded computations that are run again, by identity, one entry for each run."""
    runs: list[int] = []
    run = streams.Schedule.of

    def noted(flow: Any, wanted: Any) -> Any:
        runs.append(id(flow))
        return run(flow, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(streams.Schedule, "of", noted)
        yield runs


COSTS = [
    # verify, calls of src and dest (one of each is the capture), recordings computed again, on how many sides
    pytest.param("quick", [1, 2], 0, id="quick"),
    pytest.param("default", [1, 2], 2, id="default"),
    pytest.param("thorough", [1, 2], 3 * 4 + 1, id="thorough"),  # and one pass for all wrong maps that are tried again
]


@pytest.mark.parametrize(("verify", "calls", "flows"), COSTS)
def test_a_verification_computes_each_side_this_often(
    verify: Any, calls: list[int], flows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Src's own output is the one that was recorded; on the sample, both recordings were computed by the match."""
    src, dest = FUSED.src(), FUSED.dest()
    with computed_flows(monkeypatch) as runs, counted(src, dest) as models:
        assert automap.transfer(src, dest, SEQUENCE(), verify=verify).is_equal
    assert models == calls
    assert len(runs) == flows
    assert len(set(runs)) == (2 if flows else 0)


def test_a_plan_that_makes_other_weights_than_the_match_used_is_compared_on_the_sample_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    src, dest, inputs = FUSED.src(), FUSED.dest(), Inputs.of(SEQUENCE())
    plan = automap.match(src, dest, inputs).plan
    wrong = exchanged(plan, "blocks.0.norm1.weight", "blocks.0.norm2.weight")
    solution = solve(record(src, inputs), record(dest, inputs), dest, inputs, seed=0)
    for tried, is_walked in ((plan, True), (wrong, False)):
        case = Case.of(solution, tried, compared_outputs(solution))
        assert bool(case.walked) == is_walked
        with computed_flows(monkeypatch) as runs:
            checks = run_test(case, seed=3, is_brief=True).checks
        assert len(runs) == (2 if is_walked else 4)
        assert [check.inputs for check in checks] == ["sample", "random"]
        assert all(check.is_equal == is_walked for check in checks)


def test_no_more_values_are_held_than_are_still_to_be_read() -> None:
    model = randomized(nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(30))), 1)
    flow = lower(record(model, Inputs.of(noise(4, 8))))
    schedule = streams.Schedule.of(flow, [index for _, index in flow.outputs])
    leaves = streams.Leaves({i: w.tensor.double() for i, w in flow.weights.items()}, flow.inputs)
    values: dict[int, Any] = {}
    most = 0
    for index in schedule.order:
        schedule.step(index, leaves, values)
        most = max(most, sum(1 for i in values if i not in flow.weights))
    assert most <= 3
    assert values.keys() == set(schedule.wanted)


def test_src_values_of_the_match_are_not_kept_for_the_proof() -> None:
    inputs = Inputs.of(SEQUENCE())
    src, dest = FUSED.src(), FUSED.dest()
    solution = solve(record(src, inputs), record(dest, inputs), dest, inputs, seed=0)
    case = Case.of(solution, Plan({}), compared_outputs(solution))
    assert case.only is None
    assert not any(isinstance(getattr(case, name), type(solution)) for name in Case.__dataclass_fields__)


# ---------------------------------------------------------------- nothing is changed
class Stop(BaseException):
    """Something that nobody catches."""


def failing_at(call: int, problem: BaseException) -> Callable[..., None]:
    seen = [0]

    def hook(*_: object) -> None:
        seen[0] += 1
        if seen[0] == call:
            raise problem

    return hook


PROBLEMS = [
    pytest.param(KeyboardInterrupt(), id="interrupt"),
    pytest.param(RuntimeError("no memory"), id="error"),
    pytest.param(Stop(), id="anything"),
]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("is_strict", [pytest.param(True, id="strict"), pytest.param(False, id="lenient")])
def test_dest_is_put_back_when_verifying_is_cut_short(problem: BaseException, is_strict: bool) -> None:
    src, dest = FUSED.src(), FUSED.dest()
    before = state_of(src), state_of(dest)
    handle = dest.register_forward_pre_hook(failing_at(2, problem))  # the first call is the capture
    with pytest.raises(type(problem)):
        automap.transfer(src, dest, SEQUENCE(), strict=is_strict)
    handle.remove()
    assert same_state(before[0], state_of(src))
    assert same_state(before[1], state_of(dest))


@pytest.mark.parametrize("verify", ["quick", "default", "thorough"])
def test_verifying_leaves_modes_hooks_gradients_and_generators_alone(verify: Any) -> None:
    src, dest = PAIRS["batch-norms"].src().train(), PAIRS["batch-norms"].dest().train()
    before = state_of(src)
    calls: list[str] = []
    handle = src.stem.register_forward_hook(lambda *_: calls.append("stem"))
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    automap.transfer(src, dest, IMAGE(), verify=verify)
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert calls
    assert len(src.stem._forward_hooks) == 1
    assert all(module.training for model in (src, dest) for module in model.modules())
    assert all(p.grad is None and p.requires_grad for model in (src, dest) for p in model.parameters())
    assert same_state(before, state_of(src))
    handle.remove()


def test_a_refused_transfer_says_that_dest_was_not_changed() -> None:
    with pytest.raises(MismatchError, match="the outputs differ after the transfer; dest was left as it was") as told:
        automap.transfer(FUSED.src(), FUSED.dest(), SEQUENCE(), tolerance=-1.0)
    assert not told.value.transfer.is_applied
    assert set(told.value.transfer.evidence.values()) == {"assumed"}


def test_outputs_that_nearly_agree_prove_nothing() -> None:
    src, dest = (partial(tf.Tower, norm=partial(tf.layer_norm, eps)) for eps in (1e-6, 1e-12))
    found = automap.match(randomized(src(), 1), randomized(dest(), 2), SEQUENCE())
    assert found.verdict == "differs"
    assert "proved" not in set(found.evidence.values())


class Counting(nn.Module):
    """Counts its calls in a buffer; perhaps only where its weights say so."""

    def __init__(self, is_conditional: bool, sign: float) -> None:
        super().__init__()
        self.linear, self.is_conditional = nn.Linear(6, 6), is_conditional
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)
        with torch.no_grad():
            self.linear.weight.copy_(sign * noise(6, 6).abs())

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_conditional or bool(self.linear.weight.sum() > 0):
            self.calls += 1
        return self.linear(x)


@pytest.mark.parametrize("verify", ["quick", "default"])
@pytest.mark.parametrize("is_conditional", [False, True])
def test_what_forwards_write_while_models_are_compared_is_taken_back(is_conditional: bool, verify: Any) -> None:
    src, dest = Counting(is_conditional, 1.0), Counting(is_conditional, -1.0)  # dest counts with src's weights alone
    assert automap.transfer(src, dest, noise(3, 6), verify=verify).is_equal
    assert (int(src.calls), int(dest.calls)) == (0, 0)


# ---------------------------------------------------------------- poor weights hide nothing
def exchanged(plan: Plan, a: str, b: str) -> Plan:
    entries = dict(plan.entries)
    entries[a], entries[b] = entries[b], entries[a]
    return Plan(entries, plan.src, plan.dest)


def proof_of(src: nn.Module, dest: nn.Module, plan: Plan) -> RandomTest:
    inputs = Inputs.of(noise(2, 3, 16, 16))
    solution = solve(record(src, inputs), record(dest, inputs), dest, inputs, seed=0)
    return run_test(Case.of(solution, plan, compared_outputs(solution)), seed=3)


@pytest.mark.parametrize("block", [pytest.param(Inverted, id="mobilenet"), pytest.param(Squeezed, id="efficientnet")])
def test_exchanged_depthwise_kernels_are_caught_where_outputs_hardly_tell(block: type[Inverted]) -> None:
    src, dest = impoverished(Poor(block), 1), impoverished(Poor(block), 2)
    sample = noise(2, 3, 16, 16)
    plan = automap.match(src, dest, sample).plan
    wrong = exchanged(plan, "blocks.0.depthwise.weight", "blocks.2.depthwise.weight")
    dest.load_state_dict(wrong.apply(src.state_dict()), strict=False)
    with torch.no_grad():
        off = float((src(sample) - dest(sample)).abs().max() / src(sample).abs().max())
    assert off < 1e-4  # what comparing outputs would let pass
    assert all(check.is_equal for check in proof_of(src, dest, plan).checks)
    assert not any(check.is_equal for check in proof_of(src, dest, wrong).checks)


@pytest.mark.parametrize("block", [pytest.param(Inverted, id="mobilenet"), pytest.param(Squeezed, id="efficientnet")])
def test_a_net_with_poor_weights_is_transferred_and_every_weight_is_seen(block: type[Inverted]) -> None:
    found = automap.transfer(impoverished(Poor(block), 1), impoverished(Poor(block), 2), noise(2, 3, 16, 16))
    assert found.is_equal
    assert found.parity is not None
    assert found.parity.unverifiable == ()
    assert set(found.evidence.values()) == {"proved"}
