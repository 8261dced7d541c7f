"""For test suites: an assertion that two models compute the same, with the explanation as its message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def assert_equivalent(
    src: nn.Module,
    dest: nn.Module,
    sample_input: Any,
    *,
    dest_input: Any = None,
    loaded: bool = True,
    train: bool = False,
    src_output: str | None = None,
    dest_output: str | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> None:
    """Assert that dest computes what src computes, with the weights that it has.

    Outputs that agree are not enough: every weight of dest that moves an output must hold what belongs there, and
    numbers such as an epsilon must be the same. Neither model is changed.

    Args:
        src: the model that is right.
        dest: the model under test.
        sample_input: what src is called with: a tensor, a tuple (args), a dict (kwargs) or `automap.Inputs`.
        dest_input: the same for dest, where its signature differs.
        loaded: whether dest has its weights; if False, assert that src's weights can be carried over to make it equal.
        train: compare what both compute in train mode.
        src_output: the path of the output to compare (`logits`, `0.last_hidden_state`); all outputs if None.
        dest_output: the same for dest.
        tolerance: the largest relative difference of outputs; measured if None.
        seed: for the random weights that the match is made on.

    Raises:
        AssertionError: dest does not; the message says where it departs, and why.
        CaptureError, InputError, OutputError: as for `automap.match`.

    Example:
        >>> import torch
        >>> one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        >>> _ = other.load_state_dict(one.state_dict())
        >>> assert_equivalent(one, other, torch.randn(5, 3))
    """
    from automap.api import explain

    found = explain(
        src,
        dest,
        sample_input,
        dest_input=dest_input,
        loaded=loaded,
        train=train,
        src_output=src_output,
        dest_output=dest_output,
        tolerance=tolerance,
        seed=seed,
    )
    if not found.is_equal:
        raise AssertionError(found.text)
