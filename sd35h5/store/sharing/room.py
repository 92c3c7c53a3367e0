"""Room on the disk for a file that HDF5 fills: taken before HDF5 writes, so that it never comes upon a full disk.

HDF5 (2.0, as 1.8 before) that cannot write what it holds back leaves objects half closed, and ends the process with a
segmentation fault when it comes upon them again.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import h5py
import numpy as np

from sd35h5.store.opening import stored_end
from sd35h5.store.schema import LIBVER, METADATA_BLOCK_BYTES

MARGIN = METADATA_BLOCK_BYTES  # what HDF5 may write of its own, without being told to
_STEP = 8 << 20  # bytes that are taken together
_HEAD_BYTES = 64
_TEXT_BYTES = 40  # of a text's place, twice


def file_with_room(path: Path, margin: int = MARGIN, **more: int) -> tuple[h5py.File, Room]:
    """Create a file that HDF5 fills, with room for what it writes of its own.

    Args: more: options of `h5py.File`.
    Raises: OSError: there is none; then the file is not there.
    """
    try:
        file = h5py.File(path, "w", libver=LIBVER, locking=False, **more)
        try:
            return file, Room(file, margin)
        except OSError:
            file.close()
            raise
    except OSError:
        path.unlink(missing_ok=True)
        raise


def bytes_of(values: np.ndarray) -> int:
    """What an array takes in a file, at most: texts with their lengths and places."""
    if values.dtype.kind != "O":
        return values.nbytes
    return sum(len(text.encode()) + _TEXT_BYTES for text in values.ravel())


class Room:
    """The room of one file; asked by all threads that write to it. Where a system takes none ahead, it does nothing.

    Raises: OSError: the disk is full, or a limit is reached; then the file can still be closed.
    """

    def __init__(self, file: h5py.File, margin: int) -> None:
        self._file, self._path, self._margin = file.id, Path(file.filename), margin
        self._lock = threading.Lock()
        self._taken = 0
        self.take(0)

    def take(self, nbytes: int) -> None:
        """Make sure that so many bytes more find room."""
        if not hasattr(os, "posix_fallocate"):  # macOS, Windows
            return
        with self._lock:
            needed = self._file.get_filesize() + nbytes + self._margin
            if needed <= self._taken:
                return
            descriptor = self._file.get_vfd_handle()
            try:
                os.posix_fallocate(descriptor, self._taken, needed + _STEP - self._taken)
                self._taken = needed + _STEP
            except OSError:  # the last bytes of a disk
                os.posix_fallocate(descriptor, self._taken, needed - self._taken)
                self._taken = needed

    def write_chunk(
        self, dataset: h5py.h5d.DatasetID, origin: tuple[int, ...], data: bytes, mask: int = 0
    ) -> None:
        """Take the room of a chunk and write it, as it is."""
        self.take(len(data))
        dataset.write_direct_chunk(origin, data, mask)

    def close(self, file: h5py.File) -> None:
        """Close the file, and cut it to what HDF5 has written."""
        file.close()
        with self._path.open("rb") as file:
            end = stored_end(file.read(_HEAD_BYTES))
        if end is not None and end < self._path.stat().st_size:
            os.truncate(self._path, end)
