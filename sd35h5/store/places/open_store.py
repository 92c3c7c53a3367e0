"""Open a store, wherever it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd35h5.store.places.addresses import is_address
from sd35h5.store.reader import Store
from sd35h5.store.sample_files import find_parts


def open_store(path: str | Path, trusted: bool = True, options: Mapping[str, Any] | None = None) -> Store:
    """Open a sealed file, a packed file, a folder of sealed files, or a running capture.

    A file elsewhere (`https://…`, `hf://…`, `s3://…`, what fsspec knows) is verified first, whoever wrote it, and read
    by ranges in processes of their own; close it, or use `with`, to end them.

    Args:
        path: `run.h5`, whether it is packed or still a folder `run.h5.parts`, or that folder.
        options: what fsspec takes for this kind of address, as `headers`, `token` or `anon`.
        trusted: False verifies the file in a subprocess first, as one should with a file from a stranger.
    Raises: StoreError with the first problem; StoreNotFoundError.
    """
    if is_address(path):
        from sd35h5.store.processes.guarded_store import open_checked

        return open_checked(path, options=options)
    if not trusted:
        from sd35h5.store.verifying import refuse_problems

        refuse_problems(path)
    return Store(find_parts(Path(path)))
