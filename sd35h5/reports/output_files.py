"""What all reports write with: files that appear whole or not at all, folders, file names made safe, charts as PNG."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import IO, TYPE_CHECKING

import altair as alt
import pandas as pd

from sd35h5.errors import Sd35h5Error, StoreError
from sd35h5.figures import printing
from sd35h5.store.opening import reason
from sd35h5.store.processes.guarded_store import open_checked, own_readers
from sd35h5.store.showable import cell

if TYPE_CHECKING:
    from sd35h5.store.processes.reader_pool import Readers
    from sd35h5.store.reader import Store

LONGEST = 60  # letters of a file name
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}


def save_chart(chart: alt.TopLevelMixin, path: Path) -> Path:
    """Write the chart as PNG."""
    return write(path, printing.png(chart))


def open_with_samples(path: str | Path, readers: Readers | None = None) -> Store:
    store = open_checked(path, readers)
    if not store.sizes["sample"]:
        store.close()
        raise StoreError(f"{store.name} has no sealed sample yet: wait for the first of {store.planned}")
    return store


@contextmanager
def open_runs(paths: Sequence[str | Path]) -> Iterator[dict[str, Store]]:
    """Open several runs with samples: name -> store, in their order; of equal names, the later ones get a number."""
    with own_readers() as readers:
        stores: dict[str, Store] = {}
        for path in paths:
            store = open_with_samples(path, readers)
            numbered = (f"{store.name} ({number})" for number in count(2))
            stores[next(name for name in chain([store.name], numbered) if name not in stores)] = store
        yield stores


def safe_name(text: str) -> str:
    """Return a file name made only of letters, digits, - and _: strings of a store never become paths.

    What cannot be told from it, a long name, one in other letters or one that some system reserves, ends in a hash.
    """
    text = str(text)
    name = re.sub(r"[^\w-]+", "-", text, flags=re.ASCII).strip("-")
    if name == text and len(name) <= LONGEST and name.upper() not in RESERVED:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}-{digest}".lstrip("-")


def distinct_names(texts: Iterable[str]) -> list[str]:
    """Return a safe file name for each text, no two alike, also where a file system does not tell case apart."""
    names: list[str] = []
    taken: set[str] = set()
    for name in map(safe_name, texts):
        others = (f"{name}-{number}" for number in count(2))
        free = name if name.casefold() not in taken else next(o for o in others if o.casefold() not in taken)
        taken.add(free.casefold())
        names.append(free)
    return names


def csv_text(table: pd.DataFrame, header: bool = True) -> str:
    """Return the table as comma-separated values; texts of files cannot act in a spreadsheet or a terminal."""
    texts = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    shown = table.assign(
        **{name: table[name].map({one: cell(one) for one in table[name].unique()}) for name in texts}
    )
    return shown.to_csv(header=header, index=False, float_format="%.9g")


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
