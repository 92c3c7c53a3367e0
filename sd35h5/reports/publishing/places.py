"""Where a page is written: beside its place first, then at it, whole; never over what is not a page of ours."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sd35h5.errors import Sd35h5Error, StoreError
from sd35h5.store.opening import reason

INDEX = "index.html"
MARK = b'<meta name="generator" content="sd35h5 publish">'
_HEAD_BYTES = 2000  # of a page, in which the mark is


def refuse_taken(out: Path, overwrite: bool, own: frozenset[str]) -> None:
    """Refuse a place that holds something else than a page of ours, or one that may not be replaced.

    Args: own: the names of what a page's folder holds.
    Raises: StoreError.
    """
    if not out.exists() and not out.is_symlink():
        return
    is_page = _is_ours(out / INDEX if out.is_dir() else out)
    entries = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if out.is_dir() and not entries:
        return
    if not is_page or out.is_symlink():
        raise StoreError(f"{out} is there already and is no page of ours: give --out another name")
    if others := [name for name in entries if name not in own]:
        raise StoreError(
            f"{out} holds {others[0]}, which is not of the page and would be lost: move it, or give --out another name"
        )
    if not overwrite:
        raise StoreError(f"{out} is there already: pass --overwrite to replace it")


@contextmanager
def folder_made_at(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` that becomes it once it is filled; after an error, nothing is left of it.

    Raises: StoreError, one sentence, for what the system refuses.
    """
    with _told(out), _beside(out) as folder:
        yield folder
        folder.chmod(0o755)  # as a folder that a server reads
        _replace(out, folder)


@contextmanager
def file_made_at(out: Path) -> Iterator[Path]:
    """Yield the name of a file that becomes `out` once it is written, as `folder_made_at`."""
    with _told(out), _beside(out) as folder:
        yield folder / out.name
        os.replace(folder / out.name, out)


@contextmanager
def _told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, Sd35h5Error):
            raise
        told = f"{out} cannot be written: {reason(error)}: make room there or give --out another place"
        raise StoreError(told) from error


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(out: Path, new: Path) -> None:
    if not out.exists():
        os.replace(new, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
    os.replace(out, old / "page")
    try:
        os.replace(new, out)
    except OSError:
        os.replace(old / "page", out)
        raise
    finally:
        with suppress(OSError):
            shutil.rmtree(old)


def _is_ours(page: Path) -> bool:
    try:
        with page.open("rb") as file:
            return MARK in file.read(_HEAD_BYTES)
    except OSError:
        return False
