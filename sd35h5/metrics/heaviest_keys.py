"""Dynamic sinks: which keys are the heaviest, of which kind, where on the image, how stable, how large their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import NothingMeasuredError, StoreError
from sd35h5.metrics.targets import TEXT_GROUPS, chosen_samples, patch_grid, token_groups
from sd35h5.store.schema import GROUPS

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

PLACES = ("corner", "border", "inner")
#: what a key can be: a text group, or a patch by its place on the image
KINDS = (*TEXT_GROUPS, *PLACES)
UNKNOWN = 255
TOP = ("sample", "top_step", "layer", "head", "rank")


def top_keys(
    store: Store,
    branch: str = "cond",
    query: str = "image",
    samples: Sequence[int] | None = None,
    count: int | None = None,
    values: bool = True,
) -> xr.Dataset:
    """Return the heaviest keys of every (layer, head), image patches included: which, of what kind, how heavy.

    Formula: the keys k with the largest mean_q A[q,k], q over `query`'s stream, heaviest first.
    Units: mass 1 (0..1); value_norm the Euclidean norm of the key's value vector; index a token, or a patch
    row by row.
    Source: topk/* (exact float32), and the token table for the kind.
    Caveat: a corner is one patch, a border the outermost ring without corners; on a 1 × n image all are corners
    or borders.
    Args: count: only so many of the heaviest; all that were captured when None; values: mass and value_norm too,
        without which half as much is read.
    Returns: stream (0 image, 1 text), index, mass, value_norm, kind (position in KINDS, 255 unmeasured), each
        (sample, top_step, layer, head, rank); kind_size, keys of each kind (sample, kind).
    """
    if "topk/top_index" not in store:
        raise StoreError(f"{store.name} holds no heaviest keys: capture it with --topk 16")
    chosen = chosen_samples(store, samples)
    where = {"sample": chosen, "branch": branch, "query": query, "rank": slice(0, count)}
    # the first sample tells of a branch that was never captured, long before all are read
    first = store.read("topk/top_mass", **where | {"sample": chosen[:1]})
    if len(chosen) and not np.isfinite(first.values).any():
        raise NothingMeasuredError(
            f"{store.name} holds no heaviest keys of branch {branch!r}: they are of the cond branch"
        )
    names = ("stream", "index", "mass", "value_norm")[: 4 if values else 2]
    read = {name: store.read(f"topk/top_{name}", **where) for name in names}
    at = {dim: read["index"][dim].values for dim in ("top_step", "layer", "head")}
    keys = xr.Dataset({
        name: (TOP, each.transpose(*TOP).values) for name, each in read.items()
    }, coords=at | {"sample": chosen})  # fmt: skip
    groups = token_groups(store, branch, chosen)
    places = patch_places(*patch_grid(store))
    keys["kind"] = (TOP, _kinds(keys["stream"].values, keys["index"].values, groups, places))
    sizes = [
        [*(np.bincount(row, minlength=len(GROUPS))[: len(TEXT_GROUPS)]), *_place_sizes(places)]
        for row in groups
    ]
    keys["kind_size"] = (("sample", "kind_name"), np.array(sizes))
    return keys.assign_coords(kind_name=list(KINDS)).assign_attrs(grid=patch_grid(store))


def patch_places(rows: int, columns: int) -> np.ndarray:
    """Return the place of every patch, row by row, as a position in KINDS: uint8 (rows × columns)."""
    y, x = np.indices((rows, columns))
    edges = np.isin(y, (0, rows - 1)).astype(int) + np.isin(x, (0, columns - 1))
    return (len(KINDS) - 1 - edges).astype(np.uint8).ravel()  # 2 edges: corner, 1: border, 0: inner


def kind_shares(keys: xr.Dataset, count: int = 1, by: str | None = None) -> pd.DataFrame:
    """Return how often a key of each kind is among the heaviest keys, beside what chance would give.

    Formula: share of (sample, top_step, layer, head) with at least one key of the kind among the `count`
    heaviest; chance: 1 − C(K − n, count) ÷ C(K, count) for n keys of the kind among K, mean over samples.
    Units: 1 (0..1; for count = 1 the kinds' shares sum to 1).  Source: `top_keys`.
    Caveat: kinds with many keys (inner, t5_pad) are found often by chance alone: compare share with chance.
    Args: by: "layer", "top_step", "head" or "sample" gives a row a kind and position; None one a kind.
    Returns: kind, [by,] share, chance; only kinds that have keys.
    """
    kinds = keys["kind"].transpose(*TOP).values[..., :count]
    places = keys[by].values if by in keys.coords else range(keys.sizes[by]) if by else [0]
    chance = _chance(keys["kind_size"].values, count)
    shape = [-1 if dim == by else 1 for dim in TOP[:-1]] if by else [1] * (len(TOP) - 1)
    row = np.arange(len(places), dtype=np.int32).reshape(shape) * (UNKNOWN + 1)

    def counted(cell: np.ndarray) -> np.ndarray:
        size = len(places) * (UNKNOWN + 1)
        return np.bincount(cell.ravel(), minlength=size).reshape(-1, UNKNOWN + 1)

    found = counted(row + kinds[..., 0])
    cells = found[:, :UNKNOWN].sum(axis=1)
    for rank in range(1, kinds.shape[-1]):
        is_new = (kinds[..., :rank] != kinds[..., rank : rank + 1]).all(axis=-1)  # a kind counts once a cell
        found = found + counted((row + kinds[..., rank])[is_new])
    share = found / np.where(cells > 0, cells, np.nan)[:, None]
    rows = [
        [name, at, value, chance[number]]
        for number, name in enumerate(KINDS)
        if keys["kind_size"].values[:, number].any()
        for at, value in zip(places, share[:, number], strict=True)
    ]
    table = pd.DataFrame(rows, columns=["kind", by or "all", "share", "chance"])
    return table if by else table.drop(columns="all")


def patch_shares(keys: xr.Dataset, count: int = 1) -> pd.DataFrame:
    """Return where on the image the heaviest keys lie.

    Formula: share of (sample, top_step, layer, head) with that patch among the `count` heaviest keys.
    Units: 1 (0..1).  Source: `top_keys`.
    Caveat: samples with other images are counted together: a patch that is a sink everywhere is no object.
    Returns: y, x, share, a row a patch.
    """
    rows, columns = keys.attrs["grid"]
    part = keys.isel(rank=slice(0, count))
    patches = part["index"].values[(part["stream"].values == 0) & (part["kind"].values != UNKNOWN)]
    cells = int((part["kind"].isel(rank=0).values != UNKNOWN).sum())
    share = np.bincount(patches, minlength=rows * columns) / max(cells, 1)
    y, x = np.divmod(np.arange(rows * columns), columns)
    return pd.DataFrame({"y": y, "x": x, "share": share})


def stability(keys: xr.Dataset, over: str = "top_step", count: int = 1) -> xr.DataArray:
    """Return how stable the heaviest keys are over steps, heads, layers or samples.

    Formula: mean over pairs of positions along `over` of |their common keys| ÷ count, that is
    Σ_k n_k (n_k − 1) ÷ (count · n (n − 1)) for key k among the heaviest at n_k of n positions.
    Units: 1 (0: never the same keys .. 1: always the same).  Source: `top_keys`.
    Caveat: keys are compared by position; over samples only clip_bos and patches mean the same everywhere.
    Returns: float64, the dimensions that are left of (sample, top_step, layer, head); NaN with one position.
    """
    if over not in TOP[:-1]:
        raise StoreError(f"stability is over sample, top_step, layer or head, not {over!r}")
    part = keys[["stream", "index", "kind"]].isel(rank=slice(0, count))
    names = (part["index"] * 2 + part["stream"]).where(part["kind"] != UNKNOWN, -1)
    left = [dim for dim in TOP[:-1] if dim != over]
    values = names.transpose(*left, over, "rank").values
    shape, positions = values.shape[: len(left)], values.shape[-2]
    flat = values.reshape(-1, positions * values.shape[-1])
    there = (flat.reshape(len(flat), positions, -1)[:, :, 0] >= 0).sum(axis=1)
    ordered = np.sort(flat, axis=1)
    begins = np.ones(ordered.shape, bool)  # of a run of equal keys
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    at = np.flatnonzero(begins)
    times = np.diff(at, append=ordered.size) * (ordered.ravel()[at] >= 0)
    agreeing = np.bincount(at // ordered.shape[1], times * (times - 1.0), minlength=len(flat))
    total = np.where(there > 1, count * there * (there - 1.0), np.nan)
    coords = {dim: keys[dim].values for dim in left if dim in keys.coords}
    return xr.DataArray((agreeing / total).reshape(shape), dims=left, coords=coords)


def value_norm_ratio(keys: xr.Dataset) -> xr.DataArray:
    """Return how large the heaviest key's value vector is against those of the other heavy keys.

    Formula: ‖v of the heaviest key‖ ÷ mean ‖v‖ of the other captured heaviest keys.
    Units: 1 (a sink that only parks attention is well below 1).  Source: topk/top_value_norm, exact float32.
    Caveat: "the rest" are the other keys of the top-k, since norms of lighter keys are not in the file.
    Returns: float64 (sample, step, layer, head), step being the captured top steps.
    """
    norms = keys["value_norm"].astype(np.float64)
    if norms.sizes["rank"] < 2:
        raise StoreError("one heaviest key has no rest to compare with: capture with --topk 16")
    rest = norms.isel(rank=slice(1, None)).mean("rank", skipna=True)
    return (norms.isel(rank=0, drop=True) / rest).rename(top_step="step")


def _kinds(stream: np.ndarray, index: np.ndarray, groups: np.ndarray, places: np.ndarray) -> np.ndarray:
    sample = np.arange(len(index)).reshape(-1, *[1] * (index.ndim - 1))
    known = index >= 0
    as_token = groups[sample, np.where(known, index, 0).clip(max=groups.shape[1] - 1)]
    as_patch = places[np.where(known, index, 0).clip(max=places.size - 1)]
    return np.where(known, np.where(stream == 1, as_token, as_patch), UNKNOWN).astype(np.uint8)


def _place_sizes(places: np.ndarray) -> list[int]:
    return [int((places == KINDS.index(name)).sum()) for name in PLACES]


def _chance(sizes: np.ndarray, count: int) -> np.ndarray:
    """Return the probability that `count` different random keys hold one of each kind, mean over samples."""
    rows, times = np.unique(sizes, axis=0, return_counts=True)  # samples of equal texts have equal chances
    none = np.zeros(rows.shape)
    for place, own in np.ndenumerate(rows):
        keys = int(rows[place[0]].sum())
        none[place] = math.comb(keys - int(own), count) / math.comb(keys, count)
    return 1 - np.average(none, axis=0, weights=times)
