"""Paired statistics over prompts: mean difference, standardised effect, bootstrap interval, sign-flip p, FDR.

The unit is the prompt: differences of the seeds of one prompt are averaged first, so a prompt with ten seeds
counts once. All functions take `units`, float (prompt, cell), and treat every cell (a layer and head, say) alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.metrics.averaging import finite_mean, prompt_means

RESAMPLES = 9999
LEVEL, SIGNIFICANT = 0.95, 0.05  # of intervals; of q, up to which a cell counts as changed
#: with fewer prompts no sign flip reaches p < 0.05, and no resample covers 95 %: 2 · 2⁻⁵ = 0.0625
MIN_PROMPTS = 6
EXACT_UP_TO = 13  # prompts: 8,192 sign patterns
_BLOCK = 2_000_000  # numbers held at once while resampling


def paired_effects(
    difference: xr.DataArray,
    prompts: Sequence[str],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what changed in every (layer, head), with its uncertainty over prompts.

    Formula: d_p = mean over the seeds and steps of prompt p of (other − reference); mean_difference = mean_p d_p;
    effect = mean_p d_p ÷ sd_p d_p (n − 1 in the denominator; Cohen's d_z); low, high: `bootstrap_interval`;
    p: `sign_flip_p`; q: Benjamini–Hochberg over the cells.
    Units: those of the metric; effect, p and q 1.  Source: the paired differences that are given.
    Caveat: NaN for low, high, p and q with fewer than 6 prompts: no such statement at 95 % exists then.
    Args: difference: (sample, [step,] layer, head); prompts: the prompt_id of each sample.
    Returns: layer, head, prompts, mean_difference, effect, low, high, p, q.
    """
    table, units = _cells(difference, prompts)
    return pd.concat([table, effects(units, resamples, level, seed)], axis=1)


