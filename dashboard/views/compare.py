"""Compare: one reference run and others, paired by pairing key: side by side, as difference, and what cannot
be paired."""

import pandas as pd
import streamlit as st

from dashboard import cached_metrics, cached_reads, gate_panels, panels, recipes, scatter_panel
from sd35h5 import compare, metrics
from sd35h5.comparing import effects
from sd35h5.errors import StoreError
from sd35h5.figures import curves, heatmaps, pair_charts, scales
from sd35h5.metrics import gate_statistics


def pairing_of(view, other: cached_reads.Run) -> compare.Pairing:
    """Return the pairing, restricted to the samples that the sidebar chose."""
    found = cached_reads.pairing(view.run, other)
    kept = found.pairs[found.pairs["reference_sample"].isin(view.samples)].reset_index(drop=True)
    return compare.Pairing(found.reference, found.other, kept, found.unpaired)


def values_of(view, other: cached_reads.Run, pairing: compare.Pairing):
    """Return both runs' metric for the pairs, in their order, within the chosen layers, heads and steps."""
    sides = []
    for run, column in ((view.run, "reference_sample"), (other, "other_sample")):
        values = cached_metrics.metric(
            run, view.metric, view.target, view.branch, tuple(pairing.pairs[column])
        )
        sides.append(values.assign_coords(sample=range(values.sizes["sample"])))
    if sides[0].sizes["head"] != sides[1].sizes["head"]:
        raise StoreError(
            f"{other.name} measured this with other heads than {view.run.name}: they do not compare"
        )
    return [view.within(side) for side in sides]


def marked(view, name: str, sides: tuple, pairing: compare.Pairing) -> tuple[pd.DataFrame, int]:
    """Return the difference of every cell with a mark where it survives correction, and the number of prompts."""
    change = compare.difference(*sides)
    found = cached_metrics.surviving_cells(
        change, tuple(pairing.pairs["prompt_id"]), key_of(view, name, pairing, (view.layers, view.heads))
    )
    frame = metrics.by_layer_head(change).merge(found[["layer", "head", "q"]], on=["layer", "head"])
    return frame.assign(marked=frame["q"] <= effects.SIGNIFICANT), int(found["prompts"].iloc[0])


def key_of(view, name: str, pairing: compare.Pairing, where: tuple[tuple[int, ...], ...]) -> tuple:
    """Return what a difference follows from: runs, pairs, metric, and the layers and heads of `where`."""
    other = next(run for run in view.others if run.name == name)
    pairs = tuple(map(tuple, pairing.pairs[["reference_sample", "other_sample"]].to_numpy().tolist()))
    return (view.run, other, pairs, view.metric, view.target, view.branch, *where, view.steps)


def changes(view, pairs: dict[str, tuple], pairings: dict[str, compare.Pairing]) -> None:
    """Draw how much changed, with intervals over prompts: in all, or at the clicked cell, and over the layers."""

    def effects_of(name: str, sides: tuple, where: tuple) -> tuple[pd.DataFrame, pd.DataFrame]:
        prompts, key = tuple(pairings[name].pairs["prompt_id"]), key_of(view, name, pairings[name], where)
        found = cached_metrics.change_effects(compare.difference(*sides), prompts, key)
        return tuple(table.assign(run=name) for table in found)

    at_cell = {name: tuple(_cell(view, side) for side in sides) for name, sides in pairs.items()}
    whole = [effects_of(name, sides, view.looked_at)[0] for name, sides in at_cell.items()]
    layers = [effects_of(name, sides, (view.layers, view.heads))[1] for name, sides in pairs.items()]
    others = [run for run in view.others if run.name in pairs]
    title = panels.METRIC_TITLES[view.metric]
    left, right = st.columns(2)
    with left:
        where = "" if view.cell is None else f" · layer {view.cell[0]}, head {view.cell[1]}"
        st.markdown(f"**How large the change is**{where}")
        table = effects.standardised(pd.concat(whole))
        figure = pair_charts.effect_intervals(table.assign(measure=title))
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


def draw_heatmaps(view, pairs: dict[str, tuple], pairings: dict[str, compare.Pairing]) -> None:
    """Draw reference, other and difference, one colour scale over all runs and one over all differences."""
    cells = {name: [metrics.by_layer_head(side) for side in sides] for name, sides in pairs.items()}
    found = {name: marked(view, name, sides, pairings[name]) for name, sides in pairs.items()}
    changes = {name: frame for name, (frame, _) in found.items()}
    domain = scales.magnitude(pd.concat([frame for both in cells.values() for frame in both])["value"])
    limit = max(scales.symmetric(frame["value"]) for frame in changes.values())
    for name, (before, after) in cells.items():
        columns = st.columns(3)
        titles = (view.run.name, name, f"{name} − {view.run.name}")
        codes = recipes.compared(view, next(run for run in view.others if run.name == name))
        for column, title, frame, code in zip(
            columns, titles, (before, after, changes[name]), codes, strict=True
        ):
            with column:
                st.markdown(f"**{panels.plain(title)}**")
                if frame is changes[name]:
                    figure = heatmaps.difference_heatmap(
                        frame,
                        "difference",
                        limit=limit,
                        chosen=view.cell,
                        select="cell",
                        brush="brush",
                        width=230,
                        height=panels.tall(view, 320),
                    )
                else:
                    figure = heatmaps.layer_head_heatmap(
                        frame,
                        panels.METRIC_TITLES[view.metric],
                        domain=domain,
                        chosen=view.cell,
                        select="cell",
                        brush="brush",
                        width=230,
                        height=panels.tall(view, 320),
                    )
                panels.clickable(figure, f"compare-{name}-{title}", title, frame, code)
    st.caption(" ".join(dict.fromkeys(marks_mean(len(frame), prompts) for frame, prompts in found.values())))


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


