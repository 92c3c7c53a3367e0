"""Maps: the generated image with the attention map of a word over it, over steps, layers and words, run
beside run."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import streamlit as st
import xarray as xr

from dashboard import address, data, panels, recipes
from sd35h5.analysis import maps, metrics, pictures
from sd35h5.analysis.view_html import Shown, picture_bytes

SHEET_WIDTH = 900  # pixels
ACROSS = 8
SMALL, LARGE = (
    240,
    768,
)  # longest side of a tile and of a picture: a 1024-pixel image a tile would take seconds


@dataclass(frozen=True)
class Panel:
    """One run's pictures: its image at two sizes, the chosen word's maps (map_step, y, x), and those of each
    layer."""

    run: data.Run
    sample: int
    image: np.ndarray | None
    small: np.ndarray | None
    values: xr.DataArray
    layers: xr.DataArray
    map_tokens: tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """How maps are drawn: the opacity over the image, smooth or as squares, colours from 0 or from the
    lowest."""

    opacity: float
    smooth: bool
    stretched: bool

    def scale(self, values: list[xr.DataArray]) -> tuple[float, float]:
        """Return (low, high) of one colour scale for all these values."""
        low = min(float(one.min()) for one in values) if self.stretched else 0.0
        return low, max(float(one.max()) for one in values)


def choose_word(view) -> dict:
    """Offer the words and tokens that have a map in the shown sample, the sidebar's word or token first."""
    table = data.map_choices(view.run, view.sample, view.branch)
    wanted = [row.Index for row in table.itertuples() if view.target.value in (row.word_text, *row.tokens)]
    chosen = wanted if wanted and view.target != metrics.FIRST_TOKEN else [maps.first_thing(table)]
    names = {row.Index: ".".join(map(str, row.tokens)) for row in table.itertuples()}
    draw = partial(
        st.selectbox,
        "Word or token",
        list(table.index),
        format_func=lambda row: table.loc[row, "label"],
        help="a word is the sum of its CLIP and T5 tokens",
    )
    key = f"word-{view.run.name}-{view.sample}-{view.target}"
    place = address.choice(draw, key, "word", int(chosen[0]), address.one_of(names, names.get), names.get)
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
    map_tokens = table.loc[same[0], "map_tokens"]
    layers = data.token_maps(run, sample, map_tokens, view.branch)
    values = layers.mean("layer", skipna=True) if layer is None else layers.sel(layer=layer)
    image, small = data.image(run, sample, LARGE), data.image(run, sample, SMALL)
    return Panel(run, sample, image, small, values, layers, map_tokens)


def shape(one: Panel) -> tuple[int, int]:
    """Return (height, width) of the panel's picture."""
    return one.image.shape[:2] if one.image is not None else maps.picture_shape(one.values)


def drawn(
    one: Panel, values: np.ndarray, look: Look, scale: tuple[float, float], small: bool = False
) -> np.ndarray:
    """Return the map over the image, or alone where the run kept no image."""
    low, high = scale
    image = one.small if small else one.image
    if image is None:
        return pictures.map_picture(values, shape(one), low=low, high=high, smooth=look.smooth)
    return pictures.overlay(image, values, opacity=look.opacity, low=low, high=high, smooth=look.smooth)


def stills(shown: list[Panel], step: int, look: Look, scale: tuple[float, float], plays: bool) -> None:
    """Draw each run's overlay beside the others; a single run also shows its image and its map alone."""
    columns = st.columns(max(3, len(shown)))
    for column, one in zip(columns, shown, strict=False):
        steps = one.values["map_step"].values if plays else [step]
        frames = [drawn(one, one.values.sel(map_step=at).values, look, scale) for at in steps]
        picture = pictures.gif(frames) if plays else frames[0]
        caption = f"{panels.plain(one.run.name)} · {'all steps' if plays else f'step {step}'}"
        column.image(picture, width="stretch", caption=caption)
    if len(shown) == 1:
        one, (low, high) = shown[0], scale
        alone = pictures.map_picture(one.values.sel(map_step=step).values, shape(one), low=low, high=high)
        columns[1].image(alone, width="stretch", caption="the map alone, a square a cell")
        if one.image is not None:
            columns[2].image(one.image, width="stretch", caption="the generated image")


def sheet(
    one: Panel, named: dict[str, np.ndarray], look: Look, scale: tuple[float, float]
) -> pictures.Image.Image:
    """Return a contact sheet of these maps, as wide as the page at 1280 pixels."""
    return tiled(one, [drawn(one, values, look, scale, small=True) for values in named.values()], list(named))


def word_sheet(view, one: Panel, step: int, layer: int | None, look: Look) -> pictures.Image.Image:
    """Return a tile a word at one step, each on its own colour scale, whose ends are written under it."""
    tiles, labels = [], []
    table = data.map_choices(one.run, one.sample, view.branch)
    for row in table[table["kind"] != "piece"].to_dict("records"):
        values = data.token_maps(one.run, one.sample, row["map_tokens"], view.branch).sel(map_step=step)
        values = values.mean("layer", skipna=True) if layer is None else values.sel(layer=layer)
        scale = look.scale([values])
        tiles.append(drawn(one, values.values, look, scale, small=True))
        labels.append(f"{row['text']} {scale[0]:.2g} to {scale[1]:.2g}")
    return tiled(one, tiles, labels)


