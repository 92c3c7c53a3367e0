"""Which runs there are: the stores at the given paths, each verified before it is read, and why others are not
shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import streamlit as st

from dashboard.caching import kept
from sd35h5.errors import Sd35h5Error
from sd35h5.reports.run_names import run_names
from sd35h5.store.places.runs_in_folders import stores_in
from sd35h5.store.processes.children import CannotStartError
from sd35h5.store.processes.guarded_store import open_through
from sd35h5.store.processes.reader_pool import Readers
from sd35h5.store.showable import well_formed
from sd35h5.store.verifying import verify

PARTS = ".parts"
VERIFIED_AT_ONCE = 3
LEADS_OUT = (
    "It is a link, or holds one, that leads out of the folders that were given: "
    "start the dashboard with the folder it leads to, too, or put the file itself here."
)
UNREADABLE = "It cannot be read: it was removed, or may not be opened by this server."
MISSING = "There is nothing called {} at that path: check the spelling."
EMPTY = "The folder {} holds no .h5 store: capture one into it first."
UNLISTED = "The folder cannot be listed: it was removed, or may not be opened by this server."
MORE = (
    "The folder {} holds more than is looked at: start the dashboard with the folders in it that are wanted."
)


Mark = tuple[str, tuple[int, ...]]  # path and stamp of a run


@dataclass(frozen=True)
class Run:
    """A verified run: the name people see, where it is, and a stamp that changes when it does."""

    name: str
    path: str
    stamp: tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """What was found at the given paths: runs that can be opened, and (name, sentence) of what cannot."""

    runs: tuple[Run, ...]
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Listing:
    """What names and times tell: path and stamp of each store, the folder in which it was found, and what is none."""

    marks: tuple[Mark, ...]
    folders: tuple[Path, ...]
    refused: tuple[tuple[str, str], ...]


@st.cache_resource(show_spinner=False)
def readers() -> Readers:
    """Return the server's reader processes: nothing else opens HDF5 files."""
    return Readers()


def find(arguments: tuple[str, ...], root: Path) -> Found:
    """Look for runs at the given paths, or in runs/ and the example stores when there are none; verify them."""
    seen = listed(arguments, root)
    said = verified(seen.marks)
    sound = [place for place, mark in enumerate(seen.marks) if not said[mark]]
    names = run_names(
        [Path(seen.marks[place][0]) for place in sound], [seen.folders[place] for place in sound]
    )
    runs = tuple(Run(name, *seen.marks[place]) for name, place in zip(names, sound, strict=True))
    unsound = [
        (_below(Path(mark[0]), folder), said[mark])
        for mark, folder in zip(seen.marks, seen.folders, strict=True)
        if said[mark]
    ]
    refused = [(well_formed(name), well_formed(sentence)) for name, sentence in (*seen.refused, *unsound)]
    return Found(runs, tuple(refused))


def listed(arguments: tuple[str, ...], root: Path) -> Listing:
    """Look at names and times only, of the given paths or of those that are usual: no file is opened."""
    places = given(arguments, root)
    homes = [home for place in places for home in homes_of(place)]
    refused: list[tuple[str, str]] = []
    found: dict[Path, Path] = {}  # of each store the folder in which it was found
    for place in places:
        try:
            if not place.exists() and not parts_of(place).is_dir():
                refused.append((place.name, MISSING.format(place.name)))
                continue
            inside = stores_in(place)
        except OSError:
            refused.append((place.name, UNREADABLE))
            continue
        if arguments and not inside.stores:
            refused.append((place.name, EMPTY.format(place.name)))
        folder = place if _is_folder(place) and inside.stores != (place,) else place.parent
        refused += [(_below(path, folder), UNLISTED) for path in inside.unlisted]
        if not inside.is_whole:
            refused.append((place.name, MORE.format(place.name)))
        for path in inside.stores:
            if why := _kept_back(path, homes):
                refused.append((_below(path, folder), why))
            else:
                found.setdefault(path, folder)
    marks = tuple((str(path), stamp(path)) for path in found)
    return Listing(marks, tuple(found.values()), tuple(refused))


def _below(path: Path, folder: Path) -> str:
    """Return what a file is called below the folder in which it was found."""
    return path.relative_to(folder).as_posix()


def _kept_back(path: Path, homes: Sequence[str]) -> str:
    """Return why a store is not even verified, "" if nothing speaks against it."""
    if well_formed(str(path)) != str(path):
        return (
            "Its name, or that of a folder above it, is not UTF-8 or holds control characters, and no page can "
            "show it: rename it."
        )
    return LEADS_OUT if leads_out(path, homes) else ""


def given(arguments: tuple[str, ...], root: Path) -> list[Path]:
    """Return where to look: at the given paths, or in runs/ and the example stores when there are none."""
    if arguments:
        return [Path(argument).expanduser().absolute() for argument in arguments]
    folders = dict.fromkeys([Path.cwd() / "runs", root / "runs"])
    return [folder for folder in folders if folder.is_dir()] + sorted((root / "data").glob("example-*.h5"))


