"""Dest as it was loaded by other means: every wrong weight shows at its own op, and what it holds instead is said."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from models import WIDTH, noise, randomized
from models import transformer as tf
from models.pairs import IMAGE, PAIRS, SEQUENCE, Pair
from models.poor import Poor, impoverished
from torch import Tensor, nn

import automap
from automap import Explanation
from automap.explanation.weights import Comparison
from automap.testing import assert_equivalent

State = dict[str, Tensor]
Damage = Callable[[State], object]
FUSED = PAIRS["split-to-fused"]


def loaded(pair: Pair, damage: Damage) -> tuple[nn.Module, nn.Module]:
    """Both models, dest with src's weights and something wrong with them."""
    src, dest = pair.src(), pair.dest()
    automap.transfer(src, dest, pair.sample(), dest_input=pair.dest_input)
    with torch.no_grad():
        damage(dest.state_dict())
    return src, dest


def explained(pair: Pair, damage: Damage, **options: bool) -> Explanation:
    src, dest = loaded(pair, damage)
    before = {name: tensor.clone() for name, tensor in dest.state_dict().items()}
    found = automap.explain(src, dest, pair.sample(), dest_input=pair.dest_input, loaded=True, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dest.state_dict().items())
    return found


def told(found: Explanation) -> list[tuple[str, str, str]]:
    """(severity, message, dest module) of every departure."""
    return [(d.finding.severity, d.finding.message, d.finding.dest.name) for d in found.departures if d.finding.dest]


def swap(a: str, b: str) -> Damage:
    def damage(state: State) -> None:
        held = state[a].clone()
        state[a].copy_(state[b])
        state[b].copy_(held)

    return damage


def test_weights_that_are_right_depart_nowhere() -> None:
    found = explained(FUSED, lambda state: None)
    assert (found.departures, found.is_equal) == ((), True)
    assert all(output.is_equal for output in found.outputs)
    assert "compared as they are, dest leaves src nowhere" in found.text


def test_two_weights_that_are_exchanged_are_found_at_their_ops() -> None:
    found = explained(FUSED, swap("blocks.0.attn.proj.weight", "blocks.1.attn.proj.weight"))
    first, second = "blocks.0.attn.proj", "blocks.1.attn.proj"
    assert told(found) == [
        ("error", f"`{first}.weight` holds what belongs in `{second}.weight`", first),
        ("error", f"`{second}.weight` holds what belongs in `{first}.weight`", second),
    ]
    assert not found.is_equal
    assert found.first is not None
    assert found.first.finding.src is not None
    assert found.first.finding.src.name == "blocks.0.attn.o.weight"


def test_one_wrong_row_in_one_part_is_found_in_that_part() -> None:
    found = explained(FUSED, lambda state: state["blocks.1.attn.qkv.weight"][WIDTH + 5].mul_(1.5))
    assert told(found) == [("error", f"row {WIDTH + 5} of `blocks.1.attn.qkv.weight` differs", "blocks.1.attn.qkv")]
    assert found.first is not None
    assert found.first.gap is not None
    assert found.first.gap.where[-1] == WIDTH + 5  # the output channel of that row
    assert found.first.finding.src is not None
    assert found.first.finding.src.name == "blocks.1.attn.k.weight"
    assert [op.dest.name for op in found.op_parity if not op.is_equal] == ["blocks.1.attn.qkv"]


def rolled(state: State) -> None:
    state["blocks.1.mlp.fc1.bias"].copy_(state["blocks.1.mlp.fc1.bias"].roll(3))


def parts_exchanged(state: State) -> None:
    weight = state["blocks.0.attn.qkv.weight"]
    weight.copy_(torch.cat([weight[WIDTH : 2 * WIDTH], weight[:WIDTH], weight[2 * WIDTH :]]))


def shuffled(state: State) -> None:
    order = torch.randperm(2 * WIDTH, generator=torch.Generator().manual_seed(0))
    state["blocks.0.mlp.fc1.weight"].copy_(state["blocks.0.mlp.fc1.weight"][order])


def rows_of_another(state: State) -> None:
    state["blocks.0.mlp.fc1.weight"][:4] = state["blocks.1.mlp.fc1.weight"][8:12]


