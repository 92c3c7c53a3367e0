"""Evidence: from one cell to its curve, its tokens, the map of one of them, and the image, on one page."""

from dataclasses import replace

import numpy as np
import streamlit as st

from dashboard import cached_metrics, cached_reads, panels, recipes
from dashboard.answering import answer_panel, page_answers
from dashboard.choosing import address, sidebar
from sd35h5 import metrics
from sd35h5.figures import curves, heatmaps, overlays, token_charts
from sd35h5.metrics import attention_maps
from sd35h5.reports import view_address
from sd35h5.reports.view_page import Shown, picture_bytes

LONGEST = 640  # pixels of the pictures


def heaviest(frame) -> tuple[int, int] | None:
    """Return the cell with the largest value, None where nothing has one."""
    there = frame.dropna(subset=["value"])
    if there.empty:
        return None
    top = there.loc[there["value"].idxmax()]
    return int(top["layer"]), int(top["head"])


def choose_step(view) -> int:
    """Offer the chosen steps; the first look is at the middle one."""
    steps, key = list(view.steps), "evidence-step"
    address.begin(key, view_address.AT, steps[len(steps) // 2], lambda text: address.position(text))
    if st.session_state[key] not in steps:
        st.session_state[key] = steps[len(steps) // 2]
    step = steps[0] if len(steps) == 1 else st.select_slider("Step", steps, key=key)
    address.write(view_address.AT, str(step), str(steps[len(steps) // 2]))
    return step


def cell_and_curve(view, values) -> int:
    """Draw the heatmap beside the cell's curve in the shown sample. Returns: the chosen step."""
    left, right = st.columns([2, 3])
    frame = metrics.by_layer_head(view.within(values))
    with left:
        st.markdown("**1 · The cell**")
        figure = heatmaps.layer_head_heatmap(
            frame,
            view.label,
            chosen=view.cell,
            select="cell",
            brush="brush",
            width=300,
            height=panels.tall(view, 380),
        )
        panels.clickable(figure, "evidence", "The cell among all", frame, recipes.heatmap(view))
    with right:
        st.markdown(f"**2 · Its curve over the denoising steps** · layer {view.cell[0]}, head {view.cell[1]}")
        x, step = panels.choose_x(), choose_step(view)
        prompt = [str(cached_reads.samples(view.run).set_index("sample")["prompt_id"][view.sample])]
        table = metrics.over_steps(view.at_cell(values), prompt)
        figure = curves.step_curve(
            table.assign(series="the cell"), view.label, x=x, height=290, brush="brush", at=step
        )
        panels.curve(figure, "evidence-curve", "The cell's curve", table, recipes.curve(view), x)
    return step


def prompt_tokens(view, step: int) -> None:
    """Draw the prompt's tokens as this cell sees them at this step."""
    st.markdown(f"**3 · Its tokens at step {step}** · click one to follow it")
    at = replace(view, steps=(step,))
    masses = cached_metrics.token_mass(
        view.run, view.sample, view.branch, (step,), (view.cell[0],), (view.cell[1],)
    )
    chosen = sidebar.chosen_tokens(view)
    by_word = len(masses) > panels.MANY_TOKENS
    chips = panels.chips(view, masses, by_word)
    figure = token_charts.token_chips(chips, chosen=chosen, select="token", room=145)
    panels.tokens(view, figure, "evidence-chips", masses, recipes.tokens(at), by_word)
    told(view, step, masses[masses["token"].isin(chosen)]["mass"].sum(min_count=1))


def told(view, step: int, mass: float) -> None:
    """Say in a sentence that can be cited what the cell gives to the token."""
    keys = cached_reads.store(view.run).sizes["token"] + panels.patches(view.run)
    count = len(sidebar.chosen_tokens(view))
    if not np.isfinite(mass) or not count:
        st.info("The token of all pages is not among these: click one above, or choose one in the sidebar.")
        return
    uniform = f", {mass * keys / count:.3g} times uniform attention" if panels.patches(view.run) else ""
    st.markdown(panels.plain(
        f"In {view.run.name}, sample {view.sample} ({panels.told_prompt(view.run, view.sample)}), {view.branch}, layer "
        f"{view.cell[0]}, head {view.cell[1]}, step {step}: {view.target} gets {mass:.3g} of an image query's "
        f"attention{uniform}."
    ))  # fmt: skip


def picture_of(view, step: int) -> None:
    """Draw the token's map at this layer over the image, alone, and the image; at the last captured step not after."""
    table = cached_reads.map_choices(view.run, view.sample, view.branch)
    rows = [row for row in table.itertuples() if view.target.value in (row.word_text, *row.tokens)]
    if view.target.kind == "token":  # itself before the word that it is a part of
        rows.sort(key=lambda row: len(row.tokens))
    wanted = [row.map_tokens for row in rows]
    if not wanted:
        there = ", ".join(dict.fromkeys(table.loc[table["kind"] != "piece", "text"]))
        st.info(f"No map of {panels.plain(str(view.target))} was captured; there are: {panels.plain(there)}.")
        return
    values, of_head = cached_reads.cell_maps(view.run, view.sample, wanted[0], *view.cell, view.branch)
    captured = [int(at) for at in values["map_step"].values]
    at = max([one for one in captured if one <= step], default=captured[0])
    shown, image = values.sel(map_step=at, drop=True), cached_reads.image(view.run, view.sample, LONGEST)
    low, high = 0.0, float(values.max())
    shape = image.shape[:2] if image is not None else attention_maps.picture_shape(values)
    alone = overlays.map_picture(shown.values, shape, low=low, high=high)
    over = alone if image is None else overlays.overlay(image, shown.values, opacity=0.6, low=low, high=high)
    columns = st.columns(3)
    columns[0].image(over, width="stretch", caption=f"map at step {at} over the image")
    columns[1].image(alone, width="stretch", caption="the map alone, a square a cell")
    if image is not None:
        columns[2].image(image, width="stretch", caption="the generated image")
    whose = "of this head" if of_head else "mean over heads: maps of each need --map_heads all"
    st.image(overlays.color_bar(low, high, 320, clear=True))
    st.caption(f"share of a patch's attention (0..1), layer {view.cell[0]}, {whose}; one scale for all steps")
    numbers = shown.rename("value").to_dataframe()["value"].reset_index()[["y", "x", "value"]]
    code = recipes.cell_map(view, wanted[0], at)
    panels.keep(Shown(f"Map at step {at}", picture_bytes(over), numbers, code))


def show(view, answers) -> None:
    """Lay out the page for the shown sample alone. Args: answers: where its sentences stand."""
    if view.head_axis != "head":
        told = "This metric is of attn2, whose heads are others than those that see the text: choose another metric."
        st.info(told, icon=":material/info:")
        return
    view = replace(view, samples=(view.sample,))
    values = cached_metrics.metric(view.run, view.metric, view.target, view.branch, view.samples)
    if view.cell is None:
        cell = heaviest(metrics.by_layer_head(view.within(values)))
        if cell is None:
            st.info("Nothing was measured in the chosen layers, heads and steps.", icon=":material/info:")
            return
        st.caption("No cell was clicked yet: this is the heaviest one. Click another in the heatmap.")
        view = replace(view, cell=cell)
    step = cell_and_curve(view, values)
    uniform = cached_metrics.uniform_mass(view.run, view.target, view.branch, view.samples)
    table = metrics.by_layer_head(view.within(values))
    answer_panel.draw(answers, "cell", page_answers.cell(view, values, table, uniform))
    with cached_reads.sentence(view.run):
        prompt_tokens(view, step)
    st.markdown(f"**4 · Where on the image: {panels.plain(str(view.target))}**")
    with cached_reads.sentence(view.run):
        picture_of(view, step)


view = panels.current()
st.subheader("Evidence: one cell from curve to image")
(answers,) = answer_panel.places()
st.caption(panels.plain(f"{panels.told_prompt(view.run, view.sample)} · {panels.about(view, one=True)}"))
with cached_reads.sentence(view.run):
    show(view, answers)
