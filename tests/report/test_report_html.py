"""The page as text: complete, the same every time, and taking nothing along that is not the report."""

from __future__ import annotations

import doctest
import html
import importlib
import os
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from report_samples import HOSTILE, match_of, missing, named, op, transfer_of

from automap.findings import Finding, Site
from automap.report import build_report, notebook_html, report_html
from automap.report.html import prose, summary_of
from automap.results import Match, Transfer, Verdict


def text_of(page: str) -> str:
    """What a reader sees: without tags, scripts and styles."""
    page = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page)))


def test_the_page_has_every_weight_expression_and_evidence(equal: Transfer) -> None:
    page, text = report_html(equal), text_of(report_html(equal))
    for name in equal.plan.entries:
        assert name in text
    assert "blocks.{i}.attn.qkv.weight[16:32]" in text
    assert "blocks.1.attn.qkv.weight[16:32] blocks.1.attn.k.weight" in text
    assert "36 proved" in text
    assert "2 assumed by name and shape alone, or no equal output depends on it" in text
    assert page.count('class="row"') == 22


def test_findings_come_before_parity_and_parity_before_weights(different: Transfer) -> None:
    page = report_html(different)
    places = [page.index(f'id="{section}"') for section in ("findings", "finding-0", "parity", "weights")]
    assert places == sorted(places)
    text = text_of(page)
    assert "error attribute-differs layer_norm eps 1e-05 in src, 1e-12 in dest" in text
    assert "self.norm1(x)" in text
    assert "transformer.py:" in text


def test_a_match_has_no_parity_and_a_report_of_nothing_has_a_page() -> None:
    assert 'id="parity"' not in report_html(match_of())
    text = text_of(report_html(named()))
    assert "No weight of dest has an expression." in text


@pytest.mark.parametrize(
    ("verdict", "max_rel", "words"),
    [
        ("complete", 1e-15, "both models give the same outputs"),
        ("complete", 1e-3, "but the outputs differ"),
        ("complete", None, "No outputs have been compared yet"),
        ("differs", 1e-3, "something other than weights differs"),
        ("ambiguous", 1e-3, "more than one map"),
        ("impossible", 1e-3, "has no source in src"),
    ],
)
def test_each_verdict_is_a_sentence(verdict: Verdict, max_rel: float | None, words: str) -> None:
    match = match_of(verdict)
    result = match if max_rel is None else transfer_of(match, max_rel)
    assert words in summary_of(build_report(result))
    assert words in text_of(report_html(result))


def test_two_runs_give_one_page(equal: Transfer) -> None:
    later = replace(equal.match, src_capture=replace(equal.match.src_capture, elapsed_s=99.0), timings_s={"plan": 9.0})
    assert report_html(replace(equal, match=later, timings_s={"apply": 7.0})) == report_html(equal)
    assert notebook_html(replace(equal, match=later)) == notebook_html(equal)


