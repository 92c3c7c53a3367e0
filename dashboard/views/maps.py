"""Maps: the generated image with the attention map of a word over it, over steps, layers and words, run
beside run."""

from functools import partial

import numpy as np
import streamlit as st
import xarray as xr

from dashboard import cached_reads, map_pictures, panels, query_panels, recipes, region_panels
from dashboard.answering import answer_panel, page_answers
from dashboard.choosing import address
from dashboard.map_pictures import LARGE, SMALL, Look, Panel
from sd35h5 import metrics
from sd35h5.figures import overlays
from sd35h5.metrics import attention_maps
from sd35h5.metrics.picture import pictured_objects
from sd35h5.reports import view_address
from sd35h5.reports.view_page import Shown


def choose_word(view) -> dict:
    """Offer the words and tokens that have a map in the shown sample, the sidebar's word or token first."""
    table = cached_reads.map_choices(view.run, view.sample, view.branch)
    wanted = [row.Index for row in table.itertuples() if view.target.value in (row.word_text, *row.tokens)]
    chosen = wanted if wanted and view.target != metrics.FIRST_TOKEN else [attention_maps.first_thing(table)]
    names = {row.Index: ".".join(map(str, row.tokens)) for row in table.itertuples()}
    draw = partial(
        st.selectbox,
        "Word or token",
        list(table.index),
        format_func=lambda row: table.loc[row, "label"],
        help="a word is the sum of its CLIP and T5 tokens",
    )
    place = address.choice(
        draw, word_key(view), view_address.WORD, int(chosen[0]), address.one_of(names, names.get), names.get
    )
    return table.loc[place].to_dict()


def word_key(view) -> str:
    """Return the key of the choice of a word."""
    return f"word-{view.run.name}-{view.sample}-{view.target}"


def panel(view, run: cached_reads.Run, word: dict, layer: int | None, with_objects: bool) -> Panel | None:
    """Read a run's maps of that word in the sample that pairs with the shown one; None when there is none."""
    sample = view.sample
    if run != view.run:
        pairs = cached_reads.pairing(view.run, run).pairs
        found = pairs.loc[pairs["reference_sample"] == view.sample, "other_sample"]
        if found.empty:
            return None
        sample = int(found.iloc[0])
    table = cached_reads.map_choices(run, sample, view.branch)
    same = table.index[[tokens == word["tokens"] for tokens in table["tokens"]]]
    if same.empty:
        return None
    map_tokens = table.loc[same[0], "map_tokens"]
    layers = cached_reads.token_maps(run, sample, map_tokens, view.branch)
    values = layers.mean("layer", skipna=True) if layer is None else layers.sel(layer=layer)
    image, small = cached_reads.image(run, sample, LARGE), cached_reads.image(run, sample, SMALL)
    there = cached_reads.true_objects(run, sample)
    there = there if with_objects else there.iloc[:0]
    there = there.assign(chosen=[word["word_text"] in name.split() for name in there["name"]])
    chosen = (view.branch, layer, with_objects, word["word_text"])
    return Panel(run, sample, image, small, values, layers, map_tokens, there, chosen)


def stills(shown: list[Panel], step: int, look: Look, scale: tuple[float, float], plays: bool) -> None:
    """Draw each run's overlay, and its map alone, whose cells tell their values; a single run's image beside it."""
    single = len(shown) == 1
    columns = st.columns(max(3, len(shown)))
    below = columns[1:] if single else st.columns(max(3, len(shown)))
    for column, under, one in zip(columns, below, shown, strict=False):
        picture = one.png("still", partial(map_pictures.still, one, step, look, scale), step, look, scale)
        if plays:
            steps = map_pictures.steps_of(one.values)
            picture = overlays.gif([map_pictures.still(one, at, look, scale) for at in steps])
        caption = f"{panels.plain(one.run.name)} · {'all steps' if plays else f'step {step}'}"
        column.image(picture, width="stretch", caption=caption)
        with under:
            figure = map_pictures.chart(one, step, scale, len(shown))
            panels.draw(figure, width="content", key=f"map-cells-{one.run.name}")
            st.caption(f"step {step} alone: the pointer reads a cell")
    if single and shown[0].image is not None:
        picture = shown[0].png("image", partial(shown[0].boxed, shown[0].image))
        columns[2].image(picture, width="stretch", caption="the generated image")


def choose_layer(view) -> int | None:
    """Offer the layers, the clicked cell's first; None is their mean."""
    options = ["mean", *cached_reads.store(view.run).numbers("layer")]
    draw = partial(
        st.selectbox,
        "Layer",
        options,
        format_func=lambda place: "mean of layers" if place == "mean" else f"layer {place}",
    )
    default = "mean" if view.cell is None else view.cell[0]
    layer = address.choice(
        draw, f"map-layer-{view.cell}", view_address.LAYER, default, address.one_of(options)
    )
    return None if layer == "mean" else layer


