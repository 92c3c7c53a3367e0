"""Means over samples that a packed file holds ready: one chunk is read in place of one a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sd35h5.metrics import catalogue, stored_mass
from sd35h5.metrics.first_token import refuse_image
from sd35h5.metrics.piecewise import weighted_mean
from sd35h5.metrics.targets import FIRST_TOKEN, Target, chosen_samples, target_sizes

if TYPE_CHECKING:
    from sd35h5.store.reader import Store


def mean_over_samples(
    store: Store,
    name: str,
    target: Target = FIRST_TOKEN,
    branch: str = "cond",
    samples: Sequence[int] | None = None,
) -> xr.DataArray:
    """Return the mean of a measure over samples, NaN without weight: (step, layer, head).

    Formula: mean over samples of `catalogue.computed`; from summary/ where the file holds it of exactly these samples
    and the measure is linear in it, as first_token_mean, text_mass_fraction, image_self_mass and entropy are.
    Units: those of the measure.  Source: summary/*, else as the measure, a few samples at a time.
    Caveat: samples of a prompt weigh as those of any other.
    Returns: float64; NaN where no sample has a value.
    """
    chosen = chosen_samples(store, samples)
    ready = (
        READY[name](store, target, branch, chosen)
        if name in READY and catalogue.is_held(store, name)
        else None
    )
    if ready is not None and np.isfinite(ready.values).any():
        return ready.astype(np.float64)
    return weighted_mean(lambda some: catalogue.computed(store, name, target, branch, some), chosen)


Ready = Callable[["Store", Target, str, list[int]], xr.DataArray | None]


def _mass(store: Store, target: Target, branch: str, samples: list[int]) -> xr.DataArray | None:
    return _of_group(
        store, "summary/mass_group", stored_mass.whole_group(store, target, branch, samples), branch, samples
    )


def _fraction(store: Store, target: Target, branch: str, samples: list[int]) -> xr.DataArray | None:
    refuse_image(target, "text_mass_fraction")
    group = stored_mass.whole_group(store, target, branch, samples)
    return _of_group(store, "summary/text_fraction", group, branch, samples)


def _share(store: Store, target: Target, branch: str, samples: list[int]) -> xr.DataArray | None:
    """The fraction times a factor, where that is the same for all samples."""
    refuse_image(target, "first_token_share")
    keys = np.unique(target_sizes(store, target, branch, samples))
    if len(keys) != 1 or not keys[0] or (fraction := _fraction(store, target, branch, samples)) is None:
        return None
    return fraction.astype(np.float64) * store.sizes["token"] / keys[0]


def _self_mass(store: Store, target: Target, branch: str, samples: list[int]) -> xr.DataArray | None:
    return _of_group(store, "summary/mass_group", "image", branch, samples)


def _entropy(store: Store, target: Target, branch: str, samples: list[int]) -> xr.DataArray | None:
    mean = store.mean("summary/entropy_text", samples, branch=branch, query="image")
    return None if mean is None else _plain(mean) / np.log(store.sizes["token"])


def _of_group(
    store: Store, name: str, group: str | None, branch: str, samples: list[int]
) -> xr.DataArray | None:
    if group is None:
        return None
    where = {"query": "image"} if name == "summary/mass_group" else {}
    mean = store.mean(name, samples, branch=branch, group=group, **where)
    return None if mean is None else _plain(mean)


def _plain(mean: xr.DataArray) -> xr.DataArray:
    """As `targets.plain`, without the samples."""
    keep = {"timestep", "sigma", *mean.dims}
    return mean.drop_vars([name for name in mean.coords if name not in keep]).astype(np.float64)


READY: dict[str, Ready] = {
    "first_token_mean": _mass,
    "first_token_share": _share,
    "text_mass_fraction": _fraction,
    "image_self_mass": _self_mass,
    "entropy": _entropy,
}
