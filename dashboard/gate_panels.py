"""Rows of gates that Gates and Compare draw: a run's mean gate by layer × head, its streams beside each other."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import cached_metrics, cached_reads, panels, recipes
from sd35h5.figures import gate_charts
from sd35h5.metrics import gate_statistics

MOST = 4  # runs below each other
MEANS = ["step", "timestep", "sigma", "mean"]  # of a curve without a band


def partners(view, run: cached_reads.Run) -> tuple[int, ...]:
    """Return the samples of a run that belong to the chosen ones."""
    if run == view.run:
        return view.samples
    pairs = cached_reads.pairing(view.run, run).pairs
    return tuple(pairs.loc[pairs["reference_sample"].isin(view.samples), "other_sample"].tolist())


def largest(run: cached_reads.Run) -> float:
    """Return the largest value that the run's gate can have."""
    return 2.0 if cached_reads.store(run).attributes.get("gate_activation") == "2sigmoid" else 1.0


def _heads(view, run: cached_reads.Run, samples: tuple[int, ...], query: str) -> pd.DataFrame:
    """Return the gate of each chosen head, over the chosen steps."""
    found = cached_metrics.gate_heads(run, view.branch, query, samples, view.steps)
    return found[found["layer"].isin(view.layers) & found["head"].isin(view.heads)].reset_index(drop=True)


def _row(view, run: cached_reads.Run, samples: tuple[int, ...], top: float) -> None:
    """Draw one run: what its gates are, and a heatmap of each stream."""
    gate, caution = panels.told_gates(cached_reads.store(run).attributes)
    st.markdown(f"**{panels.plain(run.name)}** · {panels.plain(gate)}")
    if intervention := panels.told_intervention(cached_reads.store(run).attributes):
        st.caption(f":material/content_cut: intervention: {panels.plain(intervention)}")
    if caution:
        st.warning(f"{caution[:1].upper()}{caution[1:]}.", icon=":material/warning:")
    streams = gate_statistics.gated_streams(cached_reads.store(run))
    for column, query in zip(st.columns(max(2, len(streams))), streams, strict=False):
        with column:
            found = _heads(view, run, samples, query)
            st.caption(f"{query} queries · {_counted(found)}")
            if found["mean"].notna().any():
                figure = gate_charts.gate_heatmap(
                    found,
                    largest=top,
                    chosen=view.cell,
                    select="cell",
                    brush="brush",
                    height=panels.tall(view, 320),
                )
                title = f"{run.name}: mean gate, {query} queries"
                code = recipes.gate_heads(view, run, samples, query)
                if panels.chooses_joint_heads():
                    panels.clickable(figure, f"gates-{run.name}-{query}", title, found, code)
                else:
                    panels.chart(figure, title, found, code)


def _counted(found: pd.DataFrame) -> str:
    """Say how many of the heads are dead and open."""
    count = found["state"].value_counts()
    if not len(found) or count.get("not applied", 0) == len(found):
        return "no gate on this stream here"
    text = f"{len(found)} heads: {count.get('dead', 0)} dead (✕), {count.get('open', 0)} always open (○)"
    return text + (f", {count['not applied']} without (grey)" if "not applied" in count else "")


def draw(view, gated: dict[cached_reads.Run, tuple[int, ...]]) -> None:
    """Draw a row a run, run -> its samples, on one scale, and say what the signs mean."""
    top = max(largest(run) for run in gated)
    for run, samples in gated.items():
        with cached_reads.sentence(run):
            _row(view, run, samples, top)
    st.caption(
        f"dead: at least {gate_statistics.DEAD:.0%} of the gates below 0.1; "
        f"always open: at most {gate_statistics.OPEN:.0%} below 0.5; "
        "one scale for all runs and streams; click a cell to filter the charts of all pages"
    )
