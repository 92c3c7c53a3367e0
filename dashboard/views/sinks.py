"""Sinks: heatmap, step curve, tokens, group mass, sink rate over ε and which key is the sink, for the sidebar's
choice and the clicked cell."""

from contextlib import suppress
from functools import partial

import altair as alt
import pandas as pd
import streamlit as st

from dashboard import cached_metrics, cached_reads, panels, recipes
from dashboard.answering import answer_panel, page_answers
from dashboard.choosing import address
from dashboard.linked import linked_bands, linked_component
from sd35h5 import metrics
from sd35h5.errors import Sd35h5Error
from sd35h5.figures import curves, heatmaps, sink_charts, token_charts
from sd35h5.figures.linked_view import linked_figure
from sd35h5.figures.linked_view.linked_figure import Panel
from sd35h5.metrics import averaging, sink_rates
from sd35h5.metrics.catalogue import MEASURES
from sd35h5.reports import view_address
from sd35h5.reports.answers.sentence import Sentence
from sd35h5.reports.view_page import Later, Shown
from sd35h5.store.showable import showable

KINDS = {
    "padding averaged": metrics.with_pads_averaged,
    "every token": lambda frame: frame,
    "words only": lambda frame: frame[frame["group"].isin(["clip_word", "t5_word"])],
}
PATCHES = 300  # pixels of width of the map of patches
COUNTS = {f"top {count}": count for count in (12, 24, 48, 96)}


def linked(view) -> Sentence:
    """Draw the metric itself: heatmap, curve over steps, profile over layers and histogram as one figure.

    Returns: which heads have most of it, in a sentence.
    """
    asked = (view.run, view.metric, view.target, view.branch, view.samples)
    cube = cached_metrics.mean_metric(*asked)
    prompts = cached_reads.prompt_ids(view.run, view.samples)
    several = len(set(prompts)) > 1
    name, uniform = showable(view.run.name), cached_metrics.uniform_value(*asked)
    notes = {"histogram": "dashed: uniform attention, every key alike"} if uniform is not None else {}
    if several:
        notes["curve"] = (
            f"line: mean over {len(set(prompts))} prompts; band: 10th to 90th percentile across prompts"
        )
    lines = None
    if not averaging.are_balanced(prompts):
        lines = linked_bands.by_prompt(cached_metrics.metric(*asked), prompts)
    panel = Panel(name, cube, lines, uniform=uniform)
    with linked_component.place():
        title = panels.METRIC_TITLES[view.metric]
        chosen = linked_component.draw(view, "sinks", [panel], view.label, title=title, notes=notes)
        keep_figures(view, asked, prompts, uniform)
        view.within(cube)  # refused where no chosen step was captured
        spread = {}
        if several:
            values = cached_metrics.metric(*asked)
            found = linked_bands.bands(view, values, prompts)
            linked_component.add("sinks", chosen, {name: linked_figure.extras(found)})
            spread = page_answers.spreads(view, cube, values, prompts)
        return page_answers.heads(view, cube, uniform, spread)


def keep_figures(view, asked: tuple, prompts: list[str], uniform: float | None) -> None:
    """Keep the four plots for the exports of the view: they are made when they are asked for."""
    x = linked_component.x_axis()

    def cells() -> pd.DataFrame:
        return metrics.by_layer_head(view.within(cached_metrics.metric(*asked)))

    def over_steps() -> pd.DataFrame:
        return metrics.over_steps(view.at_cell(cached_metrics.metric(*asked)), prompts)

    def over_layers() -> pd.DataFrame:
        values = view.within(cached_metrics.metric(*asked))
        return metrics.over_layers(values if view.cell is None else values.sel(head=[view.cell[1]]), prompts)

    def heatmap(table: pd.DataFrame) -> alt.Chart:
        return heatmaps.layer_head_heatmap(table, view.label, chosen=view.cell)

    def curve(table: pd.DataFrame) -> alt.LayerChart:
        series = "mean of layers and heads" if view.cell is None else panels.told_cell(view.cell)
        return curves.step_curve(table.assign(series=series), view.label, x=x, uniform=uniform)

    def profile(table: pd.DataFrame) -> alt.LayerChart:
        return curves.layer_profile(table, view.label, uniform=uniform)

    def histogram(table: pd.DataFrame) -> alt.LayerChart:
        return curves.head_histogram(table, view.label, uniform=uniform)

    panels.keep(Later("Layer × head", cells, heatmap, recipes.heatmap(view)))
    panels.keep(Later("Over the denoising steps", over_steps, curve, recipes.curve(view)))
    panels.keep(Later("Over the layers", over_layers, profile, recipes.profile(view)))
    counts = "How many heads have which mean"
    panels.keep(Later(counts, lambda: metrics.head_counts(cells()), histogram, recipes.histogram(view)))


