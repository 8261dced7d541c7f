"""The sections "Speed" of RESULTS.md and scaling.svg: figures in, markdown and SVG out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from results import provenance, table

Figures = dict[str, Any]
CASES = ("ResNet-50", "ViT-B/16", "Swin-T", "ConvNeXt-T")
SHAPES = (
    *("Llama 70B, 20 of 80 blocks", "Llama 70B, 40 of 80 blocks", "Llama 70B", "twice as deep, 160 blocks"),
    *("64 experts a block, 16 blocks", "64 experts a block, 32 blocks"),
)
STAGES = ("capture", "canonical", "compute", "align", "plan", "apply", "verify")
MATCHING = ("canonical", "compute", "align")


TIMES = (
    *("model", "verdict", "4 forwards", "hook order", "quick", "default"),
    *("quick / forwards", "default / forwards", "quick / hook order", "default / hook order"),
)
SIZES = ("model", "weights of both", "built and run", "transferred", "more")


def capture(real: Mapping[str, Figures], fake: Sequence[Figures]) -> str:
    """Return what recording takes beside a forward, and under fake tensors for each op."""
    return f"""## Speed: capture

{provenance()}

The forward of the timm models of the next section and recording it, and recording it in outline, as is done with dest:
medians; "over the forward" is taken within a round.

{table(("model", "ops", "forward", "recorded", "over the forward", "in outline"), map(_recorded, real.items()))}

Llama 70B under fake tensors, its weights on `meta`: what each op between a depth of 10 and of 40 blocks adds
to a forward under `FakeTensorMode`, and to recording it, faking the weights included.

{table(("model", "ops of 40 blocks", "forward, an op", "recorded, an op", "more"), map(_recorded_fake, fake))}
"""


def _recorded(item: tuple[str, Figures]) -> list[str]:
    name, figures = item
    if "failed" in figures:
        return [name, figures["failed"], *"----"]
    rounds = figures["rounds"]
    forward, recorded, outline = (median(r[kind] for r in rounds) for kind in ("forward", "recorded", "outline"))
    over = median(r["recorded"] / r["forward"] - 1 for r in rounds)
    times = [f"{1e3 * forward:.0f} ms", f"{1e3 * recorded:.0f} ms", f"{over:.0%}", f"{1e3 * outline:.0f} ms"]
    return [name, str(figures["ops"]), *times]


def _recorded_fake(figures: Figures) -> list[str]:
    if "failed" in figures:
        return ["Llama", figures["failed"], *"---"]
    few, many = figures["depths"]
    ops = many["ops"] - few["ops"]
    forward, recorded = (
        1e6 * (median(r[kind] for r in many["rounds"]) - median(r[kind] for r in few["rounds"])) / ops
        for kind in ("forward", "recorded")
    )
    times = [f"{forward:.0f} us", f"{recorded:.0f} us", f"{recorded - forward:.0f} us"]
    return [many["name"], str(many["ops"]), *times]


def transfer(found: Mapping[str, Figures], repeats: int) -> str:
    """Return seconds and ratios, the stages, and memory, of each case."""
    whole = {name: figures for name, figures in found.items() if "failed" not in figures}
    notes = [f"{name}: the hook-order transfer {f['hook_order']}." for name, f in whole.items()]
    notes += [f"{name}: {f['failed']}." for name, f in found.items() if "failed" in f]
    return f"""## Speed: transfer

{provenance()}

One image of 224 x 224, float32, one torch thread; medians of {repeats} rounds of one call each; ratios are taken within
a round. "Hook order" is the transfer by order of module calls and the two forwards that check it. {" ".join(notes)}

{table(TIMES, [_times(name, f) for name, f in whole.items()])}

The stages of the default transfer, in seconds and as a share:

{table(("model", *STAGES, "all"), [_stages(name, f) for name, f in whole.items()])}

Memory: the process's largest resident size in MB with both models built and run once, and after a transfer:

{table(SIZES, [_memory(name, f) for name, f in whole.items()])}
"""


def _times(name: str, figures: Figures) -> list[str]:
    rounds = figures["rounds"]
    seconds = [_median(rounds, kind) for kind in ("forwards", "hook_order", "quick", "default")]
    ratios = [_ratio(rounds, a, b) for b in ("forwards", "hook_order") for a in ("quick", "default")]
    return [name, figures["verdict"], *seconds, *ratios]


def _median(rounds: Sequence[Figures], kind: str) -> str:
    return f"{median(r[kind] for r in rounds):.2f} s" if kind in rounds[0] else "-"


def _ratio(rounds: Sequence[Figures], over: str, under: str) -> str:
    return f"{median(r[over] / r[under] for r in rounds):.2f}" if under in rounds[0] else "-"


def _stages(name: str, figures: Figures) -> list[str]:
    rounds = figures["rounds"]
    whole = median(r["default"] for r in rounds)
    each = [median(r["stages"].get(stage, 0.0) for r in rounds) for stage in STAGES]
    return [name, *(f"{s:.2f} ({s / whole:.0%})" for s in each), f"{whole:.2f}"]


def _memory(name: str, figures: Figures) -> list[str]:
    sizes = [figures[key] for key in ("weights_mb", "built_mb", "transferred_mb")]
    return [name, *(f"{size:.0f}" for size in sizes), f"{sizes[2] - sizes[1]:.0f}"]


def start(rounds: Sequence[Mapping[str, float]]) -> str:
    """Return the median wall time of each process."""
    rows = [[name, f"{median(r[name] for r in rounds):.2f} s"] for name in rounds[0]]
    return f"""## Speed: start