def surviving_cells(
    difference: xr.DataArray, prompts: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Return p and q of every (layer, head) as `paired_effects` does, without intervals: what marks on a map need.

    Returns: layer, head, prompts, p, q; NaN for p and q with fewer than 6 prompts.
    """
    table, units = _cells(difference, prompts)
    p = np.full(units.shape[1], np.nan)
    whole = np.isfinite(units).all(axis=0)
    if len(units) >= MIN_PROMPTS and whole.any():
        p[whole] = sign_flip_p(units[:, whole], resamples, seed)
    return table.assign(prompts=len(units), p=p, q=false_discovery(p))


def overall_effect(
    difference: xr.DataArray,
    prompts: Sequence[str],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> pd.Series:
    """Return the same for the mean over all steps, layers and heads: one number a prompt.

    Formula: as `paired_effects`, d_p being the mean over steps, layers and heads too; q is p.
    Units: those of the metric; effect and p 1.  Source: the paired differences that are given.
    Caveat: heads that rise and heads that fall cancel: look at the cells too.
    Returns: prompts, mean_difference, effect, low, high, p, q.
    """
    means = finite_mean(difference, [dim for dim in difference.dims if dim != "sample"]).values
    units = prompt_means(means[:, None], prompts).to_numpy()
    return effects(units, resamples, level, seed).iloc[0]


def layer_effects(
    difference: xr.DataArray,
    prompts: Sequence[str],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the same for the mean over the steps and heads of each layer.

    Formula: as `paired_effects`, d_p being the mean over heads too; q: Benjamini–Hochberg over the layers.
    Units: those of the metric; effect, p and q 1.  Source: the paired differences that are given.
    Caveat: heads of a layer that rise and heads that fall cancel: look at the cells too.
    Returns: layer, prompts, mean_difference, effect, low, high, p, q.
    """
    outer = [dim for dim in difference.dims if dim not in ("sample", "layer")]
    means = finite_mean(difference, outer).transpose("sample", "layer")
    units = prompt_means(means.values, prompts).to_numpy()
    table = effects(units, resamples, level, seed)
    table.insert(0, "layer", means["layer"].values.astype(int))
    return table


def standardised(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of effects with `low_effect` and `high_effect`: the interval in standard deviations."""
    spread = table["mean_difference"] / table["effect"]
    return table.assign(low_effect=table["low"] / spread, high_effect=table["high"] / spread)


def effects(
    units: np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> pd.DataFrame:
    """Return a row a cell: prompts, mean_difference, effect, low, high, p, q. Args: units (prompt, cell)."""
    whole = np.isfinite(units).all(axis=0)
    count = len(units)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = units.mean(axis=0)
        spread = units.std(axis=0, ddof=1) if count > 1 else np.full(units.shape[1], np.nan)
        effect = np.where(spread > 0, mean / spread, np.nan)
    low, high, p = (np.full(units.shape[1], np.nan) for _ in range(3))
    if count >= MIN_PROMPTS and whole.any():
        low[whole], high[whole] = bootstrap_interval(units[:, whole], resamples, level, seed)
        p[whole] = sign_flip_p(units[:, whole], resamples, seed)
    return pd.DataFrame({
        "prompts": count, "mean_difference": mean, "effect": effect, "low": low, "high": high,
        "p": p, "q": false_discovery(p),
    })  # fmt: skip


def bootstrap_interval(
    units: np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of each cell's mean over prompts: percentile bootstrap, expanded for few prompts.

    Formula: prompts are drawn with replacement, each with all its seeds (their mean); the quantiles are those of
    Hesterberg (2015): Φ(∓√(n ÷ (n − 1)) t_{n−1}), which undo the percentile interval's narrowness.
    Units: those of the metric.  Source: a resample of the prompts, the same for all cells.
    Caveat: coverage is nominal from about 8 prompts on and some points short below (tests/comparing/test_effects.py
    simulates it); seeds are nested in prompts, so more seeds narrow it only as far as prompts allow.
    Returns: low, high, float64 (cell).
    """
    from scipy import stats  # half a second, which pages without intervals need not wait for

    count = len(units)
    rng = np.random.default_rng(seed)
    inside = np.sqrt(count / (count - 1)) * stats.t.ppf((1 + level) / 2, count - 1)
    tail = stats.norm.cdf(-inside)
    low, high = np.empty(units.shape[1]), np.empty(units.shape[1])
    weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count  # (resample, prompt)
    for part in _blocks(units.shape[1], resamples):
        means = weights @ units[:, part]
        low[part], high[part] = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def sign_flip_p(units: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return each cell's two-sided permutation p-value of a mean difference of zero.

    Formula: the share of sign patterns of the prompts' differences with |mean| ≥ the observed one; all 2ⁿ
    patterns up to 13 prompts, else (1 + hits) ÷ (1 + resamples) of random ones.
    Units: 1 (0..1).  Source: the prompts' mean differences.
    Caveat: assumes that differences are symmetric about zero under the null; never below 2 ÷ 2ⁿ, hence 0.03
    with 6 prompts.
    Returns: float64 (cell).
    """
    count = len(units)
    if count <= EXACT_UP_TO:
        signs = 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, count))
    observed = np.abs(units.sum(axis=0))
    hits = np.empty(units.shape[1])
    for part in _blocks(units.shape[1], len(signs)):
        flipped = np.abs(signs @ units[:, part])
        hits[part] = (flipped >= observed[part] * (1 - 1e-9)).sum(axis=0)
    return hits / len(signs) if count <= EXACT_UP_TO else (1 + hits) / (1 + len(signs))


def false_discovery(p: np.ndarray) -> np.ndarray:
    """Return the q values: Benjamini–Hochberg over the cells that have a p-value.

    Formula: q_(i) = min over j ≥ i of p_(j) m ÷ j; cells with q ≤ 0.05 hold at most 5 % false ones on average.
    Units: 1 (0..1).  Source: scipy.stats.false_discovery_control.
    Caveat: holds for independent or positively dependent cells, as heads of one model nearly are.
    Returns: float64 (cell), NaN where p is.
    """
    from scipy import stats

    q = np.full(len(p), np.nan)
    there = np.isfinite(p)
    if there.any():
        q[there] = stats.false_discovery_control(p[there])
    return q


def _cells(difference: xr.DataArray, prompts: Sequence[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """Return layer and head of every cell, and the prompts' mean differences: (prompt, cell)."""
    outer = [dim for dim in difference.dims if dim not in ("sample", "layer", "head")]
    reduced = finite_mean(difference, outer).transpose("sample", "layer", "head")
    values = reduced.values
    units = prompt_means(values.reshape(len(values), -1), prompts).to_numpy()
    layer, head = np.meshgrid(reduced["layer"].values, reduced["head"].values, indexing="ij")
    return pd.DataFrame({"layer": layer.ravel().astype(int), "head": head.ravel().astype(int)}), units


def _blocks(cells: int, resamples: int) -> list[slice]:
    size = max(1, _BLOCK // resamples)
    return [slice(start, start + size) for start in range(0, cells, size)]
