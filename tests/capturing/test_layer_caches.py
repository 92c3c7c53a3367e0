"""Caches that leave layers out: what did not run is stored as not run; what cannot be followed is refused by name."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_faster_cache,
    apply_first_block_cache,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)
from making.drawn_attention import masses_of, watched_masses
from making.pipelines import LAYERS, make_pipeline, plain_image

import sd35h5
from sd35h5 import metrics, open_store
from sd35h5.errors import CaptureError

EVERY = {
    "maps": "words", "map_steps": "all", "map_heads": "all", "top_steps": "all", "atlas": True, "precision": "exact",
}  # fmt: skip


def _pab(pipe) -> None:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    apply_pyramid_attention_broadcast(pipe.transformer, config)
    pipe.transformer.transformer_blocks[1].attn._diffusers_hook.remove_hook("pyramid_attention_broadcast")


def _mag(pipe) -> None:
    apply_mag_cache(
        pipe.transformer, MagCacheConfig(mag_ratios=[1.0] * 6, num_inference_steps=6, threshold=1.0)
    )


def _tea(pipe) -> None:
    """TeaCache as people plug it in: a forward of their own that gives every second answer again."""
    plain, before = pipe.transformer.forward, []

    def forward(self, *args, **kwargs):
        before.append(plain(*args, **kwargs) if len(before) % 2 == 0 else before[-1])
        return before[-1]

    pipe.transformer.forward = types.MethodType(forward, pipe.transformer)


CACHES = {"pyramid_attention_broadcast": _pab, "mag_cache": _mag, "forward": _tea}


@pytest.mark.parametrize("name", CACHES)
def test_layers_that_a_cache_left_out_are_stored_as_not_run(name, call, tmp_path, caplog):
    call = {**call, "num_inference_steps": 6, "output_type": "latent"}
    pipe = make_pipeline(dual_attention_layers=(0,))
    CACHES[name](pipe)
    with watched_masses(pipe.transformer) as calls:
        plain = plain_image(pipe, "a red cat", 0, **call)
    expected = masses_of(calls, 1, LAYERS)
    pipe = make_pipeline(dual_attention_layers=(0,))
    CACHES[name](pipe)
    with sd35h5.capture(pipe, tmp_path / "a.h5", **EVERY) as generate:
        assert torch.equal(generate("a red cat", seed=0, **call).images[0], plain)
    assert "layers in step 1" in caplog.text and sd35h5.verify(tmp_path / "a.h5", deep=True).ok
    ran = np.isfinite(expected).all((2, 3))
    assert ran[0].all() and not ran[1].all() and ran[2:].any()
    with open_store(tmp_path / "a.h5") as store:
        mass = store.read("sinks/mass_image", sample=0, branch="cond").values
        np.testing.assert_allclose(mass, expected, rtol=1e-4, atol=1e-7)
        for variable in (
            "topk/top_mass",
            "maps/image_to_text_per_head",
            "atlas/mass_patch",
            "sinks/mass_group",
        ):
            values = store.read(variable, sample=0, branch="cond")
            others = [dim for dim in values.dims if dim not in ("top_step", "map_step", "step", "layer")]
            if variable.startswith("maps"):
                values = values.dropna("map_token", how="all")  # places without a word
            whole = np.isfinite(values).all(others)
            assert np.array_equal(whole.values, ran), variable
        [event] = [each for each in store.provenance["events"] if each["event"] == "layers that did not run"]
        assert event["steps"] == {
            str(s): np.flatnonzero(~ran[s]).tolist() for s in range(6) if not ran[s].all()
        }
        share = metrics.first_token_share(store)
        assert np.isfinite(share.mean("step", skipna=True)).all()


def test_a_sample_drawn_with_a_cache_pairs_with_none_without(call, tmp_path):
    call, keys = {**call, "num_inference_steps": 2}, []
    for place, cache in enumerate((lambda pipe: None, _pab, _mag, _tea)):
        pipe = make_pipeline()
        cache(pipe)
        with sd35h5.capture(pipe, tmp_path / f"{place}.h5", maps="off", topk=0, no_images=True) as generate:
            generate("a cat", seed=0, **call)
        with open_store(tmp_path / f"{place}.h5") as store:
            keys += list(store.samples["pairing_key"])
    assert len(set(keys)) == 4


REFUSED = {
    "fbc_leader_block_hook": lambda t: apply_first_block_cache(t, FirstBlockCacheConfig()),
    "taylorseer_cache": lambda t: apply_taylorseer_cache(t, TaylorSeerCacheConfig()),
    "faster_cache": lambda t: apply_faster_cache(
        t, FasterCacheConfig(tensor_format="BCHW", current_timestep_callback=lambda: 500)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_cache_that_cannot_be_followed_is_refused_by_name_before_the_first_step(name, call, tmp_path):
    pipe = make_pipeline()
    with pytest.raises(CaptureError, match=name), sd35h5.capture(pipe, tmp_path / "a.h5") as generate:
        REFUSED[name](pipe.transformer)
        generate("a cat", seed=0, **call)
    with pytest.raises(CaptureError, match=name), sd35h5.capture(pipe, tmp_path / "b.h5"):
        pass


def test_a_processor_that_is_replaced_on_the_way_is_no_cache(call, tmp_path):
    pipe = make_pipeline()
    processor = pipe.transformer.transformer_blocks[2].attn.processor

    def replace(pipe, step, timestep, tensors):
        pipe.transformer.transformer_blocks[2].attn.set_processor(processor)
        return tensors

    with (
        sd35h5.capture(pipe, tmp_path / "a.h5") as generate,
        pytest.raises(CaptureError, match="layer 2 never ran its processor"),
    ):
        generate("a cat", seed=0, callback_on_step_end=replace, **call)
