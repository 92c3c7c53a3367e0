"""Compare's linked figure: reference, other runs and their differences, small multiples that share hand and scale."""

from __future__ import annotations

from functools import partial
from itertools import cycle

import altair as alt
import pandas as pd
import streamlit as st
import xarray as xr

from dashboard import cached_metrics, cached_reads, pair_panels, panels, recipes
from dashboard.choosing.selection import View
from dashboard.linked import linked_bands, linked_component
from dashboard.pair_panels import Paired
from sd35h5 import compare, metrics
from sd35h5.comparing import effects
from sd35h5.figures import curves, heatmaps, scales
from sd35h5.figures.linked_view import linked_figure
from sd35h5.figures.linked_view.linked_figure import Panel
from sd35h5.reports.view_page import Later
from sd35h5.store.showable import showable


def draw(view: View, pairs: list[Paired]) -> None:
    """Draw the figure, keep its plots for the exports, and mark the cells whose difference survives correction."""
    title = panels.METRIC_TITLES[view.metric]
    color_scales = {
        "values": linked_figure.value_scale(view.label),
        "differences": linked_figure.difference_scale(f"difference in {title}"),
    }
    sides, names = _sides(view, pairs), _difference_names(view, pairs)
    shown = [
        Panel(name, _mean(values), linked_bands.by_prompt(values, prompts), color=color, uniform=_uniform(view, own))
        for (name, values, prompts, own), color in zip(sides, cycle(scales.RUN_COLORS), strict=False)
    ]  # fmt: skip
    for name, one in zip(names, pairs, strict=True):
        change = _mean(compare.difference(one.before, one.after))
        shown.append(Panel(name, change, scale="differences", curves=False))
    with linked_component.place():
        chosen = linked_component.draw(
            view, "compare", shown, view.label, title=title, color_scales=color_scales, notes=_notes(sides)
        )
        _keep_figures(view, pairs)
        found = {name: pair_panels.changed(view, one) for name, one in zip(names, pairs, strict=True)}
        added = {
            name: linked_figure.extras(linked_bands.bands(view, values, prompts))
            for name, values, prompts, _ in sides
        }
        added |= {name: linked_figure.extras(marks=_marks(table)) for name, table in found.items()}
        linked_component.add("compare", chosen, added)
    told = [pair_panels.marks_mean(len(table), int(table["prompts"].iloc[0])) for table in found.values()]
    st.caption(" ".join(dict.fromkeys(told)))


def _sides(view: View, pairs: list[Paired]) -> list[tuple[str, xr.DataArray, list[str], tuple[int, ...]]]:
    """Return name, values, prompts and the reference's samples of each side: the reference once for equal samples."""
    references: dict[tuple[int, ...], Paired] = {}
    for one in pairs:
        references.setdefault(tuple(one.pairing.pairs["reference_sample"]), one)
    own = showable(view.run.name)
    found = []
    for samples, one in references.items():
        name = own if len(references) == 1 else f"{own}, where {showable(one.other.name)} pairs"
        found.append((name, one.before, list(one.prompts), samples))
    for one in pairs:
        samples = tuple(one.pairing.pairs["reference_sample"])
        found.append((showable(one.other.name), one.after, list(one.prompts), samples))
    return found


def _difference_names(view: View, pairs: list[Paired]) -> list[str]:
    return [f"{showable(one.other.name)} − {showable(view.run.name)}" for one in pairs]


def _mean(values: xr.DataArray) -> xr.DataArray:
    return metrics.finite_mean(values, ["sample"])


def _uniform(view: View, samples: tuple[int, ...]) -> float | None:
    return cached_metrics.uniform_value(view.run, view.metric, view.target, view.branch, samples)


def _notes(sides: list[tuple]) -> dict[str, str]:
    """Say what line and band are where there are several prompts."""
    most = max(len(set(prompts)) for _, _, prompts, _ in sides)
    if most < 2:
        return {}
    return {"curve": f"line: mean over {most} prompts; band: 10th to 90th percentile across prompts"}


def _marks(table: pd.DataFrame) -> pd.DataFrame:
    """Return a dot for every cell that survives. Args: table: of `pair_panels.changed`."""
    kept = table[table["q"] <= effects.SIGNIFICANT]
    means = [f"survives correction, q = {q:.2g}" for q in kept["q"]]
    return kept[["layer", "head"]].assign(sign="•", means=means)


def _keep_figures(view: View, pairs: list[Paired]) -> None:
    """Keep heatmaps and curves for the exports of the view, which are made when they are asked for: what they are made
    of is in the cache of all visitors, not in this session."""
    label, x = panels.METRIC_TITLES[view.metric], linked_component.x_axis()
    asked = [(one.other, one.pairing) for one in pairs]

    def heatmap(table: pd.DataFrame) -> alt.Chart:
        return heatmaps.layer_head_heatmap(table, label, chosen=view.cell)

    def difference(table: pd.DataFrame) -> alt.Chart | alt.LayerChart:
        return heatmaps.difference_heatmap(table, "difference", chosen=view.cell)

    def curve(table: pd.DataFrame) -> alt.LayerChart:
        return curves.step_curve(table, view.label, x=x)

    for (other, pairing), name in zip(asked, _difference_names(view, pairs), strict=True):
        codes = recipes.compared(view, other)
        for title, chart, code in zip(
            (view.run.name, other.name, name), (heatmap, heatmap, difference), codes, strict=True
        ):
            which = ("before", "after", "change")[codes.index(code)]
            panels.keep(Later(title, partial(_cells, view, other, pairing, which), chart, code))
    code = recipes.compared_curves(view, [other for other, _ in asked])
    panels.keep(Later("Over the denoising steps", partial(_curves, view, asked), curve, code))


def _cells(view: View, other: cached_reads.Run, pairing: compare.Pairing, which: str) -> pd.DataFrame:
    """Return the mean of each cell within the choice: before, after, or the change and whether it survives."""
    one = pair_panels.read(view, other, pairing)
    before, after = view.within(one.before), view.within(one.after)
    if which != "change":
        return metrics.by_layer_head(before if which == "before" else after)
    found = pair_panels.changed(view, one)
    frame = metrics.by_layer_head(compare.difference(before, after))
    frame = frame.merge(found[["layer", "head", "q"]], on=["layer", "head"])
    return frame.assign(marked=frame["q"] <= effects.SIGNIFICANT)


def _curves(view: View, asked: list[tuple[cached_reads.Run, compare.Pairing]]) -> pd.DataFrame:
    """Return the metric over steps of every run, pairs only, of the pinned cell or all chosen ones."""
    frames = []
    for other, pairing in asked:
        one = pair_panels.read(view, other, pairing)
        sides = [(view.run.name, one.before), (other.name, one.after)]
        for name, values in sides[bool(frames) :]:
            frames.append(metrics.over_steps(view.at_cell(values), one.prompts).assign(series=name))
    return pd.concat(frames)
