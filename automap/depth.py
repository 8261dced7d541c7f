"""Depth: how many blocks of a kind each model runs, to say of two that do not match what one has more of.

Weights that run come in, one finding or none goes out. It explains a refusal and never decides a match.
"""

from __future__ import annotations

from collections.abc import Iterable

from automap.capture import Weight
from automap.findings import Finding, Site


def depth_finding(src: Iterable[Weight], dest: Iterable[Weight]) -> Finding | None:
    """Return the kind of numbered block that one model runs more of, the largest that both have; None where equal.

    Blocks are of one kind where they hold equally many numbers, however these are cut into weights. The blocks that one
    has more of must account for most of what it holds more: otherwise the difference is another one.
    """
    src, dest = tuple(src), tuple(dest)
    ours, theirs = _by_size(src), _by_size(dest)
    gap = _total(src) - _total(dest)
    uneven = [
        size for size in ours.keys() & theirs.keys() if _accounts(gap, size * (len(ours[size]) - len(theirs[size])))
    ]
    if not uneven:
        return None
    size = max(uneven)
    mine, yours = ours[size], theirs[size]
    extra = abs(len(mine) - len(yours))
    more, fewer, names = ("src", "dest", mine) if len(mine) > len(yours) else ("dest", "src", yours)
    message = (
        f"{more} has {extra} block{'s' * (extra != 1)} more than {fewer} (of {size} parameters each): "
        f"src has {len(mine)} like `{mine[-1]}`, dest {len(yours)} like `{yours[-1]}`"
    )
    site = Site(names[-1], "block")
    advice = f"build {fewer} with as many blocks as {more}"
    if more == "src":
        return Finding("unused-source", message, site, None, help=advice)
    return Finding("unmatched-weight", message, None, site, help=advice)


def _total(weights: Iterable[Weight]) -> int:
    return sum(weight.tensor.numel() for weight in weights)


def _accounts(gap: int, blocks: int) -> bool:
    """Whether so many numbers in blocks explain a gap between two models: to three in ten, for heads differ too."""
    return blocks != 0 and 0.7 <= gap / blocks <= 1.3


def _by_size(weights: Iterable[Weight]) -> dict[int, list[str]]:
    """The numbered modules of a model by how many numbers they hold, in order."""
    sizes: dict[str, int] = {}
    for weight in weights:
        parts = weight.name.split(".")
        for depth, part in enumerate(parts[:-1], start=1):
            if part.isdigit():
                name = ".".join(parts[:depth])
                sizes[name] = sizes.get(name, 0) + weight.tensor.numel()
    found: dict[int, list[str]] = {}
    for name, size in sizes.items():
        found.setdefault(size, []).append(name)
    return found