def tiled(one: Panel, tiles: list[np.ndarray], labels: list[str]) -> pictures.Image.Image:
    """Return the tiles as a contact sheet: at most ACROSS in a row."""
    columns = min(ACROSS, max(4, len(tiles)))
    tile = maps.fit(shape(one), SHEET_WIDTH // columns - 8)
    return pictures.sheet(tiles, labels, columns=columns, size=tile, clear=True)


def choose_layer(view) -> int | None:
    """Offer the layers, the clicked cell's first; None is their mean."""
    options = ["mean", *range(data.store(view.run).sizes["layer"])]
    draw = partial(
        st.selectbox,
        "Layer",
        options,
        format_func=lambda place: "mean of layers" if place == "mean" else f"layer {place}",
    )
    default = "mean" if view.cell is None else view.cell[0]
    layer = address.choice(draw, f"map-layer-{view.cell}", "layer", default, address.one_of(options))
    return None if layer == "mean" else layer


def read_panels(view, word: dict, layer: int | None) -> list[Panel]:
    """Read the run and those beside it; say which has no such map."""
    shown = []
    for run in (view.run, *view.others):
        with data.sentence(run):
            one = panel(view, run, word, layer)
            if one is not None:
                shown.append(one)
            else:
                st.caption(f"{panels.plain(run.name)}: no map of this word in a paired sample")
    return shown


def sheets(view, shown: list[Panel], step: int, layer: int | None, look: Look, scale) -> None:
    """Draw the small multiples: over steps, over layers, over words."""
    over_steps, over_layers, over_words = st.tabs(["Over steps", "Over layers", "All words"])
    at_step = [one.layers.sel(map_step=step) for one in shown]
    low, high = layer_scale = look.scale(at_step)
    for one, layers in zip(shown, at_step, strict=True):
        name = panels.plain(one.run.name)
        with over_steps:
            st.caption(f"{name} · colours from {scale[0]:.3g} to {scale[1]:.3g}")
            steps = {
                f"step {int(at)}": one.values.sel(map_step=at).values for at in one.values["map_step"].values
            }
            st.image(sheet(one, steps, look, scale))
        with over_layers:
            st.caption(f"{name} · step {step} · colours from {low:.3g} to {high:.3g}")
            each = {f"layer {int(at)}": layers.sel(layer=at).values for at in layers["layer"].values}
            st.image(sheet(one, each, look, layer_scale))
        with over_words:
            st.caption(f"{name} · step {step} · each word on its own scale, written under it")
            st.image(word_sheet(view, one, step, layer, look))


def show(view) -> None:
    """Lay out the page."""
    first, second, third, fourth = st.columns([3, 3, 2, 2])
    with first:
        word = choose_word(view)
    with second:
        layer = choose_layer(view)
    with third:
        percents = range(0, 101, 5)
        draw = partial(st.select_slider, "Opacity", percents, format_func=lambda percent: f"{percent} %")
        opacity = address.choice(draw, "opacity", "opacity", 60, address.one_of(percents)) / 100
    with fourth:
        draw = partial(st.toggle, "Smooth", help="off: each cell of the map as a square")
        smooth = address.switch(draw, "smooth", "smooth", True)
        draw = partial(st.toggle, "Stretch", help="colours start at the lowest value, not at 0")
        stretched = address.switch(draw, "stretched", "stretch", False)
    shown = read_panels(view, word, layer)
    if not shown:
        return
    look = Look(opacity, smooth, stretched)
    steps = [int(at) for at in shown[0].values["map_step"].values]
    left, right = st.columns([8, 2], vertical_alignment="bottom")
    with right:
        plays = st.toggle("Play steps", key="plays")
    step = steps[-1]
    if len(steps) > 1:
        draw = partial(left.select_slider, "Step", steps, disabled=plays)
        step = address.choice(draw, f"map-step-{len(steps)}-{steps[-1]}", "at", step, address.one_of(steps))
    scale = look.scale([one.values for one in shown])
    stills(shown, step, look, scale, plays)
    st.image(pictures.color_bar(*scale, 320, clear=True))
    st.caption(
        "attention of image patches to the word, mean over heads (0..1); one scale for all runs and steps"
    )
    sheets(view, shown, step, layer, look, scale)
    for one in shown:
        kept(view, one, step, layer, drawn(one, one.values.sel(map_step=step).values, look, scale))


def kept(view, one: Panel, step: int, layer: int | None, picture: np.ndarray) -> None:
    """Keep a run's picture and its map's values for the exports."""
    table = one.values.sel(map_step=step, drop=True).rename("value").to_dataframe()["value"].reset_index()
    table = table[["y", "x", "value"]]
    code = recipes.token_map(view, one.run, one.sample, one.map_tokens, step, layer)
    panels.keep(Shown(f"{one.run.name}: map at step {step}", picture_bytes(picture), table, code))


view = panels.current()
st.subheader("Maps: where the image looks at a word")
st.caption(f"“{panels.plain(panels.prompt(view.run, view.sample))}” · {view.branch} branch")
with data.sentence(view.run):
    show(view)
