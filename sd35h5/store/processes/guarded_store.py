"""A Store whose files this process never opens: reader processes do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd35h5.store.places.addresses import is_address
from sd35h5.store.places.far_files import FarFile
from sd35h5.store.processes.guarded_files import GuardedFiles
from sd35h5.store.processes.reader_pool import Readers
from sd35h5.store.reader import Store
from sd35h5.store.verifying import refuse_problems

MAX_READ_BYTES = 256 << 20
OWN_MAX_READ_BYTES, OWN_MEMORY_BYTES = 1 << 30, 3 << 30  # of a command, which has the machine for itself
OWN_SECONDS = 60  # for one read, of a large file on a slow disk


def open_through(readers: Readers, path: str | Path, mark: tuple[int, ...] = ()) -> Store:
    """Open what `open_store` opens, in reader processes: this process opens no HDF5 file.

    Verify a file from a stranger first: the limits of a reader save the server, not the answer.
    Args: mark: what changes when the file does, so that readers open it anew.
    Raises: StoreError, also for a read above MAX_READ_BYTES, which the size that a file claims would ask for.
    """
    return Store(GuardedFiles(readers, Path(path), mark), MAX_READ_BYTES)


def own_readers() -> Readers:
    """Start the readers of a command."""
    return Readers(2, OWN_SECONDS, OWN_MEMORY_BYTES, started=1)


def open_checked(
    path: str | Path, readers: Readers | None = None, options: Mapping[str, Any] | None = None
) -> Store:
    """Verify and open what `open_store` opens, wherever it comes from: nothing that is in it hangs, kills or
    swells this process, and Ctrl-C ends every read.

    Args:
        path: or the address of a file elsewhere.
        readers: of `own_readers`; None starts some that end when the store is closed.
        options: what fsspec takes for this kind of address.
    Raises: StoreError with the first problem; StoreNotFoundError.
    """
    own = own_readers() if readers is None else None  # they start while the file is verified
    try:
        far = FarFile(path, options) if is_address(path) else None
        refuse_problems(far or path)
        place = Path(far.name if far else path)
        return Store(GuardedFiles(readers or own, place, (), own, far), OWN_MAX_READ_BYTES)
    except BaseException:
        if own is not None:
            own.close()
        raise
