"""How far a picture is from its pair, beside the mass that an intervention altered: RMS, SSIM, altered mass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.metrics.piecewise import few_at_a_time
from sd35h5.metrics.targets import chosen_samples, held_name, plain
from sd35h5.spreading.hands import Here

if TYPE_CHECKING:
    from sd35h5.comparing.paired_samples import Pairing
    from sd35h5.store.reader import Store

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
HALF = WINDOW // 2
_ROWS = 32  # of windows at a time
_RANGE, _GREY, _C1, _C2 = np.array([255, 0.5, K1**2, K2**2], np.float32)
ALTERED = ("sinks/altered_mass", "attn2/altered_mass")  # of the joint and of the second attention
COLUMNS = ["reference_sample", "other_sample", "prompt_id", "rms", "ssim", "altered_mass"]


def image_rms(first: np.ndarray, second: np.ndarray) -> float:
    """Return the root mean square difference of two images over pixels and colour channels.

    Formula: √ mean (a − b)², a and b in 0..1.
    Units: share of the range of a channel, 0..1: 0 for equal images.  Source: images/image.
    Caveat: a thing that moved counts as much as a thing that vanished: see ssim.
    Args: first, second: uint8 (y, x, rgb) of one shape.
    Returns: one number.
    """
    one, other = _alike(first, second)
    apart = np.subtract(one, other, dtype=np.int32)
    return float(np.sqrt(np.mean(apart * apart)) / 255)


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Return the structural similarity of two images.

    Formula: mean over windows and colour channels of (2 μ_a μ_b + C1)(2 σ_ab + C2) ÷ ((μ_a² + μ_b² + C1)(σ_a² +
    σ_b² + C2)), windows of 11 × 11 pixels within the image, weighted by a Gaussian of σ = 1.5; C1 = 0.01², C2 =
    0.03² for values in 0..1 (Wang et al., 2004).
    Units: 1: 1 for equal images, about 0 for unrelated ones.  Source: images/image.
    Caveat: each colour channel by itself, then their mean; other programs take the luminance. Flat surfaces of one
    colour are similar wherever they are.
    Args: first, second: uint8 (y, x, rgb) of one shape, 11 × 11 pixels or more.
    Returns: one number.
    """
    one, other = _alike(first, second)
    if min(one.shape[:2]) < WINDOW:
        raise StoreError(f"SSIM needs images of {WINDOW} × {WINDOW} pixels or more, not {one.shape[:2]}")
    rows, columns = (size - 2 * HALF for size in one.shape[:2])
    total = 0.0
    for first_row in range(0, rows, _ROWS):  # what lies in a core's cache is filtered several times as fast
        part = slice(first_row, min(first_row + _ROWS, rows) + 2 * HALF)
        total += sum(_similarity(one[part, :, c], other[part, :, c]) for c in range(one.shape[2]))
    return total / (rows * columns * one.shape[2])


