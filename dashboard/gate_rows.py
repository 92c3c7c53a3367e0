"""Rows of gates that Gates and Compare draw: a run's mean gate by layer × head, its streams beside each other."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import data, measured, panels, recipes
from sd35h5.analysis import gate_figures, gating

MOST = 4  # runs below each other
MEANS = ["step", "timestep", "sigma", "mean"]  # of a curve without a band


def partners(view, run: data.Run) -> tuple[int, ...]:
    """Return the samples of a run that belong to the chosen ones."""
    if run == view.run:
        return view.samples
    pairs = data.pairing(view.run, run).pairs
    return tuple(pairs.loc[pairs["reference_sample"].isin(view.samples), "other_sample"].tolist())


def largest(run: data.Run) -> float:
    """Return the largest value that the run's gate can have."""
    return 2.0 if data.store(run).attributes.get("gate_activation") == "2sigmoid" else 1.0


def _heads(view, run: data.Run, samples: tuple[int, ...], query: str) -> pd.DataFrame:
    """Return the gate of each chosen head, over the chosen steps."""
    found = measured.gate_heads(run, view.branch, query, samples, view.steps)
    return found[found["layer"].isin(view.layers) & found["head"].isin(view.heads)].reset_index(drop=True)


def _row(view, run: data.Run, samples: tuple[int, ...], top: float) -> None:
    """Draw one run: what its gates are, and a heatmap of each stream."""
    gate, caution = panels.told_gates(data.store(run).attributes)
    st.markdown(f"**{panels.plain(run.name)}** · {panels.plain(gate)}")
    if intervention := panels.told_intervention(data.store(run).attributes):
        st.caption(f":material/content_cut: intervention: {panels.plain(intervention)}")
    if caution:
        st.warning(f"{caution[:1].upper()}{caution[1:]}.", icon=":material/warning:")
    streams = gating.gated_streams(data.store(run))
    for column, query in zip(st.columns(max(2, len(streams))), streams, strict=False):
        with column:
            found = _heads(view, run, samples, query)
            st.caption(f"{query} queries · {_counted(found)}")
            if found["mean"].notna().any():
                figure = gate_figures.gate_heatmap(
                    found,
                    largest=top,
                    chosen=view.cell,
                    select="cell",
                    brush="brush",
                    height=panels.tall(view, 320),
                )
                title = f"{run.name}: mean gate, {query} queries"
                code = recipes.gate_heads(view, run, samples, query)
                panels.clickable(figure, f"gates-{run.name}-{query}", title, found, code)


def _counted(found: pd.DataFrame) -> str:
    """Say how many of the heads are dead and open."""
    count = found["state"].value_counts()
    if not len(found) or count.get("not applied", 0) == len(found):
        return "no gate on this stream here"
    text = f"{len(found)} heads: {count.get('dead', 0)} dead (✕), {count.get('open', 0)} always open (○)"
    return text + (f", {count['not applied']} without (grey)" if "not applied" in count else "")


def draw(view, gated: dict[data.Run, tuple[int, ...]]) -> None:
    """Draw a row a run, run -> its samples, on one scale, and say what the signs mean."""
    top = max(largest(run) for run in gated)
    for run, samples in gated.items():
        with data.sentence(run):
            _row(view, run, samples, top)
    st.caption(
        f"dead: at least {gating.DEAD:.0%} of the gates below 0.1; always open: at most {gating.OPEN:.0%} below 0.5; "
        "one scale for all runs and streams; click a cell to filter the charts of all pages"
    )
