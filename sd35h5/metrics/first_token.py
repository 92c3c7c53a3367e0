"""First-token metrics, group masses and entropy. Each number has one definition.

Words. A[q,k] = softmax(q·kᵀ/√d) over the whole joint key axis, image and text together. The *mass* of key k
is the mean of A[q,k] over the queries of one stream (image queries unless said otherwise); the mass of
several keys is the sum of theirs. A `Target` says which keys: one token position, a group of the token table,
or a word by its string. Every function returns all layers, heads and steps: filters are `.isel` on the
result, means are in averaging.py. docs/metrics.md holds all definitions, this folder a file for each kind of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.metrics import stored_mass
from sd35h5.metrics.piecewise import weighted_mean
from sd35h5.metrics.targets import (
    FIRST_TOKEN,
    Target,
    chosen_samples,
    plain,
    refuse_empty,
    target_sizes,
)

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

#: metric name -> (what a chart's axis says, short name)
LABELS = {
    "first_token_mean": "mass: share of an image query's attention (0..1)",
    "first_token_share": "× average text token",
    "text_mass_fraction": "fraction of the attention on text (0..1)",
}


# ---- the three metrics -------------------------------------------------------------------------------------


def first_token_mean(
    store: Store, target: Target = FIRST_TOKEN, branch: str = "cond", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return the mass of the target: mean over image queries of A[q,k], summed over the target's keys.

    Formula: Σ_{k ∈ target} mean_q A[q,k].  Units: 1 (share of a query's attention, 0..1).
    Source: sinks/mass_group for a group and for the start token (exact float32, every branch); else
    sinks/mass_image (rounded to 10 mantissa bits: relative error ≤ 0.05 %; only the branches that were
    captured per token).
    Caveat: A spans image keys too, so a text-rich model and an image-rich one differ in what is left for
    text.
    Returns: float64 (sample, step, layer, head); NaN where the target is absent or nothing was captured.
    """
    chosen = chosen_samples(store, samples)
    group = stored_mass.whole_group(store, target, branch, chosen)
    if group is not None:
        return stored_mass.of_group(store, group, branch, chosen)
    return stored_mass.of_tokens(store, target, branch, chosen)


