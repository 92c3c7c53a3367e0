"""Memory that a process shares with one that it starts, for arrays too large for a pipe between them.

A pipe is emptied some hundred kilobytes at a time, and each time a Python thread waits for its turn; here an
array is one copy in and one copy out.
"""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np


class SharedBuffer:
    """One array at a time, in a file without a name: who has its descriptor sees the same bytes.

    Args:
        descriptor: of the buffer of another process; None makes a new one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = _anonymous() if descriptor is None else descriptor
        self._map: mmap.mmap | None = None

    def put(self, values: np.ndarray) -> None:
        """Copy C-contiguous numbers in, over what is there."""
        if os.fstat(self.descriptor).st_size < values.nbytes:
            os.ftruncate(self.descriptor, values.nbytes)
        self._bytes(values.nbytes)[:] = values.reshape(-1).view(np.uint8)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Copy the numbers out."""
        values = np.empty(shape, dtype)
        values.reshape(-1).view(np.uint8)[:] = self._bytes(values.nbytes)
        return values

    def close(self) -> None:
        """Give the memory back, as far as this process holds it."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _bytes(self, count: int) -> np.ndarray:
        if self._map is None or len(self._map) < count:
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(self.descriptor, count)
        return np.frombuffer(self._map, np.uint8, count)


def _anonymous() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("sd35h5")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