{provenance()}

Whole processes with one torch thread, medians of {len(rounds)} rounds of one each.

{table(("process", "wall"), rows)}
"""


def matching_s(figures: Figures) -> float:
    """Return the seconds of canonical and align, the computing between them included."""
    return sum(figures["stages"][stage] for stage in MATCHING)


def matching(found: Mapping[int, Figures]) -> str:
    """Return a line for each size."""
    return f"""## Speed: matching

{provenance()}

Residual networks of two layers a block, 8 wide, spelled in two ways, matched on one torch thread, nothing applied.
Seconds of each stage; ops per second counts the ops of both sides over canonical, compute and align.

{table(("ops of src, dest", "verdict", "capture", *MATCHING, "ops per second", "peak MB"), map(_sizes, found.items()))}

![seconds against ops](scaling.svg)
"""


def _sizes(item: tuple[int, Figures]) -> list[str]:
    ops, figures = item
    if "failed" in figures:
        return [f"about {ops}", figures["failed"], *"-" * (len(MATCHING) + 3)]
    stages = [f"{figures['stages'][stage]:.2f}" for stage in ("capture", *MATCHING)]
    rate = (figures["src_ops"] + figures["dest_ops"]) / matching_s(figures)
    sides = f"{figures['src_ops']}, {figures['dest_ops']}"
    return [sides, figures["verdict"], *stages, f"{rate:.0f}", f"{figures['peak_mb']:.0f}"]


def large(found: Mapping[str, Figures]) -> str:
    """Return what matching takes for each shape, and how it grows with depth."""
    columns = ("shape", "parameters", "ops of both", "verdict", "build", "match", "capture", *MATCHING, "peak MB")
    return f"""## Speed: large models

{provenance()}

Models on `meta`, no weight of which has values: Llama in Meta's spelling against transformers', and a decoder with 64
experts a block in two layouts; 8 tokens of the whole vocabulary. {_growth(found)}

{table(columns, map(_shape, found.items()))}
"""


def _growth(found: Mapping[str, Figures]) -> str:
    """How many times longer twice as many blocks take."""
    pairs = [(SHAPES[3], SHAPES[2]), (SHAPES[5], SHAPES[4])]
    known = [(a, b) for a, b in pairs if "match_s" in found.get(a, {}) and "match_s" in found.get(b, {})]
    ratios = [f"{a} against {b}: {found[a]['match_s'] / found[b]['match_s']:.2f} times the time." for a, b in known]
    return " ".join(ratios)


def _shape(item: tuple[str, Figures]) -> list[str]:
    name, figures = item
    if "failed" in figures:
        return [name, *"--", figures["failed"], *"-" * (len(MATCHING) + 4)]
    stages = [f"{figures['stages'][stage]:.2f}" for stage in ("capture", *MATCHING)]
    sizes = [f"{figures['parameters'] / 1e9:.3g} G", str(figures["ops"]), figures["verdict"]]
    times = [f"{figures['build_s']:.1f} s", f"{figures['match_s']:.1f} s"]
    return [name, *sizes, *times, *stages, f"{figures['peak_mb']:.0f}"]


WIDTH, HEIGHT, MARGIN = 480, 320, 48


def scaling_svg(points: Mapping[int, float]) -> str:
    """Return a chart, both axes logarithmic, of seconds against ops, with a dashed line of growth in proportion."""
    ops, times = sorted(points), [points[n] for n in sorted(points)]
    across = _axis(ops[0], ops[-1], MARGIN, WIDTH - MARGIN)
    straight = [times[0] * n / ops[0] for n in ops]
    up = _axis(min(times + straight), max(times + straight), HEIGHT - MARGIN, MARGIN)
    line, dashed = (_points(map(across, ops), map(up, ys)) for ys in (times, straight))
    marks = "\n".join(_mark(across(n), up(s), f"{n} ops, {s:.2g} s") for n, s in zip(ops, times, strict=True))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"
font-size="12">
<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>
<path d="M{MARGIN},{MARGIN} V{HEIGHT - MARGIN} H{WIDTH - MARGIN}" fill="none" stroke="#666"/>
<polyline points="{dashed}" fill="none" stroke="#999" stroke-dasharray="4 4"/>
<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>
{marks}
<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">ops of one side (dashed: time grows as ops do)</text>
<text x="{MARGIN}" y="{MARGIN - 30}">seconds of canonical and align, both axes logarithmic</text>
</svg>
"""


def _axis(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    span = math.log(high / low) or 1.0
    return lambda value: first + (last - first) * math.log(value / low) / span


def _points(xs: Iterable[float], ys: Iterable[float]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def _mark(x: float, y: float, words: str) -> str:
    text = f'<text x="{x:.1f}" y="{y - 10:.1f}" text-anchor="{"start" if x < WIDTH / 2 else "end"}">{words}</text>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#06c"/>\n{text}'
