"""A file that this process holds, alone or with others, until it is closed or the process ends."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO


def lock(path: Path, shared: bool = False) -> BinaryIO:
    """Create a file and hold it for this process until it is closed, alone or with others that share it.

    HDF5 locks only after it has truncated, so two captures would spoil each other's sample.
    Raises: BlockingIOError if another process holds it.
    """
    held = path.open("ab")
    try:
        import fcntl

        fcntl.flock(held, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise
    except (ImportError, OSError):  # Windows, or a file system without locks: nothing to hold it with
        return held
    return held