W = WIDTH
TEXTS = [
    pytest.param(parts_exchanged, "blocks.0.attn.qkv", f"rows of `blocks.0.attn.qkv.weight`: 0..{W - 1} hold what "
                 f"belongs in {W}..{2 * W - 1}, {W}..{2 * W - 1} hold what belongs in 0..{W - 1}", id="parts"),
    pytest.param(rolled, "blocks.1.mlp.fc1", "elements of `blocks.1.mlp.fc1.bias`: 0..2 hold what belongs in 29..31, "
                 "3..31 hold what belongs in 0..28", id="rolled"),
    pytest.param(shuffled, "blocks.0.mlp.fc1", "of `blocks.0.mlp.fc1.weight` hold what belongs in other rows",
                 id="shuffled"),
    pytest.param(rows_of_another, "blocks.0.mlp.fc1", "rows of `blocks.0.mlp.fc1.weight`: 0..3 hold what belongs in "
                 "8..11 of `blocks.1.mlp.fc1.weight`", id="rows-of-another"),
    pytest.param(lambda s: s["head.weight"].mul_(0.125), "head", "`head.weight` is what belongs there times 0.125",
                 id="factor"),
    pytest.param(lambda s: s["norm.bias"].zero_(), "norm", "`norm.bias` is zero throughout", id="zero"),
    pytest.param(lambda s: s["blocks.0.attn.proj.weight"].copy_(s["blocks.0.attn.proj.weight"].T.clone()),
                 "blocks.0.attn.proj", "`blocks.0.attn.proj.weight` is transposed", id="transposed"),
    pytest.param(lambda s: s["blocks.1.mlp.fc2.weight"][:, 4].mul_(2), "blocks.1.mlp.fc2",
                 "column 4 of `blocks.1.mlp.fc2.weight` differs", id="column"),
    pytest.param(lambda s: s["embed.weight"].normal_(), "embed", "`embed.weight` differs throughout", id="noise"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "module", "text"), TEXTS)
def test_what_a_weight_holds_instead_is_said_at_the_op_that_uses_it(damage: Damage, module: str, text: str) -> None:
    found = explained(FUSED, damage)
    ((severity, message, where),) = told(found)
    assert (severity, where) == ("error", module)
    assert text in message
    assert found.first is not None
    assert found.first.gap is not None
    assert found.first.gap.max_rel > 1e-3
    assert not found.is_equal


def test_equal_damage_in_all_blocks_is_told_once() -> None:
    def damage(state: State) -> None:
        for block in range(2):
            state[f"blocks.{block}.mlp.fc1.bias"].zero_()

    found = explained(FUSED, damage)
    assert [(d.finding.message, d.count, d.same) for d in found.departures] == [
        ("`blocks.0.mlp.fc1.bias` is zero throughout", 2, ("blocks.1.mlp.fc1.bias",))
    ]


def test_rounded_weights_are_a_warning() -> None:
    found = explained(FUSED, lambda s: s["head.weight"].copy_(s["head.weight"].bfloat16()))
    ((severity, message, _),) = told(found)
    assert (severity, message) == ("warning", "`head.weight` holds the right numbers rounded to bfloat16")


def test_a_weight_that_no_output_depends_on_does_not_count() -> None:
    found = explained(FUSED, lambda s: s["blocks.0.attn.qkv.bias"][WIDTH : 2 * WIDTH].add_(1))  # a key bias
    ((severity, message, _),) = told(found)
    assert severity == "warning"
    assert message == f"elements {WIDTH}..{2 * WIDTH - 1} of `blocks.0.attn.qkv.bias` differ"
    assert "no compared output changes by it" in found.text
    assert found.is_equal


def test_wrong_weights_are_found_behind_other_faults() -> None:
    src = randomized(tf.Tower(), 1)
    good, dest = FUSED.dest(), randomized(tf.Tower(tf.Fused, norm=partial(tf.layer_norm, 1e-3)), 2)
    automap.transfer(src, good, SEQUENCE())
    dest.load_state_dict(good.state_dict())
    with torch.no_grad():
        dest.blocks[1].attn.qkv.weight[3].add_(1)
    found = automap.explain(src, dest, SEQUENCE(), loaded=True)
    assert [(d.finding.code, d.count) for d in found.departures] == [("attribute-differs", 5), ("weight-differs", 1)]
    assert told(found)[1][1] == "row 3 of `blocks.1.attn.qkv.weight` differs"


def test_wrong_weights_are_found_behind_an_op_that_is_missing() -> None:
    src = randomized(tf.Tower(), 1)
    dest = randomized(tf.Tower(mlp=partial(tf.Mlp, nn.ReLU())), 2)
    dest.load_state_dict(src.state_dict())
    with torch.no_grad():
        dest.head.weight[1].add_(1)
    found = automap.explain(src, dest, SEQUENCE(), loaded=True)
    assert [d.finding.code for d in found.departures] == ["op-extra", "weight-differs"]
    assert told(found)[1][1:] == ("row 1 of `head.weight` differs", "head")


