"""Which runs there are: the stores at the given paths, each verified before it is read, and why others are not
shown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import streamlit as st

from dashboard.caching import kept
from sd35h5.errors import Sd35h5Error
from sd35h5.store.processes.children import CannotStartError
from sd35h5.store.processes.guarded_store import open_through
from sd35h5.store.processes.reader_pool import Readers
from sd35h5.store.verifying import verify

PARTS = ".parts"
VERIFIED_AT_ONCE = 3
LEADS_OUT = "It is a link, or holds one, that leads out of the folder: put the file itself there."


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


@st.cache_resource(show_spinner=False)
def readers() -> Readers:
    """Return the server's reader processes: nothing else opens HDF5 files."""
    return Readers()


def find(arguments: tuple[str, ...], root: Path) -> Found:
    """Look for runs at the given paths, or in runs/ and the example stores when there are none."""
    paths, refused = [], []
    for place in _given(arguments) if arguments else _usual(root):
        if not place.exists() and not parts_of(place).is_dir():
            refused.append(
                (place.name, f"There is nothing called {place.name} at that path: check the spelling.")
            )
            continue
        inside = stores_in(place)
        if arguments and not inside:
            refused.append(
                (place.name, f"The folder {place.name} holds no .h5 store: capture one into it first.")
            )
        refused += [(path.name, LEADS_OUT) for path in inside if leads_out(path, place)]
        paths += [path for path in inside if not leads_out(path, place)]
    marks = [(str(path), stamp(path)) for path in dict.fromkeys(paths)]
    said = verified(marks)
    sound = [mark for mark in marks if not said[mark]]
    names = distinct_names([Path(path) for path, _ in sound])
    refused += [(Path(path).name, said[path, mark]) for path, mark in marks if said[path, mark]]
    return Found(tuple(Run(name, *mark) for name, mark in zip(names, sound, strict=True)), tuple(refused))


def _given(arguments: tuple[str, ...]) -> list[Path]:
    return [Path(argument).expanduser().absolute() for argument in arguments]


def _usual(root: Path) -> list[Path]:
    folders = dict.fromkeys([Path.cwd() / "runs", root / "runs"])
    return [folder for folder in folders if folder.is_dir()] + sorted((root / "data").glob("example-*.h5"))


def stores_in(place: Path) -> list[Path]:
    """Return the stores at a path: itself, or what a folder holds."""
    if not place.is_dir() or place.name.endswith(PARTS) or (place / "run.json").exists():
        return [place]
    inside = list(place.iterdir())
    files = {path for path in inside if path.suffix == ".h5" and path.is_file()}
    running = {path for path in inside if path.name.endswith(".h5" + PARTS) and path.is_dir()}
    running = {path for path in running if path.with_name(path.name.removesuffix(PARTS)) not in files}
    numbered = files and all(path.stem.isdigit() for path in files)
    return [place] if numbered and not running else sorted(files | running)


def leads_out(path: Path, place: Path) -> bool:
    """Whether a run at a given place, or one of its files, is a link to somewhere else.

    The given path itself may be a link: who started the server chose it.
    """
    own = [place.resolve()] if place.is_dir() else [place.resolve(), place.parent.resolve()]
    folders = [folder for folder in (path, parts_of(path)) if folder.is_dir()]
    files = [file for folder in folders for file in (folder / "run.json", *folder.glob("*.h5"))]
    return not all(
        any(file.resolve().is_relative_to(folder) for folder in own) for file in (path, *folders, *files)
    )


def parts_of(path: Path) -> Path:
    """Return the folder that a capture into `path` writes its sealed samples to."""
    return path.with_name(path.name + PARTS)


def stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when the file, or a file of the folder, does: times and sizes."""
    marks = []
    for place in (path, parts_of(path)):
        if place.is_dir():
            stats = [stat for entry in sorted(place.glob("*.h5")) if (stat := _stat(entry))]
            marks += [len(stats), max((stat.st_mtime_ns for stat in stats), default=0)]
        elif stat := _stat(place):
            marks += [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return tuple(marks)


def _stat(path: Path) -> os.stat_result | None:
    """Return a file's times and sizes; None for one that is gone, as samples are when a capture packs them."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return a name a path: its stem, with the folder's name before it where two stems are equal, then a
    number."""
    stems = [path.name.removesuffix(PARTS).removesuffix(".h5") for path in paths]
    names = [
        stem if stems.count(stem) == 1 else f"{path.parent.name}/{stem}"
        for stem, path in zip(stems, paths, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


Mark = tuple[str, tuple[int, ...]]  # path and stamp of a run


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
            return f"It is being captured: 0 of {opened.planned} samples are there yet, reload in a moment."
    except CannotStartError:
        raise
    except Sd35h5Error as error:
        return without_paths(str(error), path)
    except OSError:
        return "It cannot be read: it was removed, or may not be opened by this server."
    return ""


def without_paths(text: str, path: str) -> str:
    """Return the text without the server's folders: a store is called by its file name only."""
    place = Path(path)
    for folder in (place.resolve().parent, place.absolute().parent, place.parent):
        if str(folder) not in (".", "/", ""):
            text = text.replace(f"{folder}/", "")
    return text