def draw_curves(view, pairs: dict[str, tuple], pairings: dict[str, compare.Pairing]) -> None:
    """Draw the metric over steps for every run: the pairs only, the clicked cell if there is one."""
    frames = []
    for name, (before, after) in pairs.items():
        prompts = list(pairings[name].pairs["prompt_id"])
        if not frames:
            frames.append(metrics.over_steps(_cell(view, before), prompts).assign(series=view.run.name))
        frames.append(metrics.over_steps(_cell(view, after), prompts).assign(series=name))
    table = pd.concat(frames)
    figure = curves.step_curve(table, view.label, height=340, brush="brush")
    code = recipes.compared_curves(view, [run for run in view.others if run.name in pairs])
    panels.curve(figure, "compare-curve", "Over the denoising steps", table, code, "step")


def slopes(view, pairs: dict[str, tuple], pairings: dict[str, compare.Pairing]) -> None:
    """Draw every paired sample's mean from run to run."""
    rows = []
    for name, (before, after) in pairs.items():
        sides = [(view.run.name, before), (name, after)]
        for run, values in sides if not rows else sides[1:]:
            means = metrics.finite_mean(_cell(view, values), ["step", "layer", "head"]).values
            table = pairings[name].pairs
            rows += list(
                zip([run] * len(table), table["reference_sample"], table["prompt"], means, strict=True)
            )
    table = pd.DataFrame(rows, columns=["run", "sample", "prompt", "value"])
    code = recipes.compared_slopes(view, [run for run in view.others if run.name in pairs])
    panels.chart(pair_charts.paired_slopes(table, view.label, height=340), "Each pair", table, code)


def _cell(view, values):
    if view.cell is None:
        return values
    return values.sel(layer=[view.cell[0]], head=[view.cell[1]])


def images(view, pairings: dict[str, compare.Pairing]) -> None:
    """Draw the images of the shown sample and its partners beside each other."""
    shown = [(view.run, view.sample)]
    for other in view.others:
        pairs = pairings[other.name].pairs if other.name in pairings else None
        found = [] if pairs is None else pairs.loc[pairs["reference_sample"] == view.sample, "other_sample"]
        shown += [(other, int(place)) for place in found]
    for column, (run, sample) in zip(st.columns(max(4, len(shown))), shown, strict=False):
        pixels = cached_reads.image(run, sample)
        with column:
            if pixels is None:
                st.caption(f"{panels.plain(run.name)} kept no image")
            else:
                st.image(pixels, width="stretch", caption=panels.plain(run.name))


def unpaired(view, found: list[compare.Pairing]) -> None:
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


def gates(view) -> None:
    """Draw the gates of the runs that have some, over the samples that pair."""
    found = {run: gate_panels.partners(view, run) for run in (view.run, *view.others)[: gate_panels.MOST]}
    found = {
        run: samples
        for run, samples in found.items()
        if samples and gate_statistics.gated_streams(cached_reads.store(run))
    }
    if found:
        st.markdown("**Mean gate by layer, head and stream**")
        gate_panels.draw(view.of_joint, found)


def scatter(view, pairings: dict[str, compare.Pairing]) -> None:
    """Draw two numbers of the samples against each other: of the pairs only, or of the one run that is chosen."""
    own = list(view.samples)
    if view.others:
        own = sorted({sample for one in pairings.values() for sample in one.pairs["reference_sample"]})
    partners = {view.run: pd.DataFrame({"sample": own, "shown": own})}
    for other in view.others:
        if other.name in pairings:
            pairs = pairings[other.name].pairs
            partners[other] = pairs[["other_sample", "reference_sample"]].set_axis(
                ["sample", "shown"], axis=1
            )
    scatter_panel.draw(view, partners)


def show(view) -> None:
    """Lay out the page for the chosen runs; the numbers of the pairs live as long as this call."""
    all_pairings = [pairing_of(view, other) for other in view.others]
    st.caption(panels.plain(panels.about(view)))
    pairings, pairs = {}, {}
    for other, pairing in zip(view.others, all_pairings, strict=True):
        if pairing.pairs.empty:
            st.warning(
                f"No chosen sample of {panels.plain(other.name)} pairs with {panels.plain(view.run.name)}: "
                "the list below says why."
            )
            continue
        with cached_reads.sentence(view.run, other):
            before, after = values_of(view, other, pairing)
            pairings[other.name], pairs[other.name] = pairing, (before, after)
            title = panels.METRIC_TITLES[view.metric]
            st.markdown(panels.plain(compare.sentence(before, after, pairing, title)))
    if pairs:
        side_by_side(view, pairs, pairings)
    unpaired(view, all_pairings)


def side_by_side(view, pairs: dict[str, tuple], pairings: dict[str, compare.Pairing]) -> None:
    """Draw everything of the pairs that there are."""
    draw_heatmaps(view, pairs, pairings)
    changes(view, pairs, pairings)
    where = "" if view.cell is None else f" · layer {view.cell[0]}, head {view.cell[1]}"
    left, right = st.columns(2)
    with left:
        st.markdown(f"**Over the denoising steps**{where}")
        draw_curves(view, pairs, pairings)
    with right:
        st.markdown(f"**Each pair**{where}")
        slopes(view, pairs, pairings)
    scatter(view, pairings)
    st.markdown(f"**Images** · {panels.plain(panels.told_prompt(view.run, view.sample))}")
    images(view, pairings)
    with cached_reads.sentence(view.run, *view.others):
        gates(view)


view = panels.current()
st.subheader("Compare")
if view.others:
    show(view)
else:
    st.info("Choose at least one run under “Compare with” in the sidebar.", icon=":material/info:")
    scatter(view, {})
