"""What must not change the result of a match: how either side is named, built, typed, weighted or fed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TOKENS, WIDTH, noise, randomized
from models import transformer as tf
from models import vision as cv
from models.pairs import PAIRS, Pair, then
from torch import Tensor, nn

import automap

LAW = settings(max_examples=4, deadline=None, derandomize=True)
NAMES = st.sampled_from(
    [
        "split-to-fused",
        "per-head-to-split",
        "gate-and-up-to-fused-gate-last",
        "batch-norms-by-hand",
        "patch-conv-to-linear",
    ]
)
SIDES = st.sampled_from(["src", "dest"])
SEEDS = st.integers(0, 1000)
State = dict[str, Tensor]


def planned(pair: Pair, src: nn.Module, dest: nn.Module, sample: Any = None) -> State:
    """What the plan makes of src's weights, the verdict being complete."""
    found = automap.match(src, dest, pair.sample() if sample is None else sample)
    assert found.verdict == "complete", found.findings
    return found.plan.apply(src.state_dict())


def by_hand(pair: Pair, src: nn.Module) -> State:
    return {name: tensor for name, tensor in pair.gold(src.state_dict()).items() if tensor.is_floating_point()}


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def shuffled(items: list[Any], seed: int) -> list[Any]:
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    return [items[i] for i in order]


def rebuilt(model: nn.Module, seed: int) -> None:
    """Register everything again, in another order."""
    for module in list(model.modules()):
        for held in (module._parameters, module._buffers, module._modules):
            if isinstance(module, (nn.ModuleList, nn.Sequential)):
                continue
            items = shuffled(list(held.items()), seed)
            held.clear()
            held.update(items)


@given(name=NAMES, seed=SEEDS, side=SIDES)
@LAW
def test_registration_order_does_not_matter(name: str, seed: int, side: str) -> None:
    pair = PAIRS[name]
    models = {"src": pair.src(), "dest": pair.dest()}
    rebuilt(models[side], seed)
    assert_same(planned(pair, **models), by_hand(pair, models["src"]))


