"""Cached reads: the runs' numbers and pictures as plain arrays.

This process opens no HDF5 file: a small pool of reader processes does, and what they send are numbers and
texts. A run is named by `Run`, whose stamp changes when the file does, so that nothing stale is ever shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
import xarray as xr

from dashboard import finding
from dashboard.caching import cached, kept
from dashboard.finding import Run, without_paths
from sd35h5.analysis import (
    chips,
    compare,
    contents,
    effects,
    gating,
    maps,
    measures,
    metrics,
    objects,
    pictures,
    rows,
    scatter,
    sinks,
    targets,
    topkeys,
)
from sd35h5.analysis.pieces import in_pieces
from sd35h5.errors import Sd35h5Error
from sd35h5.store.reader import Store
from sd35h5.store.remote import open_through
from sd35h5.store.verifying import verify

#: a checkout has it, an installed package has not
RECIPE = Path(__file__).resolve().parents[1] / "data" / "recipe"


def plain(text: str) -> str:
    """Return text of a file so that Markdown shows it as it is."""
    for sign in "\\`*_{}[]()<>#+-!|~$:":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


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
        if not text.startswith(tuple(Path(run.path).name.removesuffix(".h5") for run in runs)):
            text = text[:1].upper() + text[1:]
        st.info(plain(text), icon=":material/info:")
    except OSError:
        names = " or ".join(run.name for run in runs) or "a file"
        st.error(f"{plain(names)} could not be read: the file is damaged or was removed while it was open.")


def store(run: Run) -> Store:
    """Return the open store of a run; its files are opened in reader processes."""
    return _store(run.path, run.stamp)


@st.cache_resource(max_entries=16, show_spinner=False)
def _store(path: str, mark: tuple[int, ...]) -> Store:
    return open_through(finding.readers(), path, mark)


@cached()
def samples(run: Run) -> pd.DataFrame:
    """Return the run's samples, a row each."""
    return store(run).samples


@cached()
def prompt_ids(run: Run, chosen: tuple[int, ...]) -> list[str]:
    """Return the prompt of each chosen sample, by its id."""
    return list(samples(run).set_index("sample").loc[list(chosen), "prompt_id"])


