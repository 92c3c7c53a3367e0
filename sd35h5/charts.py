"""DataFrame → Altair chart: the dashboard and the report draw with the same functions; no Streamlit, no torch.

Colour: magnitudes in viridis (perceptually uniform, colour-blind-safe), differences in purple–orange centred at 0,
runs and groups in Okabe–Ito tones. Pictures (overlays, sheets) are in pictures.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from sd35h5.schema import GROUPS

FORMAT = ".3~g"
MARK = "#d62728"
#: CLIP groups in blues, T5 groups in oranges, the image grey: families are told apart by lightness too
GROUP_COLORS = {
    "clip_bos": "#08306b", "clip_word": "#2b7bba", "clip_eos": "#6baed6", "clip_pad": "#c6dbef",
    "t5_word": "#b35806", "t5_eos": "#f1a340", "t5_pad": "#fee0b6", "t5_absent": "#f7f1e3", "image": "#8c8c8c",
}
RUN_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999933", "#666666")


def layer_head_heatmap(
    frame: pd.DataFrame, label: str, *, title: str = "", domain: tuple[float, float] | None = None,
    chosen: tuple[int, int] | None = None, select: str | None = None, width: int = 420, height: int = 360,
) -> alt.Chart:
    """Draw layer (x) by head (y) cells coloured by `value`.

    Args:
        frame: columns layer, head, value.
        label: what `value` is, with its unit: the legend's title.
        domain: the colour scale's ends, to share one scale across panels; the data's own when None.
        chosen: (layer, head) to outline.
        select: name of a click selection of one cell (fields layer, head), none when None.
    """
    scale = alt.Scale(scheme="viridis", domain=list(domain or span(frame["value"])), clamp=True)
    return _cells(frame, label, scale, title, chosen, select, width, height)


def difference_heatmap(
    frame: pd.DataFrame, label: str, *, title: str = "", limit: float | None = None,
    chosen: tuple[int, int] | None = None, select: str | None = None, width: int = 420, height: int = 360,
) -> alt.Chart:
    """Draw layer by head cells of a difference: purple below 0, orange above, white at exactly 0.

    Args: limit: the scale runs from −limit to +limit; the largest |value| when None.
    """
    limit = limit or symmetric(frame["value"])
    scale = alt.Scale(scheme="purpleorange", domain=[-limit, limit], domainMid=0, clamp=True)
    return _cells(frame, label, scale, title, chosen, select, width, height)


def step_curve(
    frame: pd.DataFrame, label: str, *, x: str = "step", title: str = "", height: int = 300, width: int | None = None,
    colors: Sequence[str] = RUN_COLORS,
) -> alt.LayerChart:
    """Draw a line a series over the denoising steps, with the band across prompts behind it.

    Args: frame: columns series, step, timestep, sigma, mean, low, high; x: "step", "timestep" or "sigma" (the last two
        run from high to low, so that time always goes to the right).
    """
    names = list(dict.fromkeys(frame["series"]))
    titles = {"step": "denoising step", "timestep": "timestep (noise, 1000 → 0)", "sigma": "sigma (noise, 1 → 0)"}
    axis = alt.X(
        f"{x}:Q", title=titles[x], axis=alt.Axis(tickMinStep=1 if x == "step" else 0, format=".2~f"),
        scale=alt.Scale(reverse=x != "step", nice=False, zero=False),
    )
    color = alt.Color(
        "series:N", title=None, sort=names, scale=alt.Scale(domain=names, range=list(colors)[: len(names)]),
        legend=alt.Legend(orient="top", labelLimit=280, symbolOpacity=1) if len(names) > 1 else None,
    )
    base = alt.Chart(frame).encode(x=axis, color=color)
    y = {"title": wrapped(label), "axis": alt.Axis(format=FORMAT)}
    line = base.mark_line(point=alt.OverlayMarkDef(size=22), strokeWidth=2).encode(
        y=alt.Y("mean:Q", **y), tooltip=_tips("series", "step", "timestep", "sigma", "mean", "low", "high")
    )
    layers = [line]
    if frame[["low", "high"]].notna().all(axis=1).any():
        layers.insert(0, base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", **y), y2="high:Q"))
    return _sized(alt.layer(*layers), width, height, title)


def token_bars(
    frame: pd.DataFrame, *, top: int = 24, uniform: float | None = None, title: str = "", width: int | None = None
) -> alt.LayerChart:
    """Draw the heaviest text tokens as bars, coloured by group, padding included; a line marks uniform attention.

    Args: frame: columns token, text, encoder, group, mass; uniform: 1 ÷ number of keys of the joint axis.
    """
    ranked = frame.sort_values("mass", ascending=False).head(top).copy()
    ranked["name"] = [token_name(row) for row in ranked.to_dict("records")]
    order = list(ranked["name"])
    seen = [group for group in GROUPS if group in set(ranked["group"])]
    bars = alt.Chart(ranked).mark_bar(stroke="#7f7f7f", strokeWidth=0.4).encode(
        x=alt.X("mass:Q", title="mass: share of an image query's attention", axis=alt.Axis(format=FORMAT, tickCount=5)),
        y=alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=170)),
        color=group_color(seen),
        tooltip=_tips("text", "token", "encoder", "group", "mass"),
    )
    layers: list[alt.Chart] = [bars]
    if uniform is not None:
        rule = alt.Chart(pd.DataFrame({"mass": [uniform], "note": ["uniform attention: 1 ÷ number of keys"]}))
        layers.append(rule.mark_rule(color=MARK, strokeDash=[4, 3]).encode(x="mass:Q", tooltip=_tips("note", "mass")))
    return _sized(alt.layer(*layers), width, max(120, 17 * len(order)), title)


def group_mass(
    frame: pd.DataFrame, *, title: str = "", layer: int | None = None, height: int = 300, width: int | None = None
) -> alt.LayerChart:
    """Draw where the mass goes: a stacked bar of groups for every layer, summing to 1.

    Args: frame: columns group, layer, value; layer: a layer to mark.
    """
    data = frame[frame["value"] > 0].copy()
    data["order"] = data["group"].map(GROUPS.index)
    seen = [group for group in GROUPS if group in set(data["group"])]
    bars = alt.Chart(data).mark_bar(stroke="#7f7f7f", strokeWidth=0.3).encode(
        x=_layer_axis(frame),
        y=alt.Y(
            "value:Q", stack="zero", title=wrapped("share of an image query's attention (sums to 1)"),
            scale=alt.Scale(domain=[0, 1], clamp=True), axis=alt.Axis(format=".1f", tickCount=5),
        ),
        color=group_color(seen), order=alt.Order("order:Q"),
        tooltip=_tips("layer", "group", "value"),
    )
    layers: list[alt.Chart] = [bars]
    if layer is not None:
        mark = alt.Chart(pd.DataFrame({"layer": [layer]})).mark_bar(fillOpacity=0, stroke=MARK, strokeWidth=2)
        layers.append(mark.encode(x=alt.X("layer:O"), y=alt.datum(1)))
    return _sized(alt.layer(*layers), width, height, title)


def paired_slopes(frame: pd.DataFrame, label: str, *, title: str = "", height: int = 260) -> alt.LayerChart:
    """Draw one line a paired sample from run to run: columns run, sample, prompt, value; runs in the frame's order."""
    runs = list(dict.fromkeys(frame["run"]))
    base = alt.Chart(frame).encode(
        x=alt.X("run:N", sort=runs, title=None, axis=alt.Axis(labelAngle=0, labelLimit=160)),
        y=alt.Y("value:Q", title=wrapped(label), axis=alt.Axis(format=FORMAT)),
    )
    lines = base.mark_line(color="#888888", opacity=0.6).encode(detail="sample:N")
    points = base.mark_circle(size=70, opacity=0.9).encode(
        color=alt.Color("run:N", sort=runs, legend=None, scale=alt.Scale(domain=runs, range=list(RUN_COLORS)[: len(runs)])),
        tooltip=_tips("run", "sample", "prompt", "value"),
    )
    return _sized(alt.layer(lines, points), None, height, title)


