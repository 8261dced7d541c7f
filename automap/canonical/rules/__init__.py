"""Lowering rules, one file a subject. `load` registers them all."""

from __future__ import annotations


def load() -> None:
    """Register every rule; importing a subject's module does it."""
    from automap.canonical.rules import arithmetic, attention, casts, layout, linear, lookups, means, norms

    del arithmetic, attention, casts, layout, linear, lookups, means, norms
