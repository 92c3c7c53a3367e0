"""The rows that Maps draws: where a chosen patch or word looks, on the image and over the text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pandas as pd
import streamlit as st
import xarray as xr

from dashboard import cached_reads, panels, recipes
from dashboard.choosing import address
from dashboard.map_pictures import CHART, LARGE, Look, steps_of
from sd35h5 import metrics
from sd35h5.figures import map_charts, overlays, token_charts
from sd35h5.metrics import attention_maps, query_rows
from sd35h5.reports import missing_tiers
from sd35h5.reports.view_page import Shown, picture_bytes

TOP = 12  # tokens


@dataclass(frozen=True)
class Chosen:
    """What the maps above the rows show: the step (None where there are no maps), the layer (None: their mean)."""

    step: int | None
    layer: int | None
    look: Look


def draw(view, chosen: Chosen) -> None:
    """Draw where a chosen query of the shown sample looks, or say how to capture that."""
    st.markdown("**Where a chosen patch or word looks**")
    store = cached_reads.store(view.run)
    if query_rows.ROWS not in store:
        absent(view)
        return
    table = cached_reads.row_choices(view.run, view.sample, view.branch)
    query = choose(view, table)
    layers = cached_reads.row_maps(view.run, view.sample, int(query["row"]), view.branch)
    values = layers.mean("layer", skipna=True) if chosen.layer is None else layers.sel(layer=chosen.layer)
    captured = steps_of(values)
    where = "mean of layers" if chosen.layer is None else f"layer {chosen.layer}"
    if not captured:
        st.caption(f"No row of {panels.plain(query['label'])} was captured of {where}.")
        return
    step = chosen.step if chosen.step in captured else captured[-1]
    figures(view, query, values, step, chosen)
    st.caption(
        f"the attention of {panels.plain(query['label'])} at step {step}, {where}, mean over heads: its share on each "
        "patch and each token (0..1); colours on one scale for all steps"
    )


def absent(view) -> None:
    """Say in a sentence which command captures the rows."""
    name = panels.plain(view.run.name)
    store = cached_reads.store(view.run)
    if not (store.config.get("model_id") or store.config.get("imported")):
        st.caption(
            f'{name} was captured without rows: give `rows=["centre"]` to `sd35h5.capture` to have them.'
        )
        return
    with cached_reads.sentence(view.run):
        command = missing_tiers.capture_command(store, ["rows"], f"{store.name}-rows.h5")
        prompts = (
            f"; {missing_tiers.PROMPTS_FILE} is on the page Files"
            if missing_tiers.prompts_file(store)
            else ""
        )
        st.caption(
            f"{name} was captured without rows; this captures the same pictures with that of the middle patch "
            f"(`--rows` also takes patches `x,y` and words `word:cat`{prompts}):"
        )
        st.code(command, language="bash", wrap_lines=True)


def choose(view, table: pd.DataFrame) -> dict:
    """Offer the queries whose rows are there."""
    names = dict(zip(table["row"], table["label"], strict=True))
    options = [int(row) for row in table["row"]]
    widget = partial(st.selectbox, "Patch or word", options, format_func=names.get)
    key = f"row-{view.run.name}-{view.sample}-{view.branch}"
    row = address.choice(widget, key, "row", options[0], address.one_of(options))
    return table.set_index("row", drop=False).loc[row].to_dict()


def figures(view, query: dict, values: xr.DataArray, step: int, chosen: Chosen) -> None:
    """Draw the row over the image, its cells, and the tokens that get most of it."""
    low, high = chosen.look.scale([values])
    shown, image = values.sel(map_step=step, drop=True), cached_reads.image(view.run, view.sample, LARGE)
    shape = image.shape[:2] if image is not None else attention_maps.picture_shape(values)
    smooth = chosen.look.smooth
    if image is None:
        over = overlays.map_picture(shown.values, shape, low=low, high=high, smooth=smooth)
    else:
        over = overlays.overlay(
            image, shown.values, opacity=chosen.look.opacity, low=low, high=high, smooth=smooth
        )
    mark = (int(query["y"]), int(query["x"])) if query["stream"] == "image" else None
    if mark is not None:
        down, across = (map_charts.patch_count(values, axis) for axis in "yx")
        y, x = mark
        over = overlays.boxed(over, [((x / across, y / down, (x + 1) / across, (y + 1) / down), "", True)])
    left, middle, right = st.columns(3)
    left.image(over, width="stretch", caption=f"{panels.plain(view.run.name)} · step {step}")
    cells = map_charts.map_heatmap(
        shown, "value", domain=(low, high if high > low else low + 1e-9), mark=mark, width=CHART[3]
    )
    numbers = shown.rename("value").to_dataframe()["value"].reset_index()[["y", "x", "value"]]
    code = recipes.row_map(view, int(query["row"]), step, chosen.layer)
    name = f"Where {query['label']} looks at step {step}"
    panels.keep(Shown(name, picture_bytes(over), numbers, code))
    with middle:
        panels.draw(cells, width="content", key="row-cells")
        st.caption("the same alone: the pointer reads a cell")
    with right:
        masses = cached_reads.row_tokens(
            view.run, view.sample, int(query["row"]), step, chosen.layer, view.branch
        )
        bars = token_charts.token_bars(
            metrics.with_pads_averaged(masses), top=TOP, label="share of its attention", room=140, columns=2
        )
        code = recipes.row_tokens(view, int(query["row"]), step, chosen.layer)
        panels.chart(bars, f"Tokens that {query['label']} looks at", masses, code)
