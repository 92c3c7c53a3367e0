"""`compare`: runs against a reference, written into a folder as tables, figures and one page to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sd35h5.comparing.comparison import Question, measure
from sd35h5.errors import StoreError
from sd35h5.reports import comparison_files, comparison_page
from sd35h5.reports.output_files import make_folder, write
from sd35h5.store.processes.guarded_store import open_checked, own_readers
from sd35h5.store.reader import Store


def compare_runs(
    paths: Sequence[str | Path], out_dir: str | Path, question: Question | None = None
) -> list[Path]:
    """Compare the first run with each of the others and write CSV files, figures and report.html to out_dir.

    Returns: the files that were written, report.html first.
    """
    if len(paths) < 2:
        raise StoreError("a comparison needs two runs at least: name the reference first, then the others")
    question = question or Question()
    if question.resamples < 100:
        raise StoreError(
            f"{question.resamples} resamples give no interval: choose 100 at least, 9999 for a report"
        )
    with own_readers() as readers:
        stores: dict[str, Store] = {}
        for path in paths:
            store = open_checked(path, readers)
            stores[_distinct(store.name, stores)] = store
        found = measure(stores, question)
        out = make_folder(out_dir)
        written, pictures = comparison_files.write_tables(found, out), comparison_files.draw(found, out)
        page = out / "report.html"
        write(page, comparison_page.page(found, pictures).encode())
    return [page, *written, *pictures.values()]


def _distinct(name: str, taken: dict[str, Store]) -> str:
    numbered = (f"{name} ({number})" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(other for other in numbered if other not in taken)
