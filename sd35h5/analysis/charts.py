"""DataFrame → Altair chart: the dashboard and the report draw with the same functions; no Streamlit, no torch.

Colour: magnitudes in viridis (perceptually uniform, colour-blind-safe), differences in purple–orange centred
at 0, runs and groups in Okabe–Ito tones. Pictures (overlays, sheets) are in pictures.py, PNG and SVG in printing.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from sd35h5.analysis import scales
from sd35h5.store.schema import GROUPS


def layer_head_heatmap(
    frame: pd.DataFrame,
    label: str,
    *,
    title: str = "",
    domain: tuple[float, float] | None = None,
    chosen: tuple[int, int] | None = None,
    select: str | None = None,
    brush: str | None = None,
    width: int = 420,
    height: int = 360,
) -> alt.Chart:
    """Draw layer (x) by head (y) cells coloured by `value`.

    Args:
        frame: columns layer, head, value.
        label: what `value` is, with its unit: the legend's title.
        domain: the colour scale's ends, to share one scale across panels; from 0 to the largest value when None.
        chosen: (layer, head) to outline.
        select: name of a click selection of one cell (fields layer, head), none when None.
        brush: name of an interval selection of layers and heads, none when None.
    """
    scale = alt.Scale(scheme="viridis", domain=list(domain or scales.magnitude(frame["value"])), clamp=True)
    return _cells(frame, label, scale, title, chosen, select, brush, width, height)


def difference_heatmap(
    frame: pd.DataFrame,
    label: str,
    *,
    title: str = "",
    limit: float | None = None,
    chosen: tuple[int, int] | None = None,
    select: str | None = None,
    brush: str | None = None,
    width: int = 420,
    height: int = 360,
) -> alt.Chart | alt.LayerChart:
    """Draw layer by head cells of a difference: purple below 0, orange above, white at exactly 0.

    Args:
        frame: columns layer, head, value and, to mark cells with a dot, a boolean `marked`.
        limit: the scale runs from −limit to +limit; the largest |value| when None.
    """
    limit = limit or scales.symmetric(frame["value"])
    scale = alt.Scale(scheme="purpleorange", domain=[-limit, limit], domainMid=0, clamp=True)
    cells = _cells(frame, label, scale, title, chosen, select, brush, width, height)
    if "marked" not in frame or not frame["marked"].any():
        return cells
    dots = alt.Chart(frame.loc[frame["marked"], ["layer", "head"]]).mark_circle(
        size=26, color="#111111", opacity=1, stroke="#ffffff", strokeWidth=0.8, tooltip=None
    )
    return cells + dots.encode(x=alt.X("layer:O"), y=alt.Y("head:O"))


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


def token_bars(
    frame: pd.DataFrame,
    *,
    top: int = 24,
    uniform: float | None = None,
    log: bool = False,
    label: str = "mass: share of an image query's attention",
    title: str = "",
    width: int | None = None,
    room: int = 0,
    columns: int = 3,
) -> alt.LayerChart:
    """Draw the heaviest text tokens as bars, coloured by group, padding included; a line marks uniform
    attention.

    Args:
        frame: columns token, text, encoder, group, mass.
        uniform: 1 ÷ number of keys of the joint axis.
        label: what a mass is.
        log: points on a logarithmic axis in place of bars, which would have no honest foot there.
        room: pixels of height for axis and legend, where the page counts them in.
        columns: of the legend.
    """
    ranked = frame.sort_values("mass", ascending=False).head(top).copy()
    ranked["name"] = [scales.token_name(row) for row in ranked.to_dict("records")]
    order = list(ranked["name"])
    seen = [group for group in GROUPS if group in set(ranked["group"])]
    base = alt.Chart(ranked[ranked["mass"] > 0] if log else ranked)
    marks = base.mark_circle(size=90, opacity=1) if log else base.mark_bar()
    bars = marks.encode(
        x=alt.X(
            "mass:Q",
            title=scales.wrapped(label),
            axis=alt.Axis(labelExpr=scales.short_numbers(), tickCount=3 if log else 5),
            scale=alt.Scale(type="log", nice=True) if log else alt.Scale(zero=True),
        ),
        y=alt.Y(
            "name:N",
            sort=order,
            title=None,
            axis=alt.Axis(labelLimit=170, labelOverlap=False, labelFlush=False, grid=log),
        ),
        stroke=alt.StrokeValue("#7f7f7f"),
        strokeWidth=alt.StrokeWidthValue(0.5),
        color=scales.group_color(seen, columns),
        tooltip=scales.tips("text", "token", "encoder", "group", "mass"),
    )
    layers: list[alt.Chart] = [bars]
    if uniform is not None:
        rule = alt.Chart(pd.DataFrame({"mass": [uniform], "note": ["uniform attention: 1 ÷ number of keys"]}))
        layers.append(
            rule.mark_rule(color=scales.MARK, strokeDash=[4, 3]).encode(
                x=alt.X("mass:Q"), tooltip=scales.tips("note", "mass")
            )
        )
    return scales.layered(layers, width, max(60, 17 * len(order)) + room, title)


def group_mass(
    frame: pd.DataFrame,
    *,
    title: str = "",
    layer: int | None = None,
    brush: str | None = None,
    height: int = 300,
    width: int | None = None,
) -> alt.LayerChart:
    """Draw where the mass goes: a stacked bar of groups for every layer, summing to 1.

    Args: frame: columns group, layer, value; layer: a layer to mark; brush: name of an interval selection of layers.
    """
    data = frame[frame["value"] > 0].copy()
    data["order"] = data["group"].map(GROUPS.index)
    seen = [group for group in GROUPS if group in set(data["group"])]
    bars = (
        alt.Chart(data)
        .mark_bar(stroke="#7f7f7f", strokeWidth=0.3)
        .encode(
            x=scales.layer_axis(frame),
            y=scales.stacked_shares("value", "share of an image query's attention (sums to 1)"),
            color=scales.group_color(seen),
            order=alt.Order("order:Q"),
            tooltip=scales.tips("layer", "group", "value"),
        )
    )
    layers: list[alt.Chart] = [scales.brushed(bars, brush)]
    if layer is not None:
        mark = alt.Chart(pd.DataFrame({"layer": [layer]})).mark_bar(
            fillOpacity=0, stroke=scales.MARK, strokeWidth=2
        )
        layers.append(mark.encode(x=alt.X("layer:O"), y=alt.YDatum(1)))
    return scales.layered(layers, width, height, title)


def paired_slopes(frame: pd.DataFrame, label: str, *, title: str = "", height: int = 260) -> alt.LayerChart:
    """Draw one line a paired sample from run to run: columns run, sample, prompt, value; runs in the frame's
    order."""
    runs = list(dict.fromkeys(frame["run"]))
    # names of more than two runs do not fit side by side
    names = alt.Axis(labelAngle=-20 if len(runs) > 2 else 0, labelLimit=160, labelOverlap=False)
    base = alt.Chart(frame).encode(
        x=alt.X("run:N", sort=runs, title=None, axis=names),
        y=alt.Y("value:Q", title=scales.wrapped(label), axis=alt.Axis(labelExpr=scales.short_numbers())),
    )
    lines = base.mark_line(color="#888888", opacity=0.6).encode(detail=alt.Detail("sample:N"))
    points = base.mark_circle(size=70, opacity=0.9).encode(
        color=alt.Color(
            "run:N",
            sort=runs,
            legend=None,
            scale=alt.Scale(domain=runs, range=list(scales.RUN_COLORS)[: len(runs)]),
        ),
        tooltip=scales.tips("run", "sample", "prompt", "value"),
    )
    return scales.layered([lines, points], None, height, title)


def _cells(
    frame: pd.DataFrame,
    label: str,
    scale: alt.Scale,
    title: str,
    chosen: tuple[int, int] | None,
    select: str | None,
    brush: str | None,
    width: int,
    height: int,
) -> alt.Chart:
    data = frame[["layer", "head", "value"]].copy()
    data["chosen"] = False
    if chosen is not None:
        data["chosen"] = (data["layer"] == chosen[0]) & (data["head"] == chosen[1])
        data = data.sort_values(
            "chosen", kind="stable"
        )  # drawn last, so that neighbours do not cover its outline
    chart = (
        alt.Chart(data)
        .mark_rect(invalid=None)
        .encode(
            x=scales.layer_axis(data),
            y=alt.Y(
                "head:O",
                title="head",
                axis=alt.Axis(values=scales.axis_ticks(data["head"]), grid=False),
                scale=alt.Scale(padding=0),
            ),
            color=alt.condition(
                "!isValid(datum.value)",
                alt.value("#b0b0b0"),
                alt.Color(
                    "value:Q",
                    scale=scale,
                    legend=alt.Legend(
                        title=label,
                        orient="bottom",
                        labelExpr=scales.short_numbers(scales.digits(scale)),
                        gradientLength=min(width - 20, 400),
                        titleLimit=width,
                        values=scales.ends(scale, 5 if width > 300 else 3),
                        gradientThickness=10,
                    ),
                ),
            ),
            stroke=scales.where_chosen(alt.StrokeValue, scales.MARK, None),
            strokeWidth=scales.where_chosen(alt.StrokeWidthValue, 3, 0),
            tooltip=scales.tips("layer", "head", "value"),
        )
    )
    if select is not None:
        chart = chart.add_params(
            alt.selection_point(name=select, fields=["layer", "head"], on="click", clear="dblclick")
        )
    if brush is not None:
        chart = chart.add_params(alt.selection_interval(name=brush, encodings=["x", "y"]))
    return scales.sized(chart, width, height, title)
