"""Attention maps of a store: which tokens have one, and their values over steps and layers; torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5 import metrics
from sd35h5.errors import StoreError

if TYPE_CHECKING:
    from sd35h5.reader import Store

MAPS = "maps/image_to_text"


def mapped_tokens(store: Store, sample: int, branch: str = "cond") -> pd.DataFrame:
    """Return the tokens of a sample that have a map: map_token, token, text (clean), encoder, group,
    word_text, label."""
    if MAPS not in store:
        raise StoreError(f"{store.name} holds no attention maps: capture it with --maps words to have them")
    index = store.read("maps/map_token_index", sample=sample, branch=branch).values
    table = metrics.with_words(store.tokens(sample, branch)).set_index("token", drop=False)
    rows = []
    for map_token, token in enumerate(int(value) for value in index):
        if token < 0:
            continue
        row = table.loc[token]
        text = metrics.clean(row["text"]) or str(row["text"])
        label = f"{text} · {row['encoder']} {token}"
        rows.append((map_token, token, text, row["encoder"], row["group"], row["word_text"], label))
    return pd.DataFrame(
        rows, columns=["map_token", "token", "text", "encoder", "group", "word_text", "label"]
    )


def token_maps(store: Store, sample: int, map_token: int, branch: str = "cond") -> xr.DataArray:
    """Return the maps of one token: A[image patch, token], mean over heads and over the pooled patches.

    Units: 1 (share of the patch's attention, 0..1). Source: maps/image_to_text (rounded, ≤ 0.05 %).
    Returns: float32 (map_step, layer, y, x); map_step holds the true step index.
    """
    values = store.read(MAPS, sample=sample, branch=branch, map_token=map_token)
    if not np.isfinite(values.values).any():
        raise StoreError(f"{store.name} holds no map of that token for branch {branch!r}")
    return values.transpose("map_step", "layer", "y", "x")


def picture_shape(values: xr.DataArray) -> tuple[int, int]:
    """Return (height, width) of a picture of a map when there is no image: about 256 pixels on the longer
    side."""
    y, x = values.sizes["y"], values.sizes["x"]
    times = max(1, round(256 / max(y, x)))
    return y * times, x * times


def fit(shape: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return (height, width) of the same proportion whose longer side is `longest`."""
    times = longest / max(shape)
    return max(1, round(shape[0] * times)), max(1, round(shape[1] * times))
