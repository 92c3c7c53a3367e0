"""Sinks: layer × head heatmap, step curve, token bars and group mass, all following the sidebar and the
clicked cell."""

import pandas as pd
import streamlit as st

from dashboard import data, panels
from sd35h5 import charts, metrics

KINDS = {
    "padding averaged": metrics.with_pads_averaged,
    "every token": lambda frame: frame,
    "words only": lambda frame: frame[frame["group"].isin(["clip_word", "t5_word"])],
}
COUNTS = {f"top {count}": count for count in (12, 24, 48, 96)}


def heatmap(view, values) -> None:
    """Draw the heatmap; a click on a cell filters the other charts."""
    frame = metrics.by_layer_head(view.within(values))
    st.markdown("**Layer × head** · click a cell to filter the other charts")
    panels.clickable(
        charts.layer_head_heatmap(
            frame, view.label, chosen=view.cell, select="cell", width=340, height=panels.tall(view, 430)
        ),
        "heat",
    )


def curve(view, values) -> None:
    """Draw the metric over steps: all chosen layers and heads, and the clicked cell beside them."""
    x = st.segmented_control(
        "x axis", ["step", "timestep", "sigma"], default="step", key="x", label_visibility="collapsed"
    )
    prompts = list(data.samples(view.run).set_index("sample").loc[list(view.samples), "prompt_id"])
    everything = metrics.over_steps(view.within(values), prompts).assign(series="mean of layers and heads")
    frames = [everything]
    if view.cell is not None:
        cell = metrics.over_steps(view.at_cell(values), prompts)
        frames.insert(0, cell.assign(series=f"layer {view.cell[0]}, head {view.cell[1]}"))
    panels.chart(
        charts.step_curve(pd.concat(frames), view.label, x=x or "step", height=panels.tall(view, 430) - 40)
    )
    if len(set(prompts)) > 1:
        st.caption(
            f"line: mean over {len(set(prompts))} prompts; band: 10th to 90th percentile across prompts"
        )


def tokens(view) -> None:
    """Draw the heaviest tokens of the shown sample."""
    layers, heads = (view.layers, view.heads) if view.cell is None else ((view.cell[0],), (view.cell[1],))
    frame = data.token_mass(view.run, view.sample, view.branch, view.steps, layers, heads)
    sizes = data.store(view.run).sizes
    first, second, third = st.columns([3, 2, 2])
    kind = first.selectbox("Tokens", list(KINDS), key="kind", label_visibility="collapsed")
    top = second.selectbox("How many", list(COUNTS), index=1, key="top", label_visibility="collapsed")
    log = third.toggle("Log scale", key="log")
    frame = KINDS[kind](frame)
    keys = sizes["token"] + panels.patches(view.run)
    panels.chart(
        charts.token_bars(
            frame, top=COUNTS[top], uniform=1 / keys if keys > sizes["token"] else None, log=log, room=120
        )
    )
    st.caption("dashed: uniform attention, 1 ÷ number of keys" if keys > sizes["token"] else "")


def groups(view) -> None:
    """Draw where the mass goes over layers, for the clicked head or the mean of heads."""
    mass = view.within(data.mean_group_mass(view.run, view.branch, "image", view.samples))
    layer = None
    if view.cell is not None:
        mass, layer = mass.sel(head=[view.cell[1]]), view.cell[0]
    panels.chart(charts.group_mass(metrics.groups_over_layers(mass), layer=layer, height=560))


view = panels.current()
where = "" if view.cell is None else f" · layer {view.cell[0]}, head {view.cell[1]}"
st.subheader(panels.plain(f"{view.run.name}: {panels.METRIC_TITLES[view.metric]}"))
st.caption(panels.plain(panels.about(view)))
values = None
with data.sentence(view.run):
    values = data.metric(view.run, view.metric, view.target, view.branch, view.samples)
if values is not None:
    left, right = st.columns(2)
    with left:
        heatmap(view, values)
    with right:
        st.markdown(f"**Over the denoising steps**{where}")
        curve(view, values)
left, right = st.columns(2)
with left:
    st.markdown(f"**Heaviest text tokens**{where} · “{panels.plain(panels.prompt(view.run, view.sample))}”")
    with data.sentence(view.run):
        tokens(view)
with right:
    st.markdown(f"**Where the mass goes**{'' if view.cell is None else f' · head {view.cell[1]}'}")
    with data.sentence(view.run):
        groups(view)
