"""What charts are made of: scales, axes, colours, labels and tooltips, each in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from sd35h5 import metrics

FORMAT = ".3~g"
MARK = "#d62728"
#: CLIP groups in blues, T5 groups in oranges, the image grey: families are told apart by lightness too
GROUP_COLORS = {
    "clip_bos": "#08306b",
    "clip_word": "#2b7bba",
    "clip_eos": "#6baed6",
    "clip_pad": "#c6dbef",
    "t5_word": "#b35806",
    "t5_eos": "#f1a340",
    "t5_pad": "#fee0b6",
    "t5_absent": "#f7f1e3",
    "image": "#8c8c8c",
}
#: what heatmaps are coloured with, from low to high, here and in the linked view: Vega's viridis, and its purpleorange
#: for differences, whose middle is 0
SEQUENTIAL = (
    "#440154", "#48196b", "#472d7b", "#424086", "#3b528b", "#34638d", "#2c728e", "#27828e", "#21918d", "#1f9f88",
    "#28ae80", "#3ebc74", "#5dc963", "#82d34c", "#abdc32", "#d5e21b", "#fde725",
)  # fmt: skip
DIVERGING = (
    "#411469", "#583485", "#70569e", "#8a7cb3", "#a49cc7", "#bdb9d9", "#d2d1e6", "#e3e2eb", "#f3eeea", "#f9e5cc",
    "#fcd8a9", "#fbc37d", "#f2a952", "#e48e2b", "#ce7416", "#b55d0b", "#994a07",
)  # fmt: skip
RUN_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999933", "#666666")


def span(values: pd.Series | np.ndarray) -> tuple[float, float]:
    """Return the finite range of the values, widened a little when it is a single value: an axis needs two
    ends."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - abs(low) * 0.01 - 1e-9, high + abs(high) * 0.01 + 1e-9)


def magnitude(values: pd.Series | np.ndarray) -> tuple[float, float]:
    """Return the colour scale of a quantity that cannot be negative: from 0 to the largest finite value."""
    low, high = span(values)
    return (0.0, high) if low >= 0 and high > 0 else (low, high)


def ends(scale: alt.Scale, count: int) -> list[float]:
    """Return what a colour legend names: both ends of its scale and what lies evenly between."""
    low, high = scale.domain[0], scale.domain[-1]
    return [float(value) for value in np.linspace(low, high, count)]


def digits(scale: alt.Scale) -> str:
    """Return the number format that tells the ends of a colour scale apart, and no more digits than that."""
    low, high = float(scale.domain[0]), float(scale.domain[-1])
    part = (high - low) / max(abs(low), abs(high), 1e-300)
    return f".{min(9, 3 + max(0, int(np.ceil(-np.log10(part) - 0.5))))}~g"


def short_numbers(form: str = FORMAT) -> str:
    """Return the Vega expression of an axis or legend label: 0 as 0, small numbers as 2.3e-6, others in `form`."""
    small = f".{max(0, int(form.partition('~')[0][1:]) - 1)}~e"
    return (
        f"datum.value == 0 ? '0' : abs(datum.value) < 0.001 ? format(datum.value, '{small}') "
        f": format(datum.value, '{form}')"
    )


