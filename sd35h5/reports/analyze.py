"""`analyze`: the table of the first-token metrics as CSV, and its charts as PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd
import xarray as xr

from sd35h5 import metrics
from sd35h5.errors import StoreError
from sd35h5.figures import curves, heatmaps, overlays, scales, token_charts
from sd35h5.metrics.averaging import finite_mean
from sd35h5.metrics.piecewise import few_at_a_time
from sd35h5.metrics.reduced import Reduced, by_layer_head, joined, reduced
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
from sd35h5.spreading.hands import hands

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

COLUMNS = [
    "timestep", "sigma", "step", "layer", "head", "sample", "prompt_id", "branch", "token",
    "first_token_mean", "first_token_share", "text_mass_fraction",
]  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """A few samples of a branch, and what to make of them."""

    branch: str
    samples: list[int]
    prompt_ids: list[str]
    target: metrics.Target
    value_col: str
    format: str
    is_first: bool


@dataclass(frozen=True)
class Part:
    """What a piece gives: its rows of the table, as CSV text or as tables; means for the charts."""

    rows: list[str] | list[pd.DataFrame]
    means: Reduced
    groups: xr.DataArray  # (sample, group, layer), mean over steps and heads


def analyze(
    path: str | Path,
    out_dir: str | Path,
    first_token_index: int = 0,
    value_col: str = "first_token_mean",
    branch: str = "cond",
    per_prompt: bool = False,
    format: str = "csv",
    scheduler: str = "",
) -> list[Path]:
    """Write first_token_metrics.csv (or .parquet), layer_head_heatmap.png, timestep_curve.png and group_mass.png to
    out_dir.

    Args:
        first_token_index: position on the text axis of the token that the metrics are about.
        value_col: the metric that the heatmap and the curve show; the table holds all three.
        branch: "cond", "uncond" or "both" (a panel and a line each).
        per_prompt: write the three charts for every prompt too, into prompts/PROMPT_ID/.
        format: of the table: "csv" for people and spreadsheets, "parquet" for programs.
        scheduler: of dask workers that measure the samples; this process does where it is empty.
    """
    if value_col not in metrics.METRICS:
        raise StoreError(f"there is no metric {value_col!r}: choose one of {', '.join(metrics.METRICS)}")
    if branch not in ("cond", "uncond", "both"):
        raise StoreError(f"branch is cond, uncond or both, not {branch!r}")
    if format not in ("csv", "parquet"):
        raise StoreError(f"the table is written as csv or parquet, not as {format!r}")
    out = make_folder(out_dir)
    branches = ["cond", "uncond"] if branch == "both" else [branch]
    with open_with_samples(path) as store, hands({"run": path}, {"run": store}, scheduler) as who:
        target = metrics.Target("token", first_token_index)
        cut = _pieces(store, branches, target, value_col, format)
        parts: list[Part] = []
        told = _rows(who.run(_measured, ("run",), cut, "measuring samples"), parts)
        write = _write_csv if format == "csv" else _write_parquet
        made = [write(told, out / f"first_token_metrics.{format}")]
        means = {name: _means(cut, parts, name) for name in branches}
        made += _charts(store, means, value_col, target, list(range(store.sizes["sample"])), out)
        if per_prompt:
            by_prompt = [(str(name), rows) for name, rows in store.samples.groupby("prompt_id", sort=False)]
            folders = distinct_names([name for name, _ in by_prompt])
            for (_, rows), name in zip(by_prompt, folders, strict=True):
                folder = make_folder(out / "prompts" / name)
                made += _charts(store, means, value_col, target, list(rows["sample"]), folder)
    return made


def _pieces(
    store: Store, branches: Sequence[str], target: metrics.Target, value_col: str, format: str
) -> list[Piece]:
    prompt_ids = [str(one) for one in store.samples["prompt_id"]]
    places = [(branch, some) for branch in branches for some in few_at_a_time(range(len(prompt_ids)))]
    return [
        Piece(branch, some, [prompt_ids[one] for one in some], target, value_col, format, number == 0)
        for number, (branch, some) in enumerate(places)
    ]


def _measured(stores: list[Store], piece: Piece) -> Part:
    """Measure a few samples: a row a (sample, step, layer, head), and means."""
    store = stores[0].reading_once()
    rows = []
    for place, (sample, prompt_id) in enumerate(zip(piece.samples, piece.prompt_ids, strict=True)):
        table = metrics_table(store, piece.target, piece.branch, sample).assign(prompt_id=prompt_id)[COLUMNS]
        first = piece.is_first and place == 0
        rows.append(csv_text(table, header=first) if piece.format == "csv" else table)
    values = metrics.METRICS[piece.value_col](store, piece.target, piece.branch, piece.samples)
    groups = metrics.group_mass(store, piece.branch, samples=piece.samples)
    return Part(rows, reduced(values), finite_mean(groups, ["step", "head"]))


def _rows(told: Iterator[Part], parts: list[Part]) -> Iterator[Any]:
    """Yield the rows of all parts, and keep the rest of them."""
    for part in told:
        yield from part.rows
        parts.append(replace(part, rows=[]))


@dataclass(frozen=True)
class _Means:
    """What the charts show of a branch: the asked metric, and the masses of the groups."""

    metric: Reduced
    groups: xr.DataArray


def _means(cut: Sequence[Piece], parts: Sequence[Part], branch: str) -> _Means:
    own = [(piece, part) for piece, part in zip(cut, parts, strict=True) if piece.branch == branch]
    counts = [len(piece.samples) for piece, _ in own]
    return _Means(
        joined([part.means for _, part in own], counts), xr.concat([part.groups for _, part in own], "sample")
    )


def _write_csv(rows: Iterator[str], path: Path) -> Path:
    with writing(path, "w") as file:
        for text in rows:
            file.write(text)
    return path


def _write_parquet(tables: Iterator[pd.DataFrame], path: Path) -> Path:
    columns = [one for name in COLUMNS for one in FIRST_TOKEN if one.name == name]
    return write_parquet(tables, columns, path, "first-token metrics")


def _charts(
    store: Store,
    means: dict[str, _Means],
    value_col: str,
    target: metrics.Target,
    samples: list[int],
    out: Path,
) -> list[Path]:
    label = metrics.LABELS[value_col]
    prompts = [store.samples["prompt_id"].iloc[sample] for sample in samples]
    about = f"{store.name}, {target}, mean of {len(samples)} sample{'s' if len(samples) > 1 else ''}"
    if len(set(prompts)) == 1:
        about += f", “{overlays.fitted(store.samples['prompt'].iloc[samples[0]], 300, 12)}”"
    cells = {name: by_layer_head(one.metric, samples) for name, one in means.items()}
    domain = scales.magnitude(pd.concat(cells.values())["value"])
    width = max(420, 15 * store.sizes["layer"])
    heat = [
        heatmaps.layer_head_heatmap(
            frame, label, domain=domain, width=width, height=max(320, round(width * 0.8))
        ).properties(title=_title(value_col, about, name))
        for name, frame in cells.items()
    ]
    over_steps = [
        metrics.over_steps(one.metric.steps.isel(sample=samples), prompts).assign(series=name)
        for name, one in means.items()
    ]
    curve = curves.step_curve(pd.concat(over_steps), label, x="timestep", width=620, height=340)
    band = (
        "line: mean over prompts; band: 10th to 90th percentile across prompts"
        if len(set(prompts)) > 1
        else "one prompt"
    )
    groups = {
        name: metrics.groups_over_layers(finite_mean(one.groups.isel(sample=samples), ["sample"]))
        for name, one in means.items()
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
