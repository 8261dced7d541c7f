"""The report says what a match found, folded but never more than is true."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import match_of, missing, named, of_entries, op, transfer_of
from rich.cells import cell_len
from rich.console import Console

from automap.findings import Finding
from automap.plan import Slice, Source
from automap.report import OpParity, build_report, print_findings, print_report, render_text, report_json
from automap.report.folding import fold
from automap.report.model import fold_findings, format_bytes, short_path
from automap.results import Verdict

EXPECTED = """\
automap  ViT -> ViTModel

captured
  src   ViT       312 ops, 152 weights (346.0 MB); dispatch over real tensors, 0.31 s
  dest  ViTModel  312 ops, 152 weights (346.0 MB); dispatch over fake tensors, 0.31 s

weights
  cls           f32[1,1,8]  <- cls_token                      proved
  layers.{i}   for i in 0..1
    k.weight    f32[8,8]    <- blocks.{i}.qkv.weight[8:16]    proved
  layers.2
    k.weight    f32[8,8]    <- blocks.2.qkv.weight[8:16]      tested
  head.weight   bf16[4,8]   <- fc.weight                      assumed

unused in src (nothing in dest takes it): 12
  blocks.{0..11}.gamma
kept in dest (no weight of src belongs there): 1
  bn.num_batches_tracked
assumed (by name and shape alone, or no equal output depends on it): 1
  head.weight

parity
  random weights, sample input  output / logits f64[1,1000]  max abs 3.0e-15, max rel 2.0e-15, tolerance 1e-09  equal
  own weights, random input     output / logits f64[1,1000]  max abs 3.0e-15, max rel 2.0e-15, tolerance 1e-09  equal
  another input changes the outputs by 1.2e+00 (relative)
  9 of 10 wrong maps tried were told apart
  no compared output depends on 1 weight: layers.0.k.bias

verdict: complete, outputs equal
  5 weights of dest: 3 proved, 1 tested, 1 assumed
  next: write dest with --out DIR, the map with --plan FILE (in Python: plan.save(path))
"""

FINDING = """\
error[unmatched-weight]: nothing in src computes what `blocks.0.qkv.weight` feeds
  --> dest  blocks.0.qkv.weight  f32[24,8]  my_vit.py:88   qkv = self.qkv(x)
  --> src   layers.0.w (linear)  f32[16,8]  lib/mae.py:41  qk = f(x)
   = note: q aligns
   = note: same for blocks.{1..11}.qkv.weight
   = help: see `automap trace src`
