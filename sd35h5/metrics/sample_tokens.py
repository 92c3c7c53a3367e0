"""The tokens of one sample with their mass, as a table: read a step at a time, padding folded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.metrics.averaging import places_of
from sd35h5.metrics.stored_mass import PER_TOKEN
from sd35h5.metrics.targets import PADS, refuse_empty

if TYPE_CHECKING:
    from sd35h5.store.reader import Store


def token_mass(
    store: Store,
    sample: int,
    branch: str = "cond",
    steps: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Return one sample's text tokens with their mass, mean over the chosen steps, layers and heads.

    Formula: mean over the chosen steps, layers and heads of mean_{q ∈ image} A[q,k].
    Units: 1 (share of an image query's attention).  Source: sinks/mass_image (rounded, ≤ 0.05 %).
    Caveat: of the cond branch only, unless captured with --branches cond uncond.
    Returns: the token table (token, encoder, text, group, word …) plus a float64 column `mass`.
    """
    chosen = store.numbers("step") if steps is None else steps
    table = store.tokens(sample, branch)
    return token_means(table, branch, *token_sums(store, sample, branch, chosen, layers, heads))


def token_sums(
    store: Store,
    sample: int,
    branch: str,
    steps: Sequence[int],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum over steps of the mass of every text token, and how many of them were measured.

    Returns: float64 and int64 (layer, head, token).
    """
    where = {"sample": sample, "branch": branch, "layer": layers, "head": heads}
    for dim in ("layer", "head"):
        if (numbers := where.pop(dim)) is not None:
            where[dim] = places_of(store, dim, numbers)
    total, count = 0.0, 0
    for step in places_of(store, "step", steps):  # memory does not grow with the steps
        mass = store.read("sinks/mass_image", step=step, **where).transpose("layer", "head", "token").values
        there = np.isfinite(mass)
        total, count = total + np.where(there, mass.astype(np.float64), 0), count + there.astype(np.int64)
    return np.asarray(total), np.asarray(count)


def token_means(table: pd.DataFrame, branch: str, total: np.ndarray, count: np.ndarray) -> pd.DataFrame:
    """Return the table of `token_mass` from the `token_sums` of its steps, layers and heads.

    Args: table: the sample's tokens.
    """
    if not count.any():
        refuse_empty(xr.DataArray([]), f"masses per token of branch {branch!r}", PER_TOKEN)
    measured = count.sum((0, 1))
    masses = total.sum((0, 1)) / np.where(measured > 0, measured, np.nan)
    return table.assign(mass=masses)


def with_pads_averaged(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `token_mass` with one row for all padding tokens of an encoder: the mean of their
    masses.

    The row's `token` is the first padding position, its `text` says how many tokens it stands for.
    """
    is_pad = table["group"].isin(PADS)
    rows = []
    for _, pads in table[is_pad].groupby("group", sort=False):
        text = f"<mean of {len(pads)} pads>"
        rows.append(pads.iloc[0].to_dict() | {"text": text, "mass": pads["mass"].mean()})
    return pd.concat([table[~is_pad], pd.DataFrame(rows)], ignore_index=True) if rows else table
