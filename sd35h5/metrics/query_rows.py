"""Where chosen queries look: a patch's or a token's whole row of A, as a map and over the text; torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.metrics import targets
from sd35h5.metrics.targets import patch_grid
from sd35h5.store.schema import QUERIES

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

ROWS = "rows/to_image"


def row_choices(store: Store, sample: int, branch: str = "cond") -> pd.DataFrame:
    """Return the queries of a sample whose rows are in the file.

    Returns: row (position on the row axis), label, stream ("image" or "text"), position (patch row-major, or token),
        y and x (of a patch, else -1).
    """
    if ROWS not in store:
        raise StoreError(f"{store.name} holds no rows: where a patch or a word looks was not captured")
    where = {"sample": sample, "branch": branch}
    streams = store.read("rows/query_stream", **where).values
    positions = store.read("rows/query_index", **where).values
    tokens = store.tokens(sample, branch).set_index("token", drop=False)
    columns = patch_grid(store)[1]
    found = []
    for row, (stream, position) in enumerate(zip(streams.tolist(), positions.tolist(), strict=True)):
        if position < 0 or stream >= len(QUERIES):
            continue  # a word that this prompt does not have
        if QUERIES[stream] == "image":
            y, x = divmod(position, columns)
            found.append((row, f"patch x {x}, y {y}", "image", position, y, x))
        else:
            token = tokens.loc[position]
            text = targets.shown_text(token["text"], token["group"])
            found.append((row, f"{text} · {token['encoder']} {position}", "text", position, -1, -1))
    if not found:
        raise StoreError(f"{store.name} holds no rows of branch {branch!r}: they are of the cond branch")
    return pd.DataFrame(found, columns=["row", "label", "stream", "position", "y", "x"])


def row_maps(store: Store, sample: int, row: int, branch: str = "cond") -> xr.DataArray:
    """Return where a query looks on the image: A[query, patch], mean over heads and pooled patches.

    Units: 1 (share of the query's attention, 0..1).  Source: rows/to_image (rounded, ≤ 0.05 %).
    Returns: float32 (map_step, layer, y, x); map_step holds the true step index.
    """
    return store.read(ROWS, sample=sample, branch=branch, row=row).transpose("map_step", "layer", "y", "x")


def row_tokens(
    store: Store, sample: int, row: int, step: int, layer: int | None = None, branch: str = "cond"
) -> pd.DataFrame:
    """Return how much of a query's attention each text token gets at a step, mean over heads.

    Formula: A[query, token], mean over heads, and over layers where none is named.
    Units: 1 (share of the query's attention, 0..1).  Source: rows/to_text (rounded, ≤ 0.05 %).
    Args: step: the true index of one of the maps' steps.
    Returns: the token table plus a float64 column `mass`.
    """
    values = store.read("rows/to_text", sample=sample, branch=branch, row=row)
    steps = values["map_step"].values.tolist()
    if step not in steps:
        raise StoreError(f"{store.name} holds no rows of step {step}, of {', '.join(map(str, steps))} only")
    values = values.isel(map_step=steps.index(step)).astype(np.float64)
    values = values.mean("layer", skipna=True) if layer is None else values.sel(layer=layer)
    return store.tokens(sample, branch).assign(mass=values.values)
