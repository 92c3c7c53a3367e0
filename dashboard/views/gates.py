"""Gates: mean gate by layer × head and stream, dead and open heads, the gate at the sink and what passes it."""

import numpy as np
import pandas as pd
import streamlit as st

from dashboard import cached_metrics, cached_reads, gate_panels, panels, recipes
from dashboard.choosing import address
from sd35h5 import metrics
from sd35h5.figures import curves, gate_charts, scales
from sd35h5.metrics import gate_statistics


def streams(view, run: cached_reads.Run, samples: tuple[int, ...], prompts: list[str]) -> None:
    """Draw the mean gate of each stream over steps, of the clicked cell or all chosen heads."""
    frames = []
    for query in gate_statistics.gated_streams(cached_reads.store(run)):
        values = view.at_cell(cached_metrics.mean_gate(run, view.branch, query, samples))
        if np.isfinite(values.values).any():
            frames.append(metrics.over_steps(values, prompts).assign(series=f"{query} queries"))
    if not frames:
        st.caption("This head has no gate.")
        return
    table, x = pd.concat(frames), panels.choose_x()
    figure = curves.step_curve(table, "mean gate (0 closed … open)", x=x, height=330, brush="brush")
    code = recipes.gate_curves(view, run, samples, list(dict.fromkeys(table["series"])))
    panels.curve(figure, "gate-curve", f"{run.name}: gate over the denoising steps", table, code, x)


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
        table.assign(low=np.nan, high=np.nan), "mean gate at the group", x=st.session_state["x"] or "step",
        height=370, colors=colors,
    )  # fmt: skip
    code = recipes.group_gates(view, run, samples, [str(name) for name in there])
    panels.chart(figure, f"{run.name}: gate at each token group", table, code)


def passed(view, run: cached_reads.Run, samples: tuple[int, ...]) -> None:
    """Draw what the kinds of heaviest keys hold of the mass, and of what is added after the gate."""
    sums = cached_metrics.contribution_sums(run, view.branch, samples)
    layers, heads = view.looked_at
    steps = [place for place, step in enumerate(sums["top_step"].values) if step in view.steps]
    part = sums.isel(layer=list(layers), head=list(heads), top_step=steps)
    found = gate_statistics.shares_of_sums(part) if steps else pd.DataFrame()
    if found.empty:
        st.info("No step with captured top keys is chosen: widen the range of steps.", icon=":material/info:")
        return
    code = recipes.contributions(view, run, samples)
    panels.chart(gate_charts.contribution_bars(found), f"{run.name}: what passes the gate", found, code)
    st.caption(
        "ring: the kind's part of the mass of the heaviest keys; bar: its part of what they add to the output, "
        "mass × mean gate × value norm. A bar short of its ring: the gate or a small value holds that sink back."
    )


def detail(view, gated: dict[cached_reads.Run, tuple[int, ...]]) -> None:
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
    prompts = cached_reads.prompt_ids(run, samples)
    where = "" if view.cell is None else f" · layer {view.cell[0]}, head {view.cell[1]}"
    left, right = st.columns(2)
    with left, cached_reads.sentence(run):
        st.markdown(f"**Each stream over the denoising steps**{where}")
        streams(view, run, samples, prompts)
    if "gates/mean" not in cached_reads.store(
        run
    ):  # groups and heaviest keys are those of the joint attention
        return
    with right, cached_reads.sentence(run):
        st.markdown(f"**At each token group over the denoising steps**{where}")
        at_groups(view, run, samples)
    with st.columns(2)[0], cached_reads.sentence(run):
        st.markdown(f"**What passes the gate, by kind of key**{where}")
        passed(view, run, samples)


def show(view) -> None:
    """Lay out the page: gated runs below each other, those without in a sentence, one in detail."""
    runs = (view.run, *view.others)[: gate_panels.MOST]
    gated, without = {}, []
    for run in runs:
        samples = gate_panels.partners(view, run)
        if not gate_statistics.gated_streams(cached_reads.store(run)):
            without.append(run.name)
        elif not samples:
            st.caption(f"{panels.plain(run.name)}: no sample of it pairs with the chosen ones")
        else:
            gated[run] = samples
    if without:
        st.caption(
            f"Without gates: {panels.plain(', '.join(without))}. "
            + ("" if gated else "Choose a gated run, or one beside this under “Compare with”.")
        )
    if not gated:
        return
    gate_panels.draw(view, gated)
    detail(view, gated)


view = panels.current().of_joint
st.subheader("Gates: what lets attention through")
st.caption(panels.plain(f"{view.branch} · {panels.about(view).partition(view.branch + ' · ')[2]}"))
with cached_reads.sentence(view.run):
    show(view)
