"""The two calls of the product: `match` finds the plan and modifies nothing, `transfer` also applies and proves it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from automap.capture.result import Method, storage_key
from automap.errors import CaptureError, MismatchError
from automap.matching import Matched, compared_outputs, matched
from automap.plan import Plan
from automap.results import Evidence, Explanation, Match, OpParity, Parity, Transfer
from automap.verify import Models, Verify, drawn_check, op_parities, prove


def match(
    src: nn.Module,
    dest: nn.Module,
    sample_input: Any,
    *,
    dest_input: Any = None,
    src_output: str | None = None,
    dest_output: str | None = None,
    seed: int = 0,
    pins: Sequence[str] = (),
    capture: Method = "dispatch",
    algebra: bool = True,
) -> Match:
    """Return how dest's weights are made of src's, what stands in the way, and how sure each part is.

    Nothing is modified: both models run in eval mode, once each (large ones that do not agree op for op once more on
    random weights, to confirm a plan that was found on narrow twins; dest once more where it reads its own values), and
    are left as found.

    Args:
        src: the model that has the weights.
        dest: the model that wants them.
        sample_input: what src is called with: a tensor, a tuple (args), a dict (kwargs) or `Inputs`.
        dest_input: the same for dest, where its signature differs.
        src_output: the path of the output to compare (`logits`, `0.last_hidden_state`); all outputs if None.
        dest_output: the same for dest.
        seed: for the random weights that the match is made on.
        pins: what goes where the computation leaves a choice, `DEST=SRC` or `DEST=SRC[0:768]`; checked, not trusted.
        capture: how the models are recorded: `dispatch`, `export` or `hooks`.
        algebra: also find weights that are computed from src's (folded norms, `1 + w`, merged branches).

    Raises:
        CaptureError: a model's forward could not be recorded.
        InputError: a model does not take the sample input.
        OutputError: a model gives no tensors, or not at the path asked for.

    Example:
        >>> import torch, automap
        >>> a, b = torch.nn.Linear(3, 2), torch.nn.Conv1d(3, 2, 1)
        >>> found = automap.match(a, b, torch.randn(5, 3), dest_input=torch.randn(1, 3, 4))
        >>> found.verdict
        'impossible'
    """
    options = (src_output, dest_output, seed, tuple(pins), capture, algebra)
    found = matched(src, dest, sample_input, dest_input, *options, is_narrow=True)
    if not found.is_narrow or found.is_valueless or _holds_at_size(found, seed):
        return found.match
    return matched(src, dest, sample_input, dest_input, *options).match


def explain(
    src: nn.Module,
    dest: nn.Module,
    sample_input: Any,
    *,
    dest_input: Any = None,
    loaded: bool = False,
    train: bool = False,
    src_output: str | None = None,
    dest_output: str | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    pins: Sequence[str] = (),
    capture: Method = "dispatch",
) -> Explanation:
    """Return every place where dest does not compute what src computes, each op of dest being given src's own values.

    Nothing is modified. What differs early does not hide what differs later.

    Args:
        src: the model that is right.
        dest: the model in question.
        sample_input: what src is called with, as for `match`.
        dest_input: the same for dest.
        loaded: compare dest with the weights that it has, tensor by tensor with what src's should become, and op by op.
        train: compare what both compute in train mode: dropout, statistics of the batch.
        src_output: the path of the output to compare.
        dest_output: the same for dest.
        tolerance: the largest relative difference of the models' own outputs, where loaded; measured if None.
        seed: for the random weights.
        pins: `DEST=SRC` names that must go together.
        capture: how the models are recorded.

    Raises:
        CaptureError, InputError, OutputError: as for `match`.

    Example:
        >>> import torch, automap
        >>> one, other = torch.nn.Sequential(torch.nn.GELU()), torch.nn.Sequential(torch.nn.GELU("tanh"))
        >>> automap.explain(one, other, torch.randn(5, 3)).first.finding.message
        'gelu approximate None in src, tanh in dest'
    """
    from automap.explanation.explain import explained

    made = matched(
        src,
        dest,
        sample_input,
        dest_input,
        src_output,
        dest_output,
        seed,
        tuple(pins),
        capture,
        is_training=train,
        is_algebraic=False,  # a factor that a weight could make up for is a difference all the same
    )
    if made.is_valueless:
        raise CaptureError(
            "models without values (fake or meta tensors) cannot be compared op by op",
            help="explain two small ones of the same architecture: two blocks, narrow",
        )
    found, solution = made.match, made.solution
    pairs = compared_outputs(solution)

    def computed() -> Match:
        options = (src_output, dest_output, seed, tuple(pins), capture)
        return matched(src, dest, sample_input, dest_input, *options, is_training=train).match

    return explained(
        found, solution, made.models, pairs, computed, loaded=loaded, train=train, tolerance=tolerance, seed=seed
    )


def transfer(
    src: nn.Module,
    dest: nn.Module,
    sample_input: Any,
    *,
    dest_input: Any = None,
    strict: bool = True,
    verify: Verify = "default",
    tolerance: float | None = None,
    seed: int = 0,
    src_output: str | None = None,
    dest_output: str | None = None,
    pins: Sequence[str] = (),
    capture: Method = "dispatch",
    algebra: bool = True,
) -> Transfer:
    """Return the proof that dest now computes what src computes: match, apply in place, verify.

    Args:
        src: the model that has the weights; not modified.
        dest: the model that wants them; its weights are replaced, its mode and hooks are not.
        sample_input: what src is called with, as for `match`.
        dest_input: the same for dest.
        strict: raise unless everything matches and the outputs agree, and leave dest as it was; if False, place
            what is known and return the result whatever it is.
        verify: `quick` compares once with the given weights, `default` also on fresh random weights and inputs in
            float64, `thorough` on several.
        tolerance: the largest relative difference of outputs with the given weights; measured if None.
        seed: for the random weights.
        src_output: the path of the output to compare.
        dest_output: the same for dest.
        pins: what goes where the computation leaves a choice, as for `match`.
        capture: how the models are recorded.
        algebra: also find weights that are computed from src's, as for `match`.

    Raises:
        MismatchError: strict, and the models do not match; it carries the Transfer.
        CaptureError, InputError, OutputError: as for `match`.
    """
    options = (src_output, dest_output, seed, tuple(pins), capture, algebra)
    is_tested = verify != "quick"

    def attempt(*, is_narrow: bool) -> Transfer:
        found = matched(src, dest, sample_input, dest_input, *options, is_narrow=is_narrow, is_tested=is_tested)
        return _transferred(found, is_strict=strict, verify=verify, tolerance=tolerance, seed=seed)

    try:
        return attempt(is_narrow=True)
    except _NotAtSize:
        return attempt(is_narrow=False)


class _NotAtSize(Exception):
    """What was found on narrow twins does not hold for the models themselves; dest is as it was."""


def _transferred(made: Matched, *, is_strict: bool, verify: Verify, tolerance: float | None, seed: int) -> Transfer:
    if made.is_valueless:
        raise CaptureError(
            "models without values (fake or meta tensors) have no weights to carry over or to prove anything with",
            help="take `match(...).plan` and send a checkpoint through it: `automap apply PLAN CHECKPOINT -o OUT`",
        )
    found, models, cases, is_narrow = made.match, made.models, [made.case], made.is_narrow
    if is_strict and not found.is_complete:
        result = Transfer(found, None, _tested(found, None), False, tolerance or 0.0, found.timings_s)
        names = f"{type(models.src).__name__} and {type(models.dest).__name__}"
        raise MismatchError(f"{names} do not match: {found.verdict}", result)
    is_whole = "hooks" not in {made.solution.src_capture.method, made.solution.dest_capture.method}
    ops = tuple(op_parities(made.solution).values())
    del made  # and with it everything that both models compute

    def proof() -> Parity:
        options: dict[str, Any] = {"is_complete": found.is_complete, "is_whole": is_whole, "tolerance": tolerance}
        parity = prove(cases.pop(), models, verify=verify, seed=seed, **options)
        if is_narrow and not parity.is_equal:
            raise _NotAtSize
        return parity

    return _carried_over(found, models, proof, ops, is_strict=is_strict, tolerance=tolerance)


def _holds_at_size(made: Matched, seed: int) -> bool:
    """Whether the models themselves agree on weights drawn anew and sent through a plan that twins gave."""
    return drawn_check(made.case, replace(made.models, eps=0.0), seed=seed + 401).is_equal


def _carried_over(
    found: Match,
    models: Models,
    proof: Callable[[], Parity],
    ops: tuple[OpParity, ...],
    *,
    is_strict: bool,
    tolerance: float | None,
) -> Transfer:
    """Place what the plan gives and verify it; whatever goes wrong, dest is as it was before."""
    started = time.perf_counter()
    before: dict[str, Tensor] = {}
    try:
        _place(models.dest, _values(found.plan, models.src, models.dest), before)
        placed = time.perf_counter()
        parity = proof()
        timings = {**found.timings_s, "apply": placed - started, "verify": time.perf_counter() - placed}
        own = [o.tolerance for check in parity.checks if check.weights == "own" for o in check.outputs]
        limit = max(own, default=tolerance or 0.0)
        result = Transfer(found, parity, _tested(found, parity), True, limit, timings, ops)
        if is_strict and not result.is_equal:
            raise MismatchError(f"{_refusal(parity)}; dest was left as it was", replace(result, is_applied=False))
    except BaseException:
        _place(models.dest, before.items(), {})
        raise
    return result


def _refusal(parity: Parity) -> str:
    if parity.is_powerless:
        return "the outputs do not depend on the input, so that comparing them proves nothing"
    return "the outputs differ after the transfer" if parity.checks else "there are no outputs to compare"


def _place(model: nn.Module, values: Iterable[tuple[str, Tensor]], before: dict[str, Tensor]) -> None:
    """Copy values into a model's parameters and buffers by name, tied ones once; what was there goes into before."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    placed: set[int] = set()
    with torch.no_grad():
        for name, value in values:
            if id(named[name]) not in placed:
                before[name] = named[name].detach().clone()
                named[name].copy_(value)
                placed.add(id(named[name]))


def _values(plan: Plan, src: nn.Module, dest: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """What a plan gives, one tensor at a time, or all at once where writing into dest would change what src has."""
    state = src.state_dict()
    held = {storage_key(tensor) for tensor in state.values()}
    is_shared = any(storage_key(tensor) in held for tensor in dest.state_dict().values())
    return plan.apply(state).items() if is_shared else plan.values(state)


def _tested(found: Match, parity: Parity | None) -> dict[str, Evidence]:
    """The evidence after a transfer: what was aligned and moves an output that agrees was tested.

    Where nothing was verified, what was only aligned is assumed; where the outputs differ, everything is.
    """
    blind = set(parity.unverifiable) if parity is not None else set()
    is_refuted = parity is not None and not parity.is_equal
    result: dict[str, Evidence] = {}
    for name, evidence in found.evidence.items():
        if name in blind or is_refuted:
            result[name] = "assumed"
        elif evidence == "aligned":
            result[name] = "assumed" if parity is None else "tested"
        else:
            result[name] = evidence
    return result