"""


def test_the_whole_report_reads_as_documented() -> None:
    text = render_text(transfer_of(match_of()))
    assert re.sub(r" +", " ", text) == re.sub(r" +", " ", EXPECTED)


def test_columns_of_the_weights_stand_in_line() -> None:
    lines = [line for line in render_text(match_of()).splitlines() if "<-" in line]
    assert len({line.index("<-") for line in lines}) == 1
    assert len({re.search(r"(proved|tested|assumed)$", line).start() for line in lines}) == 1  # type: ignore[union-attr]


def test_equal_findings_are_one_finding_with_a_note() -> None:
    assert FINDING in render_text(match_of("impossible", tuple(missing(i) for i in range(12))))


@pytest.mark.parametrize(
    ("findings", "groups"),
    [
        pytest.param([missing(i) for i in range(4)], [4], id="equal"),
        pytest.param([missing(0), missing(1, shape=(12, 8)), missing(2)], [1, 1, 1], id="another shape between"),
        pytest.param([missing(0), missing(2), missing(3)], [1, 2], id="a gap"),
        pytest.param([missing(0), missing(1, note="k aligns")], [1, 1], id="another note"),
        pytest.param([replace(missing(0), severity="warning"), missing(1)], [1, 1], id="another severity"),
    ],
)
def test_findings_fold_only_where_equal_and_unbroken(findings: list[Finding], groups: list[int]) -> None:
    assert sorted(folded.count for folded in fold_findings(findings)) == sorted(groups)


def test_errors_come_before_warnings() -> None:
    late = Finding("not-executed", "`pooler.weight` never runs", severity="warning")
    assert [folded.finding.severity for folded in fold_findings([late, missing(0)])] == ["error", "warning"]


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        pytest.param([("a.0.w",), ("a.1.w",)], [("a.{0..1}.w",)], id="a run"),
        pytest.param([("a.0.w", "b.1.v"), ("a.1.w", "b.2.v")], [("a.{0..1}.w", "b.{1..2}.v")], id="offset"),
        pytest.param([("a.0.w", "b.3.v"), ("a.1.w", "b.3.v")], [("a.{0..1}.w", "b.3.v")], id="constant beside it"),
        pytest.param([("a.0.w", "b.1.v"), ("a.1.w", "b.0.v")], None, id="crossed"),
        pytest.param([("a.0.w",), ("a.2.w",)], None, id="gap"),
        pytest.param([("a.0.w", "x"), ("a.1.w", "y")], None, id="other text"),
        pytest.param([("a.0.0.w",), ("a.1.1.w",)], None, id="a diagonal is not a block"),
        pytest.param([("scale 0.5 of a.w",), ("scale 0.6 of a.w",)], None, id="a figure is no name"),
        pytest.param(
            [(f"a.{i}.b.{j}.w", f"x.{i}.y.{j}") for i, j in product(range(2), range(3))],
            [("a.{0..1}.b.{0..2}.w", "x.{0..1}.y.{0..2}")],
            id="two ranges",
        ),
        pytest.param(
            [(f"a.{i}.b.{j}.w", f"x.{j}.y.{i}") for i, j in product(range(2), range(2))],
            [("a.0.b.{0..1}.w", "x.{0..1}.y.0"), ("a.1.b.{0..1}.w", "x.{0..1}.y.1")],
            id="transposed ranges would mislead",
        ),
        pytest.param([("0.w",), ("1.w",)], [("{0..1}.w",)], id="number first"),
    ],
)
def test_rows_fold_only_where_the_fold_is_true(
    rows: list[tuple[str, ...]], texts: list[tuple[str, ...]] | None
) -> None:
    assert [row.texts for row in fold(rows)] == (rows if texts is None else texts)


NAMES = st.lists(st.sampled_from(["a", "b", "0", "1", "2", "3"]), min_size=1, max_size=4).map(".".join)


@given(st.lists(st.tuples(NAMES, NAMES), max_size=24))
def test_folding_keeps_every_row_once_and_in_reach(rows: list[tuple[str, str]]) -> None:
    folds = fold(rows)
    assert sorted(member for row in folds for member in row.members) == list(range(len(rows)))
    for row in folds:
        pattern = [re.sub(r"\\\{(\d+)\\\.\\\.(\d+)\\\}", _alternatives, re.escape(text)) for text in row.texts]
        assert all(
            re.fullmatch(p, text) for member in row.members for p, text in zip(pattern, rows[member], strict=True)
        )
        ranges = [range(int(a), int(b) + 1) for a, b in re.findall(r"\{(\d+)\.\.(\d+)\}", row.texts[0])]
        if ranges and len({rows[member] for member in row.members}) == len(row.members):
            assert len(row.members) >= max(len(values) for values in ranges)


def _alternatives(found: re.Match[str]) -> str:
    return f"({'|'.join(map(str, range(int(found[1]), int(found[2]) + 1)))})"


@pytest.mark.parametrize(
    ("verdict", "max_rel", "advice"),
    [
        ("complete", 1e-15, "--out DIR"),
        ("complete", 1e-3, "do not use these weights"),
        ("complete", float("nan"), "do not use these weights"),
        ("differs", 1e-3, "--allow-differences"),
        ("ambiguous", 1e-3, "--pin DEST=SRC"),
        ("impossible", 1e-3, "automap trace"),
    ],
)
def test_each_outcome_says_what_to_do_next(verdict: Verdict, max_rel: float, advice: str) -> None:
    transfer = transfer_of(match_of(verdict), max_rel)
    assert any(advice in step for step in build_report(transfer).next_steps)
    assert f"verdict: {verdict}, outputs {'equal' if max_rel < 1e-9 else 'differ'}" in render_text(transfer)


def test_paths_in_reports_are_never_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert short_path("/usr/lib/site-packages/timm/vit.py") == "timm/vit.py"
    assert short_path(f"{tmp_path}/sub/mine.py") == "sub/mine.py"
    assert short_path("/home/somebody/mine.py") == "mine.py"
    assert short_path("mine.py") == "mine.py"


def test_json_is_complete_unfolded_and_without_times() -> None:
    data = json.loads(
        report_json(transfer_of(match_of("differs", (missing(0), missing(1))), float("nan")), notes=("n",))
    )
    assert data["schema"] == "automap-report/1"
    assert (data["verdict"], data["is_applied"], data["is_equal"], data["notes"]) == ("differs", True, False, ["n"])
    assert data["weights"][1] == {
        "dest": "layers.0.k.weight",
        "shape": [8, 8],
        "dtype": "float32",
        "expression": "blocks.0.qkv.weight[8:16]",
        "evidence": "proved",
    }
    assert len(data["findings"]) == 2
    assert data["findings"][0]["src"]["file"] == "lib/mae.py"
    assert data["parity"]["checks"][0]["outputs"][0]["max_rel"] == "nan"
    assert data["parity"]["checks"][0]["is_equal"] is False
    assert "elapsed_s" not in json.dumps(data)


def test_a_match_alone_has_no_parity() -> None:
    data = json.loads(report_json(match_of()))
    assert (data["parity"], data["is_equal"], data["is_applied"]) == (None, None, False)
    assert "parity" not in render_text(match_of())


def test_the_shown_report_is_the_plain_one_at_any_width() -> None:
    for width in (40, 200):
        stream = io.StringIO()
        print_report(Console(file=stream, width=width), build_report(transfer_of(match_of()), notes=("read `model`",)))
        assert [line.rstrip() for line in stream.getvalue().splitlines()] == (
            EXPECTED_LINES := render_text(build_report(transfer_of(match_of()), notes=("read `model`",))).splitlines()
        )
        assert "  note: read `model`" in EXPECTED_LINES


def test_findings_can_be_printed_alone_and_brackets_are_no_markup() -> None:
    stream = io.StringIO()
    odd = Finding("rewired", "`a[bold]b` reads [red]c[/red]")
    print_findings(Console(file=stream, width=200), build_report(match_of("differs", (odd,))))
    assert stream.getvalue().startswith("error[rewired]: `a[bold]b` reads [red]c[/red]\n\nverdict: differs\n")


def test_transfer_report_is_the_text() -> None:
    transfer = transfer_of(match_of())
    assert transfer.report == render_text(transfer)


@pytest.mark.parametrize(
    ("ops", "line"),
    [
        pytest.param(
            [op(0, 1e-16), op(1, 5e-16), op(2, 0.0)],
            "3 ops compared one by one; the largest difference: blocks.0.op1 (matmul), max abs 1.5e-15, "
            "max rel 5.0e-16",
            id="all equal",
        ),
        pytest.param(
            [op(0), op(1, 1e-3), op(2, float("nan"))],
            "3 ops compared one by one; the first that differs: blocks.0.op1 (matmul), max abs 3.0e-03, "
            "max rel 1.0e-03",
            id="two differ",
        ),
        pytest.param(
            [op(0), op(1, float("nan"), tolerance=math.inf)],
            "2 ops compared one by one; the first that differs: blocks.0.op1 (matmul), max abs nan, max rel nan",
            id="nan is never equal",
        ),
    ],
)
def test_ops_are_told_by_the_one_that_matters(ops: list[OpParity], line: str) -> None:
    text = render_text(build_report(transfer_of(match_of()), op_parity=ops))
    assert f"  {line}\n" in text


def test_what_is_cut_out_of_one_tensor_at_even_distances_is_one_row() -> None:
    packed = Source("packed", (32, 8))
    entries = {f"experts.{e}.w": Slice(packed, (8 * e, 0), (8 * e + 8, 8), (1, 1)) for e in range(4)}
    (stage,) = build_report(of_entries({**entries}, dict.fromkeys(entries, "proved"))).stages
    (row,) = stage.rows
    assert (row.dest, row.expression, row.indices) == ("experts.{i}.w", "packed[i*8:(i+1)*8]", "i in 0..3")
    assert [member.expression for member in row.members][1:3] == ["packed[8:16]", "packed[16:24]"]


def test_columns_stand_in_line_where_characters_are_wide() -> None:
    lines = [
        line for line in render_text(named("層.weight", "layers.weight", "頭頭頭.weight")).splitlines() if "<-" in line
    ]
    assert len({cell_len(line[: line.index("<-")]) for line in lines}) == 1


def test_no_name_moves_the_cursor() -> None:
    text = render_text(named("a.\x1b[31mred", "b\x00.w", "c.\u202ereversed", "d\n.w", "e.\ud800"))
    assert "a.␛[31mred" in text
    assert "b␀.w" in text
    assert "c.\ufffdreversed" in text
    assert "d␊.w" in text
    assert text.encode()
    assert all(letter.isprintable() for letter in text.replace("\n", ""))


@pytest.mark.parametrize(
    ("size", "text"),
    [(12, "12 B"), (9_216, "9.2 kB"), (346_000_000, "346.0 MB"), (140_000_000_000, "140.0 GB")],
)
def test_sizes_have_the_unit_that_fits(size: int, text: str) -> None:
    assert format_bytes(size) == text
