"""Amounts of memory and data: text in, bytes out, and how much of this machine's memory is free."""

from __future__ import annotations

import os
import re
from pathlib import Path

from automap.errors import InputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)
_UNLIMITED = 2**60


def read_size(text: str | int) -> int:
    """The bytes that a text such as `2GiB`, `500 MB` or `4096` stands for.

    Raises:
        InputError: it is none.

    Example:
        >>> read_size("2GiB"), read_size("1.5 kB")
        (2147483648, 1500)
    """
    if isinstance(text, int):
        text = str(text)
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise InputError(f"`{text}` is no size", help="write 2GiB, 500MB or a number of bytes")
    return int(float(match[1]) * unit)


def size_text(size_bytes: float) -> str:
    """A number of bytes for people.

    Example:
        >>> size_text(3 * 2**29), size_text(12)
        ('1.5 GiB', '12 B')
    """
    if size_bytes < 1024:
        return f"{size_bytes:.0f} B"
    power = next(power for power in (1, 2, 3, 4) if size_bytes < 1024 ** (power + 1) or power == 4)
    return f"{size_bytes / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def free_bytes() -> int:
    """The memory that this process may still take: what the machine has free, within the limit of its group."""
    free = _UNLIMITED
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    if free == _UNLIMITED and hasattr(os, "sysconf"):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    return min(free, max(0, int(limit) - int(used))) if limit.isdigit() and used.isdigit() else free


def resident_bytes() -> int:
    """The memory that this process holds now, with Python, torch and all."""
    fields = _text("/proc/self/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
