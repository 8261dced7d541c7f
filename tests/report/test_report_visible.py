"""Text of others is shown as it is, as far as it can be, and takes no places along."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automap.report.visible import visible, without_places


@given(st.text(st.characters()))
def test_visible_text_has_the_same_length_and_one_line(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    assert len(shown.splitlines()) <= 1
    assert shown.encode().decode() == shown
    assert visible(shown) == shown


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"])))
def test_what_can_be_seen_is_left_alone(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("read /home/ada/run7.pt first", "read run7.pt first"),
        ('load("/data/my-models/a.b/", 3)', 'load("a.b", 3)'),
        ("`/opt/x/y`", "`y`"),
        (r"in C:\Users\ada\run7.pt", "in run7.pt"),
        ("see https://example.org/a?b=c#d)", "see (address))"),
        ("s3://bucket/key, then", "(address) then"),
        ("file:///home/ada/x.html", "(address)"),
        ("run as /home/ada", "run as ada"),
    ],
)
def test_places_are_taken_out_of_prose(text: str, expected: str) -> None:
    assert without_places(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "x = a / b / c",
        "n//2//3",
        "(h)/w/d",
        "timm/layers/norm.py:89",
        "`blocks.0.attn.qkv.weight` reads `norm1`",
        'rearrange(qkv, "(a three b) c -> (three a b) c")',
        "x: Tensor = y",
        "</script><b>",
        "a ./b/c ~/d/e",
    ],
)
def test_what_is_no_place_is_left_alone(text: str) -> None:
    assert without_places(text) == text
