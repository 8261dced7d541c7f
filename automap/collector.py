"""Keeps Python's garbage collector from looking through all that was there before, over and over.

A match makes many small objects, and each full collection then visits every object of torch and of the models. So do
imports: all that they make stays.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Let collections look at objects made from here on only; what is there already is looked at again afterwards."""
    if gc.get_freeze_count():  # the caller has put objects aside, and would lose that
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def seldom_collecting() -> Iterator[None]:
    """Let so many more objects be made between collections that importing torch and its like waits for few of them."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
