"""A metric over steps and over layers, and how heads are spread over it. DataFrame → Altair chart."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from sd35h5.figures import scales


def step_curve(
    frame: pd.DataFrame,
    label: str,
    *,
    x: str = "step",
    title: str = "",
    height: int = 300,
    width: int | None = None,
    colors: Sequence[str] = scales.RUN_COLORS,
    brush: str | None = None,
    at: int | None = None,
    uniform: float | None = None,
) -> alt.LayerChart:
    """Draw a line a series over the denoising steps, with the band across prompts behind it.

    Args: frame: columns series, step, timestep, sigma, mean, low, high; x: "step", "timestep" or "sigma" (the
        last two run from high to low, so that time always goes to the right); brush: name of an interval selection
        along x, none when None; at: a step to mark; uniform: what uniform attention would give, as a dashed line.
    """
    names = list(dict.fromkeys(frame["series"]))
    titles = {
        "step": "denoising step",
        "timestep": "timestep (noise, 1000 → 0)",
        "sigma": "sigma (noise, 1 → 0)",
    }
    axis = alt.X(
        f"{x}:Q",
        title=titles[x],
        axis=alt.Axis(tickMinStep=1 if x == "step" else 0, format=".2~f"),
        scale=alt.Scale(reverse=x != "step", nice=False, zero=False),
    )
    color = scales.series_color(names, colors, width)
    base = alt.Chart(frame).encode(x=axis, color=color)
    y = {"title": scales.wrapped(label), "axis": alt.Axis(labelExpr=scales.short_numbers())}
    line = base.mark_line(point=alt.OverlayMarkDef(size=22), strokeWidth=2).encode(
        y=alt.Y("mean:Q", **y),
        tooltip=scales.tips("series", "step", "timestep", "sigma", "mean", "low", "high"),
    )
    layers = [line]
    if frame[["low", "high"]].notna().all(axis=1).any():
        layers.insert(0, base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", **y), y2=alt.Y2("high:Q")))
    layers[0] = scales.brushed(layers[0], brush)
    if at is not None:
        rule = alt.Chart(frame[frame["step"] == at].head(1)).mark_rule(color=scales.MARK, strokeWidth=2)
        layers.append(rule.encode(x=axis, tooltip=scales.tips("step", "timestep", "sigma")))
    if uniform is not None:
        layers.append(scales.uniform_line(uniform))
    return scales.layered(layers, width, height, title)


def layer_profile(
    frame: pd.DataFrame,
    label: str,
    *,
    uniform: float | None = None,
    height: int = 300,
    width: int | None = None,
) -> alt.LayerChart:
    """Draw the mean of each layer with its band across prompts; a dashed line marks uniform attention.

    Args: frame: columns layer, mean, low, high.
    """
    base = alt.Chart(frame).encode(
        x=alt.X(
            "layer:Q", title="layer", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False)
        )
    )
    y = {"title": scales.wrapped(label), "axis": alt.Axis(labelExpr=scales.short_numbers())}
    line = base.mark_line(color=scales.RUN_COLORS[0], strokeWidth=2, point=alt.OverlayMarkDef(size=22))
    layers = [line.encode(y=alt.Y("mean:Q", **y), tooltip=scales.tips("layer", "mean", "low", "high"))]
    if frame[["low", "high"]].notna().all(axis=1).any():
        band = base.mark_area(opacity=0.18, color=scales.RUN_COLORS[0])
        layers.insert(0, band.encode(y=alt.Y("low:Q", **y), y2=alt.Y2("high:Q")))
    if uniform is not None:
        layers.append(scales.uniform_line(uniform))
    return scales.layered(layers, width, height, "")


def head_histogram(
    frame: pd.DataFrame,
    label: str,
    *,
    uniform: float | None = None,
    height: int = 300,
    width: int | None = None,
) -> alt.LayerChart:
    """Draw how many heads have which mean, on a logarithmic axis; a dashed line marks uniform attention.

    Args: frame: of `metrics.head_counts`.
    """
    ends = [
        value for value in (frame["low"].min(), frame["high"].max(), uniform) if value and np.isfinite(value)
    ]
    scale = alt.Scale(type="log", domain=[min(ends), max(ends)] if ends else [1e-4, 1], nice=False)
    bars = (
        alt.Chart(frame)
        .mark_rect(color=scales.RUN_COLORS[0], stroke="#7f7f7f", strokeWidth=0.5)
        .encode(
            x=alt.X("low:Q", title=scales.wrapped(label), scale=scale,
                    axis=alt.Axis(labelExpr=scales.short_numbers(".2~g"), tickCount=4, grid=False)),
            x2=alt.X2("high:Q"),
            y=alt.Y("heads:Q", title="heads (layer × head)", axis=alt.Axis(tickMinStep=1)),
            y2=alt.Y2Datum(0),
            tooltip=[alt.Tooltip("heads:Q"), *scales.tips("low", "high")],
        )
    )  # fmt: skip
    layers: list[alt.Chart] = [bars]
    if uniform is not None:
        line = alt.Chart(pd.DataFrame({"low": [uniform]})).mark_rule(color=scales.MARK, strokeDash=[4, 3])
        layers.append(line.encode(x=alt.X("low:Q")))
    return scales.layered(layers, width, height, "")
