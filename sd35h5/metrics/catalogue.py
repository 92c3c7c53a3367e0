"""The numbers in which runs are compared, each as (sample, step, layer, head), by name, with title and unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.metrics import first_token, heaviest_keys, patch_masses, sink_rates
from sd35h5.metrics.targets import FIRST_TOKEN, Target, held_name, key_count, patch_grid
from sd35h5.store.schema import variable

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

Compute = Callable[["Store", Target, str, Sequence[int] | None], xr.DataArray]
TIMES = 10  # multiples of uniform of the second sink rate
TOPK, ATLAS = "capture it with --topk 16", "capture it with --atlas"
SECOND = "only models with a second, image-only attention have it, such as SD3.5-Medium"


@dataclass(frozen=True)
class Measure:
    """A number of a run.

    Args:
        title: what it is, in words that go on after “the”.
        unit: what an axis says.
        compute: (store, target, branch, samples) -> float64 (sample, step, layer, head).
        of_target: whether it is about the target's keys, or about all keys.
        variable: what the file must hold (of attn2 by the name of `held_name`); remedy: what to do where it does not.
    """

    title: str
    unit: str
    compute: Compute
    of_target: bool = False
    variable: str = "sinks/mass_group"
    remedy: str = "capture it again"

    @property
    def label(self) -> str:
        """Title and unit, as an axis says them."""
        return f"{self.title} ({self.unit})"


def _without_target(function: Callable[..., xr.DataArray], **more: object) -> Compute:
    """Make a measure of a function of (store, branch=, samples=), image queries."""

    def compute(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
        return function(store, branch=branch, samples=samples, **more)

    return compute


def _over_epsilon(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
    return sink_rates.is_sink(store, target, branch, samples)


def _over_uniform(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
    return sink_rates.is_sink(store, target, branch, samples, times_uniform=TIMES)


def _norm_ratio(store: Store, target: Target, branch: str, samples: Sequence[int] | None) -> xr.DataArray:
    return heaviest_keys.value_norm_ratio(heaviest_keys.top_keys(store, branch, "image", samples))


def _top(count: int, title: str, attention: str = "joint") -> Measure:
    compute = _without_target(sink_rates.top_mass, count=count, attention=attention)
    if attention == "joint":
        return Measure(title, "0..1", compute, False, "topk/top_mass", TOPK)
    return Measure(title, "0..1", compute, False, "attn2/top_mass", SECOND)


def _entropy_all(title: str, unit: str, attention: str = "joint") -> Measure:
    compute = _without_target(patch_masses.entropy_all, normalised=True, attention=attention)
    if attention == "joint":
        return Measure(title, unit, compute, False, "sinks/entropy_all", ATLAS)
    return Measure(title, unit, compute, False, "attn2/entropy_all", SECOND)


def _patch(function: Callable[..., xr.DataArray], title: str, attention: str = "joint") -> Measure:
    compute = _without_target(function, attention=attention)
    if attention == "joint":
        return Measure(title, "0..1", compute, False, "atlas/mass_patch", ATLAS)
    return Measure(title, "0..1", compute, False, "attn2/mass_patch", f"{SECOND}; {ATLAS}")


MEASURES = {
    "first_token_mean": Measure("attention mass", "0..1", first_token.first_token_mean, True),
    "first_token_share": Measure(
        "share of attention", "× average text token", first_token.first_token_share, True
    ),
    "text_mass_fraction": Measure(
        "fraction of the attention on text", "0..1", first_token.text_mass_fraction, True
    ),
    "sink_rate": Measure(f"sink rate at ε = {sink_rates.EPSILON}", "share of heads", _over_epsilon, True),
    "sink_rate_uniform": Measure(f"sink rate at {TIMES} × uniform", "share of heads", _over_uniform, True),
    "top_1": _top(1, "mass of the heaviest key"),
    "top_5": _top(5, "mass of the five heaviest keys"),
    "gini": Measure("Gini coefficient over groups", "0..1", _without_target(sink_rates.gini)),
    "entropy": Measure(
        "entropy over text keys", "÷ ln(tokens), 0..1", _without_target(first_token.entropy, normalised=True),
        variable="sinks/entropy_text",
    ),
    "image_self_mass": Measure("image self-mass", "0..1", _without_target(first_token.image_self_mass)),
    "value_norm_ratio": Measure(
        "value norm of the heaviest key", "÷ mean of the next", _norm_ratio, False, "topk/top_value_norm", TOPK,
    ),
    "entropy_all": _entropy_all("entropy over all keys", "÷ ln(keys), 0..1"),
    "patch_top": _patch(patch_masses.patch_top, "mass of the heaviest patch"),
    "patch_gini": _patch(patch_masses.patch_gini, "Gini coefficient over patches"),
    "border_share": _patch(patch_masses.border_share, "part of the image's mass on its border"),
    "attn2_top_1": _top(1, "attn2 mass of the heaviest patch", "attn2"),
    "attn2_entropy": _entropy_all("attn2 entropy over patches", "÷ ln(patches), 0..1", "attn2"),
    "attn2_patch_gini": _patch(patch_masses.patch_gini, "attn2 Gini coefficient over patches", "attn2"),
    "attn2_border_share": _patch(patch_masses.border_share, "attn2 part of the mass on the image's border", "attn2"),
}  # fmt: skip


def computed(
    store: Store,
    name: str,
    target: Target = FIRST_TOKEN,
    branch: str = "cond",
    samples: Sequence[int] | None = None,
) -> xr.DataArray:
    """Return a measure by its name: float64 (sample, step, layer, head).

    Raises: StoreError for a name that is none, and where the file lacks what it is made of.
    """
    if name not in MEASURES:
        raise StoreError(f"there is no metric {name!r}: choose one of {', '.join(MEASURES)}")
    one = MEASURES[name]
    if not is_held(store, name) and len(store):
        raise StoreError(f"{store.name} does not tell the {one.title}: {one.remedy}")
    return one.compute(store, target, branch, samples)


def is_held(store: Store, name: str) -> bool:
    """Whether the file holds what a measure is made of."""
    return held_name(store, MEASURES[name].variable) in store


def head_axis(store: Store, name: str) -> str:
    """Return the axis of the file that a measure's heads are of: `head`, or that of an attn2 with heads of its own."""
    dims = variable(held_name(store, MEASURES[name].variable)).dims
    return "head_attn2" if "head_attn2" in dims else "head"