def test_no_address_no_path_and_nothing_of_the_environment(
    different: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOMAP_SECRET", "swordfish-7719")
    site = Site(
        "a.b", "linear", (2,), "float32", "/home/ada/mine.py", 3, 'x = load("/home/ada/w/run.pt")  # http://a.b/c'
    )
    noted = Finding("rewired", "read /home/ada/w/x.pt", src=site, dest=site, notes=("at https://a.b/c",), help="/a/b/c")
    match = replace(different.match, findings=(*different.match.findings, noted))
    page = report_html(replace(different, match=match), notes=("from /home/ada/checkpoints/run7.pt",))
    assert "from run7.pt" in page
    assert "x = load(&#34;run.pt&#34;)  # (address)" in page
    for word in ("://", "/home", "swordfish", str(Path.cwd()), "url(", "@import", " src=", 'href="h'):
        assert word not in page
    values = {value for value in os.environ.values() if len(value) > 8}
    assert not [value for value in values if value in page]


def test_all_links_stay_in_the_page() -> None:
    page = report_html(match_of("differs", (replace(missing(0), dest=Site("layers.0.k")),)))
    links = re.findall(r'href="([^"]*)"', page)
    assert links == ["#finding-0"]
    assert 'id="finding-0"' in page or "id=finding-0" in page


def test_weights_without_an_expression_are_listed() -> None:
    match = replace(match_of("impossible"), missing=tuple(f"layers.{i}.gate.weight" for i in range(3)))
    text = text_of(report_html(match))
    assert "missing: no expression was found for them" in text
    assert "layers.{i}.gate.weight" in text or "gate.weight" in text
    assert "missing: no expression" not in text_of(report_html(match_of()))


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_and_never_markup(name: str) -> None:
    finding = Finding("rewired", f"`{name}` reads {name}", dest=Site(name, name, None, "", name, 1, name), help=name)
    match = replace(named(name, f"a.0.{name}"), findings=(finding,), unused=(name,), kept=(name,))
    match = replace(match, src_capture=replace(match.src_capture, model=name, notes=(name,)))
    for page in (report_html(transfer_of(match), notes=(name,)), notebook_html(transfer_of(match))):
        if "<" in name:
            assert name not in page
        assert html.escape(name) in page.replace("&#34;", "&quot;").replace(".<wbr>", ".")
        assert page.count("<script") == page.count("</script>") == ("<body>" in page)
        assert page.count("<style") == page.count("</style>") == 1
        assert "<img" not in page
        assert "49" not in text_of(page)


def test_names_that_no_encoding_has_are_shown_all_the_same() -> None:
    names = ("a.0.\ud800", "a.1.\ud800", "b.\x00\x1b[31m", "c.\u202etxet")
    match = named(*names)
    odd = Finding("rewired", names[0], src=Site(names[1], names[2], file=names[3], code=names[2]), notes=names)
    capture = replace(match.src_capture, model=names[0], notes=(names[2],))
    page = report_html(replace(match, src_capture=capture, findings=(odd,), unused=names[2:], kept=names))
    assert page.encode()
    assert not set(page) & set("\x00\x1b\u202e")


def test_messages_have_code_in_backticks() -> None:
    assert prose("`a.b` and `c`") == "<code>a.<wbr>b</code> and <code>c</code>"
    assert prose("one ` alone") == "one ` alone"
    assert prose("`a` and ` alone") == "<code>a</code> and ` alone"
    assert prose("") == ""


def test_ops_that_were_compared_are_a_chart() -> None:
    ops = [op(n, 1e-3 if n == 7 else 1e-16) for n in range(12)]
    page = report_html(build_report(transfer_of(match_of()), op_parity=ops))
    assert page.count("<title>blocks.") == 12
    text = text_of(page)
    assert "12 ops of dest, each on the values that its twin in src had, 1 of them different" in text
    assert "the first is blocks.1.op7 (matmul)." in text
    assert "mine.py:7" in text


def test_figures_that_are_no_numbers_are_drawn_as_differences() -> None:
    page = report_html(transfer_of(match_of(), float("nan")))
    assert page.count('class="track differs"') == 2
    assert 'width="1000.0"' in page
    assert ">nan<" in page


def test_a_notebook_shows_findings_first_and_runs_nothing(different: Transfer, equal: Transfer) -> None:
    for result in (different, different.match):
        shown = result._repr_html_()
        assert "layer_norm eps 1e-05 in src, 1e-12 in dest" in text_of(shown)
        assert "<script" not in shown
        assert " id=" not in shown
    assert "outputs equal" in text_of(equal._repr_html_())
    assert "outputs" not in text_of(equal.match._repr_html_()).replace("No outputs", "")


def test_a_notebook_stays_small() -> None:
    many = named(*(f"part{n * n}.w{n}" for n in range(3000)))
    findings = tuple(missing(2 * n) for n in range(400))
    shown = notebook_html(replace(many, findings=findings))
    assert len(shown) < 60_000
    assert "and 395 more findings" in shown
    assert "and 2980 more rules" in shown


@pytest.mark.parametrize(
    ("result", "text"),
    [
        pytest.param(
            match_of(),
            "<Match: complete, 3 proved, 1 tested, 1 assumed of 5 dest weights, findings: none, ViT -> ViTModel>",
            id="match",
        ),
        pytest.param(
            match_of("impossible", (missing(0), missing(1))),
            "<Match: impossible, 3 proved, 1 tested, 1 assumed of 5 dest weights, findings: 2 error, ViT -> ViTModel>",
            id="findings",
        ),
        pytest.param(
            transfer_of(named("a")),
            "<Transfer: complete, outputs equal, 1 proved of 1 dest weights, findings: none, ViT -> ViT>",
            id="transfer",
        ),
        pytest.param(
            replace(transfer_of(named(), 1.0), is_applied=False),
            "<Transfer: complete, outputs differ, dest not changed, no dest weights, findings: none, ViT -> ViT>",
            id="refused",
        ),
        pytest.param(
            replace(transfer_of(named("a")), parity=None),
            "<Transfer: complete, nothing compared, 1 proved of 1 dest weights, findings: none, ViT -> ViT>",
            id="nothing compared",
        ),
    ],
)
def test_repr_is_one_line_with_what_matters(result: Match | Transfer, text: str) -> None:
    assert repr(result) == text


def test_a_report_is_short_in_a_repl() -> None:
    assert repr(build_report(match_of())) == "<Report: complete, ViT -> ViTModel>"


@pytest.mark.parametrize("name", ["blocks", "chart", "folding", "html", "model", "visible"])
def test_examples_in_docstrings_are_true(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"automap.report.{name}"))
    assert (found.failed, found.attempted > 0) == (0, True)


def test_templates_are_part_of_the_package() -> None:
    folder: Any = files("automap.report") / "page"
    assert {path.name for path in folder.iterdir()} == {
        "page.html", "parts.html", "notebook.html", "page.css", "page.js",
    }  # fmt: skip
