"""A file that is made of others: refused where it may not stand, made under another name, there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py

from sd35h5.errors import StoreError
from sd35h5.store.opening import reason
from sd35h5.store.runs import RUN_FILE, out_of, parts_of
from sd35h5.store.schema import PARTS_SUFFIX
from sd35h5.store.sharing.room import Room
from sd35h5.store.sharing.run_progress import run_progress
from sd35h5.store.sharing.whole_files import whole_file
from sd35h5.store.verifying import refuse_problems

_SLACK = 1 << 20  # bytes, of what is not values


def refuse_running(path: Path) -> None:
    """Refuse a capture that a process fills or packs. Raises: StoreError."""
    parts = path if path.is_dir() else parts_of(path)
    if parts.is_dir() and run_progress(parts, 0).is_held:
        raise StoreError(
            f"{(out_of(parts) or parts).name} is being captured: wait until it has ended, or stop it"
        )


def refuse_place(out: Path, sources: Sequence[Path], overwrite: bool) -> None:
    """Refuse what may not be written: a file that is there, one of the sources, or a part of a capture.

    Raises: StoreError, one sentence.
    """
    if parts_of(out).is_dir() or out.parent.name.endswith(PARTS_SUFFIX) or (out.parent / RUN_FILE).is_file():
        raise StoreError(f"{out.name} belongs to a capture: choose another name for --out")
    if not out.parent.is_dir():
        raise StoreError(f"{out.name} cannot be made: there is no folder {out.parent.name}")
    if out.is_dir():
        raise StoreError(f"{out.name} is a folder: choose another name for --out")
    if not out.exists():
        return
    if any(source.exists() and os.path.samefile(out, source) for source in sources):
        raise StoreError(f"{out.name} is what is read: choose another name for --out")
    if not overwrite:
        raise StoreError(f"{out.name} is there already: pass --overwrite to replace it")


@contextmanager
def new_file(out: Path, nbytes: int) -> Iterator[tuple[h5py.File, Room]]:
    """Make a file under a name of its own; it is written through to the disk and renamed at the end.

    Args: nbytes: how large it will be, roughly: refused where the disk has less.
    Raises: StoreError, one sentence; nothing is left then.
    """
    try:
        free = shutil.disk_usage(out.parent).free
    except OSError as error:
        raise StoreError(f"{out.name} cannot be made: {reason(error)}") from error
    if nbytes + _SLACK > free:
        raise StoreError(
            f"{out.name} takes about {_mb(nbytes + _SLACK)} MB, its disk has {_mb(free)} MB free: make room first"
        )
    with whole_file(out, f"{out.name} cannot be made") as made:
        yield made


def verified(path: Path) -> Path:
    """Verify a source in a process of its own, before this one opens it. Returns: the path."""
    refuse_running(path)
    refuse_problems(path)
    return path


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.{0 if nbytes > 1e7 else 1}f}"
