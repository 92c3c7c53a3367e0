"""Maps: the generated image with the attention map of a word over it, over steps, layers and words, run
beside run."""

from dataclasses import dataclass

import numpy as np
import streamlit as st
import xarray as xr

from dashboard import data, panels
from sd35h5 import maps, metrics, pictures

SHEET_WIDTH = 900  # pixels
ACROSS = 8


@dataclass(frozen=True)
class Panel:
    """One run's picture: its image, the maps of the chosen word (map_step, y, x), and all layers' (…, layer,
    y, x)."""

    run: data.Run
    sample: int
    image: np.ndarray | None
    values: xr.DataArray
    layers: xr.DataArray


def choose_word(view) -> dict:
    """Offer the words and tokens that have a map in the shown sample, the sidebar's word or token first."""
    table = data.map_choices(view.run, view.sample, view.branch)
    wanted = [row.Index for row in table.itertuples() if view.target.value in (row.word_text, *row.tokens)]
    words = table[table["word_text"] != ""].sort_values(
        "text", key=lambda texts: -texts.str.len(), kind="stable"
    )
    longest = list(words.index[:1])  # a noun more often than “a” or “of”
    default = wanted if wanted and view.target != metrics.FIRST_TOKEN else longest
    place = st.selectbox(
        "Word or token",
        list(table.index),
        index=default[0] if default else 0,
        format_func=lambda row: table.loc[row, "label"],
        key=f"word-{view.run.name}-{view.sample}-{view.target}",
        help="a word is the sum of its CLIP and T5 tokens",
    )
    return table.loc[place].to_dict()


def panel(view, run: data.Run, word: dict, layer: int | None) -> Panel | None:
    """Read a run's maps of that word in the sample that pairs with the shown one; None when there is none."""
    sample = view.sample
    if run != view.run:
        pairs = data.pairing(view.run, run).pairs
        found = pairs.loc[pairs["reference_sample"] == view.sample, "other_sample"]
        if found.empty:
            return None
        sample = int(found.iloc[0])
    table = data.map_choices(run, sample, view.branch)
    same = table.index[[tokens == word["tokens"] for tokens in table["tokens"]]]
    if same.empty:
        return None
    layers = data.token_maps(run, sample, table.loc[same[0], "map_tokens"], view.branch)
    values = layers.mean("layer", skipna=True) if layer is None else layers.sel(layer=layer)
    return Panel(run, sample, data.image(run, sample), values, layers)


def shape(one: Panel) -> tuple[int, int]:
    """Return (height, width) of the panel's picture."""
    return one.image.shape[:2] if one.image is not None else maps.picture_shape(one.values)


def drawn(one: Panel, values: np.ndarray, high: float, opacity: float, smooth: bool) -> np.ndarray:
    """Return the map over the image, or alone where the run kept no image."""
    if one.image is None:
        return pictures.map_picture(values, shape(one), high=high, smooth=smooth)
    return pictures.overlay(one.image, values, opacity=opacity, high=high, smooth=smooth)


def stills(panels_: list[Panel], step: int, high: float, opacity: float, smooth: bool, plays: bool) -> None:
    """Draw each run's overlay beside the others; a single run also shows its image and its map alone."""
    columns = st.columns(max(3, len(panels_)))
    for column, one in zip(columns, panels_, strict=False):
        with column:
            if plays:
                frames = [
                    drawn(one, one.values.sel(map_step=at).values, high, opacity, smooth)
                    for at in one.values["map_step"].values
                ]
                st.image(
                    pictures.gif(frames), width="stretch", caption=f"{panels.plain(one.run.name)} · all steps"
                )
            else:
                picture = drawn(one, one.values.sel(map_step=step).values, high, opacity, smooth)
                st.image(picture, width="stretch", caption=f"{panels.plain(one.run.name)} · step {step}")
    if len(panels_) == 1:
        one = panels_[0]
        with columns[1]:
            alone = pictures.map_picture(one.values.sel(map_step=step).values, shape(one), high=high)
            st.image(alone, width="stretch", caption="the map alone, a square a cell")
        with columns[2]:
            if one.image is not None:
                st.image(one.image, width="stretch", caption="the generated image")


def step_sheet(one: Panel, high: float, opacity: float, smooth: bool) -> pictures.Image.Image:
    """Return a tile a captured step."""
    steps = one.values["map_step"].values
    tiles = [drawn(one, one.values.sel(map_step=at).values, high, opacity, smooth) for at in steps]
    return tiled(one, tiles, [f"step {int(at)}" for at in steps])


