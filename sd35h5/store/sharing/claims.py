"""Who packs what many processes have drawn: a file that only one of them can create, on any file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sd35h5.errors import RunHeldError
from sd35h5.store.runs import CLAIM_FILE
from sd35h5.store.sharing.temporaries import this_host


@contextmanager
def claimed(parts: Path) -> Iterator[None]:
    """Be the one that packs, by a file in the folder. Only who holds the run alone, by `store.runs.running`, asks: a
    claim of this host is then one of a process that died.

    Raises: RunHeldError: a process of another host has claimed it.
    """
    path = parts / CLAIM_FILE
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        if path.read_text(encoding="ascii", errors="replace") != this_host():
            raise RunHeldError(
                f"{parts.name} is being packed on another host; if that has died: python -m sd35h5 pack {parts} "
                "--remove_parts"
            ) from None
        descriptor = os.open(path, os.O_WRONLY)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(this_host())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