def read_panels(view, word: dict, layer: int | None, with_objects: bool) -> list[Panel]:
    """Read the run and those beside it; say which has no such map."""
    shown = []
    for run in (view.run, *view.others):
        with cached_reads.sentence(run):
            one = panel(view, run, word, layer, with_objects)
            if one is None:
                st.caption(f"{panels.plain(run.name)}: no map of this word in a paired sample")
            elif not np.isfinite(one.values.values).any():
                there = np.isfinite(one.layers.values).any(axis=(0, 2, 3))
                captured = ", ".join(map(str, one.layers["layer"].values[there]))
                st.caption(
                    f"{panels.plain(run.name)}: no map of layer {layer} was captured, of {captured} only"
                )
            else:
                shown.append(one)
    return shown


def in_common(shown: list[Panel]) -> tuple[list[Panel], list[int]]:
    """Return the runs that have steps in common with the first, and those steps; say which have none."""
    steps, kept_runs = map_pictures.steps_of(shown[0].values), []
    for one in shown:
        common = [step for step in steps if step in map_pictures.steps_of(one.values)]
        if common:
            steps = common
            kept_runs.append(one)
        else:
            st.caption(f"{panels.plain(one.run.name)}: its maps are of other steps")
    return kept_runs, steps


def sheets(view, shown: list[Panel], step: int, layer: int | None, look: Look, scale) -> None:
    """Draw the small multiples: over steps, layers, heads or words; only what is looked at is made."""
    options = ["over steps", "over layers", "all words"]
    if any(attention_maps.HEAD_MAPS in cached_reads.store(one.run) for one in shown):
        options.insert(2, "over heads")
    draw = partial(st.segmented_control, "Small maps", options, label_visibility="collapsed")
    over = address.choice(draw, "sheet", view_address.SHEET, options[0], address.one_of(options))
    at_step = [one.layers.sel(map_step=step) for one in shown]
    low, high = layer_scale = look.scale(at_step)
    for one, layers in zip(shown, at_step, strict=True):
        name = panels.plain(one.run.name)
        if over == "over steps":
            st.caption(f"{name} · colours from {scale[0]:.3g} to {scale[1]:.3g}")
            each = {
                f"step {at}": one.values.sel(map_step=at).values for at in map_pictures.steps_of(one.values)
            }
            make, settings = partial(map_pictures.sheet, one, each, look, scale), (look, scale)
        elif over == "over layers":
            st.caption(f"{name} · step {step} · colours from {low:.3g} to {high:.3g}")
            each = {f"layer {int(at)}": layers.sel(layer=at).values for at in layers["layer"].values}
            make, settings = (
                partial(map_pictures.sheet, one, each, look, layer_scale),
                (step, look, layer_scale),
            )
        elif over == "over heads":
            each = heads_of(view, one, step, layer)
            if not each:
                continue
            head_scale = look.scale(list(each.values()))
            st.caption(
                f"{name} · step {step} · layer {layer} · colours from {head_scale[0]:.3g} to {head_scale[1]:.3g}"
            )
            each = {title: values.values for title, values in each.items()}
            make, settings = (
                partial(map_pictures.sheet, one, each, look, head_scale),
                (step, look, head_scale),
            )
        else:
            st.caption(f"{name} · step {step} · each word on its own scale, written under it")
            make = partial(map_pictures.word_sheet, view.branch, one, step, layer, look)
            settings = (step, look)
        st.image(one.png(over, make, *settings))


def heads_of(view, one: Panel, step: int, layer: int | None) -> dict[str, xr.DataArray]:
    """Return the map of each head of the chosen layer at a step; say why there is none."""
    name = panels.plain(one.run.name)
    if layer is None:
        st.caption(f"{name} · choose a layer to see its heads")
        return {}
    found = cached_reads.head_maps(one.run, one.sample, one.map_tokens, layer, view.branch)
    if found is None:
        st.caption(f"{name} · no maps of single heads of layer {layer}: capture them with --map_heads all")
        return {}
    return {f"head {int(at)}": found.sel(map_step=step, head=at) for at in found["head"].values}


