"""Function results that libraries keep across calls and models: a fake tensor among them would outlive its run."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FOREIGN = {"torch", "sympy", "re", "typing", "functools", "inspect", "linecache", "automap", "None"}
_Cached = type(functools.lru_cache(lambda: None))


@contextmanager
def without_new_results() -> Iterator[None]:
    """Empty, afterwards, every `functools.lru_cache` outside torch that took something up meanwhile."""
    before = {id(cached): cached.cache_info().misses for cached in _caches()}
    try:
        yield
    finally:
        for cached in _caches():
            if cached.cache_info().misses != before.get(id(cached), 0):
                cached.cache_clear()


def _caches() -> list[Any]:
    """Every cached function there is, but for those of torch and of Python itself, which hold no results of models."""
    found = [thing for thing in _objects() if type(thing) is _Cached]
    return [c for c in found if str(getattr(c, "__module__", "")).partition(".")[0] not in _FOREIGN]


def _objects() -> list[Any]:
    """All that the garbage collector knows of, what was put aside from it (`gc.freeze`) included."""
    if not gc.get_freeze_count():
        return gc.get_objects()
    gc.unfreeze()
    try:
        return gc.get_objects()
    finally:
        gc.freeze()
