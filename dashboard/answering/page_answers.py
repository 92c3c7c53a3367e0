"""The numbers of each page's sentences: what the page reads anyway for its charts, and no more of the file."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import xarray as xr

from dashboard import cached_metrics, cached_reads, pair_panels, panels
from dashboard.caching import made_once
from dashboard.choosing.selection import View
from dashboard.map_pictures import Panel
from dashboard.pair_panels import Paired
from sd35h5 import compare, metrics
from sd35h5.comparing import telling_runs
from sd35h5.metrics.averaging import finite_mean, prompt_means
from sd35h5.metrics.catalogue import MEASURES
from sd35h5.metrics.picture import pictured_objects
from sd35h5.reports.answers import (
    cell_answers,
    map_answers,
    pair_answers,
    run_answers,
    sink_answers,
    token_answers,
)
from sd35h5.reports.answers import spreads as of_heads
from sd35h5.reports.answers.sentence import Sentence
from sd35h5.reports.answers.sink_answers import Spread


def heads(view: View, cube: xr.DataArray, uniform: float | None, spread: dict) -> Sentence:
    """Say which heads have most of the metric within the choice. Args: cube: (step, layer, head); spread: `spreads`."""
    table = metrics.by_layer_head(view.within(cube))
    return sink_answers.heads(table, view.metric, view.target, uniform, spread)


def spreads(
    view: View, cube: xr.DataArray, values: xr.DataArray, prompts: Sequence[str]
) -> dict[tuple[int, int], Spread]:
    """Return the interval over prompts of the head that `heads` names first. Args: values: whose mean `cube` is."""
    if view.metric != "first_token_mean":
        return {}
    cells = sink_answers.leading_cells(metrics.by_layer_head(view.within(cube)))[:1]
    asked = (view.run, view.metric, view.target, view.branch, view.samples, view.steps)
    key = ("spread of heads", *asked, *cells)
    return made_once(key, lambda: of_heads.spreads(cells, view.within(values), prompts))


def kinds(view: View) -> Sentence | None:
    """Say which kind of key is the heaviest, at the pinned cell or within the choice."""
    where = "" if view.cell is None else panels.told_cell(view.cell)
    layers, heads = view.looked_at
    found = cached_metrics.key_kinds(view.run, view.branch, view.samples, layers, heads, view.steps)
    return None if found is None else sink_answers.kinds(found.kinds, where)


def groups(view: View) -> Sentence | None:
    """Say where the mass goes, at the pinned cell or within the choice."""
    where = "" if view.cell is None else panels.told_cell(view.cell)
    mass = view.at_cell(cached_metrics.mean_group_mass(view.run, view.branch, "image", view.samples))
    means = finite_mean(mass, ["step", "layer", "head"]).to_series()
    return sink_answers.groups({str(name): float(value) for name, value in means.items()}, where)


def tokens(view: View, masses: pd.DataFrame) -> list[Sentence | None]:
    """Say which token, group and word of the shown sample gets most."""
    words = cached_reads.tokens(view.run, view.sample, view.branch)["word_text"]
    table = masses.assign(word_text=words.to_numpy())
    count = panels.patches(view.run)
    uniform = 1 / (cached_reads.store(view.run).sizes["token"] + count) if count else None
    where = "" if view.cell is None else panels.told_cell(view.cell)
    return [
        token_answers.heaviest_tokens(table, uniform, len(view.samples) > 1, where),
        token_answers.heaviest_group(table),
        token_answers.heaviest_word(table),
    ]


def maps(one: Panel, word: str, step: int) -> list[Sentence | None]:
    """Say of a run which layer and step look most at a word, and how concentrated its map is."""
    there = one.drawn_objects
    chosen, within = there[there["chosen"].astype(bool)], None
    for each in chosen.head(1).itertuples(index=False):
        box = (each.left, each.top, each.right, each.bottom)
        canvas = cached_reads.store(one.run).sizes["pixel_y"]
        mass, area = pictured_objects.mass_within(one.values.sel(map_step=step), box, canvas)
        within = (str(each.name), float(mass), float(area))
    return [
        map_answers.layers(one.layers, step, f"“{word}”"),
        map_answers.steps(one.values),
        map_answers.concentration(one.values.sel(map_step=step).values, within),
    ]


def cell(
    view: View, values: xr.DataArray, table: pd.DataFrame, uniform: float | None
) -> list[Sentence | None]:
    """Say what the shown sample's cell gives to the target. Args: values: of one sample; table: of all its cells."""
    own = finite_mean(view.at_cell(values), ["sample", "layer", "head"]).to_series()
    steps = {int(step): float(value) for step, value in own.items()}
    if view.metric == "first_token_mean":
        first = cell_answers.mass(view.cell, steps, view.target, uniform)
    else:
        one = MEASURES[view.metric]
        first = cell_answers.value(view.cell, steps, one.title, one.unit)
    return [first, cell_answers.rank(view.cell, table)]