@cached("Reading …")
def metric(run: Run, name: str, target: metrics.Target, branch: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return a metric of the chosen samples: float32 (sample, step, layer, head), only the steps of its capture."""
    opened = store(run)
    return in_pieces(lambda some: measures.computed(opened, name, target, branch, some), chosen)


def sample_values(
    run: Run,
    name: str,
    target: metrics.Target,
    branch: str,
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    steps: tuple[int, ...],
    chosen: tuple[int, ...],
    shown: bool,
) -> np.ndarray:
    """Return a joined score or a measure's mean of each chosen sample: float64 (sample).

    Args: shown: the page shows this measure anyway, so that all of its numbers are kept.
    """
    if name.startswith(scatter.SCORES):
        return scatter.sample_values(store(run), name, samples=chosen)
    return scatter.mean_of(*_step_sums(run, name, target, branch, steps, chosen, shown), layers, heads)


@cached("Reading …")
def _step_sums(
    run: Run,
    name: str,
    target: metrics.Target,
    branch: str,
    steps: tuple[int, ...],
    chosen: tuple[int, ...],
    shown: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return `scatter.step_sums`: a step's size is kept in place of all steps, for filters of layers and heads."""
    if shown:
        return scatter.step_sums(metric(run, name, target, branch, chosen), steps)
    opened = store(run)
    found = in_pieces(lambda some: measures.computed(opened, name, target, branch, some), chosen)
    return scatter.step_sums(found, steps)


@cached("Computing …")
def exceeded(run: Run, target: metrics.Target, branch: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return how many thresholds of the sink rate's curve each mass of the target exceeds."""
    return sinks.exceeded(metric(run, "first_token_mean", target, branch, chosen))


@cached()
def uniform_mass(run: Run, target: metrics.Target, branch: str, chosen: tuple[int, ...]) -> float | None:
    """Return the target's mean mass under uniform attention; None where the file does not tell the image's size."""
    try:
        return float(sinks.uniform_mass(store(run), target, branch, list(chosen)).mean())
    except Sd35h5Error:
        return None


@cached()
def absent_metrics(run: Run) -> dict[str, str]:
    """Return the metrics that the run's file does not hold, name -> what to do about it."""
    return measures.absent(store(run))


@cached()
def uniform_value(
    run: Run, name: str, target: metrics.Target, branch: str, chosen: tuple[int, ...]
) -> float | None:
    """Return what a metric would be under uniform attention; None where that says nothing or the file does not."""
    try:
        return measures.uniform_value(store(run), name, target, branch, list(chosen))
    except Sd35h5Error:
        return None


@cached("Reading …")
def heaviest_keys(run: Run, branch: str, chosen: tuple[int, ...]) -> xr.Dataset:
    """Return the heaviest key of every (sample, top_step, layer, head): which, and of what kind."""
    return topkeys.top_keys(store(run), branch, "image", list(chosen), count=1, values=False)


@dataclass(frozen=True)
class HeaviestKeys:
    """What is drawn of the heaviest keys: shares of kinds in all, over layers and over steps, places, stability."""

    kinds: pd.DataFrame
    by_layer: pd.DataFrame
    by_step: pd.DataFrame
    patches: pd.DataFrame
    same: dict[str, float]


@cached("Computing …")
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
    inside = {"layer": layers, "head": heads, "top_step": tuple(captured)}
    same = {}
    for dim in [dim for dim in ("top_step", "head", "sample") if keys.sizes[dim] > 1]:
        stable = key_stability(run, branch, chosen, dim, inside.get(dim))
        same[dim] = float(stable.isel({d: list(inside[d]) for d in inside if d in stable.dims}).mean())
    return HeaviestKeys(
        topkeys.kind_shares(keys),
        topkeys.kind_shares(keys, by="layer"),
        topkeys.kind_shares(keys, by="top_step"),
        topkeys.patch_shares(keys),
        same,
    )


@cached("Computing …")
def key_stability(
    run: Run, branch: str, chosen: tuple[int, ...], over: str, within: tuple[int, ...] | None
) -> xr.DataArray:
    """Return `topkeys.stability` over these positions of a dimension, of all along the others: for other filters."""
    keys = heaviest_keys(run, branch, chosen)
    return topkeys.stability(keys if within is None else keys.isel({over: list(within)}), over)


@st.cache_data(max_entries=32, show_spinner="Computing …")
def surviving_cells(
    _difference: xr.DataArray, prompts: tuple[str, ...], key: tuple[object, ...]
) -> pd.DataFrame:
    """Return p and q of every cell of a difference; `key` says what it is the difference of."""
    return effects.surviving_cells(_difference, prompts)


@cached("Reading …")
def mean_gate(run: Run, branch: str, query: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return the mean gate: float32 (sample, step, layer, head)."""
    opened = store(run)
    return in_pieces(lambda some: gating.gate_statistic(opened, "mean", branch, query, some), chosen)


def gate_heads(
    run: Run, branch: str, query: str, chosen: tuple[int, ...], steps: tuple[int, ...]
) -> pd.DataFrame:
    """Return a row a (layer, head): the gate's statistics over the chosen steps, and whether it is dead or open."""
    return gating.heads_of_steps(_gate_steps(run, branch, query, chosen), steps)


@cached("Reading …")
def _gate_steps(run: Run, branch: str, query: str, chosen: tuple[int, ...]) -> xr.Dataset:
    return gating.gate_steps(store(run), branch, query, chosen)


@cached("Reading …")
def mean_group_gates(run: Run, branch: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return the mean gate of the queries at each group, mean over prompts: (group, step, layer, head)."""
    return gating.mean_group_gates(store(run), branch, chosen, prompt_ids(run, chosen))


@cached("Reading …")
def contribution_sums(run: Run, branch: str, chosen: tuple[int, ...]) -> xr.Dataset:
    """Return what the kinds of heaviest keys hold and add after the gate, summed over the chosen samples."""
    return gating.summed_contributions(store(run), branch, chosen)


@cached("Reading …")
def mean_group_mass(run: Run, branch: str, query: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return the mean group masses of the chosen samples: (group, step, layer, head)."""
    return metrics.mean_group_mass(store(run), branch, query, list(chosen))


@cached("Reading …")
def token_mass(
    run: Run,
    sample: int,
    branch: str,
    steps: tuple[int, ...],
    layers: tuple[int, ...],
    heads: tuple[int, ...],
) -> pd.DataFrame:
    """Return one sample's tokens with their mean mass over the chosen steps, layers and heads."""
    if len(steps) == 1:
        return metrics.token_mass(store(run), sample, branch, steps, layers, heads)
    total, count = (sums[np.ix_(layers, heads)] for sums in _token_sums(run, sample, branch, steps))
    return metrics.token_means(store(run), sample, branch, total, count)


def _token_sums(run: Run, sample: int, branch: str, steps: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return `metrics.token_sums` of all layers and heads: from the last ones asked for, by what was added to their
    steps and taken from them, where that is less to read."""
    key, wanted = ("token_sums", run, sample, branch), frozenset(steps)
    known: frozenset[int] = frozenset()
    total, count = np.zeros(()), np.zeros((), np.int64)
    with suppress(KeyError):
        known, total, count = kept().get(key)
    if len(wanted ^ known) >= len(wanted):
        known, total, count = frozenset(), np.zeros(()), np.zeros((), np.int64)
    for changed, sign in ((wanted - known, 1), (known - wanted, -1)):
        if changed:
            sums, counts = metrics.token_sums(store(run), sample, branch, sorted(changed))
            total, count = total + sign * sums, count + sign * counts
    kept().put(key, (wanted, total, count))
    return total, count


@cached()
def tokens(run: Run, sample: int, branch: str) -> pd.DataFrame:
    """Return a sample's token table with the words' strings."""
    return metrics.with_words(store(run).tokens(sample, branch))


@cached()
def words(run: Run, chosen: tuple[int, ...], branch: str) -> list[str]:
    """Return the words of these samples' texts, in order, each once."""
    return list(filter(None, dict.fromkeys(targets.token_words(store(run), branch, chosen).ravel())))


@cached()
def truncation(run: Run, sample: int, branch: str) -> dict[str, str]:
    """Return what each encoder did not see of a sample's text."""
    return chips.truncation(store(run), sample, branch)


@cached()
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


@cached()
def map_choices(run: Run, sample: int, branch: str) -> pd.DataFrame:
    """Return the words and tokens that have a map in this sample."""
    return maps.map_choices(store(run), sample, branch)


@cached("Reading …")
def token_maps(run: Run, sample: int, map_tokens: tuple[int, ...], branch: str) -> xr.DataArray:
    """Return the maps of a token, or the sum of several: (map_step, layer, y, x)."""
    return maps.token_maps(store(run), sample, map_tokens, branch)


@cached("Reading …")
def cell_maps(
    run: Run, sample: int, map_tokens: tuple[int, ...], layer: int, head: int, branch: str
) -> tuple[xr.DataArray, bool]:
    """Return the maps of a token at one layer, (map_step, y, x), and whether they are of that head."""
    return maps.cell_maps(store(run), sample, map_tokens, layer, head, branch)


@cached()
def row_choices(run: Run, sample: int, branch: str) -> pd.DataFrame:
    """Return the queries of a sample whose rows are in the file."""
    return rows.row_choices(store(run), sample, branch)


@cached("Reading …")
def row_maps(run: Run, sample: int, row: int, branch: str) -> xr.DataArray:
    """Return where a query looks on the image: (map_step, layer, y, x)."""
    return rows.row_maps(store(run), sample, row, branch)


@cached("Reading …")
def row_tokens(run: Run, sample: int, row: int, step: int, layer: int | None, branch: str) -> pd.DataFrame:
    """Return the tokens with their share of a query's attention."""
    return rows.row_tokens(store(run), sample, row, step, layer, branch)


@st.cache_resource(show_spinner=False)
def _sprites() -> objects.Sprites | None:
    return objects.read_sprites(RECIPE)


def knows_objects(run: Run) -> bool:
    """Whether the true objects of the run's pictures can be found: those of the bundled models, in a checkout."""
    model = str(store(run).attributes.get("model_id", ""))
    return model.rstrip("/").endswith(objects.MODEL) and _sprites() is not None


@cached("Looking for the objects …")
def true_objects(run: Run, sample: int) -> pd.DataFrame:
    """Return where the objects that the prompt names lie in a sample's image; no rows where that is not known."""
    pixels, sprites = store(run).image(sample), _sprites()
    if sprites is None or pixels is None or not knows_objects(run):
        return pd.DataFrame(columns=objects.COLUMNS)
    return objects.true_objects(pixels, str(samples(run).set_index("sample")["prompt"][sample]), sprites)


@cached()
def pairing(reference: Run, other: Run) -> compare.Pairing:
    """Return which samples of two runs belong together, under the names that the page shows."""
    return compare.pair(store(reference), store(other), (reference.name, other.name))


@cached()
def setting_differences(runs: tuple[Run, ...]) -> pd.DataFrame:
    """Return the settings in which the runs differ."""
    return compare.setting_differences({run.name: store(run) for run in runs})


@cached()
def variables(run: Run) -> pd.DataFrame:
    """Return the variables of a run's file with their dimensions, chunks and bytes."""
    return contents.variables(store(run))


@cached("Reading every value …")
def deep_problem(run: Run) -> str:
    """Return "" if every value is the one that was sealed, else a sentence; checked in a subprocess."""
    report = verify(run.path, deep=True)
    return without_paths("; ".join(report.problems[:2]), run.path)
