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

from dashboard import data
from dashboard.caching import cached, kept
from sd35h5.analysis import effects, gating, measures, metrics, scatter, sinks, topkeys
from sd35h5.analysis.means import places
from sd35h5.analysis.pieces import in_pieces
from sd35h5.errors import Sd35h5Error


@cached("Reading …")
def metric(
    run: data.Run, name: str, target: metrics.Target, branch: str, chosen: tuple[int, ...]
) -> xr.DataArray:
    """Return a metric of the chosen samples: float32 (sample, step, layer, head), only the steps of its capture."""
    return _read(run, name, target, branch, chosen)


def _read(
    run: data.Run, name: str, target: metrics.Target, branch: str, chosen: tuple[int, ...]
) -> xr.DataArray:
    opened = data.store(run)
    return in_pieces(lambda some: measures.computed(opened, name, target, branch, some), chosen)


def sample_values(
    run: data.Run,
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
        return scatter.sample_values(data.store(run), name, samples=chosen)
    return scatter.mean_of(*_step_sums(run, name, target, branch, steps, chosen, shown), layers, heads)


@cached("Reading …")
def _step_sums(
    run: data.Run,
    name: str,
    target: metrics.Target,
    branch: str,
    steps: tuple[int, ...],
    chosen: tuple[int, ...],
    shown: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return `scatter.step_sums`: a step's size is kept in place of all steps, for filters of layers and heads."""
    read = metric if shown else _read
    return scatter.step_sums(read(run, name, target, branch, chosen), steps)


@cached("Computing …")
def exceeded(run: data.Run, target: metrics.Target, branch: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return how many thresholds of the sink rate's curve each mass of the target exceeds."""
    return sinks.exceeded(metric(run, "first_token_mean", target, branch, chosen))


@cached()
def uniform_mass(run: data.Run, target: metrics.Target, branch: str, chosen: tuple[int, ...]) -> float | None:
    """Return the target's mean mass under uniform attention; None where the file does not tell the image's size."""
    try:
        return float(sinks.uniform_mass(data.store(run), target, branch, list(chosen)).mean())
    except Sd35h5Error:
        return None


@cached()
def uniform_value(
    run: data.Run, name: str, target: metrics.Target, branch: str, chosen: tuple[int, ...]
) -> float | None:
    """Return what a metric would be under uniform attention; None where that says nothing or the file does not."""
    try:
        return measures.uniform_value(data.store(run), name, target, branch, list(chosen))
    except Sd35h5Error:
        return None


@cached("Reading …")
def heaviest_keys(run: data.Run, branch: str, chosen: tuple[int, ...]) -> xr.Dataset:
    """Return the heaviest key of every (sample, top_step, layer, head): which, and of what kind."""
    return topkeys.top_keys(data.store(run), branch, "image", list(chosen), count=1, values=False)


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
    run: data.Run,
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
    inside = {"layer": layers, "head": heads, "top_step": tuple(captured)}
    keys = keys.isel({dim: places(those) for dim, those in inside.items()}).assign_coords(layer=list(layers))
    same = {}
    for dim in [dim for dim in ("top_step", "head", "sample") if keys.sizes[dim] > 1]:
        stable = key_stability(run, branch, chosen, dim, inside.get(dim))
        same[dim] = float(stable.isel({d: places(inside[d]) for d in inside if d in stable.dims}).mean())
    return HeaviestKeys(
        topkeys.kind_shares(keys),
        topkeys.kind_shares(keys, by="layer"),
        topkeys.kind_shares(keys, by="top_step"),
        topkeys.patch_shares(keys),
        same,
    )


@cached("Computing …")
def key_stability(
    run: data.Run, branch: str, chosen: tuple[int, ...], over: str, within: tuple[int, ...] | None
) -> xr.DataArray:
    """Return `topkeys.stability` over these positions of a dimension, of all along the others: for other filters."""
    keys = heaviest_keys(run, branch, chosen)
    return topkeys.stability(keys if within is None else keys.isel({over: places(within)}), over)


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
def mean_gate(run: data.Run, branch: str, query: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return the mean gate: float32 (sample, step, layer, head)."""
    opened = data.store(run)
    return in_pieces(lambda some: gating.gate_statistic(opened, "mean", branch, query, some), chosen)


def gate_heads(
    run: data.Run, branch: str, query: str, chosen: tuple[int, ...], steps: tuple[int, ...]
) -> pd.DataFrame:
    """Return a row a (layer, head): the gate's statistics over the chosen steps, and whether it is dead or open."""
    return gating.heads_of_steps(_gate_steps(run, branch, query, chosen), steps)


@cached("Reading …")
def _gate_steps(run: data.Run, branch: str, query: str, chosen: tuple[int, ...]) -> xr.Dataset:
    return gating.gate_steps(data.store(run), branch, query, chosen)


@cached("Reading …")
def mean_group_gates(run: data.Run, branch: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return the mean gate of the queries at each group, mean over prompts: (group, step, layer, head)."""
    return gating.mean_group_gates(data.store(run), branch, chosen, data.prompt_ids(run, chosen))


@cached("Reading …")
def contribution_sums(run: data.Run, branch: str, chosen: tuple[int, ...]) -> xr.Dataset:
    """Return what the kinds of heaviest keys hold and add after the gate, summed over the chosen samples."""
    return gating.summed_contributions(data.store(run), branch, chosen)


@cached("Reading …")
def mean_group_mass(run: data.Run, branch: str, query: str, chosen: tuple[int, ...]) -> xr.DataArray:
    """Return the mean group masses of the chosen samples: (group, step, layer, head)."""
    return metrics.mean_group_mass(data.store(run), branch, query, list(chosen))


@cached("Reading …")
def token_mass(
    run: data.Run,
    sample: int,
    branch: str,
    steps: tuple[int, ...],
    layers: tuple[int, ...],
    heads: tuple[int, ...],
) -> pd.DataFrame:
    """Return one sample's tokens with their mean mass over the chosen steps, layers and heads."""
    if len(steps) == 1:
        return metrics.token_mass(data.store(run), sample, branch, steps, layers, heads)
    total, count = (sums[np.ix_(layers, heads)] for sums in _token_sums(run, sample, branch, steps))
    table = data.tokens(run, sample, branch).drop(columns="word_text")
    return metrics.token_means(table, branch, total, count)


def _token_sums(
    run: data.Run, sample: int, branch: str, steps: tuple[int, ...]
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
            sums, counts = metrics.token_sums(data.store(run), sample, branch, sorted(changed))
            total, count = total + sign * sums, count + sign * counts
    kept().put(key, (wanted, total, count))
    return total, count
