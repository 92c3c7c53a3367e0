"""What Compare draws beside its linked figure: how large the change is, each pair, images, what is not paired."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import streamlit as st
import xarray as xr

from dashboard import cached_metrics, cached_reads, panels, recipes, scatter_panel
from dashboard.choosing.selection import View
from sd35h5 import compare, metrics
from sd35h5.comparing import effects
from sd35h5.errors import StoreError
from sd35h5.figures import pair_charts


@dataclass(frozen=True)
class Paired:
    """A run beside the reference: which samples pair, and the metric of both for them, in their order.

    before, after: of the reference and of `other`, (sample, step, layer, head), all that was measured.
    """

    other: cached_reads.Run
    pairing: compare.Pairing
    before: xr.DataArray
    after: xr.DataArray

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each pair, by its id."""
        return tuple(self.pairing.pairs["prompt_id"])


def pairing_of(view: View, other: cached_reads.Run) -> compare.Pairing:
    """Return the pairing, restricted to the samples that the sidebar chose."""
    found = cached_reads.pairing(view.run, other)
    kept = found.pairs[found.pairs["reference_sample"].isin(view.samples)].reset_index(drop=True)
    return compare.Pairing(found.reference, found.other, kept, found.unpaired)


def read(view: View, other: cached_reads.Run, pairing: compare.Pairing) -> Paired:
    """Read both sides of the pairs.

    Raises: StoreError where the runs measured other layers, heads or steps.
    """
    sides = []
    for run, column in ((view.run, "reference_sample"), (other, "other_sample")):
        values = cached_metrics.metric(
            run, view.metric, view.target, view.branch, tuple(pairing.pairs[column])
        )
        sides.append(values.assign_coords(sample=range(values.sizes["sample"])))
    for dim in ("head", "layer", "step"):
        if sides[0][dim].values.tolist() != sides[1][dim].values.tolist():
            raise StoreError(
                f"{other.name} measured this with other {dim}s than {view.run.name}: they do not compare"
            )
    return Paired(other, pairing, *sides)


def key_of(view: View, one: Paired, where: tuple[tuple[int, ...], ...]) -> tuple:
    """Return what a difference follows from: runs, pairs, metric, and the layers, heads (and steps) of `where`."""
    columns = one.pairing.pairs[["reference_sample", "other_sample"]]
    pairs = tuple(map(tuple, columns.to_numpy().tolist()))
    return (view.run, one.other, pairs, view.metric, view.target, view.branch, *where)


def changed(view: View, one: Paired) -> pd.DataFrame:
    """Return p and q of the difference of every cell within the choice, and the number of prompts."""
    change = compare.difference(view.within(one.before), view.within(one.after))
    return cached_metrics.surviving_cells(
        change, one.prompts, key_of(view, one, (view.layers, view.heads, view.steps))
    )


def marks_mean(cells: int, prompts: int) -> str:
    """Say what the dots mean, or why there are none."""
    if prompts < effects.MIN_PROMPTS:
        return (
            f"No cells are marked: {prompts} prompt{'s' if prompts > 1 else ''} cannot tell a change from chance, "
            f"{effects.MIN_PROMPTS} can."
        )
    return (
        f"A dot marks a difference that survives correction for all {cells} cells: sign flips over {prompts} prompts, "
        f"Benjamini–Hochberg, q ≤ {effects.SIGNIFICANT}."
    )


