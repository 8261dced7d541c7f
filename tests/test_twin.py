"""A plan that is found on a narrow twin of two blocks is the plan of its siblings of eighty."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from models import randomized
from models.twins import TWIN, Sizes, twins

import automap
from automap.plan import Plan, Shape

SIBLING = Sizes(blocks=80, groups=4, queries=2, head=16, width=48, inner=60, words=70)
FULL = Sizes(blocks=80, groups=8, queries=8, head=128, width=8192, inner=28672, words=128256)  # Llama 70B


@cache
def found(sizes: Sizes) -> Plan:
    """The plan that matching both models finds."""
    src, dest = (randomized(model, seed) for seed, model in enumerate(twins(sizes)))
    match = automap.match(src, dest, torch.randint(sizes.words, (2, 7)))
    assert match.is_complete, match.findings
    return match.plan


def shapes(sizes: Sizes) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The shapes of dest and of src, from models without memory."""
    with torch.device("meta"):
        src, dest = twins(sizes)
    return shapes_of(dest), shapes_of(src)


def shapes_of(model: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.slow
def test_what_the_twin_says_of_eighty_blocks_is_what_matching_them_finds() -> None:
    made = found(TWIN).for_model(*shapes(SIBLING), dims={TWIN.groups: SIBLING.groups})
    assert made.entries == found(SIBLING).entries


def test_the_twin_says_how_a_model_of_140_gigabytes_is_made() -> None:
    dest, src = shapes(FULL)
    made = found(TWIN).for_model(dest, src, dims={TWIN.groups: FULL.groups})
    assert (made.dest_shapes, made.src_shapes) == (dest, src)
    assert [str(rule).partition("   for ")[2] for rule in made.rules()].count("i in 0..79") == 9
    assert len(made.rules()) == len(found(TWIN).rules()) == 12


def test_the_number_of_groups_has_to_be_told() -> None:
    with pytest.raises(automap.AutomapError, match="2 x 30 in the plan is 8192 here"):
        found(TWIN).for_model(*shapes(FULL))
