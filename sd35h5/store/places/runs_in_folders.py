"""Which stores lie in a folder and in those below it: names are looked at, no file is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sd35h5.store.runs import RUN_FILE, is_companion
from sd35h5.store.schema import PARTS_SUFFIX, SUFFIX, SUFFIXES

MAX_DEPTH = 5  # folders below the given one: mlruns/0/ID/artifacts/run.h5 has four
MAX_ENTRIES = 20_000  # names that are looked at in all
MAX_ENTRIES_BELOW = 5_000  # names that are looked at in one folder below the given one, as of a data set
MAX_STORES = 500


@dataclass(frozen=True)
class Inside:
    """The stores at a path, those near it first; folders that cannot be listed; whether all was looked at."""

    stores: tuple[Path, ...]
    unlisted: tuple[Path, ...] = ()
    is_whole: bool = True


def stores_in(place: Path) -> Inside:
    """Look for stores: a path itself, or what a folder holds, also in folders below it.

    Links to folders are not followed: none leads in circles, and nothing is found twice.
    Raises: OSError where the path itself cannot be listed.
    """
    if not place.is_dir() or place.name.endswith(PARTS_SUFFIX):
        return Inside((place,))
    entries, is_whole = _entries(place, MAX_ENTRIES)
    if _is_capture(place, entries) or (_has_run(entries) and not _stores(entries)):
        return Inside((place,), (), is_whole)
    found, unlisted, left = _stores(entries), [], MAX_ENTRIES - len(entries)
    level = _folders(entries)
    for _ in range(MAX_DEPTH):
        below: list[Path] = []
        for folder in level:
            if left <= 0 or len(found) > MAX_STORES:
                return Inside(tuple(found[:MAX_STORES]), tuple(unlisted), False)
            try:
                entries, all_names = _entries(folder, min(left, MAX_ENTRIES_BELOW))
            except OSError:
                unlisted.append(folder)
                continue
            left, is_whole = left - len(entries) - 1, is_whole and all_names
            if _is_capture(folder, entries):
                found.append(folder)
                continue
            found += _stores(entries)
            below += _folders(entries)
        level = below
    return Inside(
        tuple(found[:MAX_STORES]), tuple(unlisted), is_whole and not level and len(found) <= MAX_STORES
    )


def _entries(folder: Path, most: int) -> tuple[list[os.DirEntry[str]], bool]:
    """So many entries of a folder at most, without what other systems leave, by name; and whether these are all."""
    with os.scandir(folder) as entries:
        found = list(islice(entries, most + 1))
    ours = [entry for entry in found[:most] if not is_companion(entry.name)]
    return sorted(ours, key=lambda entry: entry.name), len(found) <= most


def _stores(entries: list[os.DirEntry[str]]) -> list[Path]:
    """The files that may be stores, and captures under way whose packed file is not beside."""
    files = [Path(entry.path) for entry in entries if entry.name.endswith(SUFFIXES) and not _is_folder(entry)]
    packed = {path.name for path in files}
    running = [
        Path(entry.path) for entry in entries
        if entry.name.endswith(tuple(suffix + PARTS_SUFFIX for suffix in SUFFIXES)) and _is_folder(entry)
        and entry.name.removesuffix(PARTS_SUFFIX) not in packed
    ]  # fmt: skip
    return sorted(files + running)


def _is_capture(folder: Path, entries: list[os.DirEntry[str]]) -> bool:
    """Whether a folder holds the sealed samples of one capture: its stores are numbered, 000012.h5."""
    stores = _stores(entries)
    return bool(stores) and all(path.suffix == SUFFIX and path.stem.isdecimal() for path in stores)


def _has_run(entries: list[os.DirEntry[str]]) -> bool:
    return any(entry.name == RUN_FILE for entry in entries)


def _folders(entries: list[os.DirEntry[str]]) -> list[Path]:
    """The folders in which to look on; captures are none of them."""
    ended = tuple(suffix + PARTS_SUFFIX for suffix in SUFFIXES)
    return [
        Path(entry.path) for entry in entries
        if not entry.name.endswith(ended) and not entry.is_symlink() and _is_folder(entry)
    ]  # fmt: skip


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder; what may not be looked at counts as a file, and is told of when it is opened."""
    try:
        return entry.is_dir()
    except OSError:
        return False
