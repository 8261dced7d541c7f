"""Reports as files: --json and --html on the command line, and the JSON schema as documented."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_samples import match_of, missing, named, op, transfer_of

from automap.report import report_html, report_json
from automap.report.json import report_data

Run = Callable[..., tuple[int, str, str]]
DOCUMENT = Path(__file__).parents[2] / "docs" / "report-format.md"


@pytest.fixture
def pair(model_file: Path) -> tuple[str, str, str, str]:
    return f"{model_file}:Joined", f"{model_file}:Apart", "-i", "2x6"


def test_html_and_json_are_written_beside_each_other(run: Run, pair: tuple[str, ...], tmp_path: Path) -> None:
    page, data = tmp_path / "report.html", tmp_path / "report.json"
    status, text, _ = run(*pair, "--html", page, "--json", data)
    assert status == 0
    assert text.endswith(f"  wrote the report to {data}\n  wrote the report to {page}\n")
    assert page.read_text().startswith("<!doctype html>\n")
    assert "<code>blocks.2.weight[0:8]</code> <code>value.2.weight</code>" in page.read_text()
    assert json.loads(data.read_text())["verdict"] == "complete"


@pytest.mark.parametrize("command", [[], ["explain"]])
def test_a_refusal_has_a_page_too(run: Run, pair: tuple[str, ...], tmp_path: Path, command: list[str]) -> None:
    page, out = tmp_path / "report.html", tmp_path / "out"
    words = [*command, pair[0], f"{pair[1]}?act=tanh", *pair[2:], "--html", page]
    status, text, _ = run(*words, *([] if command else ["--out", out]))
    assert status == 1
    assert f"wrote the report to {page}" in text
    assert 'class="finding error"' in page.read_text()
    assert not out.exists()


def test_two_runs_of_one_command_write_one_page(run: Run, pair: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        run(*pair, "--html", tmp_path / name, "--quiet")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert str(tmp_path) not in (tmp_path / "one.html").read_text()


@pytest.mark.parametrize("place", ["no/report.html", "."])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    run: Run, pair: tuple[str, ...], tmp_path: Path, place: str
) -> None:
    status, text, errors = run(*pair, "--html", tmp_path / place)
    assert (status, text) == (2, "")
    assert errors.startswith("error[bad-file]: ")


def test_a_page_is_whole_or_as_it_was(run: Run, pair: tuple[str, ...], tmp_path: Path, monkeypatch: Any) -> None:
    page = tmp_path / "report.html"
    page.write_text("before")

    def fail(*_: Any, **__: Any) -> str:
        raise MemoryError("no room")

    monkeypatch.setattr("automap.report.report_html", fail)
    assert run(*pair, "--html", page)[0] == 1
    assert page.read_text() == "before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".report")]


def test_names_that_no_encoding_has_can_be_written() -> None:
    match = named("a.\ud800", "b.\x00</script>", "c.é")
    text = report_json(match)
    assert [weight["dest"] for weight in json.loads(text.encode())["weights"]] == list(match.plan.entries)
    assert "c.é" in text
    assert report_html(match).encode()


def test_ops_are_in_the_json_with_their_sites() -> None:
    (data,) = report_data(transfer_of(match_of()), op_parity=[op(5, float("nan"))])["op_parity"]
    assert (data["max_rel"], data["tolerance"], data["is_equal"]) == ("nan", 1e-9, False)
    assert (data["dest"]["name"], data["dest"]["file"]) == ("blocks.1.op5", "mine.py")
    assert data["src"]["name"] == "layers.1.op5"


def keys_in(data: Any, path: str = "") -> Iterator[str]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield f"{path}{key}"
            yield from keys_in(value, f"{path}{key}.")
    elif isinstance(data, list):
        for item in data:
            yield from keys_in(item, path)


def test_the_document_names_every_field_and_no_other() -> None:
    data = report_data(transfer_of(match_of("differs", (missing(0),))), op_parity=[op(0)])
    sides = re.compile(r"^(findings|op_parity)\.(src|dest)\.")
    fields = {sides.sub("site.", re.sub(r"^captures\.(src|dest)\.", "capture.", key)) for key in keys_in(data)}
    documented = set(re.findall(r"^\| `([\w.]+)` \|", DOCUMENT.read_text(), flags=re.MULTILINE))
    assert documented == fields