def changes(view: View, pairs: Sequence[Paired]) -> list[Sentence | None]:
    """Say what differs between the runs, with intervals over prompts; of one other run also in which heads."""
    where = "" if view.cell is None else panels.told_cell(view.cell)
    found: list[Sentence | None] = [_change(view, one, where) for one in pairs]
    if len(pairs) == 1 and view.cell is None:
        found.append(_changed_heads(view, pairs[0]))
    return found


def _change(view: View, one: Paired, where: str) -> Sentence | None:
    sides = [view.at_cell(side) for side in (one.before, one.after)]
    key = pair_panels.key_of(view, one, (*view.looked_at, view.steps))
    row = cached_metrics.change_effects(compare.difference(*sides), one.prompts, key)[0].iloc[0]
    if row["mean_difference"] != row["mean_difference"]:  # no pair has a value on both sides
        return None
    means = [_over_prompts(side, one.prompts) for side in sides]
    numbers = (float(row[name]) for name in ("mean_difference", "low", "high", "p"))
    return pair_answers.change(
        pair_answers.Change(
            view.run.name, one.other.name, view.metric, *means, *numbers, int(row["prompts"]),
            len(one.pairing.pairs), view.target, where,
        )
    )  # fmt: skip


def _over_prompts(values: xr.DataArray, prompts: Sequence[str]) -> float:
    means = finite_mean(values, ["step", "layer", "head"]).values
    return float(prompt_means(means[:, None], prompts).mean().iloc[0])


def _changed_heads(view: View, one: Paired) -> Sentence:
    sides = [view.within(side) for side in (one.before, one.after)]
    columns = {
        "mean_difference": compare.difference(*sides),
        "reference_mean": sides[0],
        "other_mean": sides[1],
    }
    table = pair_panels.changed(view, one)
    for name, values in columns.items():
        means = metrics.by_layer_head(values).rename(columns={"value": name})
        table = table.merge(means, on=["layer", "head"])
    return pair_answers.changed_heads(table)


def overview(view: View, runs: Sequence[cached_reads.Run]) -> list[Sentence | None]:
    """Say which runs there are, and in what those beside the shown one differ."""
    counts, own = [_counts(run) for run in runs], cached_reads.made(view.run)
    beside = [(other.name, telling_runs.beside(own, cached_reads.made(other))) for other in view.others]
    return [
        run_answers.runs(counts),
        run_answers.beside(
            view.run.name, [run_answers.Beside(name, one.differs, one.pairs) for name, one in beside]
        ),
        run_answers.unfinished(counts),
    ]


def _counts(run: cached_reads.Run) -> run_answers.Counts:
    store = cached_reads.store(run)
    samples = cached_reads.samples(run)
    gates = panels.told_gates(store.attributes)[0].partition(" · ")[0]
    return run_answers.Counts(
        run.name, len(samples), max(store.planned, len(samples)), int(samples["prompt_id"].nunique()), gates
    )
