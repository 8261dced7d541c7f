"""Products in order of the mean square of what they meet, so that few of many have to be looked at."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from automap.align.forms import LinearForm


class BySize:
    """The products of each kind by mean square, with their place among all; stacks, which have several, at the end."""

    def __init__(self, searched: Iterable[LinearForm]) -> None:
        self._kinds: dict[str, tuple[list[float], list[tuple[int, LinearForm]]]] = {}
        sized = [(f.center[1] if f.groups == 1 else float("inf"), n, f) for n, f in enumerate(searched)]
        for size, place, form in sorted(sized, key=lambda entry: entry[:2]):
            sizes, forms = self._kinds.setdefault(form.kind, ([], []))
            sizes.append(size)
            forms.append((place, form))

    def near(self, form: LinearForm, kind: str, tolerance: float) -> list[LinearForm]:
        """Return the products of a kind that may meet what form meets, up to a relative tolerance; stacks always."""
        sizes, forms = self._kinds.get(kind, ([], []))
        size = form.center[1] if form.groups == 1 else -1.0
        if size < 0:
            return [f for _, f in sorted(forms, key=lambda pair: pair[0])]
        low, high = bisect_left(sizes, size * (1 - 2 * tolerance)), bisect_right(sizes, size * (1 + 2 * tolerance))
        stacks = [pair for pair in forms[bisect_left(sizes, float("inf")) :] if pair[1].groups > 1]
        return [f for _, f in sorted([*forms[low:high], *stacks], key=lambda pair: pair[0])]
