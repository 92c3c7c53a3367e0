"""The captures of a folder: how far each is, how fast, how large, and what failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sd35h5.errors import Sd35h5Error, StoreError, StoreNotFoundError
from sd35h5.reports.info import nbytes
from sd35h5.store.opening import reason
from sd35h5.store.places.runs_in_folders import stores_in
from sd35h5.store.processes.guarded_store import open_checked, own_readers
from sd35h5.store.runs import parts_of
from sd35h5.store.schema import PARTS_SUFFIX
from sd35h5.store.sharing.run_progress import run_progress
from sd35h5.store.showable import showable


@dataclass(frozen=True)
class Row:
    """One capture; `problem` says why one cannot be read, and then nothing else is known."""

    name: str
    state: str
    sealed: int = 0
    planned: int = 0
    bytes: int = 0
    per_hour: float | None = None
    seconds_left: float | None = None
    seconds_since: float | None = None
    failed: int = 0
    problem: str = ""


def rows_of(folder: Path) -> list[Row]:
    """Look at every capture of a folder, or at one.

    Raises: StoreNotFoundError: there is none.
    """
    places = _captures(folder)
    if not places:
        raise StoreNotFoundError(f"{folder}: there is no capture, neither under way nor packed")
    readers = own_readers()
    try:
        return [_row(path, folder, readers) for path in places]
    finally:
        readers.close()


def _captures(folder: Path) -> list[Path]:
    """Files that are packed, or will be, by name; also in folders below."""
    if not folder.exists() and not parts_of(folder).is_dir():
        return []
    try:
        found = stores_in(folder).stores
    except OSError as error:
        raise StoreError(f"{folder} cannot be listed: {reason(error)}") from error
    return sorted(path if path == folder else _packed(path) for path in found)


def _packed(path: Path) -> Path:
    """The file that a folder `run.h5.parts` will be."""
    return path.with_name(path.name.removesuffix(PARTS_SUFFIX))


def _row(path: Path, folder: Path, readers: Any) -> Row:
    name = (path.name if path == folder else path.relative_to(folder).as_posix()).removesuffix(PARTS_SUFFIX)
    parts = path if path.is_dir() else parts_of(path)
    try:
        with open_checked(path, readers) as store:
            sealed, planned, size = len(store), store.planned, store.bytes_on_disk()
    except Sd35h5Error as error:
        return Row(name, "unreadable", problem=str(error))
    if sealed >= planned and not parts.is_dir():
        return Row(name, "complete", sealed, planned, size)
    told = run_progress(parts, max(0, planned - sealed))
    state = "capturing" if told.is_held else "stopped" if sealed < planned else "complete"
    left = told.seconds_left if state == "capturing" else None
    return Row(name, state, sealed, planned, size, told.per_hour, left, told.seconds_since, len(told.failed))


def as_text(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of `runs` for people."""
    heads = ("capture", "state", "samples", "an hour", "left", "last", "size", "failed")
    table = [heads, *(_cells(row) for row in rows if not row.problem)]
    widths = [max(len(line[column]) for line in table) for column in range(len(heads))]
    if len(table) > 1:
        for line in table:
            yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for row in rows:
        if row.problem:
            yield f"{showable(row.name, 60)} cannot be read: {showable(row.problem)}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        showable(row.name, 60), row.state, f"{row.sealed} of {row.planned}",
        rate(row.per_hour) if row.per_hour else "", duration(row.seconds_left),
        f"{duration(row.seconds_since)} ago" if row.seconds_since is not None else "", nbytes(row.bytes),
        str(row.failed or ""),
    )  # fmt: skip


def as_data(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What `runs --json` prints."""
    return [asdict(row) for row in rows]


def rate(per_hour: float) -> str:
    """Samples an hour as people say it: `1,390`, `40`, `2.5`."""
    return f"{per_hour:,.0f}" if per_hour >= 10 else f"{per_hour:.1f}"


def duration(seconds: float | None) -> str:
    """A time as people say it: `40 s`, `22 min`, `3.5 h`; "" for None."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
