"""Tokens: the prompt as coloured chips, tokens, groups and prompts as ranked bars. DataFrame → Altair chart."""

from __future__ import annotations

import unicodedata

import altair as alt
import numpy as np
import pandas as pd

from sd35h5.figures import scales
from sd35h5.figures.prompt_names import folded, short_names
from sd35h5.store.schema import GROUPS

LETTER = 7.4  # pixels of a letter in the chips' type
LINE = 40  # pixels of a line of chips
GAP, HEADING = 0.8, 6.5  # letters between chips, and before the first
LONGEST = 60  # letters of a chip; more are left out
MASS = "mass a token: share of an image query's attention"


def token_chips(
    frame: pd.DataFrame,
    *,
    log: bool = True,
    chosen: frozenset[int] = frozenset(),
    select: str | None = None,
    width: int = 880,
    room: int = 0,
) -> alt.LayerChart:
    """Draw a prompt's tokens as chips in reading order, filled by mass, with a foot in the colour of their group.

    Args:
        frame: of `metrics.token_chips`.
        log: colours even in the logarithm of mass: one heavy token leaves the others apart.
        chosen: tokens to outline.
        select: name of a click selection of one chip (field token), none when None.
        room: pixels of height for the legends, where the page counts them in.
    """
    data, lines = _laid_out(frame, width)
    positive = data["mass"][data["mass"] > 0]
    log = log and len(positive) > 0
    low, high = scales.span(positive) if log else scales.magnitude(data["mass"])
    scale = alt.Scale(scheme="viridis", type="log" if log else "linear", domain=[low, high], clamp=True)
    place = np.log(data["mass"].clip(lower=low) / low) / np.log(high / low) if log else data["mass"] / high
    data["ink"] = np.where(place > 0.6, "#111111", "#ffffff")  # NaN too: white on grey
    data["chosen"] = data["token"].isin(chosen)
    seen = [group for group in GROUPS if group in set(data["group"])]
    base = alt.Chart(data).encode(
        x=alt.X("left:Q", axis=None, scale=alt.Scale(domain=[0, width / LETTER], nice=False)),
        y=alt.Y("top:Q", axis=None, scale=alt.Scale(domain=[0, lines], reverse=True, nice=False)),
        tooltip=_chip_tips(),
    )
    fill = alt.Color(
        "mass:Q",
        scale=scale,
        legend=alt.Legend(
            title=MASS, titleLimit=400, orient="bottom", gradientLength=320, gradientThickness=10,
            labelExpr=scales.short_numbers(".2~g"),
            values=[float(v) for v in (np.geomspace(low, high, 4) if log else np.linspace(low, high, 4))],
        ),
    )  # fmt: skip
    body = base.mark_rect(cornerRadius=3, invalid=None).encode(
        x2=alt.X2("right:Q"),
        y2=alt.Y2("bottom:Q"),
        fill=alt.condition("!isValid(datum.mass)", alt.value("#b0b0b0"), fill),
        stroke=scales.where_chosen(alt.StrokeValue, scales.MARK, "#7f7f7f"),
        strokeWidth=scales.where_chosen(alt.StrokeWidthValue, 3, 0.5),
    )
    if select is not None:
        body = body.add_params(
            alt.selection_point(name=select, fields=["token"], on="click", clear="dblclick")
        )
    feet = base.mark_rect().encode(
        y=alt.Y("foot:Q"),
        y2=alt.Y2("floor:Q"),
        x2=alt.X2("right:Q"),
        color=scales.group_color(seen, columns=len(seen)),
    )
    kind = {"font": "monospace", "fontSize": 12, "baseline": "middle", "aria": False}
    words = base.mark_text(align="center", tooltip=None, **kind).encode(
        x=alt.X("middle:Q"), y=alt.Y("line:Q"), text=alt.Text("label:N"), color=alt.Color("ink:N", scale=None)
    )
    heads = data.drop_duplicates("encoder")[["encoder", "line"]]
    heads = heads.assign(left=0.0, encoder=heads["encoder"].str.upper())
    names = alt.Chart(heads).mark_text(align="left", color="#888888", fontWeight="bold", **kind)
    names = names.encode(x=alt.X("left:Q"), y=alt.Y("line:Q"), text=alt.Text("encoder:N"))
    figure = alt.layer(body, feet, words, names).resolve_scale(color="independent", fill="independent")
    return figure.properties(width=width, height=lines * LINE + room)


