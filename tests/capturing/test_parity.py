"""Against the tool that people use: attention-map-diffusers 1.0.0 in its exact mode gives our maps."""

from __future__ import annotations

import attention_map_diffusers as reference
import numpy as np
import torch
from making.pipelines import HEADS, LAYERS

import sd35h5
from sd35h5 import open_store


def _reference_maps(pipe, call, steps: int) -> np.ndarray:
    """A[image, text] of the cond row, float32 (step, layer, head, image query, text key)."""
    with reference.AttentionCapture(
        pipe, relations=["image->text"], mode="exact", heads="all", timesteps="all"
    ) as capture:
        pipe("a red apple", generator=torch.Generator("cpu").manual_seed(0), **call)
    records = [record for record in capture.records if record.relation == "image->text"]
    assert len(records) == steps * LAYERS
    data = [
        torch.as_tensor(record.data)[-1].float().numpy() for record in records
    ]  # diffusers batch: [uncond | cond]
    layers = [int(record.layer_id.split("transformer_blocks.")[1].split(".")[0]) for record in records]
    assert layers == list(range(LAYERS)) * steps
    return np.stack(data).reshape(steps, LAYERS, HEADS, *data[0].shape[-2:])


def test_maps_and_masses_agree_with_attention_map_diffusers_in_exact_mode(tiny_pipeline, call, tmp_path):
    path = tmp_path / "a.h5"
    options = {"maps": "all", "map_steps": "all", "map_heads": "all", "map_pool": 1, "precision": "exact"}
    with sd35h5.capture(tiny_pipeline, path, **options) as generate:
        generate("a red apple", seed=0, **call)
    theirs = _reference_maps(tiny_pipeline, call, steps=call["num_inference_steps"])
    with open_store(path) as store:
        maps = store.read("maps/image_to_text_per_head", sample=0, branch="cond")
        mass = store.read("sinks/mass_image", sample=0, branch="cond").values
    ours = maps.transpose("map_step", "layer", "head", "y", "x", "map_token").values
    ours = ours.reshape(*ours.shape[:3], -1, ours.shape[-1])
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(mass, theirs.mean(-2), rtol=1e-4, atol=1e-7)