def for_print(chart: alt.Chart | alt.LayerChart) -> alt.Chart | alt.LayerChart:
    """Return the chart with a white ground and larger type, for a PNG that stands alone."""
    return (
        chart.properties(background="white", padding=16)
        .configure_axis(labelFontSize=12, titleFontSize=13, titleFontWeight="normal", grid=True, gridOpacity=0.4)
        .configure_legend(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", titleLimit=340)
        .configure_title(fontSize=15, anchor="start", subtitleFontSize=12, subtitleColor="#555555", offset=12)
        .configure_view(stroke=None)
    )


def png(chart: alt.TopLevelMixin, scale: float = 2.0) -> bytes:
    """Return the chart as PNG on white, rendered by vl-convert: no browser needed."""
    import vl_convert

    with alt.data_transformers.enable("default", max_rows=None):
        return vl_convert.vegalite_to_png(for_print(chart).to_json(), scale=scale)


# ---- pieces -----------------------------------------------------------------------------------------------------

def span(values: pd.Series | np.ndarray) -> tuple[float, float]:
    """Return the finite range of the values, widened a little when it is a single value: an axis needs two ends."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - abs(low) * 0.01 - 1e-9, high + abs(high) * 0.01 + 1e-9)


def ends(scale: alt.Scale) -> list[float]:
    """Return what a colour legend names: both ends of its scale and three values between."""
    low, high = scale.domain[0], scale.domain[-1]
    return [float(value) for value in np.linspace(low, high, 5)]


def symmetric(values: pd.Series | np.ndarray) -> float:
    """Return the largest finite |value|, never 0: the ends of a zero-centred scale."""
    finite = np.abs(np.asarray(values, float))
    finite = finite[np.isfinite(finite)]
    return float(finite.max()) if finite.size and finite.max() > 0 else 1e-9


def token_name(row: dict[str, object]) -> str:
    """Return how a token is called in a chart: its string, its encoder and its position."""
    text = str(row["text"]).replace("</w>", "").replace("▁", "").strip() or "␣"
    short = text if len(text) <= 18 else text[:17] + "…"
    return f"{short} · {row['encoder']} {row['token']}"


def group_color(seen: Sequence[str]) -> alt.Color:
    """Return the colour of groups: always the same, the legend showing only those that are there."""
    names = list(seen)
    return alt.Color(
        "group:N", title=None, sort=names, scale=alt.Scale(domain=names, range=[GROUP_COLORS[name] for name in names]),
        legend=alt.Legend(orient="top", columns=5, symbolStrokeColor="#7f7f7f"),
    )


def wrapped(label: str, width: int = 38) -> list[str]:
    """Return the label as lines that fit beside a chart of ordinary height."""
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _cells(
    frame: pd.DataFrame, label: str, scale: alt.Scale, title: str, chosen: tuple[int, int] | None, select: str | None,
    width: int, height: int,
) -> alt.Chart:
    data = frame[["layer", "head", "value"]].copy()
    data["chosen"] = False
    if chosen is not None:
        data["chosen"] = (data["layer"] == chosen[0]) & (data["head"] == chosen[1])
        data = data.sort_values("chosen", kind="stable")  # drawn last, so that neighbours do not cover its outline
    chart = alt.Chart(data).mark_rect(invalid=None).encode(
        x=_layer_axis(data),
        y=alt.Y("head:O", title="head", axis=alt.Axis(values=ticks(data["head"]), grid=False), scale=alt.Scale(padding=0)),
        color=alt.condition(
            "!isValid(datum.value)",
            alt.value("#b0b0b0"),
            alt.Color("value:Q", scale=scale, legend=alt.Legend(
                title=label, orient="bottom", format=FORMAT, gradientLength=min(width - 20, 400), titleLimit=width,
                values=ends(scale), gradientThickness=10,
            )),
        ),
        stroke=alt.condition("datum.chosen", alt.value(MARK), alt.value(None)),
        strokeWidth=alt.condition("datum.chosen", alt.value(3), alt.value(0)),
        tooltip=_tips("layer", "head", "value"),
    )
    if select is not None:
        chart = chart.add_params(alt.selection_point(name=select, fields=["layer", "head"], on="click", clear="dblclick"))
    return _sized(chart, width, height, title)


def _layer_axis(frame: pd.DataFrame) -> alt.X:
    return alt.X(
        "layer:O", title="layer", scale=alt.Scale(padding=0),
        axis=alt.Axis(values=ticks(frame["layer"]), labelAngle=0, grid=False),
    )


def ticks(values: pd.Series) -> list[int]:
    """Return which layers or heads an axis names: all up to 12, then every second or fifth."""
    there = sorted(set(int(value) for value in values))
    every = 1 if len(there) <= 12 else 2 if len(there) <= 24 else 5
    return [value for value in there if value % every == 0] or there


def _tips(*columns: str) -> list[alt.Tooltip]:
    numbers = {"value", "mean", "low", "high", "mass", "timestep", "sigma"}
    return [
        alt.Tooltip(f"{name}:Q", format=".4~g") if name in numbers else alt.Tooltip(f"{name}:N") for name in columns
    ]


def _sized(chart, width: int | None, height: int, title: str):
    chart = chart.properties(height=height)
    if width is not None:
        chart = chart.properties(width=width)
    return chart.properties(title=title) if title else chart
