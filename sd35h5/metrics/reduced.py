"""A metric sample by sample without its steps, or without its heads: all that tables and charts of many samples need.

A metric of 1,000 samples of SD3.5-Large is 40 million numbers, its means here 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.metrics.averaging import finite_mean


@dataclass(frozen=True)
class Reduced:
    """Means of a metric for each sample, over what is no NaN; float64.

    Args:
        cells: (sample, layer, head), mean over steps; times: of how many steps it is.
        steps: (sample, step) with timestep and sigma, mean over layers and heads.
        whole: (sample), mean over all.
    """

    cells: xr.DataArray
    times: xr.DataArray
    steps: xr.DataArray
    whole: xr.DataArray


def reduced(values: xr.DataArray) -> Reduced:
    """Return the means of a metric (sample, step, layer, head)."""
    return Reduced(
        finite_mean(values, ["step"]).transpose("sample", "layer", "head"),
        values.notnull().sum("step").transpose("sample", "layer", "head"),
        finite_mean(values, ["layer", "head"]).transpose("sample", "step"),
        finite_mean(values, ["step", "layer", "head"]),
    )


def joined(parts: Sequence[Reduced | None], counts: Sequence[int]) -> Reduced:
    """Return the means of all samples, those of some of them after the other; NaN where a part is None.

    Args: counts: samples of each part; at least one part is there.
    """
    names = ("cells", "times", "steps", "whole")
    like = next(part for part in parts if part is not None)
    return Reduced(*(
        _joined([getattr(part, name) if part else None for part in parts], counts, getattr(like, name))
        for name in names
    ))  # fmt: skip


def _joined(parts: Sequence[xr.DataArray | None], counts: Sequence[int], like: xr.DataArray) -> xr.DataArray:
    missing = 0 if like.dtype.kind in "iu" else np.nan
    values = [
        np.full((count, *like.shape[1:]), missing, like.dtype) if part is None else part.values
        for part, count in zip(parts, counts, strict=True)
    ]
    coords = {name: one for name, one in like.coords.items() if "sample" not in one.dims}
    together = np.concatenate(values)
    return xr.DataArray(together, dims=like.dims, coords=coords | {"sample": np.arange(len(together))})


def by_layer_head(means: Reduced, samples: Sequence[int]) -> pd.DataFrame:
    """Return layer, head, value as metrics.by_layer_head does: every sample and step weighs the same."""
    cells, times = (one.isel(sample=list(samples)) for one in (means.cells, means.times))
    total, count = (cells * times).sum("sample", skipna=True), times.sum("sample")
    table = (
        (total / count.where(count > 0)).transpose("layer", "head").to_series().rename("value").reset_index()
    )
    return table.astype({"layer": int, "head": int})
