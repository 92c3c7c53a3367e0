"""What is brought in from the older tool is what our own capture of the same picture measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making.older_tool import draw_eagerly, write_older

import sd35h5
from sd35h5.importing.import_options import ImportOptions
from sd35h5.importing.older_folders import find_folders
from sd35h5.importing.run_import import import_folders
from sd35h5.planning.options import Tiers

PROMPTS, SEEDS = ["a red apple left of a cat", "a dog on a tree"], [3, 4]
TIERS = {
    "maps": "words",
    "map_steps": "every:2",
    "map_pool": 2,
    "map_heads": "all",
    "branches": ("cond", "uncond"),
}


@pytest.fixture(scope="module")
def older(tiny_pipeline, call, tmp_path_factory):
    """A folder with two samples of one call, and their pictures."""
    pictures, maps = draw_eagerly(tiny_pipeline, PROMPTS, SEEDS, **call)
    folder = tmp_path_factory.mktemp("older") / "out"
    return write_older(folder, maps, PROMPTS, tiny_pipeline.tokenizer, pictures), maps


@pytest.fixture(scope="module")
def captured(tiny_pipeline, call, tmp_path_factory):
    path = tmp_path_factory.mktemp("captured") / "ours.h5"
    with sd35h5.capture(tiny_pipeline, path, precision="exact", **TIERS) as generate:
        generate(PROMPTS, seed=SEEDS, **call)
    return path


def _import(folder, out, tokenizers, **more):
    options = ImportOptions(
        out=out, tokenizer_path=str(tokenizers),
        tiers=Tiers(topk=0, precision="exact", **TIERS), **more,
    )  # fmt: skip
    return import_folders(find_folders([folder]), options)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.long)]
)
def test_imported_values_are_those_of_our_capture_of_the_same_picture(
    older, captured, tiny_pipeline, tiny_folder, tmp_path, dtype
):
    folder, maps = older
    if dtype != torch.float32:
        cast = {
            timestep: {name: _as_view(tensor, dtype) for name, tensor in layers.items()}
            for timestep, layers in maps.items()
        }
        folder = write_older(tmp_path / "cast", cast, PROMPTS, tiny_pipeline.tokenizer)
    path = _import(folder, tmp_path / "theirs.h5", tiny_folder)
    with sd35h5.open_store(path) as theirs, sd35h5.open_store(captured) as ours:
        assert len(theirs) == len(ours) == 2
        of_image = ("sinks/mass_group", "sinks/entropy_text")
        for name in (
            *of_image, "sinks/mass_image", "maps/image_to_text", "maps/image_to_text_per_head",
            "maps/map_token_index", "tokens/token_group", "tokens/token_id", "tokens/token_text", "tokens/token_word",
        ):  # fmt: skip
            at = {"query": "image"} if name in of_image else {}
            left, right = (store.read(name, **at) for store in (theirs, ours))
            assert left.dims == right.dims and left.shape == right.shape, name
            if left.dtype.kind != "f":
                np.testing.assert_array_equal(left.values, right.values)
                continue
            assert np.isfinite(left.values).sum() > 100
            np.testing.assert_allclose(
                left.values, right.values, atol=1e-3 if dtype != torch.float32 else 2e-5
            )
        left, right = (store.read("sinks/mass_group") for store in (theirs, ours))
        for name in ("timestep", "sigma"):
            np.testing.assert_allclose(left.coords[name], right.coords[name], atol=1e-4)
        assert np.isnan(left.sel(query="text")).all()  # of which the older tool keeps nothing


def _as_view(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same values in another type, again as a view over a larger matrix."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 7), 9.0, dtype=dtype)
    wide[..., 7:] = tensor.to(dtype)
    return wide[..., 7:]
