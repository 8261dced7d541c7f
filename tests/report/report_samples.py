"""Results made by hand for the reports' tests: small ones, hostile ones, and one with 20,000 weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import get_args

from automap.findings import Finding, Site
from automap.plan import Expr, Plan, Slice, Source
from automap.report import OpParity, Report, build_report
from automap.results import CaptureSummary, Evidence, Match, OutputParity, Parity, ParityCheck, Transfer, Verdict

CAPTURE = CaptureSummary("ViT", "dispatch", "real", 312, 152, 346_000_000, 0.31)
HOSTILE = (
    "</script><b>bold</b>.weight",
    "<img src=x onerror=hacked=1>",
    'a"onmouseover="hacked=1',
    "{{ 7*7 }}{% raw %}",
    "</style></textarea></title>&amp;",
    "<!--.0.w",
)


def rows_of(index: int) -> Slice:
    return Slice(Source(f"blocks.{index}.qkv.weight", (24, 8)), (8, 0), (16, 8), (1, 1))


def missing(index: int, *, shape: tuple[int, ...] = (24, 8), note: str = "q aligns") -> Finding:
    name = f"blocks.{index}.qkv.weight"
    return Finding(
        "unmatched-weight",
        f"nothing in src computes what `{name}` feeds",
        src=Site(
            f"layers.{index}.w", "linear", (16, 8), "torch.float32", "/a/site-packages/lib/mae.py", 41, "  qk = f(x)"
        ),
        dest=Site(name, "weight", shape, "torch.float32", "my_vit.py", 88, "qkv = self.qkv(x)"),
        notes=(note,),
        help="see `automap trace src`",
    )


def match_of(verdict: Verdict = "complete", findings: tuple[Finding, ...] = ()) -> Match:
    entries = {
        "cls": Source("cls_token", (1, 1, 8)),
        **{f"layers.{i}.k.weight": rows_of(i) for i in range(3)},
        "head.weight": Source("fc.weight", (4, 8), "bfloat16"),
    }
    evidence: dict[str, Evidence] = dict.fromkeys(entries, "proved")
    return Match(
        Plan(entries),
        findings,
        verdict,
        evidence | {"layers.2.k.weight": "tested", "head.weight": "assumed"},
        CAPTURE,
        replace(CAPTURE, model="ViTModel", mode="fake"),
        unused=tuple(f"blocks.{i}.gamma" for i in range(12)),
        kept=("bn.num_batches_tracked",),
    )


def transfer_of(match: Match, max_rel: float = 2e-15) -> Transfer:
    output = OutputParity("", "logits", (1, 1000), "torch.float64", 3e-15, max_rel, 1e-9)
    checks = (ParityCheck("random", "sample", (output,)), ParityCheck("own", "random", (output,)))
    parity = Parity(checks, ("layers.0.k.bias",), input_sensitivity=1.2, swaps_tried=10, swaps_caught=9)
    return Transfer(match, parity, match.evidence, is_applied=True, tolerance=1e-9)


def named(*names: str, evidence: Evidence = "proved") -> Match:
    """A match of weights that are called the same on both sides."""
    return of_entries({name: Source(name, (2, 3)) for name in names}, dict.fromkeys(names, evidence))


def of_entries(entries: dict[str, Expr], evidence: dict[str, Evidence]) -> Match:
    return Match(Plan(entries), (), "complete", evidence, CAPTURE, CAPTURE)


def op(number: int, max_rel: float = 1e-16, *, tolerance: float = 1e-9) -> OpParity:
    site = Site(f"blocks.{number // 4}.op{number}", "matmul", (2, 3), "float64", "/home/ada/mine.py", number, "x @ w")
    return OpParity(site, replace(site, name=f"layers.{number // 4}.op{number}"), 3 * max_rel, max_rel, tolerance)


@cache
def twenty_thousand(*, is_foldable: bool) -> Report:
    """The report on 66 layers of 101 experts with three weights each, or on 20,000 weights no two of which fold."""
    if is_foldable:
        keys = [(f"{i}.mlp.experts.{e}.w{w}", (8, 8)) for i in range(66) for e in range(101) for w in range(3)]
    else:
        keys = [(f"{n % 100}.part_{(n * n * 13) % 40009}x", (8 + n % 13, 8)) for n in range(20_000)]
    entries: dict[str, Expr] = {
        f"model.layers.{key}.weight": Slice(Source(f"blocks.{key}.w", (99, 8)), (0, 0), shape, (1, 1))
        for key, shape in keys
    }
    kinds = get_args(Evidence)
    rare = {name: kinds[n % 4] for n, name in enumerate(entries) if not n % 997}
    return build_report(of_entries(entries, dict.fromkeys(entries, kinds[0]) | rare))
