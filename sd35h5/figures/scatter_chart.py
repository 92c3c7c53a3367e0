"""Two numbers of each sample as a point, a colour and a shape a run. DataFrame → Altair chart."""

from __future__ import annotations

import altair as alt
import pandas as pd

from sd35h5.figures import scales

SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-left",
    "triangle-right",
)


def scatter(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    title: str = "",
    chosen: int | None = None,
    select: str | None = None,
    height: int = 380,
    width: int | None = None,
) -> alt.LayerChart:
    """Draw a point a sample; its tooltip tells the prompt.

    Args:
        frame: columns run, sample, seed, prompt, x, y; runs in the frame's order.
        x, y: what the numbers are, with their units: the axes' titles.
        chosen: a sample to outline in every run.
        select: name of a click selection of one point (field sample), none when None.
    """
    data = frame[["run", "sample", "seed", "prompt", "x", "y"]].dropna(subset=["x", "y"])
    runs = list(dict.fromkeys(frame["run"]))
    legend = alt.Legend(orient="top", labelLimit=300, columns=scales.legend_columns(runs, width))
    look = {"title": None, "sort": runs, "legend": legend if len(runs) > 1 else None}
    axis = alt.Axis(labelExpr=scales.short_numbers(), tickCount=7)
    base = alt.Chart(data).encode(
        x=alt.X("x:Q", title=scales.wrapped(x, 70), axis=axis, scale=alt.Scale(zero=False, padding=12)),
        y=alt.Y("y:Q", title=scales.wrapped(y), axis=axis, scale=alt.Scale(zero=False, padding=12)),
        shape=alt.Shape("run:N", **look, scale=alt.Scale(domain=runs, range=list(SHAPES)[: len(runs)])),
        tooltip=[
            *(alt.Tooltip(f"{name}:N") for name in ("run", "sample", "seed", "prompt")),
            *(alt.Tooltip(f"{name}:Q", title=text, format=".4~g") for name, text in (("x", x), ("y", y))),
        ],
    )
    dots = base.mark_point(size=70, filled=True, opacity=0.85).encode(
        color=alt.Color(
            "run:N", **look, scale=alt.Scale(domain=runs, range=list(scales.RUN_COLORS)[: len(runs)])
        )
    )
    if select is not None:
        dots = dots.add_params(
            alt.selection_point(name=select, fields=["sample"], on="click", clear="dblclick")
        )
    layers = [dots]
    if chosen is not None and (data["sample"] == chosen).any():
        ring = base.transform_filter(f"datum.sample === {int(chosen)}").mark_point(
            size=230, filled=False, strokeWidth=2.5, color=scales.MARK
        )
        layers.append(ring)
    return scales.layered(layers, width, height, title)
