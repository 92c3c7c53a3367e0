"""Guidance that a callback changes: a branch is stored in the steps that draw it, and the file tells which."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making.drawn_attention import masses_of, watched_masses
from making.pipelines import LAYERS, torch_generator

import sd35h5
from sd35h5 import metrics, open_store
from sd35h5.__main__ import main
from sd35h5.errors import CaptureError

INPUTS = ["prompt_embeds", "pooled_prompt_embeds"]
EXACT = {"precision": "exact", "branches": ("cond", "uncond"), "topk": 4, "no_images": True}
SKIP = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
PROMPTS = ["a red cat", "a dog"]


def _end_after(last: int, half: int = -1):
    """A callback that ends guidance after a step and goes on with one half of the batch."""

    def end(pipe, step, timestep, tensors):
        if step != last:
            return tensors
        pipe._guidance_scale = 0.0
        return {name: each.chunk(2)[half] for name, each in tensors.items()}

    return {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": INPUTS}


@pytest.mark.parametrize("more", [{}, SKIP], ids=["plain", "skip-layer"])
def test_uncond_is_absent_from_the_step_on_in_which_a_callback_ended_guidance(
    tiny_pipeline, call, tmp_path, capsys, more
):
    call = {**call, "output_type": "latent", **_end_after(2), **more}
    with watched_masses(tiny_pipeline.transformer) as calls:
        plain = tiny_pipeline(PROMPTS, generator=[torch_generator(seed) for seed in (0, 1)], **call).images
    path = tmp_path / "a.h5"
    with sd35h5.capture(tiny_pipeline, path, **EXACT) as generate:
        assert torch.equal(generate(PROMPTS, seed=0, **call).images, plain)
    assert sd35h5.verify(path, deep=True).ok and main(["info", str(path)]) == 0
    guided = [each for each in calls if len(each[0]) == 4]
    after = [each for each in calls[-2:] if len(each[0]) == 2]
    assert len(guided) == 3 and len(after) == 2
    with open_store(path) as store:
        mass = store.read("sinks/mass_image")
        for sample in range(2):
            cond = np.concatenate([masses_of(guided, 2 + sample, LAYERS), masses_of(after, sample, LAYERS)])
            uncond = masses_of(guided, sample, LAYERS)
            mine = mass.sel(sample=sample)
            np.testing.assert_allclose(mine.sel(branch="cond"), cond, rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(mine.sel(branch="uncond")[:3], uncond, rtol=1e-4, atol=1e-7)
            assert np.isnan(mine.sel(branch="uncond")[3:]).all()
        share = metrics.first_token_share(store, branch="uncond")
        assert (
            np.isfinite(share.isel(step=slice(3))).all() and np.isnan(share.isel(step=slice(3, None))).all()
        )
        events = [each for each in store.provenance["events"] if each["event"] == "guidance"]
        scale = [4.5, 2.8] if more else 4.5
        assert [each["scale_of_steps"] for each in events] == [[scale, scale, scale, None, None]] * 2
        assert [each["sample_id"] for each in events] == list(store.samples["sample_id"])


def test_samples_pair_with_those_of_the_same_scales_alone_and_go_on_so(tiny_pipeline, call, tmp_path):
    def falling(pipe, step, timestep, tensors):
        pipe._guidance_scale -= 0.5
        return tensors

    call = {**call, "num_inference_steps": 3}
    courses = [{}, {"callback_on_step_end": falling}, _end_after(1), _end_after(0), {}]
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5", maps="off", topk=0, no_images=True) as generate:
        for course in courses:
            generate("a cat", seed=0, **call, **course)
    with open_store(tmp_path / "a.h5") as store:
        keys = list(store.samples["pairing_key"])
    assert len(set(keys)) == 4 and keys[0] == keys[4] and {key.partition("-")[0] for key in keys} == {keys[0]}
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5", maps="off", topk=0, no_images=True) as generate:
        generate("a cat", seed=0, **call)
        generate("a cat", seed=0, callback_on_step_end=falling, **call)
        with pytest.raises(CaptureError, match="sample 2 is sealed already with pairing_key"):
            generate("a cat", seed=0, **call)


def test_a_batch_that_is_halved_to_the_negative_prompt_is_told_by_what_it_reads(
    tiny_pipeline, call, tmp_path
):
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5", **EXACT) as generate:
        generate("a cat", seed=0, **call, **_end_after(2, half=0))
    with open_store(tmp_path / "a.h5") as store:
        ran = np.isfinite(store.read("sinks/mass_group", sample=0, query="image", group="image")).all(
            ["layer", "head"]
        )
        assert ran.sel(branch="cond").values.tolist() == [True, True, True, False, False]
        assert ran.sel(branch="uncond").values.all()


def test_text_states_of_neither_prompt_and_guidance_that_begins_later_are_refused(
    tiny_pipeline, call, tmp_path
):
    def blurred(pipe, step, timestep, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"] * 0.9}

    def begin(pipe, step, timestep, tensors):
        pipe._guidance_scale = 4.0
        return {name: torch.cat([each * 0, each]) for name, each in tensors.items()}

    calls = {
        "reads neither the prompt nor the negative": {"callback_on_step_end": blurred},
        "step 1: guidance begins on the way": {"callback_on_step_end": begin, "guidance_scale": 1.0},
    }
    for place, (said, changes) in enumerate(calls.items()):
        with (
            sd35h5.capture(tiny_pipeline, tmp_path / f"{place}.h5") as generate,
            pytest.raises(CaptureError, match=said),
        ):
            generate("a cat", seed=0, callback_on_step_end_tensor_inputs=INPUTS, **{**call, **changes})
        assert "encode_prompt" not in vars(tiny_pipeline)