def legend_columns(names: Sequence[str], width: int | None = None) -> int:
    """Return how many columns a legend of these names has room for; charts as wide as half a page when None."""
    longest = 40 + 6.5 * max((len(str(name)) for name in names), default=1)
    return max(1, min(len(names), int((width or 380) // longest)))


def series_color(names: Sequence[str], colors: Sequence[str], width: int | None = None) -> alt.Color:
    """One colour a series, in order; a legend on top, in as many columns as fit, where there are several."""
    legend = alt.Legend(orient="top", labelLimit=300, symbolOpacity=1, columns=legend_columns(names, width))
    return alt.Color(
        "series:N",
        title=None,
        sort=names,
        scale=alt.Scale(domain=names, range=list(colors)[: len(names)]),
        legend=legend if len(names) > 1 else None,
    )


def symmetric(values: pd.Series | np.ndarray) -> float:
    """Return the largest finite |value|, never 0: the ends of a zero-centred scale."""
    finite = np.abs(np.asarray(values, float))
    finite = finite[np.isfinite(finite)]
    return float(finite.max()) if finite.size and finite.max() > 0 else 1e-9


def token_name(row: dict[str, object]) -> str:
    """Return how a token is called in a chart: its string, its encoder and its position."""
    text = str(row["text"])
    if not text.startswith("<mean of"):
        text = metrics.shown_text(text, str(row["group"]))
    short = text if len(text) <= 18 else text[:17] + "…"
    return f"{short} · {row['encoder']} {row['token']}"


def group_color(seen: Sequence[str], columns: int = 3) -> alt.Color:
    """Return the colour of groups: always the same, the legend showing only those that are there."""
    return named_color("group", {name: GROUP_COLORS[name] for name in seen}, columns)


def named_color(field: str, colors: Mapping[str, str], columns: int) -> alt.Color:
    """Return the colour of a field's names, in their order, with a legend on top."""
    names = list(colors)
    return alt.Color(
        f"{field}:N",
        title=None,
        sort=names,
        scale=alt.Scale(domain=names, range=list(colors.values())),
        legend=alt.Legend(
            orient="top",
            columns=columns,
            symbolStrokeColor="#7f7f7f",
            symbolStrokeWidth=0.5,
            symbolType="square",
        ),
    )


def stacked_shares(field: str, label: str) -> alt.Y:
    """Return the y axis of bars whose parts sum to 1."""
    return alt.Y(
        f"{field}:Q",
        stack="zero",
        title=wrapped(label),
        scale=alt.Scale(domain=[0, 1], clamp=True),
        axis=alt.Axis(format=".1f", values=[0, 0.2, 0.4, 0.6, 0.8, 1]),
    )


def where_chosen(channel: type, then: object, otherwise: object):
    """Return a channel of one value where `chosen` is true in the data, and another elsewhere.

    The channel is named, as in alt.Y2("high:Q") in place of "high:Q": Altair takes milliseconds to find one by itself.
    """
    return channel(otherwise, condition={"test": "datum.chosen", "value": then})


def wrapped(label: str, width: int = 38) -> list[str]:
    """Return the label as lines that fit beside a chart of ordinary height."""
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def layer_axis(frame: pd.DataFrame) -> alt.X:
    """Return the x axis of layers, shared by heatmaps and group mass."""
    return alt.X(
        "layer:O",
        title="layer",
        scale=alt.Scale(padding=0),
        axis=alt.Axis(values=axis_ticks(frame["layer"]), labelAngle=0, grid=False),
    )


def axis_ticks(values: pd.Series) -> list[int]:
    """Return which layers or heads an axis names: all up to 12, then every second or fifth."""
    there = sorted(set(int(value) for value in values))
    every = 1 if len(there) <= 12 else 2 if len(there) <= 24 else 5
    return [value for value in there if value % every == 0] or there


def tips(*columns: str) -> list[alt.Tooltip]:
    """Return the tooltip of these columns, numbers to four digits."""
    numbers = {
        "value", "mean", "low", "high", "mass", "share", "chance", "timestep", "sigma", "epsilon", "times_uniform",
        "mean_difference", "effect", "p", "q",
    }  # fmt: skip
    return [
        alt.Tooltip(f"{name}:Q", format=".4~g") if name in numbers else alt.Tooltip(f"{name}:N")
        for name in columns
    ]


def brushed(chart: alt.Chart, brush: str | None) -> alt.Chart:
    """Return the chart with an interval selection of that name along x, as it is where the name is None."""
    return chart if brush is None else chart.add_params(alt.selection_interval(name=brush, encodings=["x"]))


def uniform_line(uniform: float) -> alt.Chart:
    """Draw a dashed line across a chart at what uniform attention would give."""
    frame = pd.DataFrame({"mean": [uniform], "note": ["uniform attention"]})
    line = alt.Chart(frame).mark_rule(color=MARK, strokeDash=[4, 3])
    return line.encode(y=alt.Y("mean:Q"), tooltip=tips("note", "mean"))


def layered(layers: Sequence[alt.Chart], width: int | None, height: int, title: str = "") -> alt.LayerChart:
    """Return the charts over each other, with size and title; each `properties` later on would copy all of them."""
    given = {"width": width, "height": height, "title": title or None}
    return alt.layer(*layers, **{name: value for name, value in given.items() if value is not None})


def sized(chart, width: int | None, height: int, title: str):
    """Return the chart with its size and title."""
    chart = chart.properties(height=height)
    if width is not None:
        chart = chart.properties(width=width)
    return chart.properties(title=title) if title else chart
