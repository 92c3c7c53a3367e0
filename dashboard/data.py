"""Cached reads: which runs there are, and their numbers and pictures as plain arrays; every file is verified
first.

All access to HDF5 goes through this file. A run is named by `Run`, whose stamp changes when the file does, so
that nothing stale is ever shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
import xarray as xr

from sd35h5.analysis import chips, compare, effects, maps, metrics, pictures, sinks, topkeys
from sd35h5.errors import Sd35h5Error
from sd35h5.store.reader import Store, open_store
from sd35h5.store.verifying import verify

PARTS = ".parts"


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


# ---- finding and verifying ---------------------------------------------------------------------------------


def find(arguments: tuple[str, ...], root: Path) -> Found:
    """Look for runs at the given paths, or in runs/ and the example stores when there are none."""
    runs, refused = [], []
    if arguments:
        places = [Path(argument).expanduser() for argument in arguments]
    else:
        folders = dict.fromkeys([Path.cwd() / "runs", root / "runs"])
        places = [folder for folder in folders if folder.is_dir()] + sorted(
            (root / "data").glob("example-*.h5")
        )
    for place in places:
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
        for path in inside:
            problem = problems(str(path), stamp(path))
            if problem:
                refused.append((path.name, problem))
            else:
                runs.append(path)
    names = distinct_names(runs)
    return Found(
        tuple(Run(name, str(path), stamp(path)) for name, path in zip(names, runs, strict=True)),
        tuple(refused),
    )


def stores_in(place: Path) -> list[Path]:
    """Return the stores at a path: itself, or what a folder holds (links that lead out of it are not
    followed)."""
    if not place.is_dir() or place.name.endswith(PARTS) or (place / "run.json").exists():
        return [place]
    inside = [path for path in place.iterdir() if path.resolve().is_relative_to(place.resolve())]
    files = {path for path in inside if path.suffix == ".h5" and path.is_file()}
    running = {path for path in inside if path.name.endswith(".h5" + PARTS) and path.is_dir()}
    running = {path for path in running if path.with_name(path.name.removesuffix(PARTS)) not in files}
    numbered = files and all(path.stem.isdigit() for path in files)
    return [place] if numbered and not running else sorted(files | running)


def parts_of(path: Path) -> Path:
    """Return the folder that a capture into `path` writes its sealed samples to."""
    return path.with_name(path.name + PARTS)


def stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when the file, or a file of the folder, does: times and sizes."""
    marks = []
    for place in (path, parts_of(path)):
        if place.is_dir():
            stats = [entry.stat() for entry in sorted(place.glob("*.h5"))]
            marks += [len(stats), max((stat.st_mtime_ns for stat in stats), default=0)]
        elif place.exists():
            stat = place.stat()
            marks += [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return tuple(marks)


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


@st.cache_data(max_entries=256, show_spinner="Verifying files …")
def problems(path: str, mark: tuple[int, ...]) -> str:
    """Return "" for a sound store, else one sentence that says what is wrong with it; checked in a
    subprocess."""
    report = verify(path)
    if not report.ok:
        return without_paths("; ".join(report.problems[:2]), path)
    with open_store(path) as opened:
        if not opened.sizes["sample"]:
            return f"It is being captured: 0 of {opened.planned} samples are there yet, reload in a moment."
    return ""


def without_paths(text: str, path: str) -> str:
    """Return the text without the server's folders: a store is called by its file name only."""
    place = Path(path)
    for folder in (place.resolve().parent, place.absolute().parent, place.parent):
        if str(folder) not in (".", "/", ""):
            text = text.replace(f"{folder}/", "")
    return text


@contextmanager
def sentence(*runs: Run) -> Iterator[None]:
    """Show an error of the library as one sentence in the page, in place of the panel, and go on with the
    next."""
    try:
        yield
    except Sd35h5Error as error:
        text = str(error)
        for run in runs:
            text = without_paths(text, run.path)
        st.info(text[:1].upper() + text[1:], icon=":material/info:")
    except OSError:
        names = " or ".join(run.name for run in runs) or "a file"
        st.error(f"{names} could not be read: the file is damaged or was removed while it was open.")


# ---- cached reads ------------------------------------------------------------------------------------------


def store(run: Run) -> Store:
    """Return the open store of a run."""
    return _store(run.path, run.stamp)


@st.cache_resource(max_entries=16, show_spinner=False, on_release=lambda opened: opened.close())
def _store(path: str, mark: tuple[int, ...]) -> Store:
    return open_store(path)


@st.cache_data(max_entries=64, show_spinner=False)
def samples(run: Run) -> pd.DataFrame:
    """Return the run's samples, a row each."""
    return store(run).samples


@st.cache_data(max_entries=8, show_spinner="Reading …")
def metric(run: Run, name: str, target: metrics.Target, branch: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return a metric of the chosen samples: (sample, step, layer, head)."""
    return metrics.METRICS[name](store(run), target, branch, list(chosen))


@st.cache_data(max_entries=64, show_spinner=False)
def uniform_mass(run: Run, target: metrics.Target, branch: str, chosen: tuple[int, ...]) -> float | None:
    """Return the target's mean mass under uniform attention; None where the file does not tell the image's size."""
    try:
        return float(sinks.uniform_mass(store(run), target, branch, list(chosen)).mean())
    except Sd35h5Error:
        return None


@st.cache_data(max_entries=8, show_spinner="Reading …")
def heaviest_keys(run: Run, branch: str, chosen: tuple[int, ...]) -> xr.Dataset:
    """Return the heaviest key of every (sample, top_step, layer, head): which, of what kind, how heavy."""
    return topkeys.top_keys(store(run), branch, "image", list(chosen), count=1)


@dataclass(frozen=True)
class HeaviestKeys:
    """What is drawn of the heaviest keys: shares of kinds in all, over layers and over steps, places, stability."""

    kinds: pd.DataFrame
    by_layer: pd.DataFrame
    by_step: pd.DataFrame
    patches: pd.DataFrame
    same: dict[str, float]


@st.cache_data(max_entries=32, show_spinner="Computing …")
def key_kinds(
    run: Run,
    branch: str,
    chosen: tuple[int, ...],
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    steps: tuple[int, ...],
) -> HeaviestKeys | None:
    """Return the numbers of the heaviest keys within these layers, heads and steps; None without a captured step."""
    keys = heaviest_keys(run, branch, chosen)
    captured = [place for place, step in enumerate(keys["top_step"].values) if step in steps]
    if not captured:
        return None
    keys = keys.isel(layer=list(layers), head=list(heads), top_step=captured).assign_coords(
        layer=list(layers)
    )
    varied = [dim for dim in ("top_step", "head", "sample") if keys.sizes[dim] > 1]
    return HeaviestKeys(
        topkeys.kind_shares(keys),
        topkeys.kind_shares(keys, by="layer"),
        topkeys.kind_shares(keys, by="top_step"),
        topkeys.patch_shares(keys),
        {dim: float(topkeys.stability(keys, dim).mean()) for dim in varied},
    )


@st.cache_data(max_entries=32, show_spinner="Computing …")
def surviving_cells(
    _difference: xr.DataArray, prompts: tuple[str, ...], key: tuple[object, ...]
) -> pd.DataFrame:
    """Return p and q of every cell of a difference; `key` says what it is the difference of."""
    return effects.surviving_cells(_difference, prompts)


@st.cache_data(max_entries=16, show_spinner="Reading …")
def mean_group_mass(run: Run, branch: str, query: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return the mean group masses of the chosen samples: (group, step, layer, head)."""
    return metrics.mean_group_mass(store(run), branch, query, list(chosen))


@st.cache_data(max_entries=64, show_spinner="Reading …")
def token_mass(
    run: Run,
    sample: int,
    branch: str,
    steps: tuple[int, ...],
    layers: tuple[int, ...],
    heads: tuple[int, ...],
) -> pd.DataFrame:
    """Return one sample's tokens with their mean mass over the chosen steps, layers and heads."""
    return metrics.token_mass(store(run), sample, branch, steps, layers, heads)


@st.cache_data(max_entries=256, show_spinner=False)
def tokens(run: Run, sample: int, branch: str) -> pd.DataFrame:
    """Return a sample's token table with the words' strings."""
    return metrics.with_words(store(run).tokens(sample, branch))


@st.cache_data(max_entries=256, show_spinner=False)
def truncation(run: Run, sample: int, branch: str) -> dict[str, str]:
    """Return what each encoder did not see of a sample's text."""
    return chips.truncation(store(run), sample, branch)


@st.cache_data(max_entries=256, show_spinner=False)
def image(run: Run, sample: int, longest: int | None = None) -> np.ndarray | None:
    """Return a sample's image, its longer side reduced to `longest` pixels: uint8 (y, x, 3), None without
    one."""
    pixels = store(run).image(sample)
    if pixels is None or longest is None or max(pixels.shape[:2]) <= longest:
        return pixels
    height, width = maps.fit(pixels.shape[:2], longest)
    return np.asarray(
        pictures.Image.fromarray(pixels).resize((width, height), pictures.Image.Resampling.LANCZOS)
    )


@st.cache_data(max_entries=128, show_spinner=False)
def map_choices(run: Run, sample: int, branch: str) -> pd.DataFrame:
    """Return the words and tokens that have a map in this sample."""
    return maps.map_choices(store(run), sample, branch)


@st.cache_data(max_entries=64, show_spinner="Reading …")
def token_maps(run: Run, sample: int, map_tokens: tuple[int, ...], branch: str) -> xr.DataArray:
    """Return the maps of a token, or the sum of several: (map_step, layer, y, x)."""
    return maps.token_maps(store(run), sample, map_tokens, branch)


@st.cache_data(max_entries=64, show_spinner=False)
def pairing(reference: Run, other: Run) -> compare.Pairing:
    """Return which samples of two runs belong together, under the names that the page shows."""
    return compare.pair(store(reference), store(other), (reference.name, other.name))


@st.cache_data(max_entries=16, show_spinner=False)
def setting_differences(runs: tuple[Run, ...]) -> pd.DataFrame:
    """Return the settings in which the runs differ."""
    return compare.setting_differences({run.name: store(run) for run in runs})
