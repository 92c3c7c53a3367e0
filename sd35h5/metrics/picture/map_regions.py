"""What acts in a region of the picture: words, heads and steps, ranked by the part of their map that lies there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.metrics.attention_maps import HEAD_MAPS, MAPS, map_choices
from sd35h5.metrics.averaging import places_of
from sd35h5.metrics.targets import patch_grid

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

BLOCK_BYTES = 8 << 20  # of float32 that is read at once


@dataclass(frozen=True)
class Region:
    """Patches of the picture, rows y0 to y1 and columns x0 to x1, both ends with it."""

    y0: int
    y1: int
    x0: int
    x1: int

    def __post_init__(self) -> None:
        if not (0 <= self.y0 <= self.y1 and 0 <= self.x0 <= self.x1):
            raise StoreError(f"{self} is no region: its first row and column must not lie after its last")

    def __str__(self) -> str:
        return f"rows {self.y0}–{self.y1}, columns {self.x0}–{self.x1}"


def region_words(
    store: Store,
    sample: int,
    region: Region,
    branch: str = "cond",
    steps: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Rank the words that have a map by the part of it that lies in a region of the picture.

    Formula: share = Σ M[step, layer, p in the region] ÷ Σ M[step, layer, p], over steps, layers and patches p, where
    M = Σ over the word's tokens of A[p, token], mean over heads; times_uniform = share ÷ the region's part of the
    patches; mass = mean of M over the region's patches. A pooled cell counts with its patches in the region.
    Units: 1 (share and mass 0..1; times_uniform is 1 where the map is the same everywhere).
    Source: maps/image_to_text (rounded, ≤ 0.05 %), of the steps and words that were captured.
    Caveat: a small share of a heavy word can be more attention than all of a light one: compare mass.
    Args: steps, layers: true indices, all captured ones when None.
    Returns: text, word_text, kind, map_tokens, tokens (as `map_choices`, pieces left out), mass, share,
    times_uniform, highest share first.
    """
    choices = map_choices(store, sample, branch)
    choices = choices[choices["kind"] != "piece"]
    each = sorted({token for tokens in choices["map_tokens"] for token in tokens})
    sums = _over(_sums(store, MAPS, sample, branch, each, region, steps, layers), "map_step", "layer")
    of_words = [_over(sums.sel(map_token=list(tokens))) for tokens in choices["map_tokens"]]
    table = choices[["text", "word_text", "kind", "map_tokens", "tokens"]].reset_index(drop=True)
    return _ranked(pd.concat([table, _frame(xr.concat(of_words, "word"))], axis=1), store, region)


