"""Open a store, wherever it is."""

from __future__ import annotations

from pathlib import Path

from sd35h5.store.reader import Store
from sd35h5.store.sample_files import find_parts


def open_store(path: str | Path, trusted: bool = True) -> Store:
    """Open a sealed file, a packed file, a folder of sealed files, or a running capture.

    Args:
        path: `run.h5`, whether it is packed or still a folder `run.h5.parts`, or that folder.
        trusted: False verifies the file in a subprocess first, as one should with a file from a stranger.
    Raises: StoreError with the first problem; StoreNotFoundError.
    """
    if not trusted:
        from sd35h5.store.verifying import refuse_problems

        refuse_problems(path)
    return Store(find_parts(Path(path)))
