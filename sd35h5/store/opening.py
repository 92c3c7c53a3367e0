"""Open a file for reading, without locking, and say what stands in its place where it cannot be opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path

import h5py

from sd35h5.errors import Sd35h5Error, StoreError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
DAMAGED = "it is damaged or half-written: get it again"
_LOCKING = "HDF5_USE_FILE_LOCKING"  # HDF5 heeds it before what a program asks for
_HEAD_BYTES = 1024
_WRAPPED = {  # first bytes -> what the file is, and how to get at what is in it
    b"version https://git-lfs": "a git-lfs pointer, not the file itself: fetch it with `git lfs pull`",
    b"\x1f\x8b": "compressed with gzip: unpack it with gunzip first",
    b"BZh": "compressed with bzip2: unpack it with bunzip2 first",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it with unxz first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it with unzstd first",
    b"PK\x03\x04": "a zip archive or a PyTorch file, not HDF5: if run.h5 is in it, unpack that first",
    b"\x00\x05\x16\x07": "what macOS leaves beside a file, not the file itself: open the one without ._ in its name",
}


def opened(path: Path) -> h5py.File:
    """Open a file read-only.

    Raises: StoreError, one sentence.
    """
    try:
        return unlocked(path)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise StoreError(f"{path.name} cannot be opened: {wrong_file(path, error)}") from error


def unlocked(path: Path | RawIOBase) -> h5py.File:
    """Open a file as it is, whoever has locked it: files are replaced whole, never changed in place.

    HDF5 lets a process open a file in one way of locking only, unless by another driver; xarray opens it, too.
    Args: path: or a file whose bytes come from elsewhere, a `FetchedFile`.
    """
    if isinstance(path, RawIOBase):
        return h5py.File(path, "r")
    return h5py.File(path, "r", driver="stdio", locking=False)


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open a file to look into it; whatever a damaged one makes of h5py is one sentence.

    Raises: StoreError.
    """
    with opened(path) as file:
        try:
            yield file
        except (Sd35h5Error, MemoryError):
            raise
        except Exception as error:
            raise StoreError(f"{path.name} cannot be read: {wrong_file(path, error)}") from error


def wrong_file(path: Path, error: Exception | None = None) -> str:
    """Say what a file is that HDF5 does not open, by its first bytes, and what to do about it.

    Args: error: what HDF5 said.
    """
    if isinstance(error, BlockingIOError):
        return f"another program has locked it, and {_LOCKING}={os.environ.get(_LOCKING, '')} heeds that: unset it"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as refused:
        return reason(refused)
    if not head:
        return "it is empty: get or copy it again"
    for start, what in _WRAPPED.items():
        if head.startswith(start):
            return f"it is {what}"
    if head.startswith(SIGNATURE):
        return _incomplete(head, size)
    if not head.strip(b"\0"):
        return "it begins with nothing but zeros: it was not written to its end, get it again"
    return _text(head) or "it is no HDF5 file, or its beginning is damaged: get it again"


def unread(path: Path | RawIOBase, error: Exception) -> str:
    """Say why values of an open file could not be read: the system does not give them, or the file is damaged."""
    if not isinstance(path, RawIOBase):
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as refused:
            return reason(refused)
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if number else "the file is damaged"


def reason(error: OSError | RuntimeError) -> str:
    """Why the system refused, in its own few words and without paths."""
    if isinstance(error, BlockingIOError):
        return "another process is writing it"
    told = re.search(r"errno = (\d+)", str(error))  # HDF5 tells it in its message
    number = getattr(error, "errno", None) or (int(told[1]) if told else 0)
    if number:
        return os.strerror(number).lower()
    return str(error).split("(")[0].strip().lower() or "the system refused"


def stored_end(head: bytes) -> int | None:
    """The length of an HDF5 file as its superblock tells it; None where it tells none."""
    version = head[8] if len(head) > 8 else None
    place = {0: (13, 24), 1: (13, 28), 2: (9, 12), 3: (9, 12)}.get(version)
    if place is None or len(head) <= place[0]:
        return None
    width, start = head[place[0]], place[1]
    end = head[start + 2 * width : start + 3 * width]  # behind the base and one more address
    return int.from_bytes(end, "little") if len(end) == width and 0 < width <= 8 else None


def _incomplete(head: bytes, size: int) -> str:
    end = stored_end(head)
    if end is None or size < end < 1 << 60:
        told = f"{size} of {end}" if end else f"only {size}"
        return f"it is cut off, it has {told} bytes: copy or download it again"
    if head[8] == 3 and head[11] & 5:
        return "another program is writing it, or ended while it did: wait for it, or get the file again"
    return DAMAGED


def _text(head: bytes) -> str:
    """Say which text it is, "" where it is none."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb"<(!doctype html|html|head|body|!--)", start, re.IGNORECASE):
        return (
            "it is a web page, not the file itself: download it again "
            "(on Hugging Face the address has /resolve/ in place of /blob/)"
        )
    line = start.split(b"\n")[0][:200].decode("utf-8", "replace").strip()
    if not line.isprintable() or "\ufffd" in line:
        return ""
    shown = line if len(line) <= 60 else f"{line[:57]}..."
    return f"it is a text, not HDF5, and begins with “{shown}”: download it again"
