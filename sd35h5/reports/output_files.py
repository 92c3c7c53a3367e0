"""What all reports write with: files that appear whole or not at all, folders, file names made safe, charts as PNG."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import altair as alt

from sd35h5.errors import Sd35h5Error, StoreError
from sd35h5.figures import printing
from sd35h5.store.opening import reason
from sd35h5.store.processes.guarded_store import open_checked

if TYPE_CHECKING:
    from sd35h5.store.opening import reason
from sd35h5.store.reader import Store


def save_chart(chart: alt.TopLevelMixin, path: Path) -> Path:
    """Write the chart as PNG."""
    return write(path, printing.png(chart))


def open_with_samples(path: str | Path) -> Store:
    store = open_checked(path)
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
    except OSError as error:
        raise _refused(folder, error) from error
    return folder


@contextmanager
def writing(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file that gets its name once it is whole; after an error, nothing of it is left.

    Args: mode: "wb", or "w" for text.
    Raises: StoreError, one sentence, for what the system refuses.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with temporary.open(mode, **text) as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # the folder may be gone, or have become read-only
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, Sd35h5Error):
            raise _refused(path, error) from error
        raise


def write(path: Path, content: bytes) -> Path:
    """Write a whole file, see `writing`."""
    with writing(path) as file:
        file.write(content)
    return path


def _refused(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} cannot be written: {reason(error)}: make room there or give --out_dir another folder, "
        "then give the same command again"
    )
