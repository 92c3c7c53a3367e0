"""How often a chosen key is a sink, and how concentrated attention is: rates, curves over ε, top-k mass, Gini."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.metrics.averaging import prompt_means
from sd35h5.metrics.first_token import first_token_mean, group_mass
from sd35h5.metrics.targets import (
    FIRST_TOKEN,
    Target,
    chosen_samples,
    group_sizes,
    held_name,
    key_count,
    plain,
    refuse_empty,
    target_sizes,
)

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

EPSILON = 0.3  # of work on causal language models
EPSILONS = np.geomspace(1e-4, 1, 49)  # of the curve: evenly in the logarithm


def uniform_mass(
    store: Store, target: Target = FIRST_TOKEN, branch: str = "cond", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return the mass that the target would have if every query attended to all keys alike.

    Formula: keys in target ÷ keys of the joint axis (text tokens + image patches).  Units: 1 (0..1).
    Source: the token table, and the image's size (kept image, maps or config).
    Caveat: 2.3e-4 for one of SD3.5-Large's 4,429 keys at 1024 × 1024 pixels: ε of causal models is 1,300 times it.
    Returns: float64 (sample).
    """
    chosen = chosen_samples(store, samples)
    keys = target_sizes(store, target, branch, chosen).astype(float)
    if target == Target("group", "image"):
        keys += key_count(store) - store.sizes["token"]
    return xr.DataArray(keys / key_count(store), dims="sample", coords={"sample": chosen})


def sink_rate(
    store: Store,
    target: Target = FIRST_TOKEN,
    branch: str = "cond",
    samples: Sequence[int] | None = None,
    epsilon: float = EPSILON,
    times_uniform: float | None = None,
) -> xr.DataArray:
    """Return the share of (layer, head) in which the target is a sink: its mass exceeds a threshold.

    Formula: mean over layers and heads of [first_token_mean > ε]; with times_uniform = m, ε = m × uniform_mass.
    Units: 1 (share of heads, 0..1).  Source: as first_token_mean.
    Caveat: depends on ε; ε = 0.3 comes from causal models with fewer keys, so look at the curve too. For a
    group or word the summed mass is compared, which many keys exceed more easily.
    Returns: float64 (sample, step).
    """
    return is_sink(store, target, branch, samples, epsilon, times_uniform).mean(
        ["layer", "head"], skipna=True
    )


def is_sink(
    store: Store,
    target: Target = FIRST_TOKEN,
    branch: str = "cond",
    samples: Sequence[int] | None = None,
    epsilon: float = EPSILON,
    times_uniform: float | None = None,
) -> xr.DataArray:
    """Return 1 where the target's mass exceeds the threshold of `sink_rate`, 0 where not, NaN where unmeasured.

    Returns: float64 (sample, step, layer, head).
    """
    threshold = epsilon
    if times_uniform is not None:
        threshold = times_uniform * uniform_mass(store, target, branch, samples)
    mass = first_token_mean(store, target, branch, samples)
    return (mass > threshold).astype(float).where(mass.notnull())


def sink_curve(
    mass: xr.DataArray,
    prompts: Sequence[str],
    uniform: float | None = None,
    epsilons: Sequence[float] | None = None,
    band: tuple[float, float] = (0.1, 0.9),
) -> pd.DataFrame:
    """Return the sink rate as a curve over ε, with its spread across prompts.

    Formula: for each ε the share of (step, layer, head) with mass > ε; samples of a prompt averaged first.
    Units: 1 (0..1); times_uniform = ε ÷ uniform.  Source: the array of `first_token_mean` that is given.
    Caveat: ε runs on a logarithmic axis; the band says how prompts differ, not how sure the mean is.
    Args: mass: (sample, step, layer, head); prompts: prompt_id of each sample; epsilons: ascending, EPSILONS when
        None.
    Returns: epsilon, times_uniform (NaN without uniform), mean, low, high (NaN with one prompt), prompts.
    """
    at = EPSILONS if epsilons is None else np.asarray(epsilons, float)
    return curve_of_exceeded(exceeded(mass, at), prompts, uniform, at, band)


def exceeded(mass: xr.DataArray, epsilons: np.ndarray = EPSILONS) -> xr.DataArray:
    """Return how many of the ascending thresholds each mass exceeds: uint8 or larger, as `mass`; for NaN one more
    than there are.

    It is an eighth of the masses, and all that a curve over these thresholds needs, whatever is chosen of it.
    """
    values = np.empty(mass.shape, np.min_scalar_type(len(epsilons) + 1))
    for row, counts in zip(mass.values, values, strict=True):  # a few at a time, as positions are int64
        counts[...] = np.searchsorted(epsilons, row, "left")
        counts[np.isnan(row)] = len(epsilons) + 1
    return mass.copy(data=values)


