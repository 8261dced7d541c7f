"""A use's output channels cut into pieces: as they are read, the like-read together, in runs, or whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from automap.align.candidates import Piece
from automap.align.forms import LinearForm
from automap.align.side import Side
from automap.align.table import Source


def read(side: Side, form: LinearForm) -> list[Piece]:
    """Return a use's outputs as they are read."""
    parts = side.parts(form)
    return [Piece(p.channels, side.part_label(p, form), frozenset(r for r, _ in p.readers)) for p in parts]


def cut(pieces: list[Piece], size: int) -> list[Piece]:
    """Return pieces cut into runs of a size, where they are multiples of it."""
    found: list[Piece] = []
    for piece in pieces:
        runs = torch.split(piece.channels, size) if len(piece.channels) % size == 0 else (piece.channels,)
        found.extend(replace(piece, channels=run) for run in runs)
    return found


def merged(pieces: list[Piece]) -> list[Piece]:
    """Return pieces that are read alike, as one: the heads of a loop over heads."""
    together: dict[object, list[Piece]] = {}
    for piece in pieces:
        together.setdefault(piece.label, []).append(piece)
    return [
        Piece(torch.cat([p.channels for p in group]), group[0].label, frozenset().union(*(p.readers for p in group)))
        for group in together.values()
    ]


def src_pieces(src: Source, form: LinearForm, size: int) -> list[tuple[Piece, tuple[str, int]]]:
    """Return the parts of a use's outputs with `size` channels: as read, merged, runs of them, or the whole."""
    pieces = read(src, form)
    found = [(p, ("part", n)) for n, p in enumerate(pieces) if len(p.channels) == size]
    if not found:
        found = [(p, ("merged", n)) for n, p in enumerate(merged(pieces)) if len(p.channels) == size]
    if not found:
        runs = [
            replace(p, channels=r)
            for p in merged(pieces)
            if len(p.channels) > size and len(p.channels) % size == 0
            for r in torch.split(p.channels, size)
        ]
        found = [(run, ("run", n)) for n, run in enumerate(runs)]
    if not found and form.width == size:
        found = [(Piece(torch.arange(size), src.labels[form.node]), ("whole", 0))]
    return found or list(_repeated(pieces, size)) if src.is_spread(form.node) else found


def _repeated(pieces: list[Piece], size: int) -> Iterator[tuple[Piece, tuple[str, int]]]:
    """Parts that src reads several times over, as many times as dest has channels for: blocks of every even size."""
    for piece in pieces:
        width = len(piece.channels)
        if width < size and size % width == 0:
            for block in (b for b in range(width, 1, -1) if width % b == 0):
                rows = piece.channels.view(-1, 1, block).expand(-1, size // width, -1)
                yield replace(piece, channels=rows.reshape(-1)), ("repeat", block)
