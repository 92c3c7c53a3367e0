"""A region of the picture: the picture to brush it on, and what acts there as bars. Array, DataFrame → Altair chart."""

from __future__ import annotations

import base64
import io

import altair as alt
import numpy as np
import pandas as pd

from sd35h5.figures import scales
from sd35h5.figures.map_charts import BELOW, LEFT, outlines, patch_axis, patch_scale
from sd35h5.figures.overlays import Image

LABEL = "map here, × uniform"
LONGEST = 480  # pixels of the picture in the chart, which every change sends


def picture_to_brush(
    pixels: np.ndarray,
    rows: int,
    columns: int,
    *,
    chosen: tuple[int, int, int, int] | None = None,
    select: str = "brush",
    width: int = 250,
) -> alt.LayerChart:
    """Draw a picture with patches as axes, on which a rectangle can be brushed.

    Args:
        pixels: uint8 (y, x, 3).
        rows, columns: patches of the picture.
        chosen: y0, y1, x0, x1 of a region to outline: patches, both ends with it.
        select: name of the interval selection, of the fields x0 and y0 in patches: patch 3 goes from 2.5 to 3.5.
        width: pixels; the axes come on top.
    """
    height = max(40, round(width * rows / columns))
    x = alt.X("x0:Q", title=None, scale=patch_scale(columns), axis=patch_axis(columns, width))
    y = alt.Y("y0:Q", title=None, scale=patch_scale(rows, True), axis=patch_axis(rows, height))
    frame = pd.DataFrame({"url": [jpeg_address(pixels)]})
    image = alt.Chart(frame).mark_image(width=width, height=height, aspect=False, aria=False, tooltip=None)
    image = image.encode(url=alt.Url("url:N"), x=alt.XValue(width / 2), y=alt.YValue(height / 2))
    whole = pd.DataFrame([(-0.5, -0.5, columns - 0.5, rows - 0.5)], columns=["x0", "y0", "x1", "y1"])
    under = alt.Chart(whole).mark_rect(opacity=0, aria=False, tooltip=None, cursor="crosshair")
    under = under.encode(x=x, y=y, x2=alt.X2("x1:Q"), y2=alt.Y2("y1:Q"))
    layers = [image, under.add_params(alt.selection_interval(name=select, encodings=["x", "y"]))]
    if chosen is not None:
        y0, y1, x0, x1 = chosen
        square = [("region", x0 - 0.5, y0 - 0.5, x1 + 0.5, y1 + 0.5, True)]
        layers += outlines(pd.DataFrame(square, columns=["name", "x0", "y0", "x1", "y1", "chosen"]), x, y)
    return scales.layered(layers, width + LEFT, height + BELOW)


def jpeg_address(pixels: np.ndarray) -> str:
    """Return a picture as a `data:` address, reduced to LONGEST pixels."""
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    picture.thumbnail((LONGEST, LONGEST))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def region_bars(
    frame: pd.DataFrame,
    name: str,
    *,
    top: int = 10,
    select: str | None = None,
    fields: tuple[str, ...] = (),
    label: str = LABEL,
    height: int | None = None,
) -> alt.LayerChart:
    """Draw the first rows of a ranking as bars from 0, the chosen one outlined; a line marks a map without places.

    Args:
        frame: of `metrics.region_words` and its like, with `chosen` (bool) and the column `name`, what a row is called.
        select: name of a click selection of one bar by `fields`, none when None.
    """
    ranked = frame.head(top)
    bars = (
        alt.Chart(ranked)
        .mark_bar(color=scales.RUN_COLORS[0])
        .encode(
            x=alt.X(
                "times_uniform:Q", title=scales.wrapped(label),
                axis=alt.Axis(labelExpr=scales.short_numbers(), tickCount=4), scale=alt.Scale(zero=True),
            ),
            y=alt.Y(
                f"{name}:N", sort=list(ranked[name]), title=None,
                axis=alt.Axis(labelLimit=130, labelOverlap=False, labelFlush=False),
            ),
            stroke=scales.where_chosen(alt.StrokeValue, scales.MARK, "#7f7f7f"),
            strokeWidth=scales.where_chosen(alt.StrokeWidthValue, 2.5, 0.5),
            tooltip=scales.tips(name, "times_uniform", "share", "mass"),
        )
    )  # fmt: skip
    if select is not None:
        bars = bars.add_params(
            alt.selection_point(name=select, fields=list(fields), on="click", clear="dblclick")
        )
    line = alt.Chart(pd.DataFrame({"times_uniform": [1.0], "note": ["a map that is the same everywhere"]}))
    line = line.mark_rule(color=scales.MARK, strokeDash=[4, 3])
    line = line.encode(x=alt.X("times_uniform:Q"), tooltip=scales.tips("note"))
    return scales.layered([bars, line], None, height or 20 * len(ranked) + 60)
