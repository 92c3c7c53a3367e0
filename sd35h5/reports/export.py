"""`export`: images, tokens and maps of a store as PNG, JSON and GIF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sd35h5.errors import StoreError
from sd35h5.figures import overlays
from sd35h5.metrics import attention_maps
from sd35h5.reports.output_files import distinct_names, make_folder, open_with_samples, safe_name, write
from sd35h5.store.showable import as_json

if TYPE_CHECKING:
    from sd35h5.store.reader import Store
SHEET_TILE = 128


def export(path: str | Path, out_dir: str | Path, maps: bool = False) -> list[Path]:
    """Write images/SAMPLE_ID.png and tokens.json; with maps=True also maps/SAMPLE_ID/TOKEN/… (PNG and
    GIF)."""
    out = make_folder(out_dir)
    with open_with_samples(path) as store:
        if maps and "maps/image_to_text" not in store:
            raise StoreError(f"{store.name} holds no maps: capture it with --maps words to export them")
        made = [_tokens_json(store, out / "tokens.json")]
        for sample, name in enumerate(distinct_names(store.samples["sample_id"])):
            image = store.image(sample)
            if image is not None:
                made.append(write(make_folder(out / "images") / f"{name}.png", overlays.png(image)))
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
    return write(path, as_json(document, indent=1).encode())


def _export_maps(store: Store, sample: int, image: np.ndarray | None, out: Path) -> list[Path]:
    made = []
    for entry in attention_maps.mapped_tokens(store, sample).to_dict("records"):
        values = attention_maps.token_maps(store, sample, entry["map_token"])  # (map_step, layer, y, x)
        folder = make_folder(out / f"{entry['token']:03d}_{safe_name(entry['text'])}")
        shape = image.shape[:2] if image is not None else attention_maps.picture_shape(values)
        mean = values.mean("layer", skipna=True)
        high = float(mean.max())
        frames = []
        for step in mean["map_step"].values:
            layer_mean = mean.sel(map_step=step).values
            stem = f"step_{int(step):03d}"
            alone = overlays.map_picture(layer_mean, shape, high=high)
            made.append(write(folder / f"{stem}_map.png", overlays.png(alone)))
            shown = alone
            if image is not None:
                shown = overlays.overlay(image, layer_mean, high=high)
                made.append(write(folder / f"{stem}_overlay.png", overlays.png(shown)))
            frames.append(
                overlays.sheet([shown], [f"“{entry['text']}”, step {int(step)}"], columns=1, size=shape)
            )
        made.append(write(folder / "steps.gif", overlays.gif(frames)))
        made.append(write(folder / "layers.png", overlays.png(_layers_sheet(values, image, entry["text"]))))
    return made


def _layers_sheet(values: xr.DataArray, image: np.ndarray | None, text: str) -> overlays.Image.Image:
    """Return a contact sheet of one token: a row a layer, a column a captured step, one colour scale."""
    shape = image.shape[:2] if image is not None else attention_maps.picture_shape(values)
    size = attention_maps.fit(shape, SHEET_TILE)
    high = float(values.max())
    tiles, labels = [], []
    for layer in values["layer"].values:
        for step in values["map_step"].values:
            one = values.sel(layer=layer, map_step=step).values
            tiles.append(
                overlays.map_picture(one, shape, high=high)
                if image is None
                else overlays.overlay(image, one, high=high)
            )
            labels.append(f"layer {int(layer)} · step {int(step)}")
    title = f"“{text}”: attention of image patches, 0 to {high:.3g}"
    return overlays.sheet(tiles, labels, columns=values.sizes["map_step"], size=size, title=title)
