"""What all reports write with: folders, file names made safe, charts as PNG."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import altair as alt

from sd35h5.errors import StoreError
from sd35h5.figures import printing
from sd35h5.store.reader import open_store

if TYPE_CHECKING:
    from sd35h5.store.reader import Store


def save_chart(chart: alt.TopLevelMixin, path: Path) -> Path:
    """Write the chart as PNG."""
    path.write_bytes(printing.png(chart))
    return path


def open_with_samples(path: str | Path) -> Store:
    store = open_store(path)
    if not store.sizes["sample"]:
        store.close()
        raise StoreError(f"{store.name} has no sealed sample yet: wait for the first of {store.planned}")
    return store


def safe_name(text: str) -> str:
    """Return a file name made only of letters, digits, - and _: strings of a store never become paths."""
    return re.sub(r"[^\w-]+", "-", str(text), flags=re.ASCII).strip("-")[:60]


def make_folder(path: str | Path) -> Path:
    """Make the folder that results are written to; a file in its place is refused."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise StoreError(f"{folder} is a file: give --out_dir a folder") from None
    return folder


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
