"""What a journey amounts to: every place where dest departs, once, equal ones folded over blocks, in dest's order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from automap.capture import Capture
from automap.explanation.aftermath import Aftermath
from automap.explanation.rounds import Journey
from automap.findings import Finding
from automap.report.folding import fold
from automap.results import Departure

_NAME = re.compile(r"[\w{}]+(\.[\w{}]+)+")
_QUOTED = re.compile("`([^`]+)`")


def departures(journey: Journey, dest: Capture) -> dict[str, Departure]:
    """Return where dest departs, by the name of the recorded call; dest is its recording without repairs."""
    after = Aftermath.of(journey, dest)
    listed: dict[str, Departure] = {}
    with torch.no_grad(), torch._C.DisableTorchFunction():
        for name, found in journey.points.items():
            own = (g for g in journey.repairs.given.values() if g.point == name and g.call == g.like)
            gaps = (after.mirror.gift_gap(gift)[0] for gift in own)
            off = found.point.gap or next((gap for gap in gaps if gap is not None), None)
            listed[name] = Departure(found.point.finding, off)
        for name, departure in (*after.adjusted(), *after.given()):
            listed.setdefault(name, departure)
    return listed


def ordered(listed: Mapping[str, Departure], dest: Capture) -> list[Departure]:
    """Return departures in dest's order; what comes behind a slash in a name does not count."""
    place = {node.name: number for number, node in enumerate(dest.graph.nodes)}
    return [listed[name] for name in sorted(listed, key=lambda n: place.get(n.partition("/")[0], len(place)))]


def folded(listed: list[Departure]) -> tuple[Departure, ...]:
    """Return departures with those of one cause as one: the first of them, with the places of the others.

    Ops are of one cause where the same is said of them but for names; weights, where only numbers of blocks differ.
    """
    weights = [departure for departure in listed if departure.finding.code == "weight-differs"]
    rows = fold([(departure.finding.message,) for departure in weights])
    causes: dict[int, object] = {id(weights[member]): row.members for row in rows for member in row.members}
    groups: dict[object, list[Departure]] = {}
    for departure in listed:
        groups.setdefault(causes.get(id(departure), _cause(departure.finding)), []).append(departure)
    return tuple(_as_one(members) for members in groups.values())


def _as_one(members: list[Departure]) -> Departure:
    names = dict.fromkeys(_place(member.finding) for member in members)
    others = [(name,) for name in list(names)[1:]]
    return replace(members[0], same=tuple(f.texts[0] for f in fold(others)), count=len(members))


def _place(finding: Finding) -> str:
    """What a finding is about: a weight, if it is one of src that dest has no use for, else where dest departs."""
    if finding.code == "weight-differs":
        return next(iter(_QUOTED.findall(finding.message)), "")
    if finding.src is not None and finding.src.kind == "weight":
        return finding.src.name
    site = finding.dest or finding.src
    return "" if site is None else site.name or f"{site.kind} in {site.file}:{site.line}"


def _cause(finding: Finding) -> object:
    """What a finding says but for the names in it."""
    kinds = [site.kind if site is not None else None for site in (finding.dest, finding.src)]
    return finding.severity, finding.code, _NAME.sub("#", finding.message), *kinds
