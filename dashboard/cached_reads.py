"""Cached reads: the runs' numbers and pictures as plain arrays.

This process opens no HDF5 file: a small pool of reader processes does, and what they send are numbers and
texts. A run is named by `Run`, whose stamp changes when the file does, so that nothing stale is ever shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
import xarray as xr

from dashboard import run_list
from dashboard.caching import cached
from dashboard.run_list import Run, without_paths
from sd35h5 import compare, metrics
from sd35h5.comparing import telling_runs
from sd35h5.errors import Sd35h5Error, StoreNotFoundError, UnreadableError
from sd35h5.figures import overlays
from sd35h5.metrics import attention_maps, catalogue, prompt_chips, query_rows, targets
from sd35h5.metrics.picture import pictured_objects
from sd35h5.reports import file_tables
from sd35h5.store.opening import reason
from sd35h5.store.processes.guarded_store import open_through
from sd35h5.store.reader import Store
from sd35h5.store.runs import stem_of
from sd35h5.store.showable import showable
from sd35h5.store.verifying import verify

#: a checkout has it, an installed package has not
RECIPE = Path(__file__).resolve().parents[1] / "data" / "recipe"


def plain(text: str) -> str:
    """Return text of a file so that Markdown shows it as it is."""
    text = showable(text)
    for sign in "\\`*_{}[]()<>#+-!|~$:":
        text = text.replace(sign, "\\" + sign)
    return text


CHANGED = (
    "{} changed while the page was drawn: it is drawn anew with what the file holds now, in some seconds."
)
GONE = "{} was removed while the page was drawn, or its disk cannot be reached any more."


@contextmanager
def sentence(*runs: Run) -> Iterator[None]:
    """Show an error of the library as one sentence in the page, in place of the panel, and go on with the
    next."""
    try:
        yield
    except (UnreadableError, StoreNotFoundError, OSError) as error:
        if changed := [run for run in runs if run_list.stamp(Path(run.path)) != run.stamp]:
            told = CHANGED if run_list.is_there(changed[0]) else GONE
            st.info(told.format(plain(changed[0].name)), icon=":material/info:")
        elif isinstance(error, Sd35h5Error):
            _tell(error, runs)
        else:
            names = " or ".join(run.name for run in runs) or "a file"
            st.error(f"{plain(names)} could not be read: {plain(reason(error))}.")
    except Sd35h5Error as error:
        _tell(error, runs)


def _tell(error: Sd35h5Error, runs: tuple[Run, ...]) -> None:
    text = without_paths(str(error), *(run.path for run in runs))
    if not text.startswith(tuple(stem_of(Path(run.path).name) for run in runs)):
        text = text[:1].upper() + text[1:]
    st.info(plain(text), icon=":material/info:")


def store(run: Run) -> Store:
    """Return the open store of a run; its files are opened in reader processes."""
    return _store(run.path, run.stamp)


@st.cache_resource(max_entries=16, show_spinner=False)
def _store(path: str, mark: tuple[int, ...]) -> Store:
    return open_through(run_list.readers(), path, mark)


@cached()
def samples(run: Run) -> pd.DataFrame:
    """Return the run's samples, a row each."""
    return store(run).samples


@cached()
def prompt_ids(run: Run, chosen: tuple[int, ...]) -> list[str]:
    """Return the prompt of each chosen sample, by its id."""
    return list(samples(run).set_index("sample").loc[list(chosen), "prompt_id"])


@cached()
def absent_metrics(run: Run) -> dict[str, str]:
    """Return the metrics that the run's file does not hold, name -> what to do about it."""
    return catalogue.absent(store(run))


@cached()
def tokens(run: Run, sample: int, branch: str) -> pd.DataFrame:
    """Return a sample's token table with the words' strings."""
    text = targets.branch_texts(store(run), branch, [sample])[0]
    return metrics.with_words(store(run).tokens(sample, branch), text)


@cached()
def words(run: Run, chosen: tuple[int, ...], branch: str) -> list[str]:
    """Return the words of these samples' texts, in order, each once."""
    return list(filter(None, dict.fromkeys(targets.token_words(store(run), branch, chosen).ravel())))


@cached()
def truncation(run: Run, sample: int, branch: str) -> dict[str, str]:
    """Return what each encoder did not see of a sample's text."""
    return prompt_chips.truncation(store(run), sample, branch)


@cached()
def image(run: Run, sample: int, longest: int | None = None) -> np.ndarray | None:
    """Return a sample's image, its longer side reduced to `longest` pixels: uint8 (y, x, 3), None without
    one."""
    pixels = store(run).image(sample)
    if pixels is None or longest is None or max(pixels.shape[:2]) <= longest:
        return pixels
    height, width = attention_maps.fit(pixels.shape[:2], longest)
    return np.asarray(
        overlays.Image.fromarray(pixels).resize((width, height), overlays.Image.Resampling.LANCZOS)
    )


@cached()
def map_choices(run: Run, sample: int, branch: str) -> pd.DataFrame:
    """Return the words and tokens that have a map in this sample."""
    return attention_maps.map_choices(store(run), sample, branch)


