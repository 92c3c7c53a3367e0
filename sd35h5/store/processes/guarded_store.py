"""A Store whose files this process never opens: reader processes do."""

from __future__ import annotations

from pathlib import Path

from sd35h5.store.processes.guarded_files import GuardedFiles
from sd35h5.store.processes.reader_pool import Readers
from sd35h5.store.reader import Store

MAX_READ_BYTES = 256 << 20


def open_through(readers: Readers, path: str | Path, mark: tuple[int, ...] = ()) -> Store:
    """Open what `open_store` opens, in reader processes: this process opens no HDF5 file.

    Verify a file from a stranger first: the limits of a reader save the server, not the answer.
    Args: mark: what changes when the file does, so that readers open it anew.
    Raises: StoreError, also for a read above MAX_READ_BYTES, which the size that a file claims would ask for.
    """
    return Store(GuardedFiles(readers, Path(path), mark), MAX_READ_BYTES)
