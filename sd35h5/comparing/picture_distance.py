"""How far a picture is from its pair, beside the mass that an intervention altered: RMS, SSIM, altered mass."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from scipy.ndimage import correlate1d

from sd35h5.errors import StoreError
from sd35h5.long_work import counted
from sd35h5.metrics.targets import chosen_samples, held_name, plain

if TYPE_CHECKING:
    from sd35h5.comparing.paired_samples import Pairing
    from sd35h5.store.reader import Store

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
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
    one, other = _two(first, second)
    return float(np.sqrt(np.mean((one - other) ** 2)))


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
    one, other = _two(first, second)
    if min(one.shape[:2]) < WINDOW:
        raise StoreError(f"SSIM needs images of {WINDOW} × {WINDOW} pixels or more, not {one.shape[:2]}")
    mean_one, mean_other = _windowed(one), _windowed(other)
    variance_one, variance_other = _windowed(one**2) - mean_one**2, _windowed(other**2) - mean_other**2
    covariance = _windowed(one * other) - mean_one * mean_other
    c1, c2 = K1**2, K2**2
    above = (2 * mean_one * mean_other + c1) * (2 * covariance + c2)
    below = (mean_one**2 + mean_other**2 + c1) * (variance_one + variance_other + c2)
    return float(np.mean(above / below))


def _windowed(values: np.ndarray) -> np.ndarray:
    """Gaussian means over the windows that lie within the image."""
    half = WINDOW // 2
    weights = np.exp(-((np.arange(WINDOW) - half) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    means = correlate1d(correlate1d(values, weights, axis=0), weights, axis=1)
    return means[half:-half, half:-half]


def _two(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if first.shape != second.shape:
        raise StoreError(f"images of {first.shape[:2]} and {second.shape[:2]} pixels cannot be compared")
    return first / 255.0, second / 255.0


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
    mass = np.full(len(pairing.pairs), np.nan)
    held = [second for second, name in enumerate(ALTERED) if held_name(other, name) in other]
    if held and len(mass):
        for query in ("text", "image"):
            found = altered_mass(other, "cond", query, list(pairing.pairs["other_sample"]), bool(held[0]))
            means = found.mean(["step", "layer", "head"], skipna=True).values
            mass = np.where(np.isfinite(means), means, mass)

    def distances(pair) -> tuple[float, float]:
        first, second = reference.image(pair.reference_sample), other.image(pair.other_sample)
        comparable = first is not None and second is not None and first.shape == second.shape
        return (image_rms(first, second), ssim(first, second)) if comparable else (np.nan, np.nan)

    pairs = list(pairing.pairs.itertuples())
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:  # SciPy's filters run side by side
        numbers = list(counted(pool.map(distances, pairs), "comparing pictures", len(pairs)))
    rows = [
        [pair.reference_sample, pair.other_sample, pair.prompt_id, *each, altered]
        for pair, each, altered in zip(pairs, numbers, mass, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)
