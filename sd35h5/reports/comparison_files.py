"""The files of a comparison: its tables as CSV, what was asked as JSON, its figures as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from sd35h5.comparing import effects
from sd35h5.figures import curves, heatmaps, pair_charts, scales, sink_charts
from sd35h5.figures.scatter_chart import scatter
from sd35h5.metrics import sink_rates
from sd35h5.metrics.catalogue import MEASURES
from sd35h5.reports import comparison_page
from sd35h5.reports.output_files import csv_text, save_chart, write
from sd35h5.store.showable import as_json

if TYPE_CHECKING:
    from sd35h5.comparing.comparison import Comparison

MOST_SCORES = 4  # figures of scores beside each other


def write_tables(found: Comparison, out: Path) -> list[Path]:
    """Write a CSV file a table, and comparison.json. Returns: the files."""
    written = [_csv(table, out / f"{name}.csv") for name, table in tables(found).items()]
    return [*written, _settings(found, out / "comparison.json")]


def tables(found: Comparison) -> dict[str, pd.DataFrame]:
    """Return the CSV files: name -> table."""
    pairs = [one.pairs.assign(run=name) for name, one in found.pairings.items()]
    alone = [one.unpaired.assign(compared=name) for name, one in found.pairings.items()]
    return {
        "overall": found.overall,
        "cells": found.cells,
        "steps": found.steps,
        "sink_rates": found.rates,
        "samples": found.samples,
        "key_kinds": found.kinds,
        "images": found.pictures,
        "pairs": pd.concat(pairs, ignore_index=True),
        "unpaired": pd.concat(alone, ignore_index=True),
        **({"scores": found.scores, "score_points": found.points} if len(found.scores) else {}),
    }


def draw(found: Comparison, out: Path) -> dict[str, Path]:
    """Draw every figure of the report as PNG. Returns: its name -> file."""
    unit = f"{MEASURES[found.question.metric].title} ({MEASURES[found.question.metric].unit})"
    made = {"heatmaps": _heatmaps(found, unit)}
    if found.steps.groupby("series").size().max() > 1:
        made["steps"] = curves.step_curve(found.steps, unit, x="step", width=560, height=300)
    made["effects"] = pair_charts.effect_intervals(_standardised(found))
    uniform = float((found.rates["epsilon"] / found.rates["times_uniform"]).mean())
    made["sink_rates"] = sink_charts.sink_curve(
        found.rates, epsilon=sink_rates.EPSILON, uniform=uniform, width=560, height=300
    )
    if not found.kinds.empty:
        made["key_kinds"] = sink_charts.key_kinds(
            found.kinds, "run", width=max(280, 120 * len(found.stores)), height=300
        )
    made["pairs"] = pair_charts.paired_slopes(
        found.samples.drop_duplicates(["run", "sample"]), unit, height=300
    ).properties(width=max(280, 140 * len(found.stores)))
    if found.scores["pearson"].notna().any():
        made["scores"] = _scores(found.points, unit)
    return {name: save_chart(chart, out / f"{name}.png") for name, chart in made.items()}


def _heatmaps(found: Comparison, unit: str) -> alt.TopLevelMixin:
    cells = found.cells
    first = cells[cells["run"] == found.others[0]]
    width = max(230, 12 * first["layer"].nunique())
    height = max(220, 12 * first["head"].nunique())
    size = {"width": width, "height": height}
    domain = scales.magnitude(np.r_[cells["reference_mean"], cells["other_mean"]])
    limit = scales.symmetric(cells["mean_difference"])
    rows = []
    for name in found.others:
        own = cells[cells["run"] == name]
        panels = [
            heatmaps.layer_head_heatmap(
                own.assign(value=own[column]), unit, title=title, domain=domain, **size
            )
            for column, title in (("reference_mean", found.reference), ("other_mean", name))
        ]
        change = own.assign(value=own["mean_difference"], marked=own["q"] <= effects.SIGNIFICANT)
        title = f"{name} − {found.reference}"
        panels.append(
            heatmaps.difference_heatmap(change, "mean difference", title=title, limit=limit, **size)
        )
        rows.append(alt.hconcat(*panels).resolve_scale(color="independent"))
    return alt.vconcat(*rows).resolve_scale(color="independent")


def _standardised(found: Comparison) -> pd.DataFrame:
    table = effects.standardised(found.overall.dropna(subset=["effect"]))
    table["measure"] = [MEASURES[name].title for name in table["measure"]]
    return table


def _settings(found: Comparison, path: Path) -> Path:
    """Write what was asked, and what differs although it was compared."""
    question = found.question
    document = {
        "reference": found.reference, "others": found.others, "metric": question.metric,
        "target": str(question.target), "branch": question.branch, "level": effects.LEVEL,
        "resamples": question.resamples, "resampling_seed": question.seed,
        "allow_mismatch": list(question.allow_mismatch),
        "mismatch": {name: one.mismatch.to_dict("records") for name, one in found.pairings.items()},
        "pairs": {name: len(one.pairs) for name, one in found.pairings.items()},
        "unpaired": {name: len(one.unpaired) for name, one in found.pairings.items()},
        "skipped": found.skipped.to_dict("records"),
        "files": {
            name: {key: store.attributes.get(key, "") for key in comparison_page.IDENTITY}
            for name, store in found.stores.items()
        },
    }  # fmt: skip
    return write(path, (as_json(document, indent=1) + "\n").encode())


def _csv(table: pd.DataFrame, path: Path) -> Path:
    return write(path, csv_text(table).encode())


def _scores(table: pd.DataFrame, unit: str) -> alt.TopLevelMixin:
    """Draw each score against the asked metric, at most MOST_SCORES of them beside each other."""
    scores = list(dict.fromkeys(table["score"]))[:MOST_SCORES]
    return alt.hconcat(
        *(
            scatter(table[table["score"] == one], unit, f"score: {one}", width=340, height=300)
            for one in scores
        )
    )