def told_objects(one: Panel, step: int) -> None:
    """Say of a run how much of the map lies in each object's box, and what was not found."""
    if one.objects.empty:
        return
    canvas, values, parts = cached_reads.store(one.run).sizes["pixel_y"], one.values.sel(map_step=step), []
    for there in one.drawn_objects.itertuples(index=False):
        box = (there.left, there.top, there.right, there.bottom)
        mass, area = pictured_objects.mass_within(values, box, canvas)
        parts.append(f"{mass:.0%} of the map in the box of {there.name} ({area:.0%} of the picture)")
    absent = list(one.objects.loc[~one.objects["drawn"].astype(bool), "name"])
    if absent:
        parts.append(f"not found in the picture: {', '.join(absent)}")
    st.caption(f"{panels.plain(one.run.name)} · step {step}: {panels.plain('; '.join(parts))}")


def choose_look() -> Look:
    """Offer the opacity, smooth or squares, and where the colours begin."""
    percents = range(0, 101, 5)
    draw = partial(st.select_slider, "Opacity", percents, format_func=lambda percent: f"{percent} %")
    opacity = address.choice(draw, "opacity", view_address.OPACITY, 60, address.one_of(percents)) / 100
    left, right = st.columns(2)
    draw = partial(left.toggle, "Smooth", help="off: each cell of the map as a square")
    smooth = address.switch(draw, "smooth", view_address.SMOOTH, True)
    draw = partial(right.toggle, "Stretch", help="colours start at the lowest value, not at 0")
    return Look(opacity, smooth, address.switch(draw, "stretched", view_address.STRETCH, False))


def choose_objects(view) -> bool:
    """Offer the boxes of the true objects where they can be known."""
    if not any(cached_reads.knows_objects(run) for run in (view.run, *view.others)):
        return False
    draw = partial(
        st.checkbox,
        "True objects",
        help="where the true sprite of each thing that the prompt names fits the picture best (correlation of "
        f"{pictured_objects.MIN_CORRELATION} or more); the chosen word's is cyan",
    )
    return address.switch(draw, "objects", "objects", False)


def show(view, answers) -> query_panels.Chosen | None:
    """Lay out the maps. Returns: what they show; None where none of them can be drawn.

    Args: answers: where its sentences stand.
    """
    first, second, third = st.columns([3, 3, 4])
    with first:
        word = choose_word(view)
        with_objects = choose_objects(view)
    with second:
        layer = choose_layer(view)
    with third:
        look = choose_look()
    shown = read_panels(view, word, layer, with_objects)
    if not shown:
        return None
    shown, steps = in_common(shown)
    left, right = st.columns([8, 2], vertical_alignment="bottom")
    with right:
        plays = st.toggle("Play steps", key="plays")
    step, step_key = steps[-1], f"map-step-{len(steps)}-{steps[-1]}"
    if len(steps) > 1:
        draw = partial(left.select_slider, "Step", steps, disabled=plays)
        step = address.choice(draw, step_key, view_address.AT, step, address.one_of(steps))
    scale = look.scale([one.values for one in shown])
    stills(shown, step, look, scale, plays)
    st.image(overlays.color_bar(*scale, 320, clear=True))
    st.caption(
        "attention of image patches to the word, mean over heads (0..1); one scale for all runs and steps"
    )
    for one in shown:
        told_objects(one, step)
    answer_panel.draw(answers, "maps", page_answers.maps(shown[0], word["text"], step))
    keys = (word_key(view), step_key, f"map-layer-{view.cell}")
    asked = region_panels.Asked(shown[0], word["text"], step, layer, *keys)
    with cached_reads.sentence(shown[0].run):
        region_panels.draw(view, asked, look, scale)
    sheets(view, shown, step, layer, look, scale)
    for one in shown:
        kept(view, one, step, layer, look, scale)
    return query_panels.Chosen(step, layer, look)


def kept(view, one: Panel, step: int, layer: int | None, look: Look, scale: tuple[float, float]) -> None:
    """Keep a run's picture, and its map's cells, for the exports."""
    table = one.values.sel(map_step=step, drop=True).rename("value").to_dataframe()["value"].reset_index()
    table = table[["y", "x", "value"]]
    code = recipes.token_map(view, one.run, one.sample, one.map_tokens, step, layer)
    picture = one.png("still", partial(map_pictures.still, one, step, look, scale), step, look, scale)
    panels.keep(Shown(f"{one.run.name}: map at step {step}", picture, table, code))
    figure = map_pictures.chart(one, step, scale, 1)
    panels.keep(Shown(f"{one.run.name}: cells of the map at step {step}", figure, table, code))


view = panels.current().of_joint
st.subheader("Maps: where the image looks at a word")
(answers,) = answer_panel.places()
st.caption(f"{panels.plain(panels.told_prompt(view.run, view.sample))} · {view.branch} branch")
chosen = None
with cached_reads.sentence(view.run):
    chosen = show(view, answers)
with cached_reads.sentence(view.run):
    query_panels.draw(view, chosen or query_panels.Chosen(None, None, Look(0.6, True, False)))
