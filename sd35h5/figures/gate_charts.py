"""Gates: heads by their gate, dead and open ones marked; what keys add after the gate. DataFrame → Altair chart."""

from __future__ import annotations

import altair as alt
import pandas as pd

from sd35h5.figures import heatmaps, scales
from sd35h5.figures.sink_charts import KIND_COLORS, KIND_NAMES

SIGNS = {"dead": "✕", "open": "○"}


def gate_heatmap(
    frame: pd.DataFrame,
    *,
    largest: float = 1.0,
    chosen: tuple[int, int] | None = None,
    width: int = 340,
    height: int = 300,
) -> alt.Chart | alt.LayerChart:
    """Draw the mean gate by layer and head on a scale from 0 to `largest`; ✕ marks dead heads, ○ open ones.

    Args:
        frame: of `metrics.gate_heads`.
        largest: 1 for σ, 2 for 2σ: so that panels of one run, and runs, are compared on one scale.
        chosen: as in `heatmaps.layer_head_heatmap`.
    """
    cells = heatmaps.layer_head_heatmap(
        frame.assign(value=frame["mean"]), f"mean gate (0 closed … {largest:g} open)", domain=(0.0, largest),
        chosen=chosen, width=width, height=height,
    )  # fmt: skip
    marked = frame[frame["state"].isin(SIGNS)]
    if marked.empty:
        return cells
    ink = ["#111111" if mean > 0.6 * largest else "#ffffff" for mean in marked["mean"]]
    signs = marked[["layer", "head"]].assign(sign=marked["state"].map(SIGNS), ink=ink)
    text = alt.Chart(signs).mark_text(fontSize=12, fontWeight="bold", tooltip=None)
    signs = text.encode(
        x=alt.X("layer:O"), y=alt.Y("head:O"), text=alt.Text("sign:N"), color=alt.Color("ink:N", scale=None)
    )
    return alt.layer(cells, signs).resolve_scale(color="independent").properties(width=width, height=height)


def contribution_bars(frame: pd.DataFrame, *, height: int = 320, width: int | None = None) -> alt.LayerChart:
    """Draw, a row a kind of key, its part of the heaviest keys' mass (ring) and of what they add after the gate (bar).

    Args: frame: of `metrics.contribution_shares`.
    """
    data = frame.sort_values("mass", ascending=False).copy()
    data["name"] = data["kind"].map(lambda kind: KIND_NAMES.get(kind, kind))
    base = alt.Chart(data).encode(
        y=alt.Y("name:N", sort=list(data["name"]), title=None, axis=alt.Axis(labelOverlap=False, labelFlush=False)),
        tooltip=[
            alt.Tooltip("name:N", title="kind"), alt.Tooltip("mass:Q", title="part of the mass", format=".3~g"),
            alt.Tooltip("added:Q", title="part of what is added", format=".3~g"),
        ],
    )  # fmt: skip
    x = {"title": "part of the captured heaviest keys' total (0..1)", "axis": alt.Axis(tickCount=5)}
    bars = base.mark_bar(stroke="#7f7f7f", strokeWidth=0.5).encode(
        x=alt.X("added:Q", **x),
        color=alt.Color(
            "kind:N",
            legend=None,
            scale=alt.Scale(domain=list(data["kind"]), range=[KIND_COLORS[kind] for kind in data["kind"]]),
        ),
    )
    rings = base.mark_point(size=90, color=scales.MARK, strokeWidth=2, filled=False).encode(
        x=alt.X("mass:Q", **x)
    )
    return scales.layered([bars, rings], width, height, "")
