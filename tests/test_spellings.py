"""Pieces of sequence models in other spellings, each of which a walk that goes back has to get right."""

from __future__ import annotations

from typing import Any

import pytest
from models import randomized
from models.nets import WIDTH, Net, table, words
from torch import Tensor, nn
from torch.nn import functional as F

import automap


def embedded(is_apart: bool) -> nn.Module:
    """Attention over words, types and positions, added in two orders; queries and keys laid out once or apart."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.word(x) + net.kind[0] + net.place if not is_apart else net.word(x) + net.place + net.kind[0]
        x = F.layer_norm(x, (WIDTH,))
        one = x.transpose(0, 1)
        other = x.transpose(0, 1) if is_apart else one
        k, q, v = net.k(one), net.q(one), net.v(other)
        q, k, v = (part.unflatten(-1, (3, 4)).permute(1, 2, 0, 3) for part in (q, k, v))
        return net.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    names = ("q", "k", "v", "out")
    parts = {name: nn.Linear(WIDTH, WIDTH) for name in names}
    return Net(forward, word=nn.Embedding(20, WIDTH), place=table(7, WIDTH), kind=table(2, WIDTH), **parts)


BOTH_WAYS = [pytest.param(lambda: embedded(False), lambda: embedded(True), words(), id="laid-out-apart")]


@pytest.mark.parametrize("is_reverse", [False, True], ids=["there", "back"])
@pytest.mark.parametrize(("make_src", "make_dest", "sample"), BOTH_WAYS)
def test_another_spelling_is_found_and_proved(make_src: Any, make_dest: Any, sample: Tensor, is_reverse: bool) -> None:
    src, dest = (make_dest(), make_src()) if is_reverse else (make_src(), make_dest())
    found = automap.transfer(randomized(src, 1), randomized(dest, 2), sample)
    assert found.match.verdict == "complete"
