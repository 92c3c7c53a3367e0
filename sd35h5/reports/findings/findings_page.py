"""The findings of runs in reports: as a part of another page, as a page of their own, as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from sd35h5.errors import StoreError
from sd35h5.figures.html_page import document
from sd35h5.reports import view_page
from sd35h5.reports.findings import kept_views
from sd35h5.reports.findings.findings_file import beside
from sd35h5.reports.output_files import open_runs, write
from sd35h5.store.showable import showable

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

HOW = (
    "Each is a view of the dashboard that somebody kept. Its address opens the view: write it behind that of a "
    "dashboard that shows the run, as in http://localhost:8501/"
)
LONGEST = 80  # characters of a note in a line


def section(stores: Mapping[str, Store]) -> list[str]:
    """Return the findings of runs as HTML with a heading, nothing where there are none. Args: stores: name -> run."""
    found, refused = kept_views.of_runs({name: store.path for name, store in stores.items()})
    if not found and not refused:
        return []
    parts = ["<h1>Findings</h1>", f"<p>{escape(HOW)}</p>"]
    parts += [f"<p>{escape(sentence)}</p>" for sentence in refused]
    samples = {name: stores[name].samples for name in {name for name, _ in found}}
    for name, one in found:
        parts += view_page.section(kept_views.shown(one))
        if change := kept_views.told_change(one, stores[name].path, samples[name]):
            parts.append(f"<p>{escape(change)}</p>")
    return parts


def write_page(paths: Sequence[Path], out: Path) -> Path:
    """Write the findings of runs as one self-contained page."""
    with open_runs(paths) as stores:
        parts = section(stores)
    if not parts:
        raise StoreError(
            f"there are no findings beside {', '.join(path.name for path in paths)}: keep views with the star of the "
            "dashboard first"
        )
    return write(out, document("Findings", parts).encode())


def lines(path: Path) -> list[str]:
    """Return a line a finding of a run, newest first: when, its note, its address."""
    found, refused = kept_views.of_runs({path.name: path})
    if refused:
        raise StoreError(refused[0])
    return [
        f"{showable(one.made_utc)}  {showable(one.note, LONGEST) or '(no note)'}  {showable(one.address)}"
        for _, one in found
    ] or [f"no findings: {beside(path).name} is not there"]
