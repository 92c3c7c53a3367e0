"""Store → files: `analyze` writes the table and charts of the sink metrics, `export` images, tokens and
maps."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from sd35h5.analysis import charts, maps, metrics, pictures, printing, scales
from sd35h5.errors import StoreError
from sd35h5.store.reader import open_store

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

COLUMNS = [
    "timestep", "sigma", "step", "layer", "head", "sample", "prompt_id", "branch", "token",
    "first_token_mean", "first_token_share", "text_mass_fraction",
]  # fmt: skip
SHEET_TILE = 128


# ---- analyze -----------------------------------------------------------------------------------------------


def analyze(
    path: str | Path,
    out_dir: str | Path,
    first_token_index: int = 0,
    value_col: str = "first_token_mean",
    branch: str = "cond",
    per_prompt: bool = False,
) -> list[Path]:
    """Write first_token_metrics.csv, layer_head_heatmap.png, timestep_curve.png and group_mass.png to
    out_dir.

    Args:
        first_token_index: position on the text axis of the token that the metrics are about.
        value_col: the metric that the heatmap and the curve show; the CSV holds all three.
        branch: "cond", "uncond" or "both" (a panel and a line each).
        per_prompt: write the three charts for every prompt too, into prompts/PROMPT_ID/.
    """
    if value_col not in metrics.METRICS:
        raise StoreError(f"there is no metric {value_col!r}: choose one of {', '.join(metrics.METRICS)}")
    if branch not in ("cond", "uncond", "both"):
        raise StoreError(f"branch is cond, uncond or both, not {branch!r}")
    out = make_folder(out_dir)
    branches = ["cond", "uncond"] if branch == "both" else [branch]
    with _open_with_samples(path) as store:
        target = metrics.Target("token", first_token_index)
        made = [_metrics_csv(store, target, branches, out / "first_token_metrics.csv")]
        values = {name: metrics.METRICS[value_col](store, target, name) for name in branches}
        made += _charts(store, values, value_col, target, list(range(store.sizes["sample"])), out)
        if per_prompt:
            for prompt_id, rows in store.samples.groupby("prompt_id", sort=False):
                folder = make_folder(out / "prompts" / safe_name(str(prompt_id)))
                made += _charts(store, values, value_col, target, list(rows["sample"]), folder)
    return made


def _metrics_csv(store: Store, target: metrics.Target, branches: Sequence[str], path: Path) -> Path:
    """Write a row a (branch, sample, step, layer, head), a sample at a time, so that memory stays small."""
    prompt_ids = list(store.samples["prompt_id"])
    with path.open("w", encoding="utf-8", newline="") as file:
        for place, (branch, sample) in enumerate((b, s) for b in branches for s in range(len(prompt_ids))):
            table = metrics_table(store, target, branch, sample)
            table["prompt_id"] = prompt_ids[sample]
            table[COLUMNS].to_csv(file, header=place == 0, index=False, float_format="%.9g")
    return path


def metrics_table(store: Store, target: metrics.Target, branch: str, sample: int) -> pd.DataFrame:
    """Return the three metrics of one sample: a row a (step, layer, head), the columns of the CSV but
    prompt_id."""
    named = {
        name: compute(store, target, branch, [sample]).isel(sample=0)
        for name, compute in metrics.METRICS.items()
    }
    flat = {name: values.transpose("step", "layer", "head").to_series() for name, values in named.items()}
    table = pd.DataFrame(flat).reset_index()
    values = named["first_token_mean"]
    for name in ("timestep", "sigma"):
        of_step = dict(zip(values["step"].values, values[name].values, strict=True))
        table[name] = table["step"].map(of_step)
    table["sample"], table["branch"], table["token"] = sample, branch, int(target.value)
    return table


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
        about += f", “{pictures.fitted(store.samples['prompt'].iloc[samples[0]], 300, 12)}”"
    cells = {name: metrics.by_layer_head(array) for name, array in chosen.items()}
    domain = scales.magnitude(pd.concat(cells.values())["value"])
    width = max(420, 15 * chosen[next(iter(chosen))].sizes["layer"])
    heat = [
        charts.layer_head_heatmap(
            frame, label, domain=domain, width=width, height=max(320, round(width * 0.8))
        ).properties(title=_title(value_col, about, name))
        for name, frame in cells.items()
    ]
    curves = [metrics.over_steps(array, prompts).assign(series=name) for name, array in chosen.items()]
    curve = charts.step_curve(pd.concat(curves), label, x="timestep", width=620, height=340)
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
        charts.group_mass(frame, width=max(480, width), height=320).properties(
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


def save_chart(chart: alt.TopLevelMixin, path: Path) -> Path:
    """Write the chart as PNG."""
    path.write_bytes(printing.png(chart))
    return path


# ---- export ------------------------------------------------------------------------------------------------


def export(path: str | Path, out_dir: str | Path, maps: bool = False) -> list[Path]:
    """Write images/SAMPLE_ID.png and tokens.json; with maps=True also maps/SAMPLE_ID/TOKEN/… (PNG and
    GIF)."""
    out = make_folder(out_dir)
    with _open_with_samples(path) as store:
        if maps and "maps/image_to_text" not in store:
            raise StoreError(f"{store.name} holds no maps: capture it with --maps words to export them")
        made = [_tokens_json(store, out / "tokens.json")]
        for sample in range(store.sizes["sample"]):
            image = store.image(sample)
            name = safe_name(store.samples["sample_id"].iloc[sample])
            if image is not None:
                made.append(_write(make_folder(out / "images") / f"{name}.png", pictures.png(image)))
            if maps:
                made += _export_maps(store, sample, image, make_folder(out / "maps" / name))
    return made


def _tokens_json(store: Store, path: Path) -> Path:
    """Write prompts, token_ids and tokens: lists with one entry a sample, in the order of the samples."""
    document: dict[str, list] = {"sample_ids": [], "prompts": [], "token_ids": [], "tokens": [], "groups": []}
    for row in store.samples.to_dict("records"):
        table = store.tokens(row["sample"], "cond")
        document["sample_ids"].append(row["sample_id"])
        document["prompts"].append(row["prompt"])
        ids = {encoder: table[f"id_{encoder}"] for encoder in ("clip_l", "clip_g", "t5")}
        document["token_ids"].append(
            {name: [int(i) for i in column if i >= 0] for name, column in ids.items()}
        )
        document["tokens"].append(
            {
                name: part["text"].tolist()
                for name, part in table.groupby("encoder", sort=False, observed=True)
            }
        )
        document["groups"].append(table["group"].tolist())
    return _write(path, json.dumps(document, ensure_ascii=False, indent=1).encode())


def _export_maps(store: Store, sample: int, image: np.ndarray | None, out: Path) -> list[Path]:
    made = []
    for entry in maps.mapped_tokens(store, sample).to_dict("records"):
        values = maps.token_maps(store, sample, entry["map_token"])  # (map_step, layer, y, x)
        folder = make_folder(out / f"{entry['token']:03d}_{safe_name(entry['text'])}")
        shape = image.shape[:2] if image is not None else maps.picture_shape(values)
        mean = values.mean("layer", skipna=True)
        high = float(mean.max())
        frames = []
        for step in mean["map_step"].values:
            layer_mean = mean.sel(map_step=step).values
            stem = f"step_{int(step):03d}"
            alone = pictures.map_picture(layer_mean, shape, high=high)
            made.append(_write(folder / f"{stem}_map.png", pictures.png(alone)))
            shown = alone
            if image is not None:
                shown = pictures.overlay(image, layer_mean, high=high)
                made.append(_write(folder / f"{stem}_overlay.png", pictures.png(shown)))
            frames.append(
                pictures.sheet([shown], [f"“{entry['text']}”, step {int(step)}"], columns=1, size=shape)
            )
        made.append(_write(folder / "steps.gif", pictures.gif(frames)))
        made.append(_write(folder / "layers.png", pictures.png(_layers_sheet(values, image, entry["text"]))))
    return made


def _layers_sheet(values: xr.DataArray, image: np.ndarray | None, text: str) -> pictures.Image.Image:
    """Return a contact sheet of one token: a row a layer, a column a captured step, one colour scale."""
    shape = image.shape[:2] if image is not None else maps.picture_shape(values)
    size = maps.fit(shape, SHEET_TILE)
    high = float(values.max())
    tiles, labels = [], []
    for layer in values["layer"].values:
        for step in values["map_step"].values:
            one = values.sel(layer=layer, map_step=step).values
            tiles.append(
                pictures.map_picture(one, shape, high=high)
                if image is None
                else pictures.overlay(image, one, high=high)
            )
            labels.append(f"layer {int(layer)} · step {int(step)}")
    title = f"“{text}”: attention of image patches, 0 to {high:.3g}"
    return pictures.sheet(tiles, labels, columns=values.sizes["map_step"], size=size, title=title)


def _open_with_samples(path: str | Path) -> Store:
    store = open_store(path)
    if not store.sizes["sample"]:
        store.close()
        raise StoreError(f"{store.name} has no sealed sample yet: wait for the first of {store.planned}")
    return store


def safe_name(text: str) -> str:
    """Return a file name made only of letters, digits, - and _: strings of a store never become paths."""
    return re.sub(r"[^\w-]+", "-", str(text), flags=re.ASCII).strip("-")[:60]


def make_folder(path: str | Path) -> Path:
    """Make the folder that results are written to; a file in its place is refused."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise StoreError(f"{folder} is a file: give --out_dir a folder") from None
    return folder


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
