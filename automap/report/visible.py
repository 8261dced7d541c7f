"""Text of others (tensor names, source lines, messages) made fit to be shown.

Names come from checkpoints and may hold anything: what would move a cursor, reverse the direction of a line or not be
encoded at all becomes a visible character. Prose for a page that travels loses its paths and addresses.
"""

from __future__ import annotations

import re

_PICTURES = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421, ord("\t"): ord(" ")}
_STRANGE = (*range(0x80, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
_SHOWN = _PICTURES | dict.fromkeys(_STRANGE, 0xFFFD)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ADDRESS = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'`<>)\]]*")
_PATH = re.compile(r"(?<![\w.~/)\]<])(?:/[\w.@+~-]+)+(/[\w.@+~-]+)/?")
_DRIVE_PATH = re.compile(r"\b[A-Za-z]:(?:\\[\w.@+~ -]+)*\\([\w.@+~-]+)\\?")


def visible(text: str) -> str:
    r"""Return text of the same length, in one line, with a visible character for each that is none.

    Example:
        >>> visible("fc.\x1b[31mweight")
        'fc.␛[31mweight'
    """
    return _SURROGATE.sub("\ufffd", text.translate(_SHOWN))


def without_places(text: str) -> str:
    """Return prose or code without addresses, and with the last part of absolute paths alone.

    Example:
        >>> without_places("read /home/ada/run7.pt, see https://example.org/a")
        'read run7.pt, see (address)'
    """
    text = _ADDRESS.sub("(address)", text)
    text = _PATH.sub(lambda found: found[1][1:], text)
    return _DRIVE_PATH.sub(lambda found: found[1], text)
