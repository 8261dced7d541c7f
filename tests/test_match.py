from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from models import BATCH, TOKENS, WIDTH, noise, randomized
from models import language as lm
from models import transformer as tf
from models import vision as cv
from models.pairs import ALL_PAIRS, HIDDEN, IMAGE, PAIRS, SEQUENCE, Pair, channels_last
from torch import Tensor, nn
from torch.nn import functional as F

import automap
from automap import Match
from automap.alternatives import alternatives
from automap.errors import CaptureError


def matched(pair: Pair, sample: Any = None) -> tuple[nn.Module, Match]:
    src = pair.src()
    return src, automap.match(src, pair.dest(), pair.sample() if sample is None else sample, dest_input=pair.dest_input)


def assert_as_by_hand(pair: Pair, src: nn.Module, found: Match) -> None:
    """Every weight that an output fixes is bit for bit what the map made by hand gives."""
    state, gold = found.plan.apply(src.state_dict()), pair.gold(src.state_dict())
    for name, tensor in gold.items():
        if tensor.is_floating_point() and name not in pair.free:
            assert name in state
            assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("pair", ALL_PAIRS)
def test_a_plan_places_every_weight_as_the_map_by_hand(pair: Pair) -> None:
    src, found = matched(pair)
    assert (found.verdict, [f for f in found.findings if f.severity == "error"]) == ("complete", [])
    assert set(found.evidence.values()) == {"proved"}
    assert set(found.evidence) == set(found.plan.entries)
    assert_as_by_hand(pair, src, found)


