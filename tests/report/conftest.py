"""A real browser for the pages, driven by playwright, and real transfers to report on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from models import randomized
from models import transformer as tf
from models.pairs import PAIRS, SEQUENCE
from playwright.sync_api import Browser, sync_playwright
from report_browser import Show, Shown, chromium_path

import automap
from automap.results import Transfer


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium_path()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Show]:
    """Open a page from disk: `show(html, width=390, scheme="dark", is_scripted=False)`."""
    opened: list[Any] = []

    def show_page(html: str, *, width: int = 1280, scheme: Any = "light", is_scripted: bool = True) -> Shown:
        path = tmp_path / f"page-{len(opened)}.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=is_scripted
        )
        opened.append(context)
        shown = Shown(context.new_page())
        shown.page.on("console", lambda message: shown.complaints.append(message.text))
        shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.page.on("request", lambda request: shown.requests.append(request.url))
        shown.page.goto(path.as_uri())
        assert shown.requests.pop(0) == path.as_uri()
        return shown

    yield show_page
    for context in opened:
        context.close()


@pytest.fixture(scope="session")
def equal() -> Transfer:
    """A real transfer from a fused attention to a split one."""
    pair = PAIRS["fused-to-split"]
    return automap.transfer(pair.src(), pair.dest(), pair.sample(), dest_input=pair.dest_input)


@pytest.fixture(scope="session")
def different() -> Transfer:
    """A real transfer, refused: the norms differ in eps."""
    src, dest = tf.Tower(), tf.Tower(norm=partial(tf.layer_norm, 1e-12))
    return automap.transfer(randomized(src, 1), randomized(dest, 2), SEQUENCE(), strict=False)