def test_exchanged_depthwise_kernels_of_a_poor_net_are_found() -> None:
    pair = Pair(Poor, Poor, partial(noise, 2, 3, 16, 16), dict)
    src, dest = impoverished(pair.make_src(), 1), impoverished(pair.make_dest(), 2)
    dest.load_state_dict(src.state_dict())
    with torch.no_grad():
        swap("blocks.0.depthwise.weight", "blocks.2.depthwise.weight")(dest.state_dict())
    found = automap.explain(src, dest, pair.sample(), loaded=True)
    assert [module for _, _, module in told(found)] == ["blocks.0.depthwise", "blocks.2.depthwise"]
    assert not found.is_equal


# ---------------------------------------------------------------- comparing states
def test_a_state_equal_up_to_one_rounding_has_no_difference() -> None:
    wanted = {"a": noise(4, 5), "b": noise(3, seed=2)}
    nudged = {name: tensor.nextafter(torch.tensor(torch.inf)) for name, tensor in wanted.items()}
    assert list(Comparison(nudged, wanted).differences()) == []
    half = {name: tensor.bfloat16() for name, tensor in wanted.items()}
    assert list(Comparison(half, {name: tensor.bfloat16() for name, tensor in wanted.items()}).differences()) == []


def test_a_token_that_differs_is_no_row() -> None:
    (found,) = Comparison({"t": noise(1, 1, 6)}, {"t": noise(1, 1, 6, seed=3)}).differences()
    assert found.text == "`t` differs throughout"


def test_a_single_number_that_differs_is_named() -> None:
    (found,) = Comparison({"s": torch.tensor(2.0)}, {"s": torch.tensor(3.0)}).differences()
    assert (found.text, found.first) == ("`s` differs", ())
    assert found.max_rel == pytest.approx(1 / 3)


# ---------------------------------------------------------------- assert_equivalent
def test_an_equivalent_model_passes() -> None:
    src, dest = loaded(FUSED, lambda state: None)
    assert_equivalent(src, dest, SEQUENCE())
    assert_equivalent(src, dest, SEQUENCE(), loaded=False)


def test_an_assertion_fails_with_the_explanation() -> None:
    src, dest = loaded(FUSED, lambda s: s["blocks.1.attn.qkv.weight"][2].mul_(-1))
    with pytest.raises(AssertionError) as told:
        assert_equivalent(src, dest, SEQUENCE())
    text = str(told.value)
    assert "error[weight-differs]: row 2 of `blocks.1.attn.qkv.weight` differs" in text
    assert "on src's own values the result is off by" in text
    assert "transformer.py:" in text


def test_an_assertion_is_not_content_with_outputs_that_agree() -> None:
    src, dest = impoverished(Poor(), 1), impoverished(Poor(), 2)
    dest.load_state_dict(src.state_dict())
    with torch.no_grad():
        swap("blocks.0.depthwise.weight", "blocks.2.depthwise.weight")(dest.state_dict())
    with pytest.raises(AssertionError, match=r"blocks\.2\.depthwise\.weight"):
        assert_equivalent(src, dest, noise(2, 3, 16, 16), tolerance=1e-2)


def test_an_assertion_about_fresh_weights_needs_none_loaded() -> None:
    src, dest = FUSED.src(), FUSED.dest()
    assert_equivalent(src, dest, SEQUENCE(), loaded=False)
    with pytest.raises(AssertionError, match="differs throughout"):
        assert_equivalent(src, dest, SEQUENCE())
    with pytest.raises(AssertionError, match=r"layer_norm eps 1e-05 in src, 0\.001 in dest"):
        other = randomized(tf.Tower(norm=partial(tf.layer_norm, 1e-3)), 3)
        assert_equivalent(src, other, SEQUENCE(), loaded=False)


def test_models_that_agree_but_cannot_be_aligned_are_equivalent_as_they_are() -> None:
    class Folded(nn.Module):
        """A batch norm folded into its convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    src, dest = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), 1), Folded().eval()
    conv, norm = src
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        dest.conv.weight.copy_(conv.weight * scale[:, None, None, None])
        dest.conv.bias.copy_((conv.bias - norm.running_mean) * scale + norm.bias)
    assert_equivalent(src, dest, IMAGE())
    with torch.no_grad():
        dest.conv.weight[0].mul_(1.1)
    with pytest.raises(AssertionError, match="outputs differ"):
        assert_equivalent(src, dest, IMAGE())
