"""The smallest sample that the writer seals: its header, its required values, and the hash that it got."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from sd35h5.store.schema import REQUIRED, variable
from sd35h5.store.writer import Header, SampleWriter

SIZES = {
    "branch": 2,
    "step": 3,
    "layer": 4,
    "head": 2,
    "token": 70,
    "map_step": 2,
    "map_token": 3,
    "y": 5,
    "x": 3,
}


def header(precision: str = "rounded", **scales: np.ndarray) -> Header:
    return Header(
        {"model_id": "m"}, {n: np.arange(k) for n, k in SIZES.items()} | scales, {"config": "{}"}, precision
    )


def put_required(writer: SampleWriter, **values: object) -> None:
    for name in REQUIRED:
        spec = variable(name)
        if name not in ("samples/sealed", "samples/content_sha256"):
            shape = spec.shape(writer.sizes)[1:]
            writer.put(name, values.get(spec.short_name, np.full(shape, "a cat" if spec.is_text else 1)))


def content(path: Path) -> str:
    with h5py.File(path, "r") as file:
        return file["samples/content_sha256"].asstr()[0]
