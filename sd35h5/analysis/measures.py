"""The numbers in which runs are compared, each as (sample, step, layer, head), by name, with title and unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xarray as xr

from sd35h5.analysis import metrics, sinks, topkeys
from sd35h5.analysis.targets import Target

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

Compute = Callable[["Store", Target, str, Sequence[int] | None], xr.DataArray]
TIMES = 10  # multiples of uniform of the second sink rate


@dataclass(frozen=True)
class Measure:
    """A number of a run.

    Args:
        title: what it is, in words that go on after “the”.
        unit: what an axis says.
        compute: (store, target, branch, samples) -> float64 (sample, step, layer, head).
        of_target: whether it is about the target's keys, or about all keys.
    """

    title: str
    unit: str
    compute: Compute
    of_target: bool = False


def _over_epsilon(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
    return sinks.is_sink(store, target, branch, samples)


def _over_uniform(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
    return sinks.is_sink(store, target, branch, samples, times_uniform=TIMES)


def _self_mass(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
    return metrics.image_self_mass(store, branch, samples)


def _entropy(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
    return metrics.entropy(store, branch, "image", samples, normalised=True)


def _gini(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
    return sinks.gini(store, branch, "image", samples)


def _top_1(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
    return sinks.top_mass(store, 1, branch, "image", samples)


def _top_5(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
    return sinks.top_mass(store, 5, branch, "image", samples)


def _norm_ratio(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
    return topkeys.value_norm_ratio(topkeys.top_keys(store, branch, "image", samples))


MEASURES = {
    "first_token_mean": Measure("attention mass", "0..1", metrics.first_token_mean, True),
    "first_token_share": Measure(
        "share of attention", "× average text token", metrics.first_token_share, True
    ),
    "text_mass_fraction": Measure(
        "fraction of the attention on text", "0..1", metrics.text_mass_fraction, True
    ),
    "sink_rate": Measure(f"sink rate at ε = {sinks.EPSILON}", "share of heads", _over_epsilon, True),
    "sink_rate_uniform": Measure(f"sink rate at {TIMES} × uniform", "share of heads", _over_uniform, True),
    "top_1": Measure("mass of the heaviest key", "0..1", _top_1),
    "top_5": Measure("mass of the five heaviest keys", "0..1", _top_5),
    "gini": Measure("Gini coefficient over groups", "0..1", _gini),
    "entropy": Measure("entropy over text keys", "÷ ln(tokens), 0..1", _entropy),
    "image_self_mass": Measure("image self-mass", "0..1", _self_mass),
    "value_norm_ratio": Measure("value norm of the heaviest key", "÷ mean of the next", _norm_ratio),
}
