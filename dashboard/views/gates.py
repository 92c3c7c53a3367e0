"""Gates: mean gate by layer × head and stream, dead and open heads, the gate at the sink and what passes it."""

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from dashboard import cached_metrics, cached_reads, gate_panels, panels, recipes
from dashboard.answering import answer_panel
from dashboard.choosing import address
from dashboard.linked import linked_component, linked_gates
from sd35h5 import metrics
from sd35h5.figures import curves, gate_charts, scales
from sd35h5.metrics import gate_statistics
from sd35h5.metrics.averaging import of_numbers
from sd35h5.reports.answers import gate_answers
from sd35h5.reports.answers.sentence import Sentence
from sd35h5.reports.view_page import Later


def keep_streams(view, run: cached_reads.Run, samples: tuple[int, ...]) -> None:
    """Keep the curves of the run's streams for the exports of the view: the linked figure shows them."""
    x = linked_component.x_axis()
    there = [one.query for one in linked_gates.streams(view, run, samples)]
    if not there:  # what it has of gates was not measured
        return
    prompts = cached_reads.prompt_ids(run, samples)

    def read() -> pd.DataFrame:
        found = {query: cached_metrics.mean_gate(run, view.branch, query, samples) for query in there}
        frames = [
            metrics.over_steps(view.at_cell(values), prompts).assign(series=f"{query} queries")
            for query, values in found.items()
        ]
        return pd.concat(frames)

    def curve(table: pd.DataFrame) -> alt.LayerChart:
        return curves.step_curve(table, "mean gate (0 closed … open)", x=x)

    code = recipes.gate_curves(view, run, samples, [f"{query} queries" for query in there])
    panels.keep(Later(f"{run.name}: gate over the denoising steps", read, curve, code))


def at_groups(view, run: cached_reads.Run, samples: tuple[int, ...]) -> None:
    """Draw the mean gate of the queries at each token group over steps: the sink beside the rest."""
    gates = view.at_cell(cached_metrics.mean_group_gates(run, view.branch, samples)).expand_dims("sample")
    there = [name for name in gates["group"].values if np.isfinite(gates.sel(group=name).values).any()]
    frames = [
        metrics.over_steps(gates.sel(group=name, drop=True), ["all"])[gate_panels.MEANS].assign(
            series=str(name)
        )
        for name in there
    ]
    if not frames:
        st.caption("No gate at a token group was captured here.")
        return
    colors = [scales.GROUP_COLORS[name] for name in there]
    table = pd.concat(frames)
    figure = curves.step_curve(
        table.assign(low=np.nan, high=np.nan), "mean gate at the group", x=linked_component.x_axis(),
        height=370, colors=colors,
    )  # fmt: skip
    code = recipes.group_gates(view, run, samples, [str(name) for name in there])
    panels.chart(figure, f"{run.name}: gate at each token group", table, code)


def passed(view, run: cached_reads.Run, samples: tuple[int, ...]) -> pd.DataFrame:
    """Draw what the kinds of heaviest keys hold of the mass, and of what is added after the gate, and return it."""
    sums = cached_metrics.contribution_sums(run, view.branch, samples)
    layers, heads = view.looked_at
    steps = [place for place, step in enumerate(sums["top_step"].values) if step in view.steps]
    inside = {"layer": of_numbers(sums, "layer", layers), "head": of_numbers(sums, "head", heads)}
    part = sums.isel(inside | {"top_step": steps})
    found = gate_statistics.shares_of_sums(part) if steps else pd.DataFrame()
    if found.empty:
        st.info("No step with captured top keys is chosen: widen the range of steps.", icon=":material/info:")
        return found
    code = recipes.contributions(view, run, samples)
    panels.chart(gate_charts.contribution_bars(found), f"{run.name}: what passes the gate", found, code)
    st.caption(
        "ring: the kind's part of the mass of the heaviest keys; bar: its part of what they add to the output, "
        "mass × mean gate × value norm. A bar short of its ring: the gate or a small value holds that sink back."
    )
    return found


def openness(view, gated: dict[cached_reads.Run, tuple[int, ...]]) -> list[Sentence | None]:
    """Say how open the gates of at most two runs are, of one also which heads are dead and always open."""
    told: list[Sentence | None] = []
    for run, samples in [*gated.items()][:2]:
        for query in gate_statistics.gated_streams(cached_reads.store(run))[:1]:
            heads = gate_panels.heads(view, run, samples, query)
            told.append(gate_answers.openness(run.name, heads, query))
            if len(gated) == 1:
                told.append(gate_answers.dead_and_open(heads, query))
    return told


def detail(view, gated: dict[cached_reads.Run, tuple[int, ...]], answers) -> None:
    """Draw one run's gates over steps, at the groups, and what passes them."""
    names = {run.name: run for run in gated}
    address.begin("gates-of", "of", next(iter(names)), address.one_of(names))
    if st.session_state["gates-of"] not in names:
        st.session_state["gates-of"] = next(iter(names))
    run = names[
        st.selectbox("Over steps and after the gate, of", list(names), key="gates-of") if len(names) > 1
        else next(iter(names))
    ]  # fmt: skip
    address.write("of", run.name, next(iter(names)))
    samples = gated[run]
    where = "" if view.cell is None else f" · layer {view.cell[0]}, head {view.cell[1]}"
    keep_streams(view, run, samples)
    if "gates/mean" not in cached_reads.store(
        run
    ):  # groups and heaviest keys are those of the joint attention
        return
    left, right = st.columns(2)
    with left, cached_reads.sentence(run):
        st.markdown(f"**At each token group over the denoising steps**{where}")
        at_groups(view, run, samples)
    with right, cached_reads.sentence(run):
        st.markdown(f"**What passes the gate, by kind of key**{where}")
        answer_panel.draw(answers, "passing", [gate_answers.passing(run.name, passed(view, run, samples))])


def show(view, answers) -> None:
    """Lay out the page: gated runs below each other, those without in a sentence, one in detail.

    Args: answers: where its sentences stand.
    """
    runs = (view.run, *view.others)
    gated, without, untold = {}, [], []
    for run in runs:
        samples = gate_panels.partners(view, run)
        if not gate_statistics.gated_streams(cached_reads.store(run)):
            is_told = "gate_type" in cached_reads.store(run).attributes
            (without if is_told else untold).append(run.name)
        elif not samples:
            st.caption(f"{panels.plain(run.name)}: no sample of it pairs with the chosen ones")
        else:
            gated[run] = samples
    if without:
        st.caption(f"Without gates: {panels.plain(', '.join(without))}.")
    if untold:
        st.caption(
            f"Whether the model had gates is unknown, the file does not say: {panels.plain(', '.join(untold))}."
        )
    if not gated:
        st.caption("Choose a gated run, or one beside this under “Compare with”.")
        return
    first, more = answers
    gate_panels.draw(view, gated, "gates")
    answer_panel.draw(first, "gates", openness(view, gated))
    detail(view, gated, more)


view = panels.current().of_joint
st.subheader("Gates: what lets attention through")
answers = answer_panel.places(2)
st.caption(panels.plain(f"{view.branch} · {panels.about(view).partition(view.branch + ' · ')[2]}"))
with cached_reads.sentence(view.run):
    show(view, answers)
