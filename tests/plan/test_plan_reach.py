from __future__ import annotations

from collections.abc import Mapping

import pytest

from automap.errors import PlanError
from automap.plan import Plan, Source


def vectors(names: Mapping[str, str], size: int = 6) -> Plan:
    """A plan that renames."""
    return Plan({dest: Source(src, (size,)) for dest, src in names.items()})


@pytest.mark.parametrize(
    ("twin", "name", "message"),
    [
        pytest.param(
            {"a.0.w": "b.0.w", "a.1.w": "b.1.w"}, "a.7.bias", "no rule of the plan reaches `a.7.bias`", id="name"
        ),
        pytest.param({"a.0.w": "b.0.w"}, "a.1.w", "no rule of the plan reaches `a.1.w`", id="one-block-does-not-count"),
        pytest.param(
            {"a.1.w": "b.0.w", "a.2.w": "b.1.w"}, "a.0.w", "no rule of the plan reaches `a.0.w`", id="before-the-first"
        ),
        pytest.param(
            {"a.0.w": "b.0.w", "a.1.w": "b.1.w", "a.2.w": "last.w"},
            "a.5.w",
            "`a.5.w` could be made like `a.{i}.w` or like `a.2.w`",
            id="a-last-block-unlike-the-others",
        ),
        pytest.param(
            {"a.0.w": "b.0.w", "a.1.w": "b.1.w", "a.2.w": "c.2.w", "a.3.w": "c.3.w"},
            "a.5.w",
            "`a.5.w` could be made like `a.{i}.w` or like `a.{i}.w`",
            id="two-series",
        ),
    ],
)
def test_a_name_that_no_rule_reaches_for_certain_is_refused(twin: dict[str, str], name: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        vectors(twin).for_model({name: (6,)})


def test_a_first_block_unlike_the_others_stays_the_first() -> None:
    def plan(depth: int) -> Plan:
        return vectors({"a.0.w": "first.w", **{f"a.{n}.w": f"b.{n - 1}.w" for n in range(1, depth)}})

    assert plan(3).for_model(plan(9).dest_shapes) == plan(9)


def test_two_indices_go_on_each_by_itself() -> None:
    def plan(stages: int, depth: int) -> Plan:
        return vectors({f"a{n + 1}.{m}.w": f"s.{n}.b.{m}.w" for n in range(stages) for m in range(depth)})

    assert plan(3, 2).for_model(plan(4, 5).dest_shapes) == plan(4, 5)


def test_blocks_that_are_numbered_through_keep_their_number_in_a_stage() -> None:
    def plan(stages: int, depth: int) -> Plan:
        return vectors({f"a.{n}.{m}.w": f"b.{n * depth + m}.w" for n in range(stages) for m in range(depth)})

    assert plan(3, 2).for_model(plan(6, 2).dest_shapes) == plan(6, 2)
    with pytest.raises(PlanError, match=r"with j up to 3: the plan reads number \{2i\+j\} for j in 0..1"):
        plan(3, 2).for_model(plan(3, 4).dest_shapes)


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param({"norm.w": "seq.3.w"}, id="norm"),
        pytest.param({"d.0.w": "seq.3.w", "d.1.w": "seq.4.w"}, id="decoder"),
    ],
)
def test_what_comes_after_the_blocks_in_src_is_not_taken_from_among_them(behind: dict[str, str]) -> None:
    twin = vectors({"a.0.w": "seq.1.block.w", "a.1.w": "seq.2.block.w", **behind})
    names = [*behind, *(f"a.{n}.w" for n in range(9))]
    with pytest.raises(PlanError, match=r"would both read `seq.3`, in the plan they read different blocks"):
        twin.for_model(dict.fromkeys(names, (6,)))
    assert len(twin.for_model(dict.fromkeys([*behind, "a.0.w", "a.1.w"], (6,))).entries) == 2 + len(behind)
