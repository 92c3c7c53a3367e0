"""Layer × head as coloured cells: a metric of one run, or the difference of two. DataFrame → Altair chart."""

from __future__ import annotations

import altair as alt
import pandas as pd

from sd35h5.figures import scales


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
    scale = alt.Scale(
        range=list(scales.SEQUENTIAL), domain=list(domain or scales.magnitude(frame["value"])), clamp=True
    )
    return _cells(frame, label, scale, title, chosen, select, brush, width, height)


def difference_heatmap(
    frame: pd.DataFrame,
    label: str,
    *,
    title: str = "",
    limit: float | None = None,
    chosen: tuple[int, int] | None = None,
    width: int = 420,
    height: int = 360,
) -> alt.Chart | alt.LayerChart:
    """Draw layer by head cells of a difference: purple below 0, orange above, white at exactly 0.

    Args:
        frame: columns layer, head, value and, to mark cells with a dot, a boolean `marked`.
        limit: the scale runs from −limit to +limit; the largest |value| when None.
    """
    limit = limit or scales.symmetric(frame["value"])
    scale = alt.Scale(range=list(scales.DIVERGING), domain=[-limit, limit], domainMid=0, clamp=True)
    cells = _cells(frame, label, scale, title, chosen, None, None, width, height)
    if "marked" not in frame or not frame["marked"].any():
        return cells
    dots = alt.Chart(frame.loc[frame["marked"], ["layer", "head"]]).mark_circle(
        size=26, color="#111111", opacity=1, stroke="#ffffff", strokeWidth=0.8, tooltip=None
    )
    return cells + dots.encode(x=alt.X("layer:O"), y=alt.Y("head:O"))


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