def first_token_share(
    store: Store, target: Target = FIRST_TOKEN, branch: str = "cond", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return how many times the average text token's mass the target's tokens get.

    Formula: (first_token_mean ÷ keys in target) ÷ (Σ_{k ∈ text} mass[k] ÷ number of text tokens).
    Units: 1, a ratio to the average text token (≥ 0, no upper bound of 1). The name is inherited from the
    tool people come from; it is not a fraction.  Source: as first_token_mean, and sinks/mass_group for the
    denominator.
    Caveat: grows with the number of padding tokens, since they lower the average: compare equal text lengths
    only.
    Returns: float64 (sample, step, layer, head).
    """
    chosen = chosen_samples(store, samples)
    refuse_image(target, "first_token_share")
    keys = target_sizes(store, target, branch, chosen)
    count = xr.DataArray(np.where(keys > 0, keys, np.nan), dims="sample", coords={"sample": chosen})
    mean = first_token_mean(store, target, branch, chosen) / count
    return mean / (text_mass(store, branch, chosen) / store.sizes["token"])


def text_mass_fraction(
    store: Store, target: Target = FIRST_TOKEN, branch: str = "cond", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return the target's part of all the mass that falls on text.

    Formula: first_token_mean ÷ Σ_{k ∈ text} mass[k].  Units: 1 (a true fraction, 0..1).
    Source: as first_token_mean, and sinks/mass_group for the denominator.
    Caveat: a ratio of means over queries, not the mean of per-query ratios.
    Returns: float64 (sample, step, layer, head).
    """
    chosen = chosen_samples(store, samples)
    refuse_image(target, "text_mass_fraction")
    return first_token_mean(store, target, branch, chosen) / text_mass(store, branch, chosen)


METRICS = {
    "first_token_mean": first_token_mean,
    "first_token_share": first_token_share,
    "text_mass_fraction": text_mass_fraction,
}


# ---- what they are made of ---------------------------------------------------------------------------------


def text_mass(store: Store, branch: str = "cond", samples: Sequence[int] | None = None) -> xr.DataArray:
    """Return the mass on all text keys: Σ over the text groups of mass_group, image queries.

    Formula: Σ_{k ∈ text} mean_{q ∈ image} A[q,k].  Units: 1 (0..1; 1 minus it is the image's self-mass).
    Source: sinks/mass_group, exact float32, every branch.
    Caveat: under uniform attention it is text tokens ÷ keys.
    Returns: float64 (sample, step, layer, head).
    """
    return stored_mass.of_groups(store, ("clip_", "t5_"), branch, chosen_samples(store, samples))


def image_self_mass(store: Store, branch: str = "cond", samples: Sequence[int] | None = None) -> xr.DataArray:
    """Return the mass that image queries give to the image itself.

    Formula: Σ_{k ∈ image} mean_{q ∈ image} A[q,k] = 1 − text mass.  Units: 1 (0..1).
    Source: sinks/mass_group, exact float32, every branch.
    Caveat: under uniform attention it is patches ÷ keys (0.92 at 1024 × 1024 pixels), not one half.
    Returns: float64 (sample, step, layer, head).
    """
    return stored_mass.of_group(store, "image", branch, chosen_samples(store, samples))


def encoder_mass(
    store: Store, encoder: str, branch: str = "cond", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return the mass on the tokens of one text encoder: "clip" (CLIP-L and CLIP-G share positions) or "t5".

    Formula: Σ over the encoder's groups of mass_group, image queries.  Units: 1 (0..1).
    Source: sinks/mass_group, exact float32, every branch.
    Caveat: a sum over 77 CLIP and up to 512 T5 positions, padding included. The 77 zero positions of a
    pipeline without T5 (t5_absent) count as T5.
    Returns: float64 (sample, step, layer, head).
    """
    if encoder not in ("clip", "t5"):
        raise StoreError(f"there is no text encoder {encoder!r} on the token axis: choose clip or t5")
    return stored_mass.of_groups(store, encoder + "_", branch, chosen_samples(store, samples))


def entropy(
    store: Store,
    branch: str = "cond",
    query: str = "image",
    samples: Sequence[int] | None = None,
    normalised: bool = False,
) -> xr.DataArray:
    """Return how widely attention spreads over the text keys: the mean over queries of each query's entropy.

    Formula: mean_q −Σ_{k ∈ text} p̂ ln p̂ with p̂ = A[q,k] ÷ Σ_{k ∈ text} A[q,k]; normalised: ÷ ln(text tokens).
    Units: nat (0..ln N); normalised 1 (0 one key .. 1 uniform).
    Source: sinks/entropy_text, exact float32, every branch and query stream.
    Caveat: renormalised over text, so it says nothing about how much attention text gets; padding counts as
    text.
    Returns: float64 (sample, step, layer, head).
    """
    values = store.read(
        "sinks/entropy_text", sample=chosen_samples(store, samples), branch=branch, query=query
    )
    refuse_empty(values, f"entropies of branch {branch!r} and {query} queries")
    return plain(values) / (np.log(store.sizes["token"]) if normalised else 1.0)


def branch_contrast(
    store: Store,
    metric: Callable[..., xr.DataArray] = first_token_mean,
    target: Target = FIRST_TOKEN,
    samples: Sequence[int] | None = None,
) -> xr.DataArray:
    """Return what the prompt changes: the metric on the conditional branch minus that on the unconditional one.

    Formula: metric(cond) − metric(uncond), sample by sample and step by step.  Units: those of the metric.
    Source: as the metric, both branches (for a group or the start token, every capture has them).
    Caveat: both branches see the same latents but other text, so `clip_pad` and `t5_pad` have other sizes;
    positions other than the start token hold other words.
    Returns: float64 (sample, step, layer, head).
    """
    for branch in ("cond", "uncond"):
        if branch not in store.labels("branch"):
            raise StoreError(f"{store.name} has no {branch} branch: it was captured without guidance")
    return metric(store, target, "cond", samples) - metric(store, target, "uncond", samples)


def group_mass(
    store: Store, branch: str = "cond", query: str = "image", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return the mass of every group: sum over the group's keys of mean_q A[q,k], q over `query`'s stream.

    Formula: Σ_{k ∈ group} mean_q A[q,k].
    Units: 1; over all groups, image included, it sums to 1 (the store's row_sum_error says how nearly).
    Source: sinks/mass_group, exact float32, every branch.
    Caveat: a sum, so groups with many keys (t5_pad, image) get more under uniform attention.
    Returns: float64 (sample, group, step, layer, head), group labels as coordinates.
    """
    mass = store.read("sinks/mass_group", sample=chosen_samples(store, samples), branch=branch, query=query)
    refuse_empty(mass, f"group masses of branch {branch!r}")
    return mass.astype(np.float64).transpose("sample", "group", "step", "layer", "head")


def mean_group_mass(
    store: Store, branch: str = "cond", query: str = "image", samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Return `group_mass` as the mean over samples: where the file does not hold it ready, read a few of them at a
    time, so that memory does not grow with them.

    Returns: float64 (group, step, layer, head); NaN where no sample has a value.
    """
    chosen = chosen_samples(store, samples)
    ready = store.mean("summary/mass_group", chosen, branch=branch, query=query)
    if ready is not None and np.isfinite(ready.values).any():
        return ready.astype(np.float64).transpose("group", "step", "layer", "head")
    return weighted_mean(lambda some: group_mass(store, branch, query, some), chosen)


def refuse_image(target: Target, metric: str) -> None:
    """Refuse the image as the target of a metric that is about text."""
    if target == Target("group", "image"):
        raise StoreError(
            f"{metric} compares with the text tokens and the image is none: use first_token_mean"
        )
