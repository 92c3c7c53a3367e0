"""Sinks: rates over ε, kinds of the heaviest keys, where on the image they lie. DataFrame → Altair chart."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from sd35h5.figures import scales
from sd35h5.metrics.heaviest_keys import KINDS

#: text groups keep their colours, patches are greens by their place on the image
KIND_COLORS = {
    **{name: color for name, color in scales.GROUP_COLORS.items() if name != "image"},
    "corner": "#00441b",
    "border": "#41ab5d",
    "inner": "#c7e9c0",
}
VIRIDIS_ZERO = "#440154"  # where the scale begins
KIND_NAMES = {"corner": "corner patch", "border": "border patch", "inner": "inner patch"}


def sink_curve(
    frame: pd.DataFrame,
    *,
    epsilon: float | None = None,
    uniform: float | None = None,
    title: str = "",
    height: int = 300,
    width: int | None = None,
    colors: Sequence[str] = scales.RUN_COLORS,
) -> alt.LayerChart:
    """Draw the sink rate over ε, a line a series, on a logarithmic axis; dashed lines mark ε and uniform.

    Args: frame: columns series, epsilon, times_uniform, mean, low, high.
    """
    names = list(dict.fromkeys(frame["series"]))
    x = alt.X(
        "epsilon:Q",
        title="ε: a head counts as a sink above this mass",
        scale=alt.Scale(type="log", domain=[float(frame["epsilon"].min()), float(frame["epsilon"].max())]),
        axis=alt.Axis(labelExpr=scales.short_numbers(), values=[1e-4, 1e-3, 0.01, 0.1, 1], grid=False),
    )
    y = alt.Y(
        "mean:Q", title=scales.wrapped("sink rate: share of heads (0..1)"), scale=alt.Scale(domain=[0, 1])
    )
    color = scales.series_color(names, colors, width)
    base = alt.Chart(frame).encode(x=x, color=color)
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=14)).encode(
        y=y, tooltip=scales.tips("series", "epsilon", "times_uniform", "mean", "low", "high")
    )
    layers: list[alt.Chart] = [line]
    if frame[["low", "high"]].notna().all(axis=1).any():
        layers.insert(0, base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")))
    for line_of_text, (value, note) in enumerate(((uniform, "uniform"), (epsilon, "ε of causal models"))):
        if value:
            rule = alt.Chart(pd.DataFrame({"epsilon": [value], "note": [f"{note}: {value:.2g}"]}))
            layers.append(rule.mark_rule(color=scales.MARK, strokeDash=[4, 3]).encode(x=alt.X("epsilon:Q")))
            # one below the other: in a narrow chart they would meet
            look = {
                "align": "right",
                "dx": -4,
                "dy": 8 + 15 * line_of_text,
                "baseline": "top",
                "fontSize": 11,
            }
            text = rule.mark_text(color=scales.MARK, **look)
            layers.append(text.encode(x=alt.X("epsilon:Q"), y=alt.YValue(0), text=alt.Text("note:N")))
    return scales.layered(layers, width, height, title)


def key_kinds(
    frame: pd.DataFrame,
    by: str,
    *,
    title: str = "",
    brush: str | None = None,
    height: int = 300,
    width: int | None = None,
) -> alt.Chart:
    """Draw what the heaviest key is: for every layer (or top_step, run) a bar of kinds that sums to 1.

    Args: frame: columns kind, share, chance and the one called `by`, of `metrics.kind_shares(…, 1, by)`; brush: name
        of an interval selection along x, none when None.
    """
    names = {"layer": "layer", "top_step": "denoising step", "run": None}
    data = frame[frame["share"] > 0].copy()
    data["order"] = data["kind"].map(KINDS.index)
    seen = [kind for kind in KINDS if kind in set(data["kind"])]
    data["kind"] = data["kind"].map(lambda kind: KIND_NAMES.get(kind, kind))
    colors = {KIND_NAMES.get(kind, kind): KIND_COLORS[kind] for kind in seen}
    values = scales.axis_ticks(data[by]) if by == "layer" else alt.Undefined
    chart = (
        alt.Chart(data)
        .mark_bar(stroke="#7f7f7f", strokeWidth=0.3)
        .encode(
            x=alt.X(
                f"{by}:O",
                title=names.get(by, by),
                sort=list(dict.fromkeys(frame[by])),
                axis=alt.Axis(labelAngle=0, values=values, labelLimit=150),
            ),
            y=scales.stacked_shares("share", "share of heads whose heaviest key is …"),
            color=scales.named_color("kind", colors, scales.legend_columns(list(colors), width)),
            order=alt.Order("order:Q"),
            tooltip=[alt.Tooltip("kind:N"), alt.Tooltip(f"{by}:O"), *scales.tips("share", "chance")],
        )
    )
    return scales.sized(scales.brushed(chart, brush), width, height, title)


def patch_heatmap(
    frame: pd.DataFrame, *, title: str = "", width: int = 260, height: int | None = None
) -> alt.Chart:
    """Draw where on the image the heaviest keys lie: y, x and share, a cell a patch, in the image's proportion.

    Patches that are nobody's key, most of 4,096, are the ground and no cells: a browser draws each cell by itself.
    """
    rows, columns = int(frame["y"].max()) + 1, int(frame["x"].max()) + 1
    scale = alt.Scale(scheme="viridis", domain=list(scales.magnitude(frame["share"])))
    chart = (
        alt.Chart(frame[frame["share"] > 0], view=alt.ViewBackground(fill=VIRIDIS_ZERO))
        .mark_rect(aria=False)
        .encode(
            x=alt.X("x:O", title="patch x", axis=_patch_axis(columns), scale=_every_patch(columns)),
            y=alt.Y("y:O", title="patch y", axis=_patch_axis(rows), scale=_every_patch(rows)),
            color=alt.Color(
                "share:Q",
                scale=scale,
                legend=alt.Legend(
                    title="share of heads whose key it is",
                    orient="bottom",
                    titleLimit=width + 40,
                    labelExpr=scales.short_numbers(scales.digits(scale)),
                    values=scales.ends(scale, 3),
                    gradientLength=min(width - 80, 300),
                    gradientThickness=10,
                ),
            ),
            tooltip=scales.tips("y", "x", "share"),
        )
    )
    return scales.sized(chart, width, height or max(80, round(width * rows / columns)), title)


def _every_patch(count: int) -> alt.Scale:
    return alt.Scale(padding=0, domain=alt.ExprRef(f"sequence({count})"))  # a list is checked value by value


def _patch_axis(count: int) -> alt.Axis:
    every = 1 if count <= 8 else 4 if count <= 32 else 16
    return alt.Axis(values=list(range(0, count, every)), labelAngle=0, grid=False)
