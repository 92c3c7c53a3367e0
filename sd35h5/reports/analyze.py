"""`analyze`: the table of the first-token metrics as CSV, and its charts as PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import altair as alt
import pandas as pd
import xarray as xr

from sd35h5 import metrics
from sd35h5.errors import StoreError
from sd35h5.figures import curves, heatmaps, overlays, scales, token_charts
from sd35h5.long_work import counted
from sd35h5.reports.output_files import (
    csv_text,
    distinct_names,
    make_folder,
    open_with_samples,
    save_chart,
    writing,
)
from sd35h5.reports.parquet_files import write_parquet
from sd35h5.reports.sidecars import FIRST_TOKEN, metrics_table

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

COLUMNS = [
    "timestep", "sigma", "step", "layer", "head", "sample", "prompt_id", "branch", "token",
    "first_token_mean", "first_token_share", "text_mass_fraction",
]  # fmt: skip


def analyze(
    path: str | Path,
    out_dir: str | Path,
    first_token_index: int = 0,
    value_col: str = "first_token_mean",
    branch: str = "cond",
    per_prompt: bool = False,
    format: str = "csv",
) -> list[Path]:
    """Write first_token_metrics.csv (or .parquet), layer_head_heatmap.png, timestep_curve.png and group_mass.png to
    out_dir.

    Args:
        first_token_index: position on the text axis of the token that the metrics are about.
        value_col: the metric that the heatmap and the curve show; the table holds all three.
        branch: "cond", "uncond" or "both" (a panel and a line each).
        per_prompt: write the three charts for every prompt too, into prompts/PROMPT_ID/.
        format: of the table: "csv" for people and spreadsheets, "parquet" for programs.
    """
    if value_col not in metrics.METRICS:
        raise StoreError(f"there is no metric {value_col!r}: choose one of {', '.join(metrics.METRICS)}")
    if branch not in ("cond", "uncond", "both"):
        raise StoreError(f"branch is cond, uncond or both, not {branch!r}")
    if format not in ("csv", "parquet"):
        raise StoreError(f"the table is written as csv or parquet, not as {format!r}")
    out = make_folder(out_dir)
    branches = ["cond", "uncond"] if branch == "both" else [branch]
    with open_with_samples(path) as store:
        target = metrics.Target("token", first_token_index)
        write = _write_csv if format == "csv" else _write_parquet
        made = [write(_tables(store, target, branches), out / f"first_token_metrics.{format}")]
        values = {name: metrics.METRICS[value_col](store, target, name) for name in branches}
        made += _charts(store, values, value_col, target, list(range(store.sizes["sample"])), out)
        if per_prompt:
            by_prompt = [(str(name), rows) for name, rows in store.samples.groupby("prompt_id", sort=False)]
            folders = distinct_names([name for name, _ in by_prompt])
            for (_, rows), name in zip(by_prompt, folders, strict=True):
                folder = make_folder(out / "prompts" / name)
                made += _charts(store, values, value_col, target, list(rows["sample"]), folder)
    return made


def _tables(store: Store, target: metrics.Target, branches: Sequence[str]) -> Iterator[pd.DataFrame]:
    """A row a (branch, sample, step, layer, head), a sample at a time, so that memory stays small."""
    prompt_ids = list(store.samples["prompt_id"])
    places = [(branch, sample) for branch in branches for sample in range(len(prompt_ids))]
    for branch, sample in counted(places, "measuring samples"):
        table = metrics_table(store, target, branch, sample)
        table["prompt_id"] = prompt_ids[sample]
        yield table[COLUMNS]


def _write_csv(tables: Iterator[pd.DataFrame], path: Path) -> Path:
    with writing(path, "w") as file:
        for place, table in enumerate(tables):
            file.write(csv_text(table, header=place == 0))
    return path


def _write_parquet(tables: Iterator[pd.DataFrame], path: Path) -> Path:
    columns = [one for name in COLUMNS for one in FIRST_TOKEN if one.name == name]
    return write_parquet(tables, columns, path, "first-token metrics")


def _charts(
    store: Store,
    values: dict[str, xr.DataArray],
    value_col: str,
    target: metrics.Target,
    samples: list[int],
    out: Path,
) -> list[Path]:
    label = metrics.LABELS[value_col]
    chosen = {name: array.isel(sample=samples) for name, array in values.items()}
    prompts = [store.samples["prompt_id"].iloc[sample] for sample in samples]
    about = f"{store.name}, {target}, mean of {len(samples)} sample{'s' if len(samples) > 1 else ''}"
    if len(set(prompts)) == 1:
        about += f", “{overlays.fitted(store.samples['prompt'].iloc[samples[0]], 300, 12)}”"
    cells = {name: metrics.by_layer_head(array) for name, array in chosen.items()}
    domain = scales.magnitude(pd.concat(cells.values())["value"])
    width = max(420, 15 * chosen[next(iter(chosen))].sizes["layer"])
    heat = [
        heatmaps.layer_head_heatmap(
            frame, label, domain=domain, width=width, height=max(320, round(width * 0.8))
        ).properties(title=_title(value_col, about, name))
        for name, frame in cells.items()
    ]
    over_steps = [metrics.over_steps(array, prompts).assign(series=name) for name, array in chosen.items()]
    curve = curves.step_curve(pd.concat(over_steps), label, x="timestep", width=620, height=340)
    band = (
        "line: mean over prompts; band: 10th to 90th percentile across prompts"
        if len(set(prompts)) > 1
        else "one prompt"
    )
    groups = {
        name: metrics.groups_over_layers(metrics.mean_group_mass(store, name, samples=samples))
        for name in chosen
    }
    masses = [
        token_charts.group_mass(frame, width=max(480, width), height=320).properties(
            title=_title("where the attention of image queries goes", about, name)
        )
        for name, frame in groups.items()
    ]
    return [
        save_chart(alt.hconcat(*heat) if len(heat) > 1 else heat[0], out / "layer_head_heatmap.png"),
        save_chart(
            curve.properties(title=_title(f"{value_col} over the denoising steps", about, band)),
            out / "timestep_curve.png",
        ),
        save_chart(alt.hconcat(*masses) if len(masses) > 1 else masses[0], out / "group_mass.png"),
    ]


def _title(text: str, *subtitle: str) -> alt.TitleParams:
    return alt.TitleParams(text=text, subtitle=[line for line in subtitle if line])