def curve_of_exceeded(
    counts: xr.DataArray,
    prompts: Sequence[str],
    uniform: float | None = None,
    epsilons: np.ndarray = EPSILONS,
    band: tuple[float, float] = (0.1, 0.9),
) -> pd.DataFrame:
    """Return the table of `sink_curve` from what `exceeded` returns for the same thresholds, or a part of it."""
    at = np.asarray(epsilons, float)
    return curve_of_rates(exceeded_rates(counts, at), prompts, uniform, at, band)


def exceeded_rates(counts: xr.DataArray, epsilons: np.ndarray = EPSILONS) -> np.ndarray:
    """Return the share of each sample's masses that exceed each of the thresholds of `exceeded`.

    Returns: float64 (sample, epsilon); NaN for a sample of which nothing was measured.
    """
    rows = counts.transpose("sample", ...).values
    found = np.stack(
        [np.bincount(row.ravel(), minlength=len(epsilons) + 2)[: len(epsilons) + 1] for row in rows]
    )
    there = found.sum(axis=1)
    over = there[:, None] - found.cumsum(axis=1)[:, :-1]
    return over / np.where(there > 0, there, np.nan)[:, None]


def curve_of_rates(
    rates: np.ndarray,
    prompts: Sequence[str],
    uniform: float | None = None,
    epsilons: np.ndarray = EPSILONS,
    band: tuple[float, float] = (0.1, 0.9),
) -> pd.DataFrame:
    """Return the table of `sink_curve` from the rates of its samples, (sample, epsilon)."""
    means = prompt_means(rates, prompts)
    several = len(means) > 1
    return pd.DataFrame(
        {
            "epsilon": epsilons,
            "times_uniform": epsilons / uniform if uniform else np.nan,
            "mean": means.mean(axis=0).to_numpy(),
            "low": means.quantile(band[0]).to_numpy() if several else np.nan,
            "high": means.quantile(band[1]).to_numpy() if several else np.nan,
            "prompts": len(means),
        }
    )


def top_mass(
    store: Store,
    count: int = 1,
    branch: str = "cond",
    query: str = "image",
    samples: Sequence[int] | None = None,
    attention: str = "joint",
) -> xr.DataArray:
    """Return how much of the attention the heaviest keys hold, wherever they are.

    Formula: Σ of the `count` largest masses over all keys, text and image (top-1, top-5 …).  Units: 1 (0..1).
    Source: topk/top_mass, for the second attention attn2/top_mass; exact float32, cond at every top_step.
    Caveat: keys are ranked by their mean over queries, so a key that each query shares is found, one that
    differs from query to query is not.
    Returns: float64 (sample, step, layer, head), step being the captured top steps.
    """
    if not 1 <= count <= (held := store.sizes.get("rank", 0)):
        raise StoreError(
            f"{store.name} holds {held} heaviest keys, not {count}: capture it with --topk {count}"
        )
    where = {"sample": chosen_samples(store, samples), "branch": branch, "query": query}
    name = held_name(store, "attn2/top_mass") if attention == "attn2" else "topk/top_mass"
    values = store.read(name, rank=slice(0, count), **where)
    refuse_empty(values, f"heaviest keys of branch {branch!r}")
    return plain(values.astype(np.float64).sum("rank", skipna=False).rename(top_step="step"))


def gini(
    store: Store, branch: str = "cond", query: str = "image", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return the Gini coefficient of attention over the groups, each weighed by its number of keys.

    Formula: 1 − Σ_i p_i (C_i + C_{i−1}), groups in order of mass per key, p_i the group's share of keys, C_i
    the mass up to and with group i.
    Units: 1 (0: every key alike .. 1: one key has all).  Source: sinks/mass_group and the token table.
    Caveat: inequality inside a group is not seen, so it is a lower bound of the Gini over single keys.
    Returns: float64 (sample, step, layer, head).
    """
    rows = []
    for sample in chosen_samples(store, samples):
        mass = group_mass(store, branch, query, [sample]).isel(sample=0)
        sizes = group_sizes(store, branch, [sample]).isel(sample=0).values
        there = np.flatnonzero(sizes)
        values, keys = mass.values[there], sizes[there][:, None, None, None]
        order = np.argsort(values / keys, axis=0)
        mass_sorted = np.take_along_axis(values, order, axis=0)
        share = np.take_along_axis(np.broadcast_to(keys / keys.sum(), values.shape), order, axis=0)
        total = np.cumsum(mass_sorted, axis=0)
        total = total / total[-1]
        before = np.concatenate([np.zeros_like(total[:1]), total[:-1]])
        rows.append(mass.isel(group=0, drop=True).copy(data=1 - (share * (total + before)).sum(axis=0)))
    return plain(xr.concat(rows, "sample"))