def absent(store: Store) -> dict[str, str]:
    """Return the measures that the file does not hold, name -> what to do about it."""
    return {name: one.remedy for name, one in MEASURES.items() if not is_held(store, name)}


def uniform_value(
    store: Store,
    name: str,
    target: Target = FIRST_TOKEN,
    branch: str = "cond",
    samples: Sequence[int] | None = None,
) -> float | None:
    """Return what a measure would be if every query attended to all keys alike; None where that says nothing.

    Raises: StoreError where the file does not tell the size of its images.
    """
    if name in ("first_token_share", "entropy", "entropy_all", "attn2_entropy"):
        return 1.0
    if name in ("gini", "patch_gini", "attn2_patch_gini"):
        return 0.0
    if name in ("border_share", "attn2_border_share"):
        return patch_masses.border_part(store)
    rows, columns = patch_grid(store)
    keys, text = key_count(store), store.sizes["token"]
    known = {
        "top_1": 1 / keys, "top_5": 5 / keys, "patch_top": 1 / keys, "attn2_top_1": 1 / (rows * columns),
        "image_self_mass": rows * columns / keys,
    }  # fmt: skip
    if name in ("first_token_mean", "text_mass_fraction"):
        mass = float(sink_rates.uniform_mass(store, target, branch, samples).mean())
        return mass if name == "first_token_mean" else mass * keys / text
    return known.get(name)