def tokens(view) -> None:
    """Draw the heaviest tokens of the shown sample."""
    layers, heads = view.looked_at
    masses = cached_metrics.token_mass(view.run, view.sample, view.branch, view.steps, layers, heads)
    sizes = cached_reads.store(view.run).sizes
    first, second, third = st.columns([3, 2, 2])
    draw = partial(first.selectbox, "Tokens", list(KINDS), label_visibility="collapsed")
    kind = address.choice(draw, "kind", view_address.TOKENS, "padding averaged", address.one_of(KINDS))
    draw = partial(second.selectbox, "How many", list(COUNTS), label_visibility="collapsed")
    top = address.choice(draw, "top", view_address.TOP, "top 24", address.one_of(COUNTS))
    log = address.switch(partial(third.toggle, "Log scale"), "log", view_address.LOG, False)
    frame = KINDS[kind](masses)
    keys = sizes["token"] + panels.patches(view.run)
    panels.chart(
        token_charts.token_bars(
            frame, top=COUNTS[top], uniform=1 / keys if keys > sizes["token"] else None, log=log, room=120
        ),
        "Heaviest text tokens",
        masses,
        recipes.tokens(view),
    )
    st.caption("dashed: uniform attention, 1 ÷ number of keys" if keys > sizes["token"] else "")


def groups(view) -> None:
    """Draw where the mass goes over layers, for the clicked head or the mean of heads."""
    mass = view.within(cached_metrics.mean_group_mass(view.run, view.branch, "image", view.samples))
    layer = None
    if view.cell is not None:
        mass, layer = mass.sel(head=[view.cell[1]]), view.cell[0]
    table = metrics.groups_over_layers(mass)
    figure = token_charts.group_mass(table, layer=layer, brush="brush", height=560)
    panels.brushed(figure, "groups", "Where the mass goes", table, recipes.groups(view), "layer")


def rates(view) -> None:
    """Draw the sink rate over ε: all chosen layers and heads, and the clicked cell beside them."""
    counts = cached_metrics.exceeded(view.run, view.target, view.branch, view.samples)
    prompts = cached_reads.prompt_ids(view.run, view.samples)
    uniform = cached_metrics.uniform_mass(view.run, view.target, view.branch, view.samples)
    every = sink_rates.curve_of_exceeded(view.within(counts), prompts, uniform)
    frames = [every.assign(series="all layers and heads")]
    if view.cell is not None:
        cell = sink_rates.curve_of_exceeded(view.at_cell(counts), prompts, uniform)
        frames.insert(0, cell.assign(series=f"layer {view.cell[0]}, head {view.cell[1]}"))
    figure = sink_charts.sink_curve(
        pd.concat(frames), epsilon=sink_rates.EPSILON, uniform=uniform, height=430
    )
    panels.chart(figure, "Sink rate over ε", frames[0].drop(columns="series"), recipes.rates(view))
    st.caption(
        "share of heads, steps and samples whose mass exceeds ε; "
        "line: mean over prompts; band: 10th to 90th percentile across them"
    )


