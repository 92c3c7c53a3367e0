"""What a linked figure draws beside the numbers: the spread across prompts of what is chosen, and numbers weighed by
prompt where prompts have unlike many samples."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import xarray as xr

from dashboard.choosing.selection import View
from sd35h5 import metrics
from sd35h5.errors import StoreError
from sd35h5.figures.linked_view.linked_figure import Bands
from sd35h5.metrics import averaging


def bands(view: View, values: xr.DataArray, prompts: Sequence[str]) -> Bands:
    """Return the 10th to 90th percentile across prompts of chosen and pinned cells, over all steps and all layers.

    Args: values: (sample, step, layer, head), all of them; prompts: the prompt of each sample.
    """
    if len(set(prompts)) < 2:
        return {}
    found = {"chosen": _both(values, view, view.layers, view.heads, prompts)}
    if view.cell is not None:
        found["pinned"] = _both(values, view, (view.cell[0],), (view.cell[1],), prompts)
    return found


def _both(values: xr.DataArray, view: View, layers, heads, prompts) -> dict[str, tuple]:
    over_steps = metrics.over_steps(averaging.within(values, layers, heads), prompts)
    found = {"curve": _ends(over_steps)}
    try:
        of_layers = averaging.within(values, None, heads, view.steps)
    except StoreError:  # no chosen step was captured, which the figure says
        return found
    return {**found, "profile": _ends(metrics.over_layers(of_layers, prompts))}


def _ends(table: pd.DataFrame) -> tuple:
    return table["low"].to_numpy(), table["high"].to_numpy()


def by_prompt(values: xr.DataArray, prompts: Sequence[str]) -> xr.DataArray | None:
    """Return the mean over prompts of each prompt's mean, None where that is the mean over samples."""
    if averaging.are_balanced(prompts):
        return None
    of_prompts = values.assign_coords(prompt_id=("sample", list(prompts))).groupby("prompt_id").mean("sample")
    return of_prompts.mean("prompt_id")
