"""One verification from beginning to end: how often what is compared, and what that amounts to."""

from __future__ import annotations

from typing import Any, Literal

from automap.collector import only_new_garbage
from automap.results import Parity, ParityCheck
from automap.verify.models import Models, drawn_check, own_check
from automap.verify.recorded import Case, RandomTest, run_test

Verify = Literal["quick", "default", "thorough"]
_MOST_MISSED = 50  # wrong maps that are named
_QUICK = "compared once, with the weights as they are on the sample input: nothing else was verified"
_NARROW = "drawn weights were tried on narrow twins: both computations with their wide dims divided"
_INCOMPLETE = "compared with the weights as they are only: there is no complete plan to test"
_DRAWS = {"quick": 0, "default": 1, "thorough": 3}


@only_new_garbage()
def prove(
    case: Case,
    models: Models,
    *,
    verify: Verify,
    is_complete: bool,
    is_whole: bool,
    tolerance: float | None,
    seed: int,
) -> Parity:
    """Return the parity of both models, whose weights are placed already.

    Args:
        case: the recorded computations and the plan.
        models: the models themselves.
        verify: how much to do.
        is_complete: whether every weight that runs has an expression, so that the plan can be tested on other weights.
        is_whole: whether the recordings have everything that the models compute.
        tolerance: the largest relative difference of equal outputs with the weights as they are; measured if None.
        seed: for weights and inputs.
    """
    if not case.pairs:
        return Parity(())
    tests: list[RandomTest] = []
    extra: list[ParityCheck] = []
    own = own_check(models, case.pairs, tolerance)
    if is_complete and is_whole:
        for number in range(_DRAWS[verify]):
            options: dict[str, Any] = {"swaps": _swaps(verify, number), "is_brief": verify == "default"}
            tests.append(run_test(case.narrow or case, seed=seed + 101 + 7 * number, **options))
    if is_complete and verify != "quick" and not (case.is_at_size and is_whole):
        extra.append(drawn_check(case, models, seed=seed + 101))
    notes = [_QUICK] if verify == "quick" else [] if is_complete else [_INCOMPLETE]
    notes += [_NARROW] if tests and case.narrow is not None else []
    return _summed_up(tests, (*extra, own), notes)


def _swaps(verify: Verify, number: int) -> Literal["none", "few", "all"]:
    if number:
        return "none"
    return "all" if verify == "thorough" else "few"


def _summed_up(tests: list[RandomTest], others: tuple[ParityCheck, ...], notes: list[str]) -> Parity:
    still = set(tests[0].still).intersection(*(test.still for test in tests)) if tests else set()
    powers = [test.input_sensitivity for test in tests if test.input_sensitivity is not None]
    missed = tuple(text for test in tests for text in test.missed)
    tried = sum(test.swaps_tried for test in tests)
    return Parity(
        checks=(*(check for test in tests for check in test.checks), *others),
        unverifiable=tuple(sorted(still)),
        input_sensitivity=min(powers, default=None),
        swaps_tried=tried,
        swaps_caught=tried - len(missed),
        swaps_missed=missed[:_MOST_MISSED],
        notes=tuple(dict.fromkeys((*notes, *(note for test in tests for note in test.notes)))),
    )
