"""Numbers of many samples, made of a few at a time: memory does not grow with what is read for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xarray as xr

from sd35h5.errors import NothingMeasuredError, StoreError

AT_ONCE = 8  # samples
THREADS = 3  # reader processes answer at the same time


def few_at_a_time(samples: Sequence[int], count: int = AT_ONCE) -> Iterator[list[int]]:
    """Cut samples into lists of a few.

    Raises: StoreError where there are none.
    """
    if not len(samples):
        raise StoreError("no sample was chosen: choose one at least")
    for first in range(0, len(samples), count):
        yield [int(sample) for sample in samples[first : first + count]]


def weighted_mean(
    make: Callable[[list[int]], xr.DataArray], samples: Sequence[int], weights: Sequence[float] | None = None
) -> xr.DataArray:
    """Return the mean over samples of what `make` returns, made of a few at a time; NaN has no weight.

    Args: make: samples -> float64 (sample, …); weights: of each sample, equal ones when None.
    Returns: float64, without the samples; NaN where no sample has a value.
    Raises: NothingMeasuredError where nothing was measured in any.
    """
    weight_of = dict(zip(samples, np.ones(len(samples)) if weights is None else weights, strict=True))
    total, weight = np.zeros(()), np.zeros(())
    part, nothing = None, None
    for some in few_at_a_time(samples):
        try:
            part = make(some).transpose("sample", ...)
        except NothingMeasuredError as error:  # of these; a word, say, that their prompts do not have
            nothing = error
            continue
        own = np.array([weight_of[sample] for sample in some]).reshape(-1, *[1] * (part.ndim - 1))
        there = np.isfinite(part.values)
        total = total + np.where(there, part.values * own, 0.0).sum(axis=0)
        weight = weight + np.where(there, own, 0.0).sum(axis=0)
    if part is None:
        raise nothing
    mean = np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)
    return part.isel(sample=0, drop=True).copy(data=mean)


def in_pieces(make: Callable[[list[int]], xr.DataArray], samples: Sequence[int]) -> xr.DataArray:
    """Return what `make` returns for all samples, made of a few of them at a time.

    Args: make: samples -> (sample, …); StoreError where it has none of them.
    Returns: float32, rounded from what `make` gives (relative error ≤ 6e-8); NaN for pieces in which nothing was
        measured.
    Raises: NothingMeasuredError where that is so in all of them; other errors of `make`.
    """

    def one(piece: list[int]) -> xr.DataArray | NothingMeasuredError:
        try:
            return make(piece).transpose("sample", ...).astype(np.float32)
        except NothingMeasuredError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        made = list(pool.map(one, few_at_a_time(samples)))
    there = [piece for piece in made if isinstance(piece, xr.DataArray)]
    if not there:
        raise next(piece for piece in made if isinstance(piece, NothingMeasuredError))
    shape = there[0].shape[1:]
    values = np.full((len(samples), *shape), np.nan, np.float32)
    for number, piece in enumerate(made):
        if isinstance(piece, xr.DataArray):
            values[number * AT_ONCE : number * AT_ONCE + len(piece)] = piece.values
    coords = {name: there[0][name] for name in there[0].coords if "sample" not in there[0][name].dims}
    return xr.DataArray(values, dims=there[0].dims, coords=coords | {"sample": list(samples)})
