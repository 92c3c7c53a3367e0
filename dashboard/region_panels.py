"""What acts here: a region of the picture that is brushed, and the words, heads and steps whose maps lie there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from dashboard import cached_reads, map_pictures, panels, recipes
from dashboard.choosing import address, clicks
from dashboard.choosing.selection import View
from dashboard.map_pictures import CHART, Look, Panel
from sd35h5 import metrics
from sd35h5.figures import region_charts
from sd35h5.metrics import targets
from sd35h5.reports import view_address
from sd35h5.reports.view_page import Shown

BRUSHED = "region-picture"
#: a finger that drags over the picture brushes, and does not scroll the page
STYLE = f"<style>.st-key-{BRUSHED} :is(svg, canvas) {{touch-action: none}}</style>"
COLUMNS = ["mass", "share", "times_uniform"]


@dataclass(frozen=True)
class Asked:
    """Of what the rankings are: a run's panel, the word, the step and the layer (None: all) that Maps shows, and the
    state of the widgets that choose these, which a click in a ranking sets."""

    panel: Panel
    word: str
    step: int
    layer: int | None
    word_key: str
    step_key: str
    layer_key: str


def draw(view: View, asked: Asked, look: Look, scale: tuple[float, float]) -> None:
    """Draw the picture to brush, and beside it what acts in the region."""
    run = asked.panel.run
    st.markdown(f"**What acts here** · {panels.plain(run.name)}")
    rows, columns = targets.patch_grid(cached_reads.store(run))
    left, middle, right = st.columns(3)
    with left:
        region = choose(rows, columns, asked, look, scale)
    if region is None:
        middle.caption(
            "Drag over the picture, or choose rows and columns of patches under it: words, heads and steps are ranked "
            "by how much of their map lies there."
        )
        return
    with middle:
        words(view, asked, region)
    with right:
        heads(view, asked, region)
        steps(view, asked, region)
    patches = (region.y1 - region.y0 + 1) * (region.x1 - region.x0 + 1)
    where = "mean of layers" if asked.layer is None else f"layer {asked.layer}"
    area = f"{patches} patch{'es' * (patches > 1)}, {patches / (rows * columns):.0%} of the picture"
    st.caption(
        f"{panels.plain(str(region))}: {area}, in which a map that is the same everywhere has 1 × uniform (dashed). "
        f"Words are those of step {asked.step}, {where}; heads and steps are of “{panels.plain(asked.word)}”, heads at "
        f"step {asked.step}, steps as {where}. A click on a bar chooses it."
    )


def choose(rows: int, columns: int, asked: Asked, look: Look, scale) -> metrics.Region | None:
    """Draw the picture, and the region as two ranges for keyboards and fingers. Returns: None for the whole picture."""
    keys, place = (f"region-y-{rows}", f"region-x-{columns}"), st.container(key=BRUSHED)
    down = _range("Rows", keys[0], view_address.REGION_Y, rows)
    across = _range("Columns", keys[1], view_address.REGION_X, columns)
    is_whole = down == (0, rows - 1) and across == (0, columns - 1)
    if not is_whole:
        st.button(
            "The whole picture", icon=":material/close:", on_click=_forget, args=(keys,), width="stretch"
        )
    pixels = map_pictures.overlaid(
        asked.panel, asked.panel.values.sel(map_step=asked.step).values, look, scale
    )
    chosen = None if is_whole else (*down, *across)
    figure = region_charts.picture_to_brush(np.asarray(pixels), rows, columns, chosen=chosen, width=CHART[3])
    key = clicks.chart_key(f"region-{asked.panel.run.name}-{asked.panel.sample}")
    with place:
        st.html(STYLE)
        panels.draw(
            figure, width="content", key=key, selection_mode="brush",
            on_select=partial(clicks.remember_region, key, keys, (rows, columns)),
        )  # fmt: skip
    return None if is_whole else metrics.Region(*down, *across)


def _range(label: str, key: str, name: str, count: int) -> tuple[int, int]:
    whole = (0, count - 1)
    if count == 1:
        return whole
    draw = partial(st.slider, label, *whole)
    read = address.span_within(*whole)
    low, high = address.choice(draw, key, name, whole, read, lambda ends: f"{ends[0]}-{ends[1]}")
    return low, high


def _forget(keys: tuple[str, str]) -> None:
    for key in keys:
        del st.session_state[key]


def words(view: View, asked: Asked, region: metrics.Region) -> None:
    """Draw the words by what of their map lies in the region; a clicked one is shown above."""
    one = asked.panel
    table = cached_reads.region_words(one.run, one.sample, region, view.branch, asked.step, asked.layer)
    choices = cached_reads.map_choices(one.run, one.sample, view.branch)
    place = {row.map_tokens: row.Index for row in choices.itertuples()}
    names = [f"{row.text} · {'+'.join(map(str, row.tokens))}" for row in table.itertuples()]
    frame = table[["text", *COLUMNS]].assign(
        word=names, place=[place[tokens] for tokens in table["map_tokens"]],
        chosen=[tokens == one.map_tokens for tokens in table["map_tokens"]],
    )  # fmt: skip
    layers = None if asked.layer is None else [asked.layer]
    code = recipes.region(
        view, one.run, one.sample, region, "region_words", steps=[asked.step], layers=layers
    )
    _ranking(
        view,
        asked,
        "Words",
        frame,
        "word",
        ("place",),
        code,
        table[["text", "kind", *COLUMNS]],
        asked.word_key,
    )


def heads(view: View, asked: Asked, region: metrics.Region) -> None:
    """Draw the heads by what of their map lies in the region, or the layers; a clicked one is chosen for all pages."""
    one = asked.panel
    table = cached_reads.region_heads(one.run, one.sample, one.map_tokens, region, view.branch, asked.step)
    more = {"map_tokens": list(one.map_tokens), "steps": [asked.step]}
    if "head" not in table:
        code = recipes.region(view, one.run, one.sample, region, "region_layers", **more)
        frame = table.assign(
            name=[f"layer {layer}" for layer in table["layer"]], chosen=table["layer"] == asked.layer
        )
        _ranking(view, asked, "Layers", frame, "name", ("layer",), code, table, asked.layer_key)
        st.caption("The file holds no maps of single heads: capture them with `--map_heads all`.")
        return
    code = recipes.region(view, one.run, one.sample, region, "region_heads", **more)
    cells = list(zip(table["layer"], table["head"], strict=True))
    frame = table.assign(
        name=[f"layer {layer}, head {head}" for layer, head in cells],
        chosen=[cell == view.cell for cell in cells],
    )
    _ranking(view, asked, "Heads", frame, "name", ("layer", "head"), code, table, "cell")


def steps(view: View, asked: Asked, region: metrics.Region) -> None:
    """Draw the steps by what of the word's map lies in the region; a clicked one is shown above."""
    one = asked.panel
    table = cached_reads.region_steps(one.run, one.sample, one.map_tokens, region, view.branch, asked.layer)
    layers = None if asked.layer is None else [asked.layer]
    more = {"map_tokens": list(one.map_tokens), "layers": layers}
    code = recipes.region(view, one.run, one.sample, region, "region_steps", **more)
    frame = table.assign(name=[f"step {step}" for step in table["step"]], chosen=table["step"] == asked.step)
    _ranking(view, asked, "Steps", frame, "name", ("step",), code, table, asked.step_key)


def _ranking(
    view: View, asked: Asked, title: str, frame: pd.DataFrame, name: str, fields: tuple[str, ...], code: str,
    table: pd.DataFrame, state: str,
) -> None:  # fmt: skip
    """Draw a ranking whose clicked bar sets a state, and keep it for the exports."""
    key = clicks.chart_key(f"acts-{title}-{asked.panel.run.name}-{asked.panel.sample}")
    select, remember = "acts", partial(clicks.remember_choice, key, "acts", fields[0], state)
    if state == "cell":
        select, remember = "cell", partial(clicks.remember_cell, key)
        if not panels.chooses_joint_heads():
            select = None
    figure = region_charts.region_bars(
        frame, name, top=12 if title == "Words" else 7, select=select, fields=fields
    )
    st.caption(f"**{title}**")
    panels.keep(Shown(f"{asked.panel.run.name}: {title.lower()} that act in the region", figure, table, code))
    options = {"on_select": remember, "selection_mode": select} if select else {}
    panels.draw(figure, width="stretch", key=key, **options)
