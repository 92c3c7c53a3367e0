"""The gates that Gates and Compare draw: what each run's are, and the mean gate of every stream as a linked figure."""

from __future__ import annotations

from functools import partial

import altair as alt
import pandas as pd
import streamlit as st

from dashboard import cached_metrics, cached_reads, panels, recipes
from dashboard.linked import linked_gates
from sd35h5.figures import gate_charts
from sd35h5.metrics import gate_statistics
from sd35h5.reports.view_page import Later

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


def heads(view, run: cached_reads.Run, samples: tuple[int, ...], query: str) -> pd.DataFrame:
    """Return the gate of each chosen head, over the chosen steps."""
    found = cached_metrics.gate_heads(run, view.branch, query, samples, view.steps)
    return found[found["layer"].isin(view.layers) & found["head"].isin(view.heads)].reset_index(drop=True)


def _told(view, run: cached_reads.Run, samples: tuple[int, ...]) -> None:
    """Say what a run's gates are, and how many heads of each stream are dead and open."""
    gate, caution = panels.told_gates(cached_reads.store(run).attributes)
    st.markdown(f"**{panels.plain(run.name)}** · {panels.plain(gate)}")
    if intervention := panels.told_intervention(cached_reads.store(run).attributes):
        st.caption(f":material/content_cut: intervention: {panels.plain(intervention)}")
    if caution:
        st.warning(f"{caution[:1].upper()}{caution[1:]}.", icon=":material/warning:")
    streams = gate_statistics.gated_streams(cached_reads.store(run))
    told = {query: _counted(heads(view, run, samples, query)) for query in streams}
    st.caption("; ".join(f"{query} queries · {count}" for query, count in told.items()))


def _counted(found: pd.DataFrame) -> str:
    """Say how many of the heads are dead and open."""
    count = found["state"].value_counts()
    if not len(found) or count.get("not applied", 0) == len(found):
        return "no gate on this stream here"
    text = f"{len(found)} heads: {count.get('dead', 0)} dead (✕), {count.get('open', 0)} always open (○)"
    return text + (f", {count['not applied']} without (struck)" if "not applied" in count else "")


def draw(view, gated: dict[cached_reads.Run, tuple[int, ...]], name: str) -> None:
    """Draw the gates of these runs as one linked figure, run -> its samples, and say what the signs mean.

    Args: name: the figure's, one on its page.
    """
    for run, samples in gated.items():
        with cached_reads.sentence(run):
            _told(view, run, samples)
    streams = [one for run, samples in gated.items() for one in linked_gates.streams(view, run, samples)]
    top = max(largest(run) for run in gated)
    for place, group in enumerate(linked_gates.of_equal_shape(streams)):
        linked_gates.draw(view, group, top, name if place == 0 else f"{name}-{place}")
    for one in streams:
        _keep(view, one, top)
    st.caption(
        f"✕ dead: at least {gate_statistics.DEAD:.0%} of the gates below 0.1; "
        f"○ always open: at most {gate_statistics.OPEN:.0%} below 0.5; one scale for all runs and streams"
    )


def _keep(view, one: linked_gates.Stream, top: float) -> None:
    """Keep a stream's heatmap for the exports of the view: it is made when it is asked for."""

    def heatmap(table: pd.DataFrame) -> alt.Chart | alt.LayerChart:
        return gate_charts.gate_heatmap(table, largest=top, chosen=view.cell)

    title = f"{one.run.name}: mean gate, {one.query} queries"
    code = recipes.gate_heads(view, one.run, one.samples, one.query)
    panels.keep(Later(title, partial(heads, view, one.run, one.samples, one.query), heatmap, code))