def _laid_out(frame: pd.DataFrame, width: int) -> tuple[pd.DataFrame, int]:
    """Give each chip its place: words run on, an encoder begins a line. Returns: the frame, the number of lines."""
    data = frame.copy()
    texts = [text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in data["text"]]
    sums = [
        f" Σ {total:.2g}" if count > 1 else ""
        for count, total in zip(data["count"], data["total"], strict=True)
    ]
    data["label"] = [text + total for text, total in zip(texts, sums, strict=True)]
    across, line, at, before = width / LETTER, -1, 0.0, None
    places = []
    for encoder, label in zip(data["encoder"], data["label"], strict=True):
        size = _letters(label) + 1.6
        if encoder != before or at + size > across:
            line, at, before = line + 1, HEADING, encoder
        places.append((at, at + size, line))
        at += size + GAP
    data["left"], data["right"], row = (np.array(values, float) for values in zip(*places, strict=True))
    data["middle"] = (data["left"] + data["right"]) / 2
    data["top"], data["bottom"] = row + 0.1, row + 0.76
    data["line"], data["foot"], data["floor"] = row + 0.43, row + 0.8, row + 0.9
    return data, line + 1


def _letters(label: str) -> int:
    """How many letters wide a label is: Han, kana, Hangul and emoji take two each, marks none."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in label
    )


def group_bars(frame: pd.DataFrame, *, width: int | None = None) -> alt.Chart:
    """Draw the mass of each group as ranked bars.

    Args: frame: of `metrics.group_totals`.
    """
    names = list(frame["group"])
    bars = (
        alt.Chart(frame)
        .mark_bar(stroke="#7f7f7f", strokeWidth=0.5)
        .encode(
            x=alt.X(
                "mass:Q",
                title="mass of the group: share of an image query's attention",
                axis=alt.Axis(labelExpr=scales.short_numbers(), tickCount=5),
            ),
            y=alt.Y("group:N", sort=names, title=None, axis=alt.Axis(labelLimit=170, labelOverlap=False)),
            color=alt.Color(
                "group:N",
                legend=None,
                scale=alt.Scale(domain=names, range=[scales.GROUP_COLORS[name] for name in names]),
            ),
            tooltip=[
                alt.Tooltip("group:N"), alt.Tooltip("tokens:Q"), alt.Tooltip("mass:Q", format=".4~g"),
                alt.Tooltip("each:Q", title="mean a token", format=".4~g"),
            ],
        )
    )  # fmt: skip
    return scales.sized(bars, width, max(80, 24 * len(names)) + 70, "")


def sample_bars(frame: pd.DataFrame, label: str, *, top: int = 40, width: int | None = None) -> alt.Chart:
    """Draw the mean of each sample as ranked bars, named by its prompt.

    Args: frame: of `metrics.sample_means`; label: what the value is, with its unit.
    """
    data = frame.dropna(subset=["value"]).head(top).copy()
    names = short_names(data["prompt"].tolist())
    data["name"] = [f"{sample} · {name}" for sample, name in zip(data["sample"], names, strict=True)]
    data["prompt"] = [folded(prompt, 200) for prompt in data["prompt"]]
    bars = (
        alt.Chart(data)
        .mark_bar(color=scales.RUN_COLORS[0])
        .encode(
            x=alt.X(
                "value:Q",
                title=scales.wrapped(label),
                axis=alt.Axis(labelExpr=scales.short_numbers(), tickCount=4),
            ),
            y=alt.Y(
                "name:N",
                sort=list(data["name"]),
                title=None,
                axis=alt.Axis(labelLimit=210, labelOverlap=False, labelFlush=False),
            ),
            tooltip=[*scales.tips("sample", "prompt"), alt.Tooltip("value:Q", format=".4~g")],
        )
    )
    return scales.sized(bars, width, max(80, 22 * len(data)) + 70, "")


def _chip_tips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("text:N"), alt.Tooltip("token:Q", title="first token"), alt.Tooltip("last:Q", title="last token"),
        alt.Tooltip("encoder:N"), alt.Tooltip("group:N"), alt.Tooltip("mass:Q", title="mass a token", format=".4~g"),
        alt.Tooltip("total:Q", title="mass in all", format=".4~g"),
    ]  # fmt: skip


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