def _similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The sum of the similarities of all windows within a part of one channel, uint8 (y, x).

    In float32 with grey at 0, where variances lose least: against float64 the mean of a dark, smooth picture moves
    by 1e-6, that of others by less.
    """
    one, other = one / _RANGE - _GREY, other / _RANGE - _GREY
    mean_one, mean_other, both, squares = map(_windowed, (one, other, one * other, one * one + other * other))
    covariance = both - mean_one * mean_other
    variances = squares - (mean_one * mean_one + mean_other * mean_other)
    mean_one, mean_other = mean_one + _GREY, mean_other + _GREY
    above = (2 * mean_one * mean_other + _C1) * (2 * covariance + _C2)
    below = (mean_one * mean_one + mean_other * mean_other + _C1) * (variances + _C2)
    return float(np.sum(above / below, dtype=np.float64))


def _windowed(values: np.ndarray) -> np.ndarray:
    """Gaussian means over the windows that lie within the values (y, x): down, then across."""
    weights = np.exp(-(np.arange(HALF + 1) ** 2) / (2 * SIGMA**2))
    weights = (weights / (2 * weights.sum() - weights[0])).astype(values.dtype)
    for _ in range(2):
        count = len(values) - 2 * HALF
        means = weights[0] * values[HALF : HALF + count]
        for distance in range(1, HALF + 1):
            pair = values[HALF - distance :][:count] + values[HALF + distance :][:count]
            pair *= weights[distance]
            means += pair
        values = means.T
    return values


def _alike(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if first.shape != second.shape:
        raise StoreError(f"images of {first.shape[:2]} and {second.shape[:2]} pixels cannot be compared")
    return first, second


def altered_mass(
    store: Store,
    branch: str = "cond",
    query: str = "image",
    samples: Sequence[int] | None = None,
    second: bool = False,
) -> xr.DataArray:
    """Return the mass that the keys altered by an intervention had, in that run, before they were altered.

    Formula: Σ over altered keys k of the mean over the stream's queries of A[q,k], A being the attention of that call
    without its intervention.
    Units: share of attention, 0..1.  Source: sinks/altered_mass, of attn2 (`second`) attn2/altered_mass, exact
    float32, every branch.
    Caveat: of the altered run: what was altered in earlier layers and steps has changed its inputs. NaN
    where nothing is altered.
    Args: second: of MMDiT-X's second, image-only attention.
    Returns: float64 (sample, step, layer, head).
    """
    name = held_name(store, ALTERED[second])
    if name not in store:
        what = "an intervention on attn2" if second else "an intervention"
        raise StoreError(f"{store.name} is of a run without {what}: it has no altered mass")
    return plain(store.read(name, sample=chosen_samples(store, samples), branch=branch, query=query))


def image_differences(reference: Store, other: Store, pairing: Pairing) -> pd.DataFrame:
    """Return how far the images of each pair are apart, and the mass that was altered to get there.

    Formula: image_rms, ssim, and the mean over altered steps, layers and heads of altered_mass, cond branch, image
    queries (text queries where only those are altered; of attn2 where only that is).
    Units: as those.  Source: the paired samples' images.
    Caveat: NaN for an image that was not kept or has another size, and for the mass of a run without an intervention.
    Returns: reference_sample, other_sample, prompt_id, rms, ssim, altered_mass.
    """
    cut = [
        replace(pairing, pairs=pairing.pairs.iloc[rows]) for rows in few_at_a_time(range(len(pairing.pairs)))
    ]
    stores = {"reference": reference, "other": other}
    parts = Here(stores).run(_rows_of_two, tuple(stores), cut, "comparing pictures")
    return pd.concat(parts, ignore_index=True)


def _rows_of_two(stores: list[Store], pairing: Pairing) -> pd.DataFrame:
    return picture_rows(*stores, pairing)


def picture_rows(reference: Store, other: Store, pairing: Pairing) -> pd.DataFrame:
    """Return `image_differences` of a few pairs."""
    mass = np.full(len(pairing.pairs), np.nan)
    held = [second for second, name in enumerate(ALTERED) if held_name(other, name) in other]
    if held and len(mass):
        for query in ("text", "image"):
            found = altered_mass(other, "cond", query, list(pairing.pairs["other_sample"]), bool(held[0]))
            means = found.mean(["step", "layer", "head"], skipna=True).values
            mass = np.where(np.isfinite(means), means, mass)

    rows = []
    for pair, altered in zip(pairing.pairs.itertuples(), mass, strict=True):
        first, second = reference.image(pair.reference_sample), other.image(pair.other_sample)
        comparable = first is not None and second is not None and first.shape == second.shape
        each = (image_rms(first, second), ssim(first, second)) if comparable else (np.nan, np.nan)
        rows.append([pair.reference_sample, pair.other_sample, pair.prompt_id, *each, altered])
    return pd.DataFrame(rows, columns=COLUMNS)