def _is_folder(path: Path) -> bool:
    """Whether it is a folder; what may not be looked at counts as a file, and is told of when it is opened."""
    try:
        return path.is_dir()
    except OSError:
        return False


def homes_of(place: Path) -> list[str]:
    """Return where links may lead because a path was given: into its folder, to itself, or into the `blobs` of
    Hugging Face's cache, whose `snapshots` hold links alone. The path itself may be a link: it was chosen."""
    real = Path(os.path.realpath(place))
    homes = [real] if _is_folder(place) else [real, Path(os.path.realpath(place.parent))]
    caches = [above for one in (place, real) for above in (one, *one.parents) if above.name == "snapshots"]
    return [str(home) for home in (*homes, *(os.path.realpath(above.parent / "blobs") for above in caches))]


def leads_out(path: Path, homes: Sequence[str]) -> bool:
    """Whether a run, or one of its files, is a link that ends in none of these places."""
    folders = [folder for folder in (path, parts_of(path)) if _is_folder(folder)]
    files = [file for folder in folders for file in (folder / "run.json", *_samples(folder))]
    ends = {Path(os.path.realpath(one)) for one in (path, *folders, *files)}
    return not all(any(end.is_relative_to(home) for home in homes) for end in ends)


def parts_of(path: Path) -> Path:
    """Return the folder that a capture into `path` writes its sealed samples to."""
    return path.with_name(path.name + PARTS)


def stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when the file, or a file of the folder, does: times and sizes."""
    marks = []
    for place in (path, parts_of(path)):
        if _is_folder(place):
            stats = [stat for entry in _samples(place) if (stat := _stat(entry))]
            marks += [len(stats), max((stat.st_mtime_ns for stat in stats), default=0)]
        elif stat := _stat(place):
            marks += [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return tuple(marks)


def is_there(run: Run) -> bool:
    """Whether a run's file or folder is there, or the file that the folder was packed into."""
    return bool(stamp(Path(run.path)) or stamp(Path(run.path.removesuffix(PARTS))))


def _samples(folder: Path) -> list[Path]:
    """Return the files of a folder; none of one that was packed and removed meanwhile, or may not be listed."""
    try:
        return sorted(folder.glob("*.h5"))
    except OSError:
        return []


def _stat(path: Path) -> os.stat_result | None:
    """Return a file's times and sizes; None for one that is gone, as samples are when a capture packs them, or
    that nobody may look at."""
    try:
        return path.stat()
    except OSError:
        return None


def verified(marks: Sequence[Mark]) -> dict[Mark, str]:
    """Return for each run "" if it is sound, else a sentence; those that changed are verified at the same time."""
    said = {}
    for mark in marks:
        with suppress(KeyError):
            said[mark] = kept().get(("verified", mark))
    if unknown := [mark for mark in marks if mark not in said]:
        ask = partial(_judged, readers())
        with st.spinner("Verifying files …"), ThreadPoolExecutor(VERIFIED_AT_ONCE) as threads:
            judged = dict(zip(unknown, threads.map(ask, unknown), strict=True))
        said |= {mark: sentence for mark, (sentence, _) in judged.items()}
        for mark in (mark for mark, (_, is_of_file) in judged.items() if is_of_file):
            kept().put(("verified", mark), said[mark])
    return said


def _judged(pool: Readers, mark: Mark) -> tuple[str, bool]:
    """Return what `problem` does, and whether the file is to blame: else it is asked again with the next page."""
    try:
        return problem(pool, mark), True
    except CannotStartError as error:
        return without_paths(str(error), mark[0]), False


def problem(pool: Readers, mark: Mark) -> str:
    """Return "" for a sound store, else one sentence that says what is wrong with it; checked in a
    subprocess."""
    path = mark[0]
    try:
        report = verify(path)
        if not report.ok:
            return without_paths("; ".join(report.problems[:2]), path)
        opened = open_through(pool, *mark)
        if not opened.sizes["sample"]:
            return f"It is being captured: 0 of {opened.planned} samples are there yet; it appears with the first."
    except CannotStartError:
        raise
    except Sd35h5Error as error:
        return without_paths(str(error), path)
    except OSError:
        return UNREADABLE
    return ""


def without_paths(text: str, *paths: str) -> str:
    """Return the text without the server's folders: a store is called by its file name only, Python by its own."""
    text = text.replace(sys.executable, "python")
    for place in map(Path, paths):
        real = Path(os.path.realpath(place))  # also of a link that leads to itself
        for folder in (real.parent, place.absolute().parent, place.parent):
            if str(folder) not in (".", "/", ""):
                text = text.replace(f"{folder}/", "")
    return text
