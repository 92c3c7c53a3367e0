"""Numbers over image keys: entropy over all keys, and how the mass of single patches is spread, of either attention.

`attention` is "joint", whose keys are text and image, or "attn2", MMDiT-X's second attention over the image alone:
in sd-scripts' layout that is attn2_regrouped/ in the file, and `head` counts the heads of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.metrics.heaviest_keys import KINDS, patch_places
from sd35h5.metrics.targets import (
    chosen_samples,
    held_name,
    key_count,
    patch_grid,
    plain,
    refuse_empty,
)

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

GROUPS = {"joint": ("sinks", "atlas"), "attn2": ("attn2", "attn2")}  # of the entropy, of the mass of patches


def entropy_all(
    store: Store,
    branch: str = "cond",
    query: str = "image",
    samples: Sequence[int] | None = None,
    normalised: bool = False,
    attention: str = "joint",
) -> xr.DataArray:
    """Return how widely attention spreads over all its keys: the mean over queries of each query's entropy.

    Formula: mean_q −Σ_k A[q,k] ln A[q,k]; normalised: ÷ ln N for N keys (text tokens and patches; of attn2 patches).
    Units: nat (0..ln N); normalised 1 (0 one key .. 1 uniform).
    Source: sinks/entropy_all (--atlas) or attn2/entropy_all, exact float32, the cond branch at the top steps.
    Caveat: patches outnumber tokens, so it is mostly about the image; a sink lowers it only by its own mass.
    Returns: float64 (sample, step, layer, head), captured steps only; NaN in layers without attn2.
    """
    name = held_name(store, f"{_group(attention, 0)}/entropy_all")
    values = store.read(name, sample=chosen_samples(store, samples), branch=branch, query=query)
    refuse_empty(values, f"entropies over all keys of branch {branch!r} and {query} queries")
    rows, columns = patch_grid(store)
    keys = key_count(store) if attention == "joint" else rows * columns
    return plain(values).dropna("step", how="all") / (np.log(keys) if normalised else 1.0)


def patch_top(
    store: Store,
    branch: str = "cond",
    query: str = "image",
    samples: Sequence[int] | None = None,
    attention: str = "joint",
) -> xr.DataArray:
    """Return the mass of the heaviest image patch.

    Formula: max over patches k of mean_q A[q,k].  Units: 1 (0..1; uniform: 1 ÷ number of keys).
    Source: atlas/mass_patch or attn2/mass_patch, rounded (relative error ≤ 0.05 %), cond at the top steps.
    Caveat: of the joint attention the heaviest key of all may be a token: compare with top_mass.
    Returns: float64 (sample, step, layer, head), captured steps only.
    """
    return _each(store, branch, query, samples, attention, lambda mass: mass.max(-1))


def patch_gini(
    store: Store,
    branch: str = "cond",
    query: str = "image",
    samples: Sequence[int] | None = None,
    attention: str = "joint",
) -> xr.DataArray:
    """Return the Gini coefficient of the image's mass over its patches: how unevenly they are looked at.

    Formula: Σ_i (2i − n − 1) m_i ÷ (n Σ m_i) for the n patches' masses m_1 ≤ … ≤ m_n.
    Units: 1 (0: every patch alike .. 1 − 1/n: one patch has all).
    Source: atlas/mass_patch or attn2/mass_patch, rounded (relative error ≤ 0.05 %), cond at the top steps.
    Caveat: text keys are left out, so it does not say how much attention the image gets (image_self_mass does).
    Rounding moves it by 0.001 at most, which is much of a coefficient near 0.
    Returns: float64 (sample, step, layer, head), captured steps only.
    """

    def gini(mass: np.ndarray) -> np.ndarray:
        count = mass.shape[-1]
        return (np.sort(mass, -1) @ (2.0 * np.arange(1, count + 1) - count - 1)) / (count * mass.sum(-1))

    return _each(store, branch, query, samples, attention, gini)


def border_share(
    store: Store,
    branch: str = "cond",
    query: str = "image",
    samples: Sequence[int] | None = None,
    attention: str = "joint",
) -> xr.DataArray:
    """Return which part of the image's mass lies on its outermost ring of patches, corners included.

    Formula: Σ over border patches of mean_q A[q,k] ÷ Σ over all patches.
    Units: 1 (0..1; uniform: border patches ÷ patches, see border_part).
    Source: atlas/mass_patch or attn2/mass_patch, rounded (relative error ≤ 0.05 %), cond at the top steps.
    Caveat: objects at the border count too: look at several prompts before calling it a sink.
    Returns: float64 (sample, step, layer, head), captured steps only.
    """
    border = _border(store)
    return _each(store, branch, query, samples, attention, lambda m: m[..., border].sum(-1) / m.sum(-1))


def border_part(store: Store) -> float:
    """Return which part of the patches is on the border: `border_share` of uniform attention."""
    return float(_border(store).mean())


def _border(store: Store) -> np.ndarray:
    return patch_places(*patch_grid(store)) != KINDS.index("inner")


def _group(attention: str, place: int) -> str:
    if attention not in GROUPS:
        raise StoreError(f"there is no attention {attention!r}: choose one of {', '.join(GROUPS)}")
    return GROUPS[attention][place]


def _each(
    store: Store,
    branch: str,
    query: str,
    samples: Sequence[int] | None,
    attention: str,
    reduce: Callable[[np.ndarray], np.ndarray],
) -> xr.DataArray:
    """Reduce float64 (layer, head, patch) of each sample and step to (layer, head), one at a time in memory."""
    name, chosen = held_name(store, f"{_group(attention, 1)}/mass_patch"), chosen_samples(store, samples)
    found = []
    for sample in chosen:
        for place in range(store.sizes["top_step"]):
            mass = store.read(name, sample=[sample], branch=branch, query=query, top_step=[place])
            flat = mass.values.astype(np.float64).reshape(*mass.shape[:-2], -1)
            small = mass.isel(patch_y=0, patch_x=0, drop=True).astype(np.float64)
            found.append(small.copy(data=reduce(flat)))
    steps = store.sizes["top_step"]
    rows = [xr.concat(found[i : i + steps], "top_step") for i in range(0, len(found), steps)]
    values = xr.concat(rows, "sample").rename(top_step="step")
    refuse_empty(values, f"masses of patches of branch {branch!r} and {query} queries")
    return plain(values)