class Nested(nn.Module):
    """A model some levels down, under names that say nothing."""

    def __init__(self, inner: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.first = names[0]
        self.add_module(names[0], inner if len(names) == 1 else Nested(inner, names[1:]))

    def forward(self, *args: Any) -> Any:
        return getattr(self, self.first)(*args)


WORDS = st.lists(st.sampled_from(["q", "weight", "blocks", "0", "bias_", "norm"]), min_size=1, max_size=3)


@given(name=NAMES, words=WORDS, side=SIDES)
@LAW
def test_nesting_does_not_matter(name: str, words: list[str], side: str) -> None:
    pair = PAIRS[name]
    src, dest, prefix = pair.src(), pair.dest(), ".".join(words) + "."
    expected = by_hand(pair, src)
    if side == "src":
        assert_same(planned(pair, Nested(src, words), dest), expected)
    else:
        assert_same(planned(pair, src, Nested(dest, words)), {prefix + k: v for k, v in expected.items()})


class Flattened(nn.Module):
    """All parameters of a model in one flat table, under numbers."""

    def __init__(self, inner: nn.Module, seed: int) -> None:
        super().__init__()
        names = shuffled([name for name, _ in inner.named_parameters()], seed)
        self.names = {f"p{n}": name for n, name in enumerate(names)}
        self.inner = [inner]
        for short, name in self.names.items():
            self.register_parameter(short, inner.get_parameter(name))

    def forward(self, *args: Any) -> Any:
        return self.inner[0](*args)


@given(name=st.sampled_from(["split-to-fused", "gate-and-up-to-fused-gate-last"]), seed=SEEDS, side=SIDES)
@LAW
def test_names_and_flattening_do_not_matter(name: str, seed: int, side: str) -> None:
    pair = PAIRS[name]
    src, dest = pair.src(), pair.dest()
    expected = by_hand(pair, src)
    if side == "src":
        assert_same(planned(pair, Flattened(src, seed).eval(), dest), expected)
    else:
        flat = Flattened(dest, seed).eval()
        assert_same(planned(pair, src, flat), {short: expected[name] for short, name in flat.names.items()})


class Commuted(tf.Block):
    """The residual sums the other way round, the MLP's result times one."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x)) + x
        return self.mlp(self.norm2(x)) + x


class CommutedGate(tf.Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * torch.nn.functional.silu(self.gate(x)))


GATED = partial(tf.Tower, mlp=tf.Gated)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(partial(tf.Tower, mlp=tf.Gated, block=Commuted), id="sums"),
        pytest.param(partial(tf.Tower, mlp=CommutedGate), id="products"),
        pytest.param(partial(tf.Tower, mlp=CommutedGate, block=Commuted), id="both"),
    ],
)
@pytest.mark.parametrize("side", ["src", "dest"])
def test_the_order_of_commutative_arguments_does_not_matter(make: Callable[[], nn.Module], side: str) -> None:
    pair = Pair(make if side == "src" else GATED, make if side == "dest" else GATED, PAIRS["same-class"].sample, dict)
    src = pair.src()
    assert_same(planned(pair, src, pair.dest()), by_hand(pair, src))


SPELLINGS = [tf.sdpa, tf.eager, tf.scaled_query, tf.einsum]


@given(a=st.sampled_from(SPELLINGS), b=st.sampled_from(SPELLINGS), is_per_head=st.booleans())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_eager_and_fused_attention_are_one(a: Any, b: Any, is_per_head: bool) -> None:
    gold = PAIRS["split-to-fused"].gold
    gold = then(gold, PAIRS["fused-to-per-head"].gold) if is_per_head else gold
    pair = Pair(
        partial(tf.Tower, partial(tf.Split, a)),
        partial(tf.Tower, partial(tf.Fused, is_per_head, b)),
        PAIRS["same-class"].sample,
        gold,
    )
    src = pair.src()
    assert_same(planned(pair, src, pair.dest()), by_hand(pair, src))


@given(name=NAMES, seed=SEEDS)
@LAW
def test_the_plan_does_not_depend_on_the_weights(name: str, seed: int) -> None:
    pair = PAIRS[name]
    plans = [automap.match(pair.src(s), pair.dest(s + 1), pair.sample()).plan for s in (1, seed + 2)]
    assert plans[0] == plans[1]


def fresh(model: nn.Module) -> nn.Module:
    """As its constructor leaves it: norms of one, biases of zero, all blocks alike."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
    return model


def test_ones_and_zeros_in_the_given_weights_do_not_mislead() -> None:
    pair = PAIRS["split-to-fused"]
    src = pair.src()
    trained = automap.match(src, pair.dest(), pair.sample()).plan
    assert automap.match(fresh(src), fresh(pair.dest()), pair.sample()).plan == trained


@given(batch=st.integers(1, 4), seed=SEEDS)
@LAW
def test_the_batch_size_does_not_matter(batch: int, seed: int) -> None:
    pair = PAIRS["per-head-to-split"]
    src = pair.src()
    assert_same(planned(pair, src, pair.dest(), noise(batch, TOKENS, 6, seed=seed)), by_hand(pair, src))


@given(size=st.integers(2, 9), seed=SEEDS)
@LAW
def test_the_length_of_the_sample_does_not_matter(size: int, seed: int) -> None:
    pair = PAIRS["gate-last-to-gate-first"]
    src = pair.src()
    assert_same(planned(pair, src, pair.dest(), noise(2, size, 6, seed=seed)), by_hand(pair, src))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["split-to-fused", "norm-by-hand", "1x1-conv-to-linear", "batch-norms"])
def test_the_number_type_does_not_matter(name: str, dtype: torch.dtype) -> None:
    pair = PAIRS[name]
    src, dest = pair.src().to(dtype), pair.dest().to(dtype)
    found = planned(pair, src, dest, pair.sample().to(dtype))
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert_same(found, by_hand(pair, src))


@given(name=NAMES, seed=SEEDS)
@LAW
def test_the_seed_does_not_matter(name: str, seed: int) -> None:
    pair = PAIRS[name]
    plans = [automap.match(pair.src(), pair.dest(), pair.sample(), seed=s).plan for s in (0, seed + 1)]
    assert plans[0] == plans[1]


@given(name=st.sampled_from(["split-to-fused", "fused-to-per-head", "gate-last-to-gate-first", "tied-to-tied-by-hand"]))
@LAW
def test_there_and_back_is_the_identity(name: str) -> None:
    pair = PAIRS[name]
    src, dest = pair.src(), pair.dest()
    state = {k: v for k, v in src.state_dict().items() if v.is_floating_point()}
    automap.transfer(src, dest, pair.sample())
    back = automap.match(dest, randomized(pair.make_src(), 5), pair.sample()).plan
    assert_same(back.apply(dest.state_dict()), state)


def test_a_model_matches_itself_by_the_identity() -> None:
    src = randomized(cv.Image(), 1)
    found = automap.match(src, randomized(cv.Image(), 2), noise(2, 3, cv.SIZE, cv.SIZE))
    assert_same(found.plan.apply(src.state_dict()), dict(src.state_dict()))
    assert src.token.shape == (1, 1, WIDTH)
