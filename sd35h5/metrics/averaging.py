"""Means of a metric for charts: by layer and head, over steps with the spread across prompts, over layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import StoreError

if TYPE_CHECKING:
    from sd35h5.store.reader import Store


def within(
    values: xr.DataArray,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> xr.DataArray:
    """Return a metric's part at these layers, heads and denoising steps, by their true indices; all when None.

    Raises: StoreError where the metric was captured at some steps only and none of them is asked for.
    """
    chosen = {"layer": layers, "head": heads}
    part = values.isel(
        {dim: of_numbers(values, dim, each) for dim, each in chosen.items() if each is not None}
    )
    if steps is None:
        return part
    there = of_numbers(part, "step", steps)
    if there in ([], slice(0, 0)):
        known = ", ".join(str(step) for step in part["step"].values.tolist()[:12])
        raise StoreError(f"this metric was captured at the steps {known}: choose a range that holds one")
    return part.isel(step=there)


def of_numbers(values: xr.DataArray | xr.Dataset, dim: str, numbers: Sequence[int]) -> slice | list[int]:
    """Return the positions of those true indices that are there, in their order, for `isel`."""
    own = {number: place for place, number in enumerate(values[dim].values.tolist())}
    return places([own[number] for number in numbers if number in own])


def places_of(store: Store, dim: str, numbers: Sequence[int]) -> list[int]:
    """Return the positions of true indices along a dimension of a store, as `read` takes them.

    Raises: StoreError for one that is not there.
    """
    own = {number: place for place, number in enumerate(store.numbers(dim))}
    if absent := [number for number in numbers if number not in own]:
        raise StoreError(f"{store.name} holds no {dim} {absent[0]}: it was cut to others")
    return [own[number] for number in numbers]


def places(chosen: Sequence[int]) -> slice | list[int]:
    """Return positions for `isel`: neighbours as a slice, which copies nothing."""
    if len(chosen) and list(chosen) == list(range(chosen[0], chosen[-1] + 1)):
        return slice(chosen[0], chosen[-1] + 1)
    return list(chosen)


def finite_mean(values: xr.DataArray, dims: Sequence[str]) -> xr.DataArray:
    """Return the float64 mean of what is no NaN; several times as fast where there is none, as the plain mean tells.

    Args: dims: those that the values lack are means already.
    """
    dims = [dim for dim in dims if dim in values.dims]
    if not dims:
        return values.astype(np.float64)
    plain = values.mean(dims, skipna=False, dtype=np.float64)
    return values.mean(dims, skipna=True, dtype=np.float64) if np.isnan(plain.values).any() else plain


def by_layer_head(values: xr.DataArray) -> pd.DataFrame:
    """Return layer, head, value: the mean over samples and steps (every sample and step weighs the same)."""
    frame = finite_mean(values, [dim for dim in values.dims if dim not in ("layer", "head")])
    table = frame.transpose("layer", "head").to_series().rename("value").reset_index()
    return table.astype({"layer": int, "head": int})


def over_steps(
    values: xr.DataArray, prompts: Sequence[str], band: tuple[float, float] = (0.1, 0.9)
) -> pd.DataFrame:
    """Return step, timestep, sigma, mean, low, high, prompts: one row a step, mean over layers and heads.

    Samples of one prompt are averaged first; `mean` is over prompts, `low`..`high` the quantiles `band`
    across prompts (NaN with a single prompt: there is no spread to show).
    Args: prompts: the prompt_id of each sample of `values`, in its order.
    """
    per_sample = finite_mean(values, ["layer", "head"]).transpose("sample", "step")
    table = prompt_means(per_sample.values, prompts)
    several = len(table) > 1
    steps = pd.DataFrame({"step": np.asarray(values["step"].values, int)})
    for name in ("timestep", "sigma"):
        steps[name] = np.asarray(values[name].values, float) if name in values.coords else np.nan
    steps["mean"] = table.mean(axis=0).to_numpy()
    steps["low"] = table.quantile(band[0]).to_numpy() if several else np.nan
    steps["high"] = table.quantile(band[1]).to_numpy() if several else np.nan
    steps["prompts"] = len(table)
    return steps


def over_layers(
    values: xr.DataArray, prompts: Sequence[str], band: tuple[float, float] = (0.1, 0.9)
) -> pd.DataFrame:
    """Return layer, mean, low, high, prompts: as `over_steps`, a row a layer, mean over steps and heads."""
    per_sample = finite_mean(values, ["step", "head"]).transpose("sample", "layer")
    table = prompt_means(per_sample.values, prompts)
    several = len(table) > 1
    return pd.DataFrame(
        {
            "layer": np.asarray(values["layer"].values, int),
            "mean": table.mean(axis=0).to_numpy(),
            "low": table.quantile(band[0]).to_numpy() if several else np.nan,
            "high": table.quantile(band[1]).to_numpy() if several else np.nan,
            "prompts": len(table),
        }
    )


def head_counts(table: pd.DataFrame, bins: int = 24) -> pd.DataFrame:
    """Return how many heads have a mean in each interval: low, high, heads; evenly in the logarithm.

    Args: table: of `by_layer_head`; heads whose mean is not above 0 are left out.
    """
    values = table["value"].to_numpy()
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return pd.DataFrame({"low": [], "high": [], "heads": []})
    low, high = values.min(), values.max()
    edges = np.geomspace(low * 0.98, high * 1.02, bins + 1)
    counts, _ = np.histogram(values, edges)
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "heads": counts})


def groups_over_layers(values: xr.DataArray) -> pd.DataFrame:
    """Return group, layer, value from `mean_group_mass`: the mean over steps and heads too."""
    mean = finite_mean(values, ["step", "head"]).transpose("layer", "group")
    table = mean.to_series().rename("value").reset_index()
    return table.astype({"layer": int})[["group", "layer", "value"]]


def are_balanced(prompts: Sequence[str]) -> bool:
    """Return whether every prompt has as many samples, so that a mean over samples is one over prompts."""
    return len(set(Counter(prompts).values())) <= 1


def prompt_means(values: np.ndarray, prompts: Sequence[str]) -> pd.DataFrame:
    """Return the mean over the samples of each prompt: a row a prompt; values (sample, anything)."""
    return pd.DataFrame(values, index=list(prompts)).groupby(level=0, sort=False).mean()
