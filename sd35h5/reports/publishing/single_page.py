"""One HTML file with everything in it: filled by importance until it is as large as a mail may be."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Iterable
from pathlib import Path

from sd35h5.errors import StoreError
from sd35h5.long_work import counted
from sd35h5.reports.publishing import shell
from sd35h5.reports.publishing.pieces import KINDS, Piece

MOST_BYTES = 25_000_000
LIST_ROOM = 400_000  # bytes of the list of what is there, which is written last
NEEDED = ("index",)  # without which there is no page


def write_single(
    path: Path, title: str, pieces: Iterable[Piece], listed: Callable[[set[str], dict], bytes]
) -> None:
    """Write the page into `path`: pieces in the order of importance, none after the first that does not fit.

    Args: listed: returns the list of the page, given the names of what was not measured and what was left out.
    """
    first, last = shell.single_head(title)
    room = MOST_BYTES - len(first.encode()) - len(last.encode()) - LIST_ROOM
    ordered, absent, left_out = sorted(pieces, key=lambda one: one.rank), set(), {}
    with path.open("wb") as file:
        file.write(first.encode())
        for piece in counted(ordered, "making the page"):
            if left_out:
                _note(left_out, piece)
                continue
            content = piece.make()
            if content is None:
                absent.add(piece.name)
                continue
            block = _block(piece.name, content)
            if len(block) > room and piece.kind in NEEDED:
                raise StoreError(
                    "the prompts alone are larger than a mail may be: publish a folder, without --single"
                )
            if len(block) > room:
                _note(left_out, piece)
                continue
            file.write(block)
            room -= len(block)
        file.write(_block("site.json", listed(absent, left_out)))
        file.write(last.encode())


def _note(left_out: dict[str, dict], piece: Piece) -> None:
    """Count what is left out, by its kind, and from which sample on."""
    told = left_out.setdefault(piece.kind, {"what": KINDS[piece.kind], "files": 0, "from": piece.sample})
    told["files"] += 1


def _block(name: str, content: bytes) -> bytes:
    """Return a file as a block of data in the page, which no browser runs: packed, as letters."""
    packed = content if name.endswith(".webp") else gzip.compress(content, 6, mtime=0)
    kind = "image/webp" if name.endswith(".webp") else "application/gzip"
    return f'<script type="{kind}" data-name="{name}">'.encode() + base64.b64encode(packed) + b"</script>\n"
