"""Chromium of the system, installed where it is missing, and what a test sees of a page in it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page

APT = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300")
PAUSE = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"  # until the page is painted


@dataclass
class Shown:
    """A page in the browser, with what it complained about and what it asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


Show = Callable[..., Shown]


def chromium_path() -> str:
    """The path of Chromium; two processes do not install it at the same time."""
    with (Path(tempfile.gettempdir()) / "automap-chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return shutil.which("chromium") or _installed()


def _installed() -> str:
    if shutil.which("apt-get") is None:
        pytest.skip("there is no chromium here, and no apt-get to install it with")
    if os.geteuid() != 0:
        pytest.skip("there is no chromium here, and only root can install it: apt-get install chromium")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run([*APT, *words], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"apt-get {words[0]} failed: {done.stderr[-2000:]}"
    found = shutil.which("chromium")
    assert found is not None, "the package chromium has no program of that name"
    return found