def region_steps(
    store: Store,
    sample: int,
    map_tokens: Sequence[int],
    region: Region,
    branch: str = "cond",
    layers: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Rank the denoising steps by the part of a word's map that lies in a region of the picture.

    Formula: share as in `region_words`, of each step. Units: 1. Source: maps/image_to_text.
    Caveat: of captured steps only, and of early ones the picture is not yet what is seen there at the end.
    Args: map_tokens: the word's positions, of `map_choices`; layers: true indices, all captured ones when None.
    Returns: step, mass, share, times_uniform, highest share first.
    """
    sums = _over(_over(_sums(store, MAPS, sample, branch, map_tokens, region, None, layers), "layer"))
    return _ranked(_frame(sums.rename(map_step="step"), "step"), store, region)


def region_layers(
    store: Store,
    sample: int,
    map_tokens: Sequence[int],
    region: Region,
    branch: str = "cond",
    steps: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Rank the layers by the part of a word's map that lies in a region of the picture.

    Formula: share as in `region_words`, of each layer. Units: 1. Source: maps/image_to_text.
    Caveat: a mean over heads: a layer with one head that looks there and many that do not ranks low.
    Args: map_tokens: the word's positions, of `map_choices`; steps: true indices, all captured ones when None.
    Returns: layer, mass, share, times_uniform, highest share first.
    """
    sums = _over(_over(_sums(store, MAPS, sample, branch, map_tokens, region, steps, None), "map_step"))
    return _ranked(_frame(sums, "layer"), store, region)


def region_heads(
    store: Store,
    sample: int,
    map_tokens: Sequence[int],
    region: Region,
    branch: str = "cond",
    steps: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Rank the heads by the part of their map of a word that lies in a region of the picture.

    Formula: share as in `region_words`, of each layer and head alone. Units: 1.
    Source: maps/image_to_text_per_head (--map_heads all, rounded, ≤ 0.05 %), read by blocks of some layers.
    Caveat: a head that hardly looks at the word can rank first with a map of little mass: compare mass.
    Args: map_tokens: the word's positions, of `map_choices`; steps: true indices, all captured ones when None.
    Returns: layer, head, mass, share, times_uniform, highest share first; captured layers only.
    """
    if HEAD_MAPS not in store:
        raise StoreError(f"{store.name} holds no maps of single heads: capture it with --map_heads all")
    sums = _over(_over(_sums(store, HEAD_MAPS, sample, branch, map_tokens, region, steps, None), "map_step"))
    return _ranked(_frame(sums, "layer", "head"), store, region)


def _sums(
    store: Store,
    name: str,
    sample: int,
    branch: str,
    map_tokens: Sequence[int],
    region: Region,
    steps: Sequence[int] | None,
    layers: Sequence[int] | None,
) -> xr.Dataset:
    """Return a map's sum over the region's patches, over all, and where it has a value: `inside`, `whole`, `count`.

    Each is float64 with the map's dimensions but y and x; 0 where nothing was captured. One step and at most
    BLOCK_BYTES are in memory at once.
    """
    chosen = [
        dim if numbers is None else numbers for dim, numbers in (("map_step", steps), ("layer", layers))
    ]
    at_steps, at_layers = (
        list(range(store.sizes[each])) if isinstance(each, str) else places_of(store, dim, each)
        for dim, each in zip(("map_step", "layer"), chosen, strict=True)
    )
    tokens = list(map_tokens)
    cells = 4 * store.sizes["y"] * store.sizes["x"] * len(tokens)
    a_layer = cells * (store.sizes["head"] if name == HEAD_MAPS else 1)
    size = max(1, BLOCK_BYTES // a_layer)
    blocks = [at_layers[first : first + size] for first in range(0, len(at_layers), size)]
    found = []
    for step in at_steps:
        where = {"sample": sample, "branch": branch, "map_token": tokens, "map_step": [step]}
        parts = [_reduced(store.read(name, **where, layer=block), store, region) for block in blocks]
        found.append(xr.concat(parts, "layer"))
    sums = xr.concat(found, "map_step")
    return sums.assign_coords(map_token=tokens)


def _over(sums: xr.Dataset, *dims: str) -> xr.Dataset:
    """Return the sums over these dimensions, or of a word's tokens: what one token was captured of, all were."""
    if dims:
        return sums.sum(dims)
    return sums.sum("map_token").assign(count=sums["count"].max("map_token"))


def _reduced(values: xr.DataArray, store: Store, region: Region) -> xr.Dataset:
    rows, columns = patch_grid(store)
    if region.y1 >= rows or region.x1 >= columns:
        raise StoreError(f"{region} is not within the picture of {store.name}, of {rows} × {columns} patches")
    all_y, in_y = _patches(values["y"].values, region.y0, region.y1)
    all_x, in_x = _patches(values["x"].values, region.x0, region.x1)
    cells = values.transpose(..., "y", "x")
    empty = cells.isel(y=0, x=0, drop=True).astype(np.float64)
    there = np.isfinite(cells.values).all((-2, -1))
    numbers = np.where(there[..., None, None], cells.values.astype(np.float64), 0.0)
    return xr.Dataset({
        "inside": empty.copy(data=numbers @ in_x @ in_y),
        "whole": empty.copy(data=numbers @ all_x @ all_y),
        "count": empty.copy(data=there.astype(np.float64)),
    })  # fmt: skip


def _patches(centres: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many patches each cell of a map has along an axis, and how many of them lie in first..last.

    The first cell begins at patch 0; the last may have fewer patches than the others.
    """
    begin = np.arange(len(centres)) * round(2 * float(centres[0]) + 1)
    end = np.rint(2 * centres + 1 - begin)
    return end - begin, np.clip(np.minimum(end, last + 1) - np.maximum(begin, first), 0, None)


def _frame(sums: xr.Dataset, *by: str) -> pd.DataFrame:
    """Return the sums as rows, those without a value left out where rows are told by `by`."""
    frame = sums.drop_vars(set(sums.coords) - set(by)).to_dataframe()
    return frame.reset_index()[[*by, "inside", "whole", "count"]]


def _ranked(frame: pd.DataFrame, store: Store, region: Region) -> pd.DataFrame:
    rows, columns = patch_grid(store)
    patches = (region.y1 - region.y0 + 1) * (region.x1 - region.x0 + 1)
    there = frame[frame["whole"] > 0]
    share = there["inside"] / there["whole"]
    ranked = there.assign(
        mass=there["inside"] / patches / there["count"],
        share=share,
        times_uniform=share * rows * columns / patches,
    )
    ranked = ranked.drop(columns=["inside", "whole", "count"])
    return ranked.sort_values("share", ascending=False, kind="stable", ignore_index=True)