def snapshot(model: nn.Module) -> Iterator[object]:
    """All that a caller could find changed."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        yield (
            name,
            id(tensor),
            tensor.requires_grad,
            tensor.grad is None,
            tensor._version,
            tensor.detach().clone().flatten().tolist(),
        )
    for name, module in model.named_modules():
        yield name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks), sorted(vars(module))


@pytest.mark.parametrize("is_training", [pytest.param(True, id="training"), pytest.param(False, id="eval")])
@pytest.mark.parametrize(
    "name", ["split-to-packed", "batch-norms", "experts-to-packed", "tied-to-untied", "dest-deeper"]
)
def test_matching_changes_neither_model(name: str, is_training: bool) -> None:
    pair = PAIRS.get(name) or Pair(tf.Tower, partial(tf.Tower, depth=3), SEQUENCE, dict)
    models = (pair.src().train(is_training), pair.dest().train(is_training))
    models[1].register_forward_hook(lambda *_: None)
    before = [list(snapshot(model)) for model in models]
    state = torch.get_rng_state()
    automap.match(*models, pair.sample())
    assert [list(snapshot(model)) for model in models] == before
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- what is said about the rest
def codes(found: Match, severity: str) -> list[str]:
    return [f.code for f in found.findings if f.severity == severity]


def test_src_heads_that_dest_has_not_are_unused() -> None:
    _, found = matched(PAIRS["more-outputs-in-src"])
    assert set(found.unused) == {"pooler.weight", "pooler.bias"}


def test_a_key_bias_that_dest_has_not_is_unused() -> None:
    _, found = matched(PAIRS["split-to-q-bias-and-v-bias"])
    assert set(found.unused) == {"blocks.0.attn.k.bias", "blocks.1.attn.k.bias"}


def test_an_output_that_src_does_not_give_is_a_warning_and_its_weights_are_kept() -> None:
    src, dest = randomized(lm.ManyOutputs(), 1), randomized(lm.ManyOutputs(is_rich=True), 2)
    found = automap.match(src, dest, HIDDEN())
    assert (found.verdict, codes(found, "warning")) == ("complete", ["output-extra"])
    assert set(found.kept) == {"pooler.weight", "pooler.bias"}
    assert not set(found.plan.entries) & set(found.kept)


def test_a_bias_that_src_has_not_is_filled_with_zeros_and_said_so() -> None:
    _, found = matched(PAIRS["no-mlp-bias-to-bias"])
    said = [f.dest.name for f in found.findings if f.code == "zero-filled" and f.dest]
    assert said == ["blocks.0.mlp.fc2.bias", "blocks.1.mlp.fc2.bias"]


def test_rows_that_the_sample_does_not_read_are_said_and_taken_as_the_others_go_on() -> None:
    src, found = matched(PAIRS["tied-to-tied-by-hand"])
    assert [f.message for f in found.findings if "places" in f.message] == [
        "80 elements of `places.weight` are not read on this input and were taken from src as the others go on"
    ]
    assert torch.equal(found.plan.apply(src.state_dict())["places.weight"], src.state_dict()["places.weight"])


def test_rows_that_src_has_not_are_a_warning() -> None:
    _, found = matched(PAIRS["positions-with-offset"])
    assert codes(found, "warning") == ["not-executed"]


class Idle(nn.Module):
    """A linear, and one that never runs."""

    def __init__(self, **widths: int) -> None:
        super().__init__()
        self.used = nn.Linear(6, 4)
        for name, width in widths.items():
            setattr(self, name, nn.Linear(6, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize(
    ("src", "dest", "taken"),
    [
        pytest.param({"pooler": 5}, {"pooler": 5}, {"pooler.weight", "pooler.bias"}, id="same-name-and-shape"),
        pytest.param({"pooler": 5}, {"pooler": 6}, set(), id="near-miss-other-shape"),
        pytest.param({}, {"pooler": 5}, set(), id="negative-nothing-left-in-src"),
    ],
)
def test_what_never_runs_is_assumed_by_name_and_shape(
    src: dict[str, int], dest: dict[str, int], taken: set[str]
) -> None:
    found = automap.match(randomized(Idle(**src), 1), randomized(Idle(**dest), 2), noise(3, 6))
    assert {name for name, evidence in found.evidence.items() if evidence == "assumed"} == taken
    assert set(codes(found, "warning")) == ({"not-executed"} if taken else set())
    assert found.verdict == "complete"


@pytest.mark.parametrize(
    ("pin", "is_ok"),
    [
        pytest.param("blocks.0.attn.q.weight=blocks.0.attn.qkv.weight", True, id="agrees"),
        pytest.param("blocks.0.attn.q.weight=blocks.1.attn.qkv.weight", False, id="contradicts"),
    ],
)
def test_a_pin_is_checked_not_trusted(pin: str, is_ok: bool) -> None:
    pair = PAIRS["fused-to-split"]
    found = automap.match(pair.src(), pair.dest(), pair.sample(), pins=[pin])
    assert found.verdict == ("complete" if is_ok else "ambiguous")
    assert all("the pin" in f.message for f in found.findings if f.code == "ambiguous")


def test_names_that_lie_do_not_mislead() -> None:
    """Dest calls its q what src calls its k."""
    src, dest = PAIRS["same-class"].src(), PAIRS["same-class"].dest()
    for block in dest.blocks:
        block.attn.q, block.attn.k = block.attn.k, block.attn.q
        block.attn.forward = lambda x, a=block.attn: a.o(
            tf.joined(tf.sdpa(*(tf.heads_of(f(x)) for f in (a.k, a.q, a.v))))
        )
    found = automap.match(src, dest, SEQUENCE())
    state = found.plan.apply(src.state_dict())
    assert found.verdict == "complete"
    assert torch.equal(state["blocks.0.attn.q.weight"], src.state_dict()["blocks.0.attn.k.weight"])


def test_one_output_of_several_can_be_chosen() -> None:
    src, dest = randomized(lm.ManyOutputs(is_rich=True), 1), randomized(lm.ManyOutputs(), 2)
    found = automap.match(src, dest, HIDDEN(), src_output="logits")
    assert found.verdict == "complete"
    with pytest.raises(automap.AutomapError, match="gives nothing at 'loss'"):
        automap.match(src, dest, HIDDEN(), src_output="loss")


# ---------------------------------------------------------------- samples that do not tell
BLIND = [
    pytest.param(
        "patch-conv-to-linear",
        torch.ones(1, 3, 8, 8),
        id="ones-through-patches",
    ),
    pytest.param(
        "patch-conv-to-linear",
        torch.zeros(1, 3, 8, 8),
        id="zeros-through-patches",
    ),
    pytest.param(
        "two-equal-heads-swapped",
        torch.ones(1, TOKENS, WIDTH),
        id="equal-tokens",
    ),
    pytest.param("half-to-interleaved-rotary", noise(1, 1, 6), id="rotary-of-one-token"),
    pytest.param("split-to-fused", torch.ones(1, TOKENS, 6), id="equal-tokens-into-qkv"),
    pytest.param("depthwise", torch.ones(1, 3, 8, 8), id="ones-through-depthwise"),
]


@pytest.mark.parametrize(("name", "sample"), BLIND)
def test_a_sample_that_cannot_tell_gives_the_right_map_or_no_claim(name: str, sample: Tensor) -> None:
    pair = PAIRS[name]
    src, found = matched(pair, sample)
    if found.verdict == "complete":
        assert_as_by_hand(pair, src, found)


@pytest.mark.parametrize("batch", [1, BATCH])
def test_features_that_are_never_on_are_matched_right_or_not_claimed(batch: int) -> None:
    make = partial(cv.Flat, act=F.relu)
    pair = Pair(make, partial(make, is_channels_last=True), partial(noise, batch, 3, cv.SIZE, cv.SIZE), channels_last)
    src, found = matched(pair)
    if found.verdict == "complete":
        assert_as_by_hand(pair, src, found)


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        pytest.param((1, 3), (), "rows 1, 3 of it may change places: 2 maps, (1, 3), (3, 1)", id="listed"),
        pytest.param((), (0, 2), "columns 0, 2 of it may change places: 2 maps, (0, 2), (2, 0)", id="columns"),
        pytest.param((0, 1, 2, 3), (), "rows 0, 1, 2, 3 of it may change places: 24 maps", id="counted"),
        pytest.param((1,), (2,), "", id="not-whole-ones"),
    ],
)
def test_the_other_maps_of_a_weight_in_doubt_are_told(
    rows: tuple[int, ...], columns: tuple[int, ...], words: str
) -> None:
    is_open = torch.zeros(5, 4, dtype=torch.bool)
    is_open[list(rows)] = True
    is_open[:, list(columns)] = True
    assert alternatives(is_open) == words


class Classes(nn.Module):
    def __init__(self, count: int, order: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, count)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(F.gelu(self.body(x)))
        return x if self.order is None else x[..., list(self.order)].transpose(1, 2)


@pytest.mark.parametrize(
    ("src", "dest"),
    [
        pytest.param(Classes(10), Classes(5), id="half-as-many"),
        pytest.param(Classes(5), Classes(10), id="twice-as-many"),
        pytest.param(Classes(10), Classes(7), id="some-less"),
        pytest.param(
            Classes(4),
            Classes(4, (2, 0, 3, 1)),
            id="another-order",
        ),
    ],
)
def test_heads_with_other_classes_are_refused(src: nn.Module, dest: nn.Module) -> None:
    assert automap.match(randomized(src, 1), randomized(dest, 2), SEQUENCE()).verdict != "complete"


def test_statistics_that_dest_has_already_are_planned_all_the_same() -> None:
    pair = PAIRS["batch-norms"]
    src, dest = pair.src(), pair.dest()
    dest.load_state_dict(src.state_dict())
    assert_as_by_hand(pair, src, automap.match(src, dest, IMAGE()))


def without_values(name: str) -> tuple[nn.Module, nn.Module, Any]:
    pair = PAIRS[name]
    with torch.device("meta"):
        return pair.make_src().eval(), pair.make_dest().eval(), pair.sample()


def test_models_without_values_match_as_those_with_values_do() -> None:
    pair = PAIRS["split-to-fused"]
    found = automap.match(pair.src(), pair.dest(), pair.sample())
    blind = automap.match(*without_values("split-to-fused"))
    assert (blind.verdict, dict(blind.plan.entries)) == ("complete", dict(found.plan.entries))
    assert "proved" not in blind.evidence.values()


def test_a_choice_by_pins_needs_values() -> None:
    src, dest, sample = without_values("split-to-fused")
    with pytest.raises(CaptureError, match=r"src Tower has no values .* no narrow twins") as caught:
        automap.match(src, dest, sample, pins=["head.weight=head.weight"])
    assert "plan.for_model" in str(caught.value.help)


def test_what_needs_values_says_so_for_models_without() -> None:
    src, dest, sample = without_values("split-to-fused")
    with pytest.raises(CaptureError, match="have no weights to carry over"):
        automap.transfer(src, dest, sample)
    with pytest.raises(CaptureError, match="cannot be compared op by op"):
        automap.explain(src, dest, sample)


class Experts(nn.Module):
    """Four experts whose results are added up: packed for one product, or a stack of matrices the other way round."""

    def __init__(self, is_packed: bool) -> None:
        super().__init__()
        shape = (4, 2 * WIDTH, WIDTH) if is_packed else (4, WIDTH, 2 * WIDTH)
        self.up, self.down = nn.Parameter(noise(*shape)), nn.Parameter(noise(4, *shape[:0:-1], seed=1))
        self.is_packed = is_packed

    def forward(self, x: Tensor) -> Tensor:
        if self.is_packed:
            made = F.silu(torch.einsum("bsd,eid->ebsi", x, self.up))
            return torch.einsum("ebsi,edi->bsd", made, self.down)
        each = x.expand(4, *x.shape).flatten(1, 2)
        return (F.silu(each @ self.up) @ self.down).sum(0).view(x.shape)


@pytest.mark.parametrize("is_packed", [True, False])
def test_experts_in_one_product_are_those_in_a_stack(is_packed: bool) -> None:
    src, dest = randomized(Experts(is_packed), 1), randomized(Experts(not is_packed), 2)
    found = automap.transfer(src, dest, noise(2, 5, WIDTH)).match
    assert found.is_complete
    assert torch.equal(dest.up, src.up.transpose(1, 2))
    assert torch.equal(dest.down, src.down.transpose(1, 2))
