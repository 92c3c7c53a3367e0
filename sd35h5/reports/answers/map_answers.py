"""Which layer and step look most at a word, and how concentrated its map is, in sentences."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sd35h5.metrics.averaging import finite_mean
from sd35h5.metrics.standing_out import held_by_a_tenth
from sd35h5.reports import view_address
from sd35h5.reports.answers.sentence import Part, Sentence, percent, sentence

EVEN = 1.2  # times its part of the cells, up to which the heaviest tenth is called nearly even


def layers(values: xr.DataArray, step: int, name: str) -> Sentence | None:
    """Say how much of a patch's attention a word gets at a step, and in which layer most.

    Args: values: its maps, (map_step, layer, y, x); name: the word, with its quotation marks.
    """
    means = finite_mean(values.sel(map_step=step), ["y", "x"]).to_series().dropna()
    if means.empty:
        return None
    told = f"At step {step} {name} gets {percent(float(means.mean()))} of a patch's attention, mean of heads and "
    if len(means) == 1:
        return sentence(told.replace("mean of heads and ", f"mean of heads, in layer {means.index[0]}."))
    most, least = int(means.idxmax()), int(means.idxmin())
    return sentence(
        f"{told}{len(means)} layers; ", _layer(most), f" looks at it most, {percent(means[most])}, and ", _layer(least),
        f" least, {percent(means[least])}.",
    )  # fmt: skip


def steps(values: xr.DataArray) -> Sentence | None:
    """Say at which captured step a word gets most and least; None for one step.

    Args: values: its map, (map_step, y, x).
    """
    means = finite_mean(values, ["y", "x"]).to_series().dropna()
    if len(means) < 2:
        return None
    most, least = int(means.idxmax()), int(means.idxmin())
    if means[most] == means[least]:
        return sentence(f"It gets the same at all of {len(means)} captured steps.")
    return sentence(
        f"Of {len(means)} captured steps it gets most at ", _step(most), f", {percent(means[most])}, and least at ",
        _step(least), f", {percent(means[least])}.",
    )  # fmt: skip


def concentration(cells: np.ndarray, within: tuple[str, float, float] | None = None) -> Sentence | None:
    """Say which part of a map its heaviest tenth holds, or lies in an object's box; None for a map without mass.

    Args: cells: (y, x); within: an object's name, the part of the map in its box, the box's part of the picture.
    """
    found = held_by_a_tenth(cells)
    if found is None:
        return None
    held, part = found
    told = f"The heaviest {percent(part)} of the map's cells hold {percent(held)} of it"
    told += ": it is nearly even" if held <= EVEN * part else ""
    if within:
        told += f"; {percent(within[1])} of it lies in the box of {within[0]}, {percent(within[2])} of the picture"
    return sentence(f"{told}.")


def _layer(layer: int) -> Part:
    return Part(f"layer {layer}", {view_address.LAYER: str(layer)})


def _step(step: int) -> Part:
    return Part(f"step {step}", {view_address.AT: str(step)})
