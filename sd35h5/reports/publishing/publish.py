"""`publish`: runs as a page to send, a folder or one file, that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sd35h5.comparing.paired_samples import Pairing
from sd35h5.errors import StoreError
from sd35h5.long_work import counted
from sd35h5.reports.publishing import (
    number_pieces,
    pair_pieces,
    places,
    provenance_pieces,
    sample_pieces,
    shell,
)
from sd35h5.reports.publishing.listing import page_list, title
from sd35h5.reports.publishing.pieces import Piece
from sd35h5.reports.publishing.published_runs import PublishedRun, published_run
from sd35h5.reports.publishing.single_page import write_single
from sd35h5.reports.run_names import run_names
from sd35h5.reports.sidecars import write_sidecars
from sd35h5.store.processes.guarded_store import open_checked, own_readers

Pairings = dict[tuple[int, int], Pairing]  # of runs, by their places
TABLES = ("samples.parquet", "tokens.parquet", "first_token.parquet", "effects.parquet")
SCRIPT, STYLE, DATA = "site.js", "site.css", "data"
OWN = frozenset({places.INDEX, SCRIPT, STYLE, DATA, *TABLES, *shell.PAGES} - {""})


def publish(
    paths: Sequence[str | Path],
    out: str | Path,
    single: bool = False,
    words: Sequence[str] = (),
    overwrite: bool = False,
) -> list[Path]:
    """Write runs as a page that a browser shows without Python, and their tables as Parquet beside it.

    Args:
        out: a folder; with `single` it holds one page with everything in it, or that page's file, NAME.html.
        words: whose maps and numbers are shown; by default all maps, and numbers of the most frequent words.
        overwrite: replace a page that is there already.
    Returns: what to open first, then the tables.
    Raises: StoreError.
    """
    out = Path(out)
    as_file = single and out.suffix.lower() in (".html", ".htm")
    if not single and out.suffix.lower() in (".html", ".htm"):
        raise StoreError(f"{out} is the name of a file: pass --single for one, or give --out a folder")
    places.refuse_taken(out, overwrite, OWN)
    with own_readers() as readers:
        stores = {
            name: open_checked(path, readers)
            for name, path in zip(run_names([Path(path) for path in paths]), paths, strict=True)
        }
        for store in stores.values():
            if not len(store):
                raise StoreError(
                    f"{store.name} has no sealed sample yet: wait for the first of {store.planned}"
                )
        found = pair_pieces.pairings(stores)
        runs = [
            published_run(place, name, store, words, pair_pieces.sets_of(place, found))
            for place, (name, store) in enumerate(stores.items())
        ]
        if as_file:
            with places.file_made_at(out) as path:
                _write_single(path, runs, found, [])
            return [out]
        with places.folder_made_at(out) as folder:
            tables = [path.name for path in write_sidecars(stores, folder, effects=_all_pair(found))]
            if single:
                _write_single(folder / places.INDEX, runs, found, tables)
            else:
                _write_folder(folder, runs, found, tables)
    return [out / places.INDEX, *(out / name for name in tables)]


def _all_pair(found: Pairings) -> bool:
    """Whether each run pairs with the first in some sample."""
    return all(len(pairing.pairs) for (first, _), pairing in found.items() if first == 0)


def _pieces(runs: Sequence[PublishedRun], found: Pairings) -> list[Piece]:
    made = list(pair_pieces.pair_pieces(runs, found))
    for run in runs:
        made += number_pieces.number_pieces(run)
        made += sample_pieces.sample_pieces(run)
        made += provenance_pieces.provenance_pieces(run)
    return made


def _write_folder(folder: Path, runs: Sequence[PublishedRun], found: Pairings, tables: Sequence[str]) -> None:
    """Write the pages, and each piece as a file of its own."""
    absent = set()
    for piece in counted(_pieces(runs, found), "making the page"):
        content = piece.make()
        if content is None:
            absent.add(piece.name)
            continue
        path = folder / DATA / piece.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / DATA / "site.json").write_bytes(page_list(runs, found, tables, absent, {}))
    for page in shell.PAGES:
        path = folder / page / places.INDEX
        path.parent.mkdir(exist_ok=True)
        path.write_text(shell.folder_page(title(runs), page), encoding="utf-8")
    (folder / SCRIPT).write_text(shell.script(), encoding="utf-8")
    (folder / STYLE).write_text(shell.style(), encoding="utf-8")


def _write_single(path: Path, runs: Sequence[PublishedRun], found: Pairings, tables: Sequence[str]) -> None:
    pieces = _pieces(runs, found)
    write_single(
        path, title(runs), pieces, lambda absent, left_out: page_list(runs, found, tables, absent, left_out)
    )
