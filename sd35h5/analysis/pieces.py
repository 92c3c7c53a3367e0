"""Numbers of many samples, made of a few at a time: memory does not grow with what is read for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xarray as xr

from sd35h5.errors import NothingMeasuredError, StoreError

AT_ONCE = 8  # samples
THREADS = 3  # reader processes answer at the same time


def in_pieces(make: Callable[[list[int]], xr.DataArray], samples: Sequence[int]) -> xr.DataArray:
    """Return what `make` returns for all samples, made of a few of them at a time.

    Args: make: samples -> (sample, …); StoreError where it has none of them.
    Returns: float32, rounded from what `make` gives (relative error ≤ 6e-8); NaN for pieces in which nothing was
        measured.
    Raises: NothingMeasuredError where that is so in all of them; other errors of `make`.
    """
    if not len(samples):
        raise StoreError("no sample was chosen: choose one at least")
    chosen = [list(samples[first : first + AT_ONCE]) for first in range(0, len(samples), AT_ONCE)]

    def one(piece: list[int]) -> xr.DataArray | NothingMeasuredError:
        try:
            return make(piece).transpose("sample", ...).astype(np.float32)
        except NothingMeasuredError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        made = list(pool.map(one, chosen))
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
