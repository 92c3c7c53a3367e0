"""Maps whose cells tell their patches and value under the pointer, boxes of objects over them. Array → Altair chart."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.figures import scales

PATCH = 16  # pixels a patch
LEFT, BELOW = 30, 48  # pixels that the axes take: the page counts them in
BOX, CHOSEN = "#ffffff", "#00e5ff"  # inferno has no cyan: an outline in it is never taken for a value


def cell_size(values: xr.DataArray) -> int:
    """Return how many patches a cell of the map is wide and high: coordinates are the cells' centres, the first
    cell begins at patch 0."""
    return round(2 * float(values["y"].values[0]) + 1)


def patch_count(values: xr.DataArray, axis: str) -> int:
    """Return how many patches the map covers along y or x; its last cell may have fewer than the others."""
    begin = (values.sizes[axis] - 1) * cell_size(values)
    return round(2 * float(values[axis].values[-1]) + 1) - begin


def map_heatmap(
    values: xr.DataArray,
    label: str,
    *,
    domain: tuple[float, float],
    boxes: pd.DataFrame | None = None,
    mark: tuple[int, int] | None = None,
    title: str = "",
    width: int = 260,
) -> alt.LayerChart:
    """Draw a map as cells in the image's proportion, in the colours of the overlays.

    Args:
        values: (y, x) with patch coordinates; NaN is grey.
        label: what a value is.
        domain: the colour scale's ends.
        boxes: columns name, left, top, right, bottom in pixels of the image, and chosen (bool).
        mark: a patch (y, x) to outline.
        width: pixels of all cells in a row; the axes of patches come on top.
    """
    cell, rows, columns = cell_size(values), patch_count(values, "y"), patch_count(values, "x")
    frame = values.astype(np.float32).rename("value").to_dataframe()[["value"]].reset_index()
    frame = frame[["y", "x", "value"]].astype({"y": np.float32, "x": np.float32})
    height = max(40, round(width * rows / columns))
    x = alt.X("x0:Q", title=None, scale=patch_scale(columns), axis=patch_axis(columns, width))
    y = alt.Y("y0:Q", title=None, scale=patch_scale(rows, True), axis=patch_axis(rows, height))
    scale = alt.Scale(scheme="inferno", domain=list(domain), clamp=True)
    color, edge = (kind("value:Q", scale=scale, legend=None) for kind in (alt.Color, alt.Stroke))
    cells = (
        alt.Chart(frame)
        .transform_calculate(
            x0=_begin("x", cell), x1="2 * datum.x - datum.x0", px=_patches("x"),
            y0=_begin("y", cell), y1="2 * datum.y - datum.y0", py=_patches("y"),
        )
        .mark_rect(invalid=None, aria=False)
        .encode(
            x=x, y=y, x2=alt.X2("x1:Q"), y2=alt.Y2("y1:Q"),
            color=alt.condition("!isValid(datum.value)", alt.value("#b0b0b0"), color),
            stroke=alt.condition("!isValid(datum.value)", alt.value("#b0b0b0"), edge),
            strokeWidth=alt.StrokeWidthValue(1),  # no seams between cells
            tooltip=[
                alt.Tooltip("py:N", title="patch y"),
                alt.Tooltip("px:N", title="patch x"),
                alt.Tooltip("value:Q", title=label, format=".4~g"),
            ],
        )
    )  # fmt: skip
    layers: list[alt.Chart] = [cells]
    if boxes is not None and len(boxes):
        layers += outlines(_in_patches(boxes), x, y)
    if mark is not None:
        row, column = mark
        square = [("query", column - 0.5, row - 0.5, column + 0.5, row + 0.5, True)]
        names = ["name", "x0", "y0", "x1", "y1", "chosen"]
        layers += outlines(pd.DataFrame(square, columns=names), x, y)
    return scales.layered(layers, width + LEFT, height + BELOW, title)


def _begin(axis: str, cell: int) -> str:
    """Return the Vega expression of where a cell begins, half a patch before its first patch's centre."""
    return f"floor(datum.{axis} / {cell}) * {cell} - 0.5"


def _patches(axis: str) -> str:
    """Return the Vega expression of the patches that a cell covers: one, or from–to."""
    first, last = f"(datum.{axis}0 + 0.5)", f"(datum.{axis}1 - 0.5)"
    return f"{first} == {last} ? '' + {first} : {first} + '–' + {last}"


def patch_scale(patches: int, reverse: bool = False) -> alt.Scale:
    """Return the scale of an axis of so many patches, each as wide as 1 around its number."""
    return alt.Scale(domain=[-0.5, patches - 0.5], nice=False, zero=False, reverse=reverse)


def patch_axis(patches: int, pixels: int) -> alt.Axis:
    """Return an axis of patches that is so long, of which it names as many as can be read."""
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 4096) if step * pixels / patches >= 18)
    return alt.Axis(values=list(range(0, patches, every)), format="d", labelAngle=0, grid=False)


def _in_patches(boxes: pd.DataFrame) -> pd.DataFrame:
    places = {"x0": "left", "y0": "top", "x1": "right", "y1": "bottom"}
    edges = {new: boxes[old].astype(float) / PATCH - 0.5 for new, old in places.items()}
    return boxes[["name", "chosen"]].assign(**edges)


def outlines(frame: pd.DataFrame, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Return outlines with a dark edge below, so that they stand out on every colour; the pointer reads what is
    below."""
    base = alt.Chart(frame).encode(x=x, y=y, x2=alt.X2("x1:Q"), y2=alt.Y2("y1:Q"))
    color = scales.where_chosen(alt.StrokeValue, CHOSEN, BOX)
    under = base.mark_rect(filled=False, stroke="#000000", strokeWidth=4, tooltip=None, aria=False)
    over = base.mark_rect(filled=False, strokeWidth=2, tooltip=None, aria=False).encode(stroke=color)
    return [under, over]
