"""Pictures of maps that Maps draws: one run's image and maps, overlays, contact sheets, charts that tell values."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from dashboard import cached_reads
from dashboard.caching import made_once
from sd35h5.figures import map_charts, overlays
from sd35h5.metrics import attention_maps

SHEET_WIDTH = 900  # pixels
ACROSS = 8
SMALL, LARGE = (
    240,
    768,
)  # longest side of a tile and of a picture: a 1024-pixel image a tile would take seconds
CHART = {1: 258, 2: 258, 3: 258, 4: 180}  # pixels of a map's cells beside so many others at 1280 pixels


@dataclass(frozen=True)
class Panel:
    """One run's pictures: its image at two sizes, the chosen word's maps (map_step, y, x), and those of each
    layer; its true objects with `chosen` where the word names them, no rows where they are not asked for."""

    run: cached_reads.Run
    sample: int
    image: np.ndarray | None
    small: np.ndarray | None
    values: xr.DataArray
    layers: xr.DataArray
    map_tokens: tuple[int, ...]
    objects: pd.DataFrame
    chosen: tuple[Hashable, ...]  # what `values` and `objects` follow from besides run, sample and tokens

    def png(
        self, name: str, make: Callable[[], np.ndarray | overlays.Image.Image], *settings: Hashable
    ) -> bytes:
        """Return a picture of this panel as PNG, made once for equal settings."""
        key = ("map picture", name, self.run, self.sample, self.map_tokens, self.chosen, *settings)
        return made_once(key, lambda: overlays.png(make()))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the panel's picture."""
        return self.image.shape[:2] if self.image is not None else attention_maps.picture_shape(self.values)

    @property
    def drawn_objects(self) -> pd.DataFrame:
        """The objects that are in the picture."""
        return self.objects[self.objects["drawn"].astype(bool)]

    def boxed(self, picture: np.ndarray) -> np.ndarray:
        """Return the picture with the boxes of the true objects."""
        if self.drawn_objects.empty:
            return picture
        height, width = (
            cached_reads.store(self.run).sizes["pixel_y"],
            cached_reads.store(self.run).sizes["pixel_x"],
        )
        boxes = [
            (
                (one.left / width, one.top / height, one.right / width, one.bottom / height),
                one.name,
                one.chosen,
            )
            for one in self.drawn_objects.itertuples(index=False)
        ]
        return overlays.boxed(picture, boxes)


@dataclass(frozen=True)
class Look:
    """How maps are drawn: the opacity over the image, smooth or as squares, colours from 0 or from the
    lowest."""

    opacity: float
    smooth: bool
    stretched: bool

    def scale(self, values: list[xr.DataArray]) -> tuple[float, float]:
        """Return (low, high) of one colour scale for all these values; 0 to 1 where none is finite."""
        finite = np.concatenate([one.values[np.isfinite(one.values)].ravel() for one in values])
        if not finite.size:
            return 0.0, 1.0
        return float(finite.min()) if self.stretched else 0.0, float(finite.max())


def steps_of(values: xr.DataArray) -> list[int]:
    """Return the steps of which a map (map_step, …) has a value."""
    there = values.notnull().any([dim for dim in values.dims if dim != "map_step"])
    return [int(step) for step in values["map_step"].values[there.values]]


def overlaid(
    one: Panel, values: np.ndarray, look: Look, scale: tuple[float, float], small: bool = False
) -> np.ndarray:
    """Return the map over the image, or alone where the run kept no image."""
    low, high = scale
    image = one.small if small else one.image
    if image is None:
        return overlays.map_picture(values, one.shape, low=low, high=high, smooth=look.smooth)
    return overlays.overlay(image, values, opacity=look.opacity, low=low, high=high, smooth=look.smooth)


def still(one: Panel, step: int, look: Look, scale: tuple[float, float]) -> np.ndarray:
    """Return the map of a step over the image, with the boxes of the true objects."""
    return one.boxed(overlaid(one, one.values.sel(map_step=step).values, look, scale))


def chart(one: Panel, step: int, scale: tuple[float, float], beside: int):
    """Return the map alone as a chart whose cells tell their values; `beside`: how many panels share the row."""
    low, high = scale
    return map_charts.map_heatmap(
        one.values.sel(map_step=step, drop=True),
        "value",
        domain=(low, high if high > low else low + 1e-9),
        boxes=one.drawn_objects,
        width=CHART.get(beside, 120),
    )


def sheet(
    one: Panel, named: dict[str, np.ndarray], look: Look, scale: tuple[float, float]
) -> overlays.Image.Image:
    """Return a contact sheet of these maps, as wide as the page at 1280 pixels; those without a value are left
    out."""
    there = {name: values for name, values in named.items() if np.isfinite(values).any()}
    return tiled(
        one, [overlaid(one, values, look, scale, small=True) for values in there.values()], list(there)
    )


def word_sheet(branch: str, one: Panel, step: int, layer: int | None, look: Look) -> overlays.Image.Image:
    """Return a tile a word at one step, each on its own colour scale, whose ends are written under it."""
    tiles, labels = [], []
    table = cached_reads.map_choices(one.run, one.sample, branch)
    for row in table[table["kind"] != "piece"].to_dict("records"):
        values = cached_reads.token_maps(one.run, one.sample, row["map_tokens"], branch).sel(map_step=step)
        values = values.mean("layer", skipna=True) if layer is None else values.sel(layer=layer)
        scale = look.scale([values])
        tiles.append(overlaid(one, values.values, look, scale, small=True))
        labels.append(f"{row['text']} {scale[0]:.2g} to {scale[1]:.2g}")
    return tiled(one, tiles, labels)


def tiled(one: Panel, tiles: list[np.ndarray], labels: list[str]) -> overlays.Image.Image:
    """Return the tiles as a contact sheet: at most ACROSS in a row."""
    columns = min(ACROSS, max(4, len(tiles)))
    tile = attention_maps.fit(one.shape, SHEET_WIDTH // columns - 8)
    return overlays.sheet(tiles, labels, columns=columns, size=tile, clear=True)
