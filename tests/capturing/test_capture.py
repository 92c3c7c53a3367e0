"""Capturing a pipeline: the same pictures, whole stores, refusals by name, and everything put back."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from making.pipelines import HEADS, LAYERS, T5_TOKENS, make_pipeline, pixels, plain_image

import sd35h5
from sd35h5 import open_store
from sd35h5.capturing.recorder import SampleRecorder
from sd35h5.errors import CaptureError
from sd35h5.gates.modules import build_gates, install_gates
from sd35h5.measuring.probe import attend_plainly

PROMPTS = ("a red apple", "a cat left of a dog")


@pytest.fixture(scope="module")
def captured(tiny_pipeline, call, tmp_path_factory):
    """Two samples with every tier of this version on; (store path, images)."""
    path = tmp_path_factory.mktemp("run") / "run.h5"
    with sd35h5.capture(
        tiny_pipeline, path, no_unconditional=True, text_queries=True, precision="exact", map_pool=1
    ) as generate:
        images = [generate(prompt, seed=5 + i, **call).images[0] for i, prompt in enumerate(PROMPTS)]
    return path, images


def test_images_are_those_of_the_plain_pipeline_to_the_bit(tiny_pipeline, call, captured):
    path, images = captured
    with open_store(path) as store:
        for index, prompt in enumerate(PROMPTS):
            plain = pixels(plain_image(tiny_pipeline, prompt, 5 + index, **call))
            assert np.array_equal(plain, pixels(images[index]))
            assert np.array_equal(plain, store.image(index))


def test_the_store_holds_every_tier_with_true_axes(captured, tiny_pipeline, call):
    path, _ = captured
    with open_store(path) as store:
        assert store.status == "complete" and len(store.samples) == 2
        wanted = {
            "branch": 2,
            "step": 5,
            "layer": LAYERS,
            "head": HEADS,
            "token": 77 + T5_TOKENS,
            "top_step": 2,
            "map_step": 2,
        }
        assert {name: store.sizes[name] for name in wanted} == wanted
        assert list(store.read("maps/image_to_text", sample=0)["map_step"]) == [0, 4]
        mass = store.read("sinks/mass_image")
        tiny_pipeline.scheduler.set_timesteps(5)
        np.testing.assert_allclose(mass["timestep"], tiny_pipeline.scheduler.timesteps, rtol=1e-6)
        np.testing.assert_allclose(mass["sigma"], tiny_pipeline.scheduler.sigmas[:-1], rtol=1e-6)
        assert np.isfinite(mass).all() and np.isfinite(store.read("sinks/mass_text")).all()
        assert (store.samples["row_sum_error"] < 1e-3).all()
    assert sd35h5.verify(path).ok


def test_group_masses_are_sums_of_token_masses_and_sum_to_one(captured):
    path, _ = captured
    with open_store(path) as store:
        for sample, branch in ((0, "cond"), (1, "uncond")):
            groups = store.tokens(sample, branch)["group"].to_numpy()
            group_mass = store.read("sinks/mass_group", sample=sample, branch=branch)
            np.testing.assert_allclose(group_mass.sum("group"), 1, atol=1e-5)
            for query, name in (("image", "sinks/mass_image"), ("text", "sinks/mass_text")):
                mass = store.read(name, sample=sample, branch=branch).values
                for group in ("clip_bos", "clip_pad", "t5_word", "t5_pad"):
                    expected = mass[..., groups == group].sum(-1)
                    found = group_mass.sel(group=group, query=query).values
                    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_top_keys_of_text_are_the_masses_of_those_tokens(captured):
    path, _ = captured
    with open_store(path) as store:
        top = {
            n: store.read(f"topk/top_{n}", sample=0, branch="cond").values
            for n in ("stream", "index", "mass")
        }
        mass = [
            store.read(name, sample=0, branch="cond").values[[0, 4]]
            for name in ("sinks/mass_image", "sinks/mass_text")
        ]
    for query in range(2):
        is_text = top["stream"][query] == 1
        assert is_text.any() and not is_text.all()
        step, layer, head, _rank = np.nonzero(is_text)
        token = top["index"][query][is_text]
        np.testing.assert_allclose(
            top["mass"][query][is_text], mass[query][step, layer, head, token], rtol=1e-5
        )


def test_maps_average_to_the_mass_of_their_token(captured):
    path, _ = captured
    with open_store(path) as store:
        tokens = store.read("maps/map_token_index", sample=1, branch="cond").values
        maps = store.read("maps/image_to_text", sample=1, branch="cond").values
        mass = store.read("sinks/mass_image", sample=1, branch="cond", step=[0, 4]).values.mean(2)  # heads
    used = tokens >= 0
    assert used.sum() > 8 and np.isnan(maps[:, ~used]).all()
    np.testing.assert_allclose(
        maps[:, used].mean((-1, -2)).swapaxes(1, 2), mass[..., tokens[used]], rtol=1e-4
    )


def test_the_file_says_what_it_comes_from(captured):
    path, _ = captured
    with h5py.File(path) as file:
        assert file.attrs["gate_type"] == b"none" and file.attrs["model_shape"] == b"3 layers, 2 heads of 8"
        environment = json.loads(file["provenance/environment"].asstr()[()])
        components = json.loads(file["provenance/components"].asstr()[()])
    assert environment["torch"] == torch.__version__
    assert components["transformer"]["dtype"] == "float32" and components["scheduler"]["shift"] == 3.0


def test_processors_and_hooks_are_back_afterwards_and_after_an_error(tiny_pipeline, call, tmp_path):
    transformer = tiny_pipeline.transformer
    before = dict(transformer.attn_processors)
    with (
        pytest.raises(RuntimeError, match="mine"),
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate,
    ):
        generate("a cat", seed=0, **call)
        raise RuntimeError("mine")
    assert all(transformer.attn_processors[name] is processor for name, processor in before.items())
    assert not transformer._forward_hooks and not transformer._forward_pre_hooks
    assert (tmp_path / "a.h5.parts" / "000000.h5").is_file() and not (tmp_path / "a.h5").exists()


def test_an_error_within_a_sample_leaves_the_sealed_ones_and_no_half_file(tiny_pipeline, call, tmp_path):
    def stop(pipe, step, timestep, kwargs):
        if step == 2:
            raise ZeroDivisionError
        return kwargs

    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate:
        generate("a cat", seed=0, **call)
        with pytest.raises(ZeroDivisionError):
            generate("a dog", seed=1, callback_on_step_end=stop, **call)
        assert sorted(p.name for p in (tmp_path / "a.h5.parts").iterdir()) == [
            "000000.h5",
            "run.json",
            "run.lock",
        ]
        again = generate("a dog", seed=1, **call).images[0]
    assert np.array_equal(pixels(again), pixels(plain_image(tiny_pipeline, "a dog", 1, **call)))
    with open_store(tmp_path / "a.h5") as store:
        assert list(store.samples["prompt"]) == ["a cat", "a dog"]


def test_an_interrupted_pipeline_is_not_sealed(tiny_pipeline, call, tmp_path):
    def interrupt(pipe, step, timestep, kwargs):
        pipe._interrupt = step == 1
        return kwargs

    with (
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate,
        pytest.raises(CaptureError, match="stopped after step 1"),
    ):
        generate("a cat", seed=0, callback_on_step_end=interrupt, **call)
    assert not (tmp_path / "a.h5").exists()


def test_skip_layer_guidance_is_a_branch_of_its_own_and_overwrites_nothing(tiny_pipeline, call, tmp_path):
    skip = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.5}  # steps 1 and 2 of 5
    plain = pixels(plain_image(tiny_pipeline, "a cat", 3, **call, **skip))
    with sd35h5.capture(tiny_pipeline, tmp_path / "skip.h5", precision="exact") as generate:
        assert np.array_equal(pixels(generate("a cat", seed=3, **call, **skip).images[0]), plain)
    with sd35h5.capture(tiny_pipeline, tmp_path / "plain.h5", precision="exact") as generate:
        generate("a cat", seed=3, **call)
    with open_store(tmp_path / "skip.h5") as skipping, open_store(tmp_path / "plain.h5") as guided:
        for name in ("sinks/mass_group", "sinks/entropy_text", "sinks/mass_image"):
            for branch in ("cond", "uncond"):
                first = [
                    s.read(name, sample=0, branch=branch, step=[0, 1]).values for s in (skipping, guided)
                ]
                np.testing.assert_array_equal(
                    *first
                )  # step 2 is the first whose latents the guidance changed
        group = skipping.read("sinks/mass_group", sample=0, branch="skip")
        assert skipping.samples["pairing_key"][0] != guided.samples["pairing_key"][0]
        uncond = skipping.tokens(0, "skip")["text"]
        assert list(uncond) == list(skipping.tokens(0, "cond")["text"])
    filled = np.isfinite(group.transpose("step", "layer", ...).values).all((2, 3, 4))
    expected = np.zeros((5, LAYERS), bool)
    expected[1:3, [0, 2]] = True
    assert np.array_equal(filled, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_captured_to_the_bit(dtype, call, tmp_path):
    pipe = make_pipeline().to(dtype=dtype)
    plain = pixels(plain_image(pipe, "a cat", 0, **call))
    with sd35h5.capture(pipe, tmp_path / "a.h5") as generate:
        assert np.array_equal(pixels(generate("a cat", seed=0, **call).images[0]), plain)
    with open_store(tmp_path / "a.h5") as store:
        assert float(store.samples["row_sum_error"][0]) < 1e-3


def test_without_guidance_there_is_one_branch(tiny_pipeline, call, tmp_path):
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate:
        generate("a cat", seed=0, **{**call, "guidance_scale": 1.0})
    with open_store(tmp_path / "a.h5") as store:
        assert store.sizes["branch"] == 1
        assert np.isfinite(store.read("sinks/mass_image", branch="cond")).all()


def test_without_t5_its_positions_are_absent(call, tmp_path):
    pipe = make_pipeline()
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    with sd35h5.capture(pipe, tmp_path / "a.h5") as generate:
        image = generate("a cat", seed=0, **call).images[0]
    assert np.array_equal(pixels(image), pixels(plain_image(pipe, "a cat", 0, **call)))
    with open_store(tmp_path / "a.h5") as store:
        assert set(store.tokens(0)["group"][77:]) == {"t5_absent"}
        assert float(store.read("sinks/mass_group", group="t5_absent", query="image").min()) > 0


@pytest.mark.parametrize("gate_type", ["headwise", "elementwise"])
def test_a_gated_pipeline_is_captured_with_its_gates(gate_type, call, tmp_path):
    pipe = make_pipeline()
    gates = build_gates(pipe.transformer, gate_type)
    for parameter in gates.modules.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    install_gates(pipe.transformer, gates)
    plain = pixels(plain_image(pipe, "a cat", 0, **call))
    with sd35h5.capture(pipe, tmp_path / "a.h5") as generate:
        assert np.array_equal(pixels(generate("a cat", seed=0, **call).images[0]), plain)
    with open_store(tmp_path / "a.h5") as store:
        assert store.attributes["gate_type"] == gate_type and store.attributes["gate_layers"] == "[0, 1, 2]"
        mean = store.read("gates/mean", sample=0)
        assert (
            np.isnan(mean.sel(query="text", layer=LAYERS - 1)).all()
            and np.isfinite(mean.sel(query="image")).all()
        )
        assert ((mean.sel(query="image") > 0) & (mean.sel(query="image") < 1)).all()


def test_baseline_and_gated_samples_share_their_pairing_key(call, tmp_path):
    keys = []
    for gated in (False, True):
        pipe = make_pipeline()
        if gated:
            install_gates(pipe.transformer, build_gates(pipe.transformer, "headwise"))
        with sd35h5.capture(pipe, tmp_path / f"{gated}.h5", maps="off") as generate:
            generate("a cat", seed=0, **call)
        with open_store(tmp_path / f"{gated}.h5") as store:
            keys.append(store.samples["pairing_key"][0])
    assert keys[0] == keys[1]


def test_what_changes_the_picture_changes_the_pairing_key(tiny_pipeline, call, tmp_path):
    calls = [
        call, {**call, "guidance_scale": 5.0}, {**call, "negative_prompt": "dog"}, {**call, "clip_skip": 1},
        {**call, "prompt_3": "a dog"}, {**call, "mu": 0.5},
    ]  # fmt: skip
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5", maps="off", topk=0, no_images=True) as generate:
        for arguments in calls[:-1]:
            generate("a cat", seed=0, **arguments)
        generate("a cat", seed=0, output_type="np", **call)
    with open_store(tmp_path / "a.h5") as store:
        keys = list(store.samples["pairing_key"])
        assert len(set(keys)) == len(calls) - 1 and keys[-1] == keys[0]
        assert list(store.samples["prompt_index"]) == [0] * 6 and list(store.samples["image_index"]) == [
            0,
            1,
            2,
            3,
            4,
            5,
        ]


def test_a_sample_is_sealed_while_the_next_one_is_drawn(tiny_pipeline, call, tmp_path, monkeypatch):
    drawing, seal = threading.Event(), SampleRecorder.seal

    def slow_seal(recorder: SampleRecorder, *told: object) -> Path:
        assert drawing.wait(60), "the next sample waits for the seal of this one"
        return seal(recorder, *told)

    def begun(pipe: object, step: int, timestep: object, tensors: dict) -> dict:
        drawing.set()
        return tensors

    monkeypatch.setattr(SampleRecorder, "seal", slow_seal)
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate:
        generate("a cat", seed=0, **call)
        assert not (tmp_path / "a.h5.parts" / "000000.h5").exists()
        generate("a dog", seed=1, callback_on_step_end=begun, **call)
    with open_store(tmp_path / "a.h5") as store:
        assert list(store.samples["prompt"]) == ["a cat", "a dog"]


def test_a_backend_whose_log_sum_exp_is_wrong_is_refused_and_leaves_nothing(tiny_pipeline, call, tmp_path):
    def wrong(layer, joint):
        joint, attended, lse = attend_plainly(layer, joint)
        return joint, attended, lse + 0.01 * (layer == 1)

    with (
        pytest.raises(CaptureError, match=r"sum to 1 ± 0\.01 at the first step, expected within 0\.001"),
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate,
    ):
        for processor in tiny_pipeline.transformer.attn_processors.values():
            processor.attend = wrong
        generate("a cat", seed=0, **call)
    assert not list(tmp_path.rglob("*.h5"))
