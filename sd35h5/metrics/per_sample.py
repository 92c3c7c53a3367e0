"""One number a sample, of a measure or a joined score, and how two of them go together over samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.metrics.averaging import within
from sd35h5.metrics.catalogue import MEASURES, computed, is_held
from sd35h5.metrics.targets import FIRST_TOKEN, Target, chosen_samples

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

SCORES = "scores/"
MIN_SAMPLES = 3  # two points lie on a line whatever they are
FACTS = ["sample", "prompt_id", "prompt", "seed"]


def quantities(stores: Iterable[Store]) -> dict[str, str]:
    """Return what can be on an axis, name -> what it says: every score, then every measure, of any of the stores."""
    stores = list(stores)
    held = dict.fromkeys(name for store in stores for name in store.variables)
    scores = {name: f"score: {name.removeprefix(SCORES)}" for name in held if name.startswith(SCORES)}
    return scores | {
        name: one.label for name, one in MEASURES.items() if any(is_held(store, name) for store in stores)
    }


def sample_values(
    store: Store,
    name: str,
    target: Target = FIRST_TOKEN,
    branch: str = "cond",
    samples: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> np.ndarray:
    """Return a quantity of each sample: a joined score, or a measure's mean over steps, layers and heads.

    Formula: scores/NAME as it was joined; else the mean of the measure over the chosen steps, layers and heads.
    Units: those of the score or measure.  Source: scores/NAME, else as the measure.
    Caveat: a mean over all heads hides that some rise while others fall: choose a head to see one.
    Args: name: a key of `quantities`; layers, heads, steps: true indices, all when None.
    Returns: float64 (sample), NaN where the sample has no value.
    """
    chosen = chosen_samples(store, samples)
    if name.startswith(SCORES):
        if name not in store:
            raise StoreError(f"{store.name} has no {name}: join it with `python -m sd35h5 scores`")
        return store.read(name, sample=chosen).values.astype(np.float64)
    values = within(computed(store, name, target, branch, chosen), layers or None, heads or None)
    return mean_of(*step_sums(values, steps))


def step_sums(values: xr.DataArray, steps: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of a measure over the chosen steps, and how many of them were measured.

    Returns: float64 and int64 (sample, layer, head).
    """
    part = within(values, steps=steps).transpose("sample", "layer", "head", "step").values
    there = np.isfinite(part)
    return np.sum(part, -1, where=there, dtype=np.float64), there.sum(-1)


def mean_of(
    total: np.ndarray,
    count: np.ndarray,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> np.ndarray:
    """Return the mean over the layers and heads at these positions of what `step_sums` gives: float64 (sample)."""
    places = (layers or range(total.shape[1]), heads or range(total.shape[2]))
    total, count = (sums[:, *np.ix_(*places)].sum((1, 2)) for sums in (total, count))
    return total / np.where(count > 0, count, np.nan)


def points(table: pd.DataFrame, samples: Sequence[int], x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    """Return a row a sample: sample, prompt_id, prompt, seed, x, y. Args: table: a store's `samples`."""
    return table.loc[list(samples), FACTS].assign(x=x, y=y).reset_index(drop=True)


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Return how x and y go together over the samples of each run.

    Formula: Pearson's r of the values; Spearman's ρ, which is Pearson's r of their ranks (ties get the mean rank).
    Units: 1 (−1..1).  Source: the table of points that is given, by scipy.stats.
    Caveat: samples of one prompt are no independent observations, so no p-value is given; a correlation over
    prompts is no cause.
    Args: table: run, prompt_id, x, y, a row a sample; rows without x or y are left out.
    Returns: run, samples, prompts, pearson, spearman; NaN below three samples or where x or y is constant.
    """
    from scipy import stats  # half a second, which pages without a scatter need not wait for

    rows = []
    for run, part in table.groupby("run", sort=False):
        there = part.dropna(subset=["x", "y"])
        varies = len(there) >= MIN_SAMPLES and there["x"].nunique() > 1 and there["y"].nunique() > 1
        pearson = stats.pearsonr(there["x"], there["y"]).statistic if varies else np.nan
        spearman = stats.spearmanr(there["x"], there["y"]).statistic if varies else np.nan
        rows.append([run, len(there), there["prompt_id"].nunique(), float(pearson), float(spearman)])
    return pd.DataFrame(rows, columns=["run", "samples", "prompts", "pearson", "spearman"])


def told(row: pd.Series) -> str:
    """Say one row of `correlations`."""
    count = f"n = {row['samples']} sample{'s' if row['samples'] != 1 else ''}"
    count += f" of {row['prompts']} prompt{'s' if row['prompts'] != 1 else ''}"
    if np.isnan(row["pearson"]):
        why = "three samples" if row["samples"] < MIN_SAMPLES else "values that differ"
        return f"{row['run']}: {count}, a correlation needs {why}"
    pearson, spearman = (f"{row[name]:.2f}".replace("-", "−") for name in ("pearson", "spearman"))
    return f"{row['run']}: Pearson r = {pearson}, Spearman ρ = {spearman}, {count}"
