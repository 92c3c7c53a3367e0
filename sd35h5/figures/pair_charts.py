"""What changed from run to run: slopes of pairs, effects with intervals and by layer. DataFrame → Altair chart."""

from __future__ import annotations

import altair as alt
import pandas as pd

from sd35h5.figures import scales

#: pixels for the names of measures: at most half of what the page has
LABEL_ROOM = "min(260, (containerSize()[0] || 520) / 2)"


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


def effect_profile(
    frame: pd.DataFrame, label: str, *, brush: str | None = None, height: int = 300
) -> alt.LayerChart:
    """Draw what changed in each layer, a line a run, with its interval behind it and a line at no change.

    Args: frame: columns run, layer, mean_difference, low, high, q; label: what a difference is.
    """
    runs = list(dict.fromkeys(frame["run"]))
    base = alt.Chart(frame.rename(columns={"run": "series"})).encode(
        x=alt.X(
            "layer:Q", title="layer", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False)
        ),
        color=scales.series_color(runs, scales.RUN_COLORS[1:]),
    )
    y = {"title": scales.wrapped(label), "axis": alt.Axis(labelExpr=scales.short_numbers())}
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=22)).encode(
        y=alt.Y("mean_difference:Q", **y),
        tooltip=scales.tips("series", "layer", "mean_difference", "low", "high", "q"),
    )
    zero = alt.Chart(frame.head(1)).mark_rule(color="#7f7f7f", strokeDash=[3, 3]).encode(y=alt.YDatum(0))
    layers = [line, zero]
    if frame[["low", "high"]].notna().all(axis=1).any():
        layers.insert(0, base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", **y), y2=alt.Y2("high:Q")))
    layers[0] = scales.brushed(layers[0], brush)
    return scales.layered(layers, None, height)


def effect_intervals(
    frame: pd.DataFrame, *, title: str = "", width: int | None = 360, room: int = 0
) -> alt.LayerChart:
    """Draw standardised effects (Cohen's d_z) of several measures, a row a measure and a colour a run.

    Args: frame: columns measure, run, effect, low_effect, high_effect (the interval ÷ the standard deviation),
        mean_difference, p, q; room: pixels of height for axis and legend, where the page counts them in.
    """
    runs = list(dict.fromkeys(frame["run"]))
    color = alt.Color(
        "run:N",
        title=None,
        sort=runs,
        scale=alt.Scale(domain=runs, range=list(scales.RUN_COLORS)[1 : len(runs) + 1]),
        legend=alt.Legend(orient="top", labelLimit=300, columns=scales.legend_columns(runs, width))
        if len(runs) > 1
        else None,
    )
    measures = list(dict.fromkeys(frame["measure"]))
    names = alt.Axis(
        labelLimit=alt.ExprRef(LABEL_ROOM),
        labelOverlap=False,
        labelFontSize=12,
        grid=False,
        ticks=False,
        domain=False,
    )
    base = alt.Chart(frame).encode(
        y=alt.Y("measure:N", title=None, sort=measures, axis=names, scale=alt.Scale(paddingInner=0.1)),
        yOffset=alt.YOffset("run:N", sort=runs),
        color=color,
    )
    points = base.mark_circle(size=70, opacity=1).encode(
        x=alt.X("effect:Q", title="standardised effect d_z (0: no change)", scale=alt.Scale(zero=True)),
        tooltip=scales.tips("run", "measure", "effect", "mean_difference", "p", "q"),
    )
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low_effect:Q"), x2=alt.X2("high_effect:Q"))
    zero = alt.Chart(frame.head(1)).mark_rule(color="#7f7f7f", strokeDash=[3, 3]).encode(x=alt.XDatum(0))
    height = len(measures) * (16 * len(runs) + 10)
    return scales.layered([zero, bars, points], width, height + room, title)
