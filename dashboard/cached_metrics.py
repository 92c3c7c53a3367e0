"""Cached numbers of the runs: metrics, heaviest keys, masses and gates of the chosen samples, for all filters of them.

What is kept holds all layers, heads and steps where that fits, so that a filter is a look at what is there.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st
import xarray as xr

from dashboard import cached_reads
from dashboard.caching import cached, kept
from sd35h5 import metrics
from sd35h5.comparing import effects
from sd35h5.errors import Sd35h5Error
from sd35h5.metrics import catalogue, gate_statistics, per_sample, sink_rates
from sd35h5.metrics.averaging import places, places_of
from sd35h5.metrics.piecewise import in_pieces


@cached("Reading …")
def metric(
    run: cached_reads.Run, name: str, target: metrics.Target, branch: str, chosen: tuple[int, ...]
) -> xr.DataArray:
    """Return a metric of the chosen samples: float32 (sample, step, layer, head), only the steps of its capture."""
    return _read(run, name, target, branch, chosen)


@cached("Reading …")
def mean_metric(
    run: cached_reads.Run, name: str, target: metrics.Target, branch: str, chosen: tuple[int, ...]
) -> xr.DataArray:
    """Return a metric's mean over the chosen samples: float32 (step, layer, head), only the steps of its capture.

    A run's file may hold it ready, and it is as small for a thousand samples as for one.
    """
    return metrics.mean_over_samples(cached_reads.store(run), name, target, branch, chosen).astype(np.float32)


def _read(
    run: cached_reads.Run, name: str, target: metrics.Target, branch: str, chosen: tuple[int, ...]
) -> xr.DataArray:
    opened = cached_reads.store(run)
    return in_pieces(lambda some: catalogue.computed(opened, name, target, branch, some), chosen)


def sample_values(
    run: cached_reads.Run,
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
    if name.startswith(per_sample.SCORES):
        return per_sample.sample_values(cached_reads.store(run), name, samples=chosen)
    sums = _step_sums(run, name, target, branch, steps, chosen, shown)
    opened = cached_reads.store(run)
    axis = catalogue.head_axis(opened, name)
    return per_sample.mean_of(*sums, places_of(opened, "layer", layers), places_of(opened, axis, heads))


@cached("Reading …")
def _step_sums(
    run: cached_reads.Run,
    name: str,
    target: metrics.Target,
    branch: str,
    steps: tuple[int, ...],
    chosen: tuple[int, ...],
    shown: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return `per_sample.step_sums`: a step's size is kept in place of all steps, for filters of layers and heads."""
    read = metric if shown else _read
    return per_sample.step_sums(read(run, name, target, branch, chosen), steps)


@cached("Computing …")
def exceeded(
    run: cached_reads.Run, target: metrics.Target, branch: str, chosen: tuple[int, ...]
) -> xr.DataArray:
    """Return how many thresholds of the sink rate's curve each mass of the target exceeds."""
    return sink_rates.exceeded(metric(run, "first_token_mean", target, branch, chosen))


@cached()
def uniform_mass(
    run: cached_reads.Run, target: metrics.Target, branch: str, chosen: tuple[int, ...]
) -> float | None:
    """Return the target's mean mass under uniform attention; None where the file does not tell the image's size."""
    try:
        return float(sink_rates.uniform_mass(cached_reads.store(run), target, branch, list(chosen)).mean())
    except Sd35h5Error:
        return None


@cached()
def uniform_value(
    run: cached_reads.Run, name: str, target: metrics.Target, branch: str, chosen: tuple[int, ...]
) -> float | None:
    """Return what a metric would be under uniform attention; None where that says nothing or the file does not."""
    try:
        return catalogue.uniform_value(cached_reads.store(run), name, target, branch, list(chosen))
    except Sd35h5Error:
        return None


@cached("Reading …")
def heaviest_keys(run: cached_reads.Run, branch: str, chosen: tuple[int, ...]) -> xr.Dataset:
    """Return the heaviest key of every (sample, top_step, layer, head): which, and of what kind."""
    return metrics.top_keys(cached_reads.store(run), branch, "image", list(chosen), count=1, values=False)


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
    run: cached_reads.Run,
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
    opened = cached_reads.store(run)
    inside = {
        name: tuple(places_of(opened, name, those)) for name, those in (("layer", layers), ("head", heads))
    }
    inside["top_step"] = tuple(captured)
    keys = keys.isel({dim: places(those) for dim, those in inside.items()})
    same = {}
    for dim in [dim for dim in ("top_step", "head", "sample") if keys.sizes[dim] > 1]:
        stable = key_stability(run, branch, chosen, dim, inside.get(dim))
        same[dim] = float(stable.isel({d: places(inside[d]) for d in inside if d in stable.dims}).mean())
    return HeaviestKeys(
        metrics.kind_shares(keys),
        metrics.kind_shares(keys, by="layer"),
        metrics.kind_shares(keys, by="top_step"),
        metrics.patch_shares(keys),
        same,
    )


