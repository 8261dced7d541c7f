"""One explanation from beginning to end: the rounds past every difference, and dest's own weights where it has some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from automap.align import Solution
from automap.align.moments import EXACT
from automap.capture import Capture
from automap.explanation.loaded import Held, held_weights, holds_plan
from automap.explanation.rounds import Journey, journey
from automap.explanation.summary import departures, folded, ordered
from automap.results import Departure, Explanation, Match, OpParity, OutputParity
from automap.verify import Models, Pairs, op_parities, output_parity, own_check

_UNFINISHED = "what lies behind the last place could not be looked at"
_UNPROVEN = "the outputs agree, and which weight is which is not proven: weights were not compared one by one"
_ABSORBED = "weights that are computed from src's make up for all of this: `automap SRC DEST` places them"
_LINEAR = {"add", "mul", "div", "neg", "matmul", "convolution", "lookup", "weight"}
_ABSENT = {"op-missing", "unused-source"}
_SEPARATE = {"attribute-differs", "constant-differs"}


def explained(
    match: Match,
    solution: Solution,
    models: Models,
    pairs: Pairs,
    computed: Callable[[], Match],
    *,
    loaded: bool,
    train: bool,
    tolerance: float | None,
    seed: int,
) -> Explanation:
    """Return where dest departs from src.

    Args:
        match: the match of both, without arithmetic on weights.
        solution: what it rests on.
        models: both models with their inputs.
        pairs: the paths of the outputs to compare.
        computed: the match with arithmetic on weights, where it is asked for.
        loaded: whether dest has its weights.
        train: whether both were recorded in train mode.
        tolerance: for the outputs of both models as they are, where loaded.
        seed: the seed of the match.
    """
    outputs = _outputs(solution, models, pairs, loaded=loaded, train=train, tolerance=tolerance)
    dest = solution.dest_capture
    way = journey(solution, models.dest_inputs, seed=seed)
    listed = departures(way, dest)
    notes: tuple[str, ...] = () if way.is_finished else (_UNFINISHED,)
    agree = loaded and bool(outputs) and all(output.is_equal for output in outputs)
    if agree and listed and _holds(computed(), models):
        listed = {name: _made_up_for(departure) for name, departure in listed.items()}
    elif agree and not way.is_proven:
        notes += (_UNPROVEN,)
    elif loaded:
        listed |= _with_weights(listed, held_weights(way, dest, models.src, models.dest))
    elif not train and not match.is_complete and _may_be_absorbed(listed) and computed().is_complete:
        notes += (_ABSORBED,)
    parity = _ops(way, dest, listed)
    found, blocks = folded(ordered(listed, dest)), _blocks(match)
    if blocks:  # what comes behind another number of blocks departs in consequence
        found = (*blocks, *(departure for departure in found if departure.finding.code in _SEPARATE))
    return Explanation(match, found, outputs, parity, loaded, train, notes)


def _may_be_absorbed(listed: Mapping[str, Departure]) -> bool:
    """Whether there are departures, and none is an op that no weight before or behind it can make up for."""
    sites = [d.finding.src if d.finding.code in _ABSENT else d.finding.dest for d in listed.values()]
    return bool(sites) and {site.kind for site in sites if site is not None} <= _LINEAR


def _holds(match: Match, models: Models) -> bool:
    """Whether dest has the weights of a complete match."""
    return match.is_complete and holds_plan(match.plan, models.src, models.dest)


def _made_up_for(departure: Departure) -> Departure:
    """A departure of ops where weights that are computed from src's make the models equal all the same."""
    finding = departure.finding
    notes = (*finding.notes, "weights that are computed from src's make up for it")
    return replace(departure, finding=replace(finding, severity="warning", notes=notes))


def _outputs(
    solution: Solution, models: Models, pairs: Pairs, *, loaded: bool, train: bool, tolerance: float | None
) -> tuple[OutputParity, ...]:
    """Both models' own outputs where dest has its weights, else those on the weights of the match."""
    if loaded:
        return own_check(models, pairs, tolerance).outputs if pairs and not train else ()
    src, dest = dict(solution.src.flow.outputs), dict(solution.dest.flow.outputs)
    return tuple(
        output_parity(a, b, solution.src.run.value(src[a]), solution.dest.run.value(dest[b]), EXACT)
        for a, b in pairs
        if solution.dest.run.knows(dest[b]) and solution.src.run.knows(src[a])
    )


def _with_weights(listed: Mapping[str, Departure], weights: Sequence[Held]) -> dict[str, Departure]:
    """Departures at wrong weights, by the name of the call where they show (or of the weight)."""
    found: dict[str, Departure] = {}
    for number, held in enumerate(weights):
        name = held.call if held.call is not None and held.call not in {*listed, *found} else f"{held.call}/{number}"
        found[name] = held.departure
    return found


def _ops(way: Journey, dest: Capture, listed: Mapping[str, Departure]) -> tuple[OpParity, ...]:
    """Every aligned use of a weight beside src's, and in their place the calls that depart."""
    place = {node.name: number for number, node in enumerate(dest.graph.nodes)}
    found: list[tuple[int, OpParity]] = []
    for node, parity in op_parities(way.solution).items():
        origin = way.solution.dest.flow[node].origin
        if origin is not None and origin.name not in listed:
            found.append((place.get(origin.name, len(place)), parity))
    for name, departure in listed.items():
        sites, off = (departure.finding.dest, departure.finding.src), departure.gap
        if off is not None and sites[0] is not None and sites[1] is not None:
            at = place.get(name.partition("/")[0], len(place))
            found.append((at, OpParity(sites[0], sites[1], off.max_abs, off.max_rel, EXACT)))
    return tuple(parity for _, parity in sorted(found, key=lambda entry: entry[0]))


def _blocks(match: Match) -> tuple[Departure, ...]:
    """What the match says of whole blocks: one side has more of them."""
    errors = [finding for finding in match.findings if finding.severity == "error"]
    return tuple(Departure(f) for f in errors if "block" in {site.kind for site in (f.src, f.dest) if site is not None})
