"""The scatter that Compare draws: any two numbers of the samples against each other, a colour a run."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from dashboard import cached_metrics, cached_reads, panels, recipes
from dashboard.choosing import address
from dashboard.choosing.selection import View
from sd35h5.figures import scales
from sd35h5.figures.scatter_chart import scatter as figure_of
from sd35h5.metrics import per_sample
from sd35h5.metrics.catalogue import MEASURES, head_axis

MOST = len(scales.RUN_COLORS)


def draw(view, partners: dict[cached_reads.Run, pd.DataFrame]) -> None:
    """Draw the scatter.

    Args: partners: run -> its samples, columns `sample` and `shown`, the sample of the reference that each
        belongs to.
    """
    st.markdown("**Any two numbers of the samples** · click a point to show its sample")
    names = per_sample.quantities([cached_reads.store(run) for run in partners])
    joined = [name for name in names if name.startswith(per_sample.SCORES)]
    usual = (view.metric, joined[0] if joined else "entropy")
    chosen = []
    for column, axis, first in zip(st.columns(2), "xy", usual, strict=True):
        pick = partial(column.selectbox, f"{axis} axis", list(names), format_func=names.get)
        chosen.append(
            address.choice(
                pick, f"scatter-{axis}-{len(names)}", f"scatter-{axis}", first, address.one_of(names)
            )
        )
    found, codes = [], {}
    for run, samples in list(partners.items())[:MOST]:
        with cached_reads.sentence(run):
            own = tuple(samples["sample"].tolist())
            both = [
                cached_metrics.sample_values(run, name, *asked(view, name), own, name == view.metric)
                for name in chosen
            ]
            table = per_sample.points(cached_reads.samples(run), own, *both).assign(run=run.name)
            found.append(table.assign(shown=samples["shown"].to_numpy()))
            codes[run] = own
    if not found:
        return
    table = pd.concat(found, ignore_index=True)
    if not table[["x", "y"]].notna().all(axis=1).any():
        st.info("No chosen sample has both numbers.", icon=":material/info:")
        return
    points = table.assign(sample=table["shown"])  # a click, and the ring, mean the reference's sample
    figure = figure_of(points, *(names[name] for name in chosen), chosen=view.sample, select="sample")
    numbers = [(name, *map(list, asked(view, name)[2:4])) for name in chosen]
    code = recipes.scattered(view, codes, numbers)
    panels.points(
        view, figure, "scatter", "Any two numbers of the samples", table.drop(columns="shown"), code
    )
    for row in per_sample.correlations(table).to_dict("records"):
        st.caption(panels.plain(per_sample.told(row)))


def asked(view: View, name: str) -> tuple:
    """Return target, branch, layers, heads and steps of a number: the clicked cell's, if there is one; heads are
    chosen among those of the metric, and of numbers with other heads all are taken."""
    layers, heads = view.looked_at
    own = name in MEASURES and head_axis(cached_reads.store(view.run), name) != view.head_axis
    return view.target, view.branch, layers, () if own else heads, view.steps