@cached("Computing …")
def key_stability(
    run: cached_reads.Run, branch: str, chosen: tuple[int, ...], over: str, within: tuple[int, ...] | None
) -> xr.DataArray:
    """Return `metrics.stability` over these positions of a dimension, of all along the others: for other filters."""
    keys = heaviest_keys(run, branch, chosen)
    return metrics.stability(keys if within is None else keys.isel({over: places(within)}), over)


@st.cache_data(max_entries=32, show_spinner="Computing …")
def surviving_cells(
    _difference: xr.DataArray, prompts: tuple[str, ...], key: tuple[object, ...]
) -> pd.DataFrame:
    """Return p and q of every cell of a difference; `key` says what it is the difference of."""
    return effects.surviving_cells(_difference, prompts)


@st.cache_data(max_entries=32, show_spinner="Computing …")
def change_effects(
    _difference: xr.DataArray, prompts: tuple[str, ...], key: tuple[object, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the effect of a difference in all, a row, and of each layer; `key` says what it is the difference of."""
    whole = effects.overall_effect(_difference, prompts).to_frame().T.astype(float)
    return whole, effects.layer_effects(_difference, prompts)


@cached("Reading …")
def mean_gate(run: cached_reads.Run, branch: str, query: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return the mean gate: float32 (sample, step, layer, head)."""
    opened = cached_reads.store(run)
    return in_pieces(lambda some: gate_statistics.gate_statistic(opened, "mean", branch, query, some), chosen)


def gate_heads(
    run: cached_reads.Run, branch: str, query: str, chosen: tuple[int, ...], steps: tuple[int, ...]
) -> pd.DataFrame:
    """Return a row a (layer, head): the gate's statistics over the chosen steps, and whether it is dead or open."""
    return gate_statistics.heads_of_steps(_gate_steps(run, branch, query, chosen), steps)


@cached("Reading …")
def _gate_steps(run: cached_reads.Run, branch: str, query: str, chosen: tuple[int, ...]) -> xr.Dataset:
    return gate_statistics.gate_steps(cached_reads.store(run), branch, query, chosen)


@cached("Reading …")
def mean_group_gates(run: cached_reads.Run, branch: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return the mean gate of the queries at each group, mean over prompts: (group, step, layer, head)."""
    return gate_statistics.mean_group_gates(
        cached_reads.store(run), branch, chosen, cached_reads.prompt_ids(run, chosen)
    )


@cached("Reading …")
def contribution_sums(run: cached_reads.Run, branch: str, chosen: tuple[int, ...]) -> xr.Dataset:
    """Return what the kinds of heaviest keys hold and add after the gate, summed over the chosen samples."""
    return gate_statistics.summed_contributions(cached_reads.store(run), branch, chosen)


@cached("Reading …")
def mean_group_mass(run: cached_reads.Run, branch: str, query: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return the mean group masses of the chosen samples: (group, step, layer, head)."""
    return metrics.mean_group_mass(cached_reads.store(run), branch, query, list(chosen))


@cached("Reading …")
def token_mass(
    run: cached_reads.Run,
    sample: int,
    branch: str,
    steps: tuple[int, ...],
    layers: tuple[int, ...],
    heads: tuple[int, ...],
) -> pd.DataFrame:
    """Return one sample's tokens with their mean mass over the chosen steps, layers and heads."""
    if len(steps) == 1:
        return metrics.token_mass(cached_reads.store(run), sample, branch, steps, layers, heads)
    opened = cached_reads.store(run)
    inside = np.ix_(places_of(opened, "layer", layers), places_of(opened, "head", heads))
    total, count = (sums[inside] for sums in _token_sums(run, sample, branch, steps))
    table = cached_reads.tokens(run, sample, branch).drop(columns="word_text")
    return metrics.token_means(table, branch, total, count)


def _token_sums(
    run: cached_reads.Run, sample: int, branch: str, steps: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
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
            sums, counts = metrics.token_sums(cached_reads.store(run), sample, branch, sorted(changed))
            total, count = total + sign * sums, count + sign * counts
    kept().put(key, (wanted, total, count))
    return total, count
