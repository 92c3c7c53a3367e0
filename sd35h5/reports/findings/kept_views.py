"""A view as a finding: what is kept of it, its address, whether its run is what it was, how reports show it."""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import pandas as pd

from sd35h5.errors import StoreError
from sd35h5.figures.overlays import Image
from sd35h5.reports import view_address, view_page
from sd35h5.reports.findings.findings_file import MAX_PICTURE, Finding, beside, read

WIDEST = 1240  # pixels of a kept figure: a chart at twice its size
COLORS = 255
MOST_PARAMETERS = 64


def finding(
    shown: view_page.Shown | view_page.Later | None,
    note: str,
    page: str,
    address: str,
    about: str,
    run: str | Path,
    samples: pd.DataFrame,
    sample: int,
) -> Finding:
    """Make a finding of a view.

    Args: shown: its figure; page: its title; samples: the run's table, of which `sample` is shown.
    """
    whole, of_sample = content_identity(samples), content_identity(samples[samples["sample"] == sample])
    has_figure = shown is not None and shown.figure is not None
    return Finding(
        secrets.token_hex(6), datetime.now(UTC).isoformat(timespec="seconds"), note.strip(), page, address, about,
        "" if shown is None else shown.name, small_png(view_page.png(shown)) if has_figure else b"",
        "" if shown is None else shown.code, Path(run).name, whole, of_sample,
    )  # fmt: skip


def address(page: str, parameters: Sequence[tuple[str, str]]) -> str:
    """Return the address of a view relative to the dashboard. Args: page: as its URL calls it, empty for the first."""
    return f"{page}?{urlencode(parameters)}"


def address_in(kept: Finding, run: str) -> str:
    """Return a finding's address with the name that its run has now, `./` first: whatever it says, it leads to a page
    of this dashboard."""
    page, _, query = kept.address.partition("?")
    said = parse_qsl(query, keep_blank_values=True)[:MOST_PARAMETERS]
    rest = [(name, value) for name, value in said if name != view_address.RUN]
    return f"./{address(page, [(view_address.RUN, run), *rest])}"


def content_identity(samples: pd.DataFrame) -> str:
    """Return what tells these samples' values from all others, in whatever file they lie: the SHA-256 of their
    content hashes; empty where the file has none."""
    if "content_sha256" not in samples or not len(samples):
        return ""
    return hashlib.sha256("\n".join(sorted(map(str, samples["content_sha256"]))).encode()).hexdigest()


def holds_sample(kept: Finding, samples: pd.DataFrame) -> bool:
    """Whether a run holds the very sample that the finding showed."""
    each = (content_identity(samples.iloc[[row]]) for row in range(len(samples)))
    return kept.sample_content != "" and kept.sample_content in each


def told_change(kept: Finding, run: str, samples: pd.DataFrame) -> str:
    """Return a sentence where the run is not what it was when the view was kept, "" where it is or nothing tells.

    Args: run: the name of the file that is there now.
    """
    now = content_identity(samples)
    if not kept.content or not now:
        return ""
    moved = f"The run was called {kept.run} then. " if kept.run != Path(run).name else ""
    if kept.content == now:
        return moved.strip()
    if holds_sample(kept, samples):
        return f"{moved}The run has got other samples since, or lost some: means over samples may differ."
    return f"{moved}The file was replaced since: it holds other values than those that this was kept of."


def small_png(png: bytes) -> bytes:
    """Return a picture as PNG of few colours, reduced until a finding may hold it."""
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    side = min(WIDEST, picture.width)
    while True:
        height = max(1, round(picture.height * side / picture.width))
        small = picture.resize((side, height), Image.Resampling.LANCZOS) if side < picture.width else picture
        out = io.BytesIO()
        small.quantize(COLORS).save(out, "PNG", optimize=True)
        if out.tell() <= MAX_PICTURE or side <= 64:
            return out.getvalue()
        side = round(side * 0.8)


def shown(kept: Finding) -> view_page.Shown:
    """Return a finding as the exports and reports show a figure."""
    told = {
        "note": kept.note,
        "what": kept.about,
        "address": kept.address,
        "kept": kept.made_utc,
        "run": kept.run,
    }
    name = " · ".join(filter(None, (kept.page, kept.figure)))
    return view_page.Shown(
        name, kept.picture or None, pd.DataFrame([told]), kept.code, note=kept.note, about=kept.about,
        address=kept.address,
    )  # fmt: skip


def of_runs(runs: Mapping[str, str | Path]) -> tuple[list[tuple[str, Finding]], list[str]]:
    """Return the findings of runs with the runs' names, newest first in each, and a sentence for each file that cannot
    be read."""
    found, refused = [], []
    for name, path in runs.items():
        try:
            found += [(name, one) for one in reversed(read(beside(path)))]
        except StoreError as error:
            refused.append(str(error))
    return found, refused


def orphans(runs: Sequence[str | Path]) -> list[Path]:
    """Return the files of findings in these runs' folders whose run is not among them."""
    own = {beside(run) for run in runs}
    folders = dict.fromkeys(place.parent for place in own)
    return [path for folder in folders for path in sorted(folder.glob("*.findings.json")) if path not in own]