def layer_sheet(one: Panel, step: int, opacity: float, smooth: bool, high: float) -> pictures.Image.Image:
    """Return a tile a layer at one step, one colour scale over all layers."""
    at = one.layers.sel(map_step=step)
    tiles = [drawn(one, at.sel(layer=layer).values, high, opacity, smooth) for layer in at["layer"].values]
    return tiled(one, tiles, [f"layer {int(layer)}" for layer in at["layer"].values])


def tiled(one: Panel, tiles: list[np.ndarray], labels: list[str]) -> pictures.Image.Image:
    """Return the tiles as a contact sheet as wide as the page at 1280 pixels."""
    columns = min(ACROSS, max(4, len(tiles)))
    tile = maps.fit(shape(one), SHEET_WIDTH // columns - 8)
    return pictures.sheet(tiles, labels, columns=columns, size=tile, clear=True)


def word_sheet(
    view, one: Panel, step: int, layer: int | None, opacity: float, smooth: bool
) -> pictures.Image.Image:
    """Return a tile a mapped token at one step, each on its own colour scale, whose end is written under
    it."""
    tiles, labels = [], []
    table = data.map_choices(one.run, one.sample, view.branch)
    for row in table[table["kind"] != "piece"].to_dict("records"):
        values = data.token_maps(one.run, one.sample, row["map_tokens"], view.branch).sel(map_step=step)
        values = (values.mean("layer", skipna=True) if layer is None else values.sel(layer=layer)).values
        high = float(np.nanmax(values))
        tiles.append(drawn(one, values, high, opacity, smooth))
        labels.append(f"{row['text']} ≤ {high:.2g}")
    return tiled(one, tiles, labels)


def show(view) -> None:
    """Lay out the page."""
    first, second, third, fourth = st.columns([3, 3, 2, 2])
    with first:
        word = choose_word(view)
    steps = [
        int(step)
        for step in data.store(view.run)
        .read("maps/image_to_text", sample=0, branch=0, map_token=0, layer=0, y=0, x=0)["map_step"]
        .values
    ]
    with second:
        options = [None, *range(data.store(view.run).sizes["layer"])]
        layer = st.selectbox(
            "Layer",
            options,
            index=0 if view.cell is None else options.index(view.cell[0]),
            key=f"map-layer-{view.cell}",
            format_func=lambda place: "mean of layers" if place is None else f"layer {place}",
        )
    with third:
        opacity = st.slider("Opacity", 0.0, 1.0, 0.6, 0.05, key="opacity")
    with fourth:
        smooth = st.toggle("Smooth", True, key="smooth", help="off: each cell of the map as a square")
        plays = st.toggle("Play steps", False, key="plays")
    step = st.select_slider(
        "Step", steps, value=steps[-1], key=f"map-step-{len(steps)}-{steps[-1]}", disabled=plays
    )
    drawn_runs = []
    for run in (view.run, *view.others):
        with data.sentence(run):
            one = panel(view, run, word, layer)
            if one is not None:
                drawn_runs.append(one)
            else:
                st.caption(f"{panels.plain(run.name)}: no map of this word in a paired sample")
    if not drawn_runs:
        return
    high = max(float(one.values.max()) for one in drawn_runs)
    stills(drawn_runs, step, high, opacity, smooth, plays)
    st.image(pictures.color_bar(0, high, 320, clear=True))
    st.caption(
        "attention of image patches to the word, mean over heads (0..1); one scale for all runs and steps"
    )
    over_steps, over_layers, over_words = st.tabs(["Over steps", "Over layers", "All words"])
    top = max(float(one.layers.sel(map_step=step).max()) for one in drawn_runs)
    for one in drawn_runs:
        name = panels.plain(one.run.name)
        with over_steps:
            st.caption(f"{name} · colours from 0 to {high:.3g}")
            st.image(step_sheet(one, high, opacity, smooth))
        with over_layers:
            st.caption(f"{name} · step {step} · colours from 0 to {top:.3g}")
            st.image(layer_sheet(one, step, opacity, smooth, top))
        with over_words:
            st.caption(f"{name} · step {step} · each word on its own scale, from 0")
            st.image(word_sheet(view, one, step, layer, opacity, smooth))


view = panels.current()
st.subheader("Maps: where the image looks at a word")
st.caption(f"“{panels.plain(panels.prompt(view.run, view.sample))}” · {view.branch} branch")
with data.sentence(view.run):
    show(view)
