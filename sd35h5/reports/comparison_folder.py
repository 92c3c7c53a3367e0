"""`compare`: runs against a reference, written into a folder as tables, figures and one page to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sd35h5.comparing.comparison import Question, measure
from sd35h5.errors import StoreError
from sd35h5.reports import comparison_files, comparison_page
from sd35h5.reports.findings import findings_page
from sd35h5.reports.output_files import make_folder, open_runs, write
from sd35h5.spreading.hands import hands


def compare_runs(
    paths: Sequence[str | Path],
    out_dir: str | Path,
    question: Question | None = None,
    scheduler: str = "",
) -> list[Path]:
    """Compare the first run with each of the others and write CSV files, figures and report.html to out_dir.

    Args: scheduler: of dask workers that measure the pairs; this process does where it is empty.
    Returns: the files that were written, report.html first.
    """
    if len(paths) < 2:
        raise StoreError("a comparison needs two runs at least: name the reference first, then the others")
    question = question or Question()
    if question.resamples < 100:
        raise StoreError(
            f"{question.resamples} resamples give no interval: choose 100 at least, 9999 for a report"
        )
    with open_runs(paths) as stores:
        with hands(dict(zip(stores, paths, strict=True)), stores, scheduler) as who:
            found = measure(stores, question, who)
        out = make_folder(out_dir)
        written, pictures = comparison_files.write_tables(found, out), comparison_files.draw(found, out)
        page, kept = out / "report.html", findings_page.section(stores)
        write(page, comparison_page.page(found, pictures, kept).encode())
    return [page, *written, *pictures.values()]
