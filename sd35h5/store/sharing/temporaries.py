"""Names beside a file that nobody else writes to, on this host or another: there, file locks may not hold."""

from __future__ import annotations

import hashlib
import os
import platform
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from sd35h5.store.schema import SUFFIX
from sd35h5.store.sharing.locks import lock

_ENDING = ".tmp"
_LEFT_AFTER = 24 * 3600  # seconds without a change, for what another host or an earlier boot wrote


def own_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """Create a file in which `path` is made, under a name of its own, and hold it until it is closed.

    What processes that have died left of the same `path` is removed: of this host where its lock is free, of another
    one after a day.
    """
    for left in _leavings(path):
        with suppress(OSError):
            left.unlink()
    while True:
        temporary = path.with_name(f"{path.name}.{this_host()}-{uuid.uuid4().hex[:8]}{_ENDING}")
        held = lock(temporary)
        with suppress(FileNotFoundError):  # taken for a leaving, in the moment before it was locked
            if os.path.samestat(os.fstat(held.fileno()), temporary.stat()):
                return temporary, held
        held.close()


def remove_leavings(parts: Path) -> None:
    """Remove from a capture's folder what processes that have died left of its samples."""
    for other in parts.glob(f"*{SUFFIX}.*{_ENDING}"):
        if _is_left(other, other.name.partition(f"{SUFFIX}.")[2]):
            with suppress(OSError):
                other.unlink()


def _leavings(path: Path) -> list[Path]:
    started = f"{path.name}."
    found = [
        other
        for other in path.parent.iterdir()
        if other.name.startswith(started) and other.name.endswith(_ENDING)
    ]
    return [other for other in found if _is_left(other, other.name.removeprefix(started))]


def _is_left(other: Path, rest: str) -> bool:
    """Whether nobody writes to it any more; where that cannot be told, it is left alone."""
    try:
        import fcntl

        with other.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_of_here = rest.startswith(f"{this_host()}-") or rest == _ENDING.removeprefix(".")
            return is_of_here or time.time() - other.stat().st_mtime > _LEFT_AFTER
    except (ImportError, OSError):
        return False


@cache
def this_host() -> str:
    """This boot of this machine, by which names of containers and hosts that are equal are told apart."""
    try:
        told = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        told = platform.node()
    return hashlib.sha256(told.encode()).hexdigest()[:8]