@cached("Reading …")
def token_maps(run: Run, sample: int, map_tokens: tuple[int, ...], branch: str) -> xr.DataArray:
    """Return the maps of a token, or the sum of several: (map_step, layer, y, x)."""
    return attention_maps.token_maps(store(run), sample, map_tokens, branch)


@cached("Reading …")
def head_maps(
    run: Run, sample: int, map_tokens: tuple[int, ...], layer: int, branch: str
) -> xr.DataArray | None:
    """Return the maps of a token of every head of a layer, (map_step, head, y, x); None without."""
    return attention_maps.head_maps(store(run), sample, map_tokens, layer, branch)


@cached("Reading …")
def cell_maps(
    run: Run, sample: int, map_tokens: tuple[int, ...], layer: int, head: int, branch: str
) -> tuple[xr.DataArray, bool]:
    """Return the maps of a token at one layer, (map_step, y, x), and whether they are of that head."""
    return attention_maps.cell_maps(store(run), sample, map_tokens, layer, head, branch)


@cached("Reading …")
def region_words(
    run: Run, sample: int, region: metrics.Region, branch: str, step: int, layer: int | None
) -> pd.DataFrame:
    """Return the words with the part of their map at a step that lies in a region; of a layer, or of all."""
    layers = None if layer is None else [layer]
    return metrics.region_words(store(run), sample, region, branch, [step], layers)


@cached("Reading …")
def region_steps(
    run: Run, sample: int, map_tokens: tuple[int, ...], region: metrics.Region, branch: str, layer: int | None
) -> pd.DataFrame:
    """Return the steps with the part of a word's map that lies in a region; of a layer, or of all."""
    layers = None if layer is None else [layer]
    return metrics.region_steps(store(run), sample, map_tokens, region, branch, layers)


@cached("Reading …")
def region_heads(
    run: Run, sample: int, map_tokens: tuple[int, ...], region: metrics.Region, branch: str, step: int
) -> pd.DataFrame:
    """Return the heads with the part of their map of a word that lies in a region, the layers where there are none."""
    ranked = metrics.region_heads if attention_maps.HEAD_MAPS in store(run) else metrics.region_layers
    return ranked(store(run), sample, map_tokens, region, branch, [step])


@cached()
def row_choices(run: Run, sample: int, branch: str) -> pd.DataFrame:
    """Return the queries of a sample whose rows are in the file."""
    return query_rows.row_choices(store(run), sample, branch)


@cached("Reading …")
def row_maps(run: Run, sample: int, row: int, branch: str) -> xr.DataArray:
    """Return where a query looks on the image: (map_step, layer, y, x)."""
    return query_rows.row_maps(store(run), sample, row, branch)


@cached("Reading …")
def row_tokens(run: Run, sample: int, row: int, step: int, layer: int | None, branch: str) -> pd.DataFrame:
    """Return the tokens with their share of a query's attention."""
    return query_rows.row_tokens(store(run), sample, row, step, layer, branch)


@st.cache_resource(show_spinner=False)
def _sprites() -> pictured_objects.Sprites | None:
    return pictured_objects.read_sprites(RECIPE)


def knows_objects(run: Run) -> bool:
    """Whether the true objects of the run's pictures can be found: those of the bundled models, in a checkout."""
    model = str(store(run).attributes.get("model_id", ""))
    return model.rstrip("/").endswith(pictured_objects.MODEL) and _sprites() is not None


@cached("Looking for the objects …")
def true_objects(run: Run, sample: int) -> pd.DataFrame:
    """Return where the objects that the prompt names lie in a sample's image; no rows where that is not known."""
    pixels, sprites = store(run).image(sample), _sprites()
    if sprites is None or pixels is None or not knows_objects(run):
        return pd.DataFrame(columns=pictured_objects.COLUMNS)
    return pictured_objects.true_objects(
        pixels, str(samples(run).set_index("sample")["prompt"][sample]), sprites
    )


@cached()
def pairing(reference: Run, other: Run) -> compare.Pairing:
    """Return which samples of two runs belong together, under the names that the page shows."""
    return compare.pair(store(reference), store(other), (reference.name, other.name))


@cached()
def made(run: Run) -> telling_runs.Made:
    """Return what a run is made of, to tell it from others, and which samples it has."""
    return telling_runs.made(store(run))


@cached()
def setting_differences(runs: tuple[Run, ...]) -> pd.DataFrame:
    """Return the settings in which the runs differ."""
    return compare.setting_differences({run.name: store(run) for run in runs})


@cached()
def variables(run: Run) -> pd.DataFrame:
    """Return the variables of a run's file with their dimensions, chunks and bytes."""
    return file_tables.variables(store(run))


@cached("Reading every value …")
def deep_problem(run: Run) -> str:
    """Return "" if every value is the one that was sealed, else a sentence; checked in a subprocess."""
    report = verify(run.path, deep=True)
    return without_paths("; ".join(report.problems[:2]), run.path)