def draw_changes(view: View, pairs: list[Paired]) -> None:
    """Draw how much changed, with intervals over prompts: in all, or at the pinned cell, and over the layers."""

    def effects_of(one: Paired, sides: tuple, where: tuple) -> tuple[pd.DataFrame, pd.DataFrame]:
        key = key_of(view, one, (*where, view.steps))
        found = cached_metrics.change_effects(compare.difference(*sides), one.prompts, key)
        return tuple(table.assign(run=one.other.name) for table in found)

    whole = [
        effects_of(one, (view.at_cell(one.before), view.at_cell(one.after)), view.looked_at)[0]
        for one in pairs
    ]
    layers = [
        effects_of(one, (view.within(one.before), view.within(one.after)), (view.layers, view.heads))[1]
        for one in pairs
    ]
    others = [one.other for one in pairs]
    title = panels.METRIC_TITLES[view.metric]
    left, right = st.columns(2)
    with left:
        where = "" if view.cell is None else f" · {panels.told_cell(view.cell)}"
        st.markdown(f"**How large the change is**{where}")
        table = effects.standardised(pd.concat(whole))
        figure = pair_charts.effect_intervals(
            table.assign(measure=title), width=None, room=90 if len(table) > 1 else 60
        )
        code = recipes.compared_effect(view, others)
        panels.chart(figure, "How large the change is", table, code)
        st.caption(panels.plain(told_effects(table)))
    with right:
        st.markdown("**The change over the layers**")
        table = pd.concat(layers)
        figure = pair_charts.effect_profile(table, f"change: {view.label}", brush="brush", height=300)
        code = recipes.compared_layers(view, others)
        panels.brushed(figure, "change", "The change over the layers", table, code, "layer")
        st.caption(
            f"band: {effects.LEVEL:.0%} interval over prompts, of {effects.MIN_PROMPTS} prompts or more"
        )


def told_effects(table: pd.DataFrame) -> str:
    """Say each run's change with its interval, in the metric's own unit."""
    said = []
    for row in table.itertuples():
        if row.mean_difference != row.mean_difference:  # no pair has a value on both sides
            said.append(f"{row.run}: no pair to take a difference of")
            continue
        span = f" [{row.low:+.3g}, {row.high:+.3g}]" if row.low == row.low else ""
        said.append(f"{row.run}: {row.mean_difference:+.3g}{span}, {panels.counted(row.prompts, 'prompt')}")
    return (
        "; ".join(said)
        + f". The bar is the {effects.LEVEL:.0%} interval in standard deviations of the prompts."
    )


def slopes(view: View, pairs: list[Paired]) -> None:
    """Draw every paired sample's mean from run to run."""
    rows = []
    for one in pairs:
        sides = [(view.run.name, one.before), (one.other.name, one.after)]
        for run, values in sides if not rows else sides[1:]:
            means = metrics.finite_mean(view.at_cell(values), ["step", "layer", "head"]).values
            table = one.pairing.pairs
            rows += list(
                zip([run] * len(table), table["reference_sample"], table["prompt"], means, strict=True)
            )
    table = pd.DataFrame(rows, columns=["run", "sample", "prompt", "value"])
    code = recipes.compared_slopes(view, [one.other for one in pairs])
    panels.chart(pair_charts.paired_slopes(table, view.label, height=340), "Each pair", table, code)


def images(view: View, pairs: list[Paired]) -> None:
    """Draw the images of the shown sample and its partners beside each other."""
    shown = [(view.run, view.sample)]
    for one in pairs:
        table = one.pairing.pairs
        found = table.loc[table["reference_sample"] == view.sample, "other_sample"]
        shown += [(one.other, int(place)) for place in found]
    for column, (run, sample) in zip(st.columns(max(4, len(shown))), shown, strict=False):
        pixels = cached_reads.image(run, sample)
        with column:
            if pixels is None:
                st.caption(f"{panels.plain(run.name)} kept no image")
            else:
                st.image(pixels, width="stretch", caption=panels.plain(run.name))


def unpaired(view: View, found: list[compare.Pairing]) -> None:
    """List what cannot be paired, with the field that differs."""
    alone = pd.concat([one.unpaired.assign(with_run=one.other) for one in found])
    if alone.empty:
        st.caption("Every sample of these runs has its partner.")
        return
    st.markdown(f"**Not paired, hence not in any number above: {len(alone)}**")
    named = {
        "field": "field that differs",
        "value": "its value",
        "nearest": "in the other run",
        "with_run": "pairing with",
    }
    panels.table(alone.rename(columns=named))


def scatter(view: View, paired: list[Paired]) -> None:
    """Draw two numbers of the samples against each other: of the pairs only, or of the one run that is chosen."""
    own = list(view.samples)
    if view.others:
        own = sorted({sample for one in paired for sample in one.pairing.pairs["reference_sample"]})
    partners = {view.run: pd.DataFrame({"sample": own, "shown": own})}
    for one in paired:
        pairs = one.pairing.pairs[["other_sample", "reference_sample"]]
        partners[one.other] = pairs.set_axis(["sample", "shown"], axis=1)
    scatter_panel.draw(view, partners)
