"""Function results that libraries keep across calls and models: a fake tensor among them would outlive its run."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FOREIGN = {"torch", "sympy", "re", "typing", "functools", "inspect", "linecache", "automap", "None"}
_Cached = type(functools.lru_cache(lambda: None))


@contextmanager
def without_new_results() -> Iterator[None]:
    """Empty, afterwards, every `functools.lru_cache` outside torch that took something up meanwhile."""
    before = {id(cached): (cached, cached.cache_info().misses) for cached in _caches()}
    imported = len(sys.modules)
    try:
        yield
    finally:
        known = [cached for cached, _ in before.values()]
        for cached in known if len(sys.modules) == imported else _caches():
            if cached.cache_info().misses != before.get(id(cached), (cached, 0))[1]:
                cached.cache_clear()


def _caches() -> list[Any]:
    """Every cached function there is, but for those of torch and of Python itself, which hold no results of models.

    What was put aside from the garbage collector (`gc.freeze`) is among them.
    """
    is_frozen = bool(gc.get_freeze_count())
    if is_frozen:
        gc.unfreeze()
    try:
        found = [thing for thing in gc.get_referrers(_Cached) if type(thing) is _Cached]
    finally:
        if is_frozen:
            gc.freeze()
    return [c for c in found if str(getattr(c, "__module__", "")).partition(".")[0] not in _FOREIGN]