def which_key(view) -> None:
    """Draw of what kind the heaviest key is, over layers or steps, and where on the image its patches lie."""
    layers, heads = view.looked_at
    found = cached_metrics.key_kinds(view.run, view.branch, view.samples, layers, heads, view.steps)
    if found is None:
        st.info("No step with captured top keys is chosen: widen the range of steps.", icon=":material/info:")
        return
    options = ["over layers", "over steps"]
    draw = partial(st.segmented_control, "Heaviest key", options, label_visibility="collapsed")
    over = address.choice(draw, "kinds-over", "keys", "over layers", address.one_of(options))
    frame, by = (found.by_step, "top_step") if over == "over steps" else (found.by_layer, "layer")
    figure = sink_charts.key_kinds(frame, by, brush="brush", height=470)
    panels.brushed(figure, "kinds", "Which key is the sink?", frame, recipes.kinds(view, by), by)
    st.caption(panels.plain(told(found)))
    if found.patches["share"].sum() > 0:
        st.markdown("**Where on the image those patches lie**")
        rows, columns = found.patches[["y", "x"]].max() + 1
        tall = min(560, round(PATCHES * rows / columns) + 120)  # 120 pixels for axis and legend
        figure = sink_charts.patch_heatmap(found.patches, width=PATCHES + 50, height=tall)
        panels.keep(
            Shown("Where on the image those patches lie", figure, found.patches, recipes.patches(view))
        )
        panels.draw(figure, width="content")


def told(found: cached_metrics.HeaviestKeys) -> str:
    """Say which kinds are the heaviest most often, beside chance, and how stable the heaviest key is."""
    most = " · ".join(
        f"{row.kind} {row.share:.0%} (by chance {row.chance:.1%})"
        for row in found.kinds.sort_values("share", ascending=False).head(3).itertuples()
    )
    names = {"top_step": "steps", "head": "heads of a layer", "sample": "samples"}
    same = ", ".join(f"{value:.0%} of pairs of {names[dim]}" for dim, value in found.same.items())
    return f"most often: {most}." + (f" The same key in {same}." if same else "")


def kinds(view) -> Sentence | None:
    """Say which kind of key is the heaviest; None where the file holds none, or none of the chosen steps."""
    with suppress(Sd35h5Error):
        return page_answers.kinds(view)
    return None


def absent(view) -> None:
    """Say which metrics this file does not hold, and what to do about it."""
    missing = cached_reads.absent_metrics(view.run)
    if missing:
        with st.expander(f"{len(missing)} metrics are not in this file", icon=":material/info:"):
            lines = {
                remedy: [n for n, told in missing.items() if told == remedy] for remedy in missing.values()
            }
            for remedy, names in lines.items():
                titles = ", ".join(MEASURES[name].title for name in names)
                st.markdown(panels.plain(f"{titles[:1].upper()}{titles[1:]}: {remedy}."))


def show(view) -> None:
    """Lay out the page."""
    where = "" if view.cell is None else f" · layer {view.cell[0]}, head {view.cell[1]}"
    st.subheader(panels.plain(f"{view.run.name}: {panels.METRIC_TITLES[view.metric]}"))
    first, more = answer_panel.places(2)
    st.caption(panels.plain(panels.about(view)))
    with cached_reads.sentence(view.run):
        answer_panel.draw(first, "heads", [linked(view)])
    prompt, view = panels.plain(panels.told_prompt(view.run, view.sample)), view.of_joint
    where = "" if view.cell is None else where
    head = "" if view.cell is None else f" · head {view.cell[1]}"
    rows = (
        {f"**Heaviest text tokens**{where} · {prompt}": tokens, f"**Where the mass goes**{head}": groups},
        {f"**Sink rate over ε**{where}": rates, f"**Which key is the sink?**{where}": which_key},
    )
    for row in rows:
        for column, (title, draw) in zip(st.columns(2), row.items(), strict=True):
            with column:
                st.markdown(title)
                with cached_reads.sentence(view.run):
                    draw(view)
    with suppress(Sd35h5Error):  # which the panels tell
        answer_panel.draw(more, "keys", [kinds(view), page_answers.groups(view)])
    absent(view)


show(panels.current())
