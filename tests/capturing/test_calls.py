"""Calls of a capture: what may be asked, what goes on where it stopped, and what is refused by name."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from diffusers.models.attention_processor import FusedJointAttnProcessor2_0, JointAttnProcessor2_0
from making.pipelines import make_pipeline, pixels, plain_image

import sd35h5
from sd35h5 import open_store
from sd35h5.errors import CaptureError, ConfigError, StoreError


def test_every_way_to_ask_for_the_answer_is_returned_as_the_pipeline_does(tiny_pipeline, call, tmp_path):
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate:
        as_pil = pixels(generate(prompt=["a cat"], seed=0, **call).images[0])
        as_array = generate("a cat", seed=0, output_type="np", **call).images
        as_tuple = generate("a cat", seed=0, output_type="pt", return_dict=False, **call)
        drawn = generate("a cat", generator=torch.Generator("cpu").manual_seed(0), **call)
    assert as_array.shape == (1, *as_pil.shape) and isinstance(as_tuple, tuple) and as_tuple[0].shape[1] == 3
    assert np.array_equal(pixels(drawn.images[0]), as_pil)
    with open_store(tmp_path / "a.h5") as store:
        assert all(np.array_equal(store.image(i), as_pil) for i in range(4))
        assert list(store.samples["seed"]) == [0, 0, 0, 0]


def test_a_call_without_a_seed_draws_one_and_stores_it(tiny_pipeline, call, tmp_path):
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate:
        image = pixels(generate("a cat", **call).images[0])
    with open_store(tmp_path / "a.h5") as store:
        assert np.array_equal(
            image, pixels(plain_image(tiny_pipeline, "a cat", int(store.samples["seed"][0]), **call))
        )


def test_steps_are_indices_also_where_a_scheduler_visits_a_timestep_twice(call, tmp_path):
    pipe = make_pipeline()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    plain = pixels(plain_image(pipe, "a cat", 0, **call))
    with sd35h5.capture(pipe, tmp_path / "a.h5") as generate:
        assert np.array_equal(pixels(generate("a cat", seed=0, **call).images[0]), plain)
    with open_store(tmp_path / "a.h5") as store:
        mass = store.read("sinks/mass_image", sample=0, branch="cond")
        assert mass.sizes["step"] == 9 and len(set(mass["timestep"].values)) < 9
        assert np.isfinite(mass).all()


def test_the_same_calls_again_go_on_and_other_calls_are_refused(tiny_pipeline, call, tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt), sd35h5.capture(tiny_pipeline, path) as generate:
        first = pixels(generate("a cat", seed=0, **call).images[0])
        raise KeyboardInterrupt
    sealed = (tmp_path / "a.h5.parts" / "000000.h5").read_bytes()
    with (
        pytest.raises(CaptureError, match=r"sealed already with prompt 'a cat'.*'a dog'"),
        sd35h5.capture(tiny_pipeline, path) as generate,
    ):
        generate("a dog", seed=0, **call)
    with pytest.raises(StoreError, match="topk"), sd35h5.capture(tiny_pipeline, path, topk=3) as generate:
        generate("a cat", seed=0, **call)
    with sd35h5.capture(tiny_pipeline, path) as generate:
        assert np.array_equal(pixels(generate("a cat", seed=0, **call).images[0]), first)
        assert (tmp_path / "a.h5.parts" / "000000.h5").read_bytes() == sealed
        generate("a dog", seed=1, **call)
    with sd35h5.capture(tiny_pipeline, path) as generate:
        generate("a cat", seed=0, **call)
        with pytest.raises(CaptureError, match="complete with 2 samples"):
            generate("a dog", seed=1, **call)
            generate("a tree", seed=2, **call)
    with open_store(path) as store:
        assert list(store.samples["prompt"]) == ["a cat", "a dog"]
    with sd35h5.capture(tiny_pipeline, path, overwrite=True) as generate:
        generate("a tree", seed=2, **call)
    with open_store(path) as store:
        assert list(store.samples["prompt"]) == ["a tree"]


def test_one_file_has_one_shape(tiny_pipeline, call, tmp_path):
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate:
        generate("a cat", seed=0, **call)
        with pytest.raises(CaptureError, match=r"patches, pixels.*another file"):
            generate("a cat", seed=1, **{**call, "height": 96})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_images_per_prompt": 2}, "one image a prompt"),
        ({"negative_prompt": ["a cat", "a dog"]}, "2 texts in negative_prompt for one prompt"),
        ({"seed": [0, 1]}, "2 seeds for one prompt"),
        ({"generator": torch.Generator("cpu")}, "seed or generator, not both"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1)}, "needs a prompt, the text that prompt_embeds"),
        ({"prompt": None}, "needs a prompt"),
    ],
)
def test_a_call_whose_samples_cannot_be_told_apart_is_refused(tiny_pipeline, call, tmp_path, changes, said):
    with (
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate,
        pytest.raises(CaptureError, match=said),
    ):
        generate(**{"prompt": "a cat", "seed": 0, **call, **changes})


def test_an_argument_that_the_pipeline_lacks_is_a_type_error(tiny_pipeline, tmp_path):
    with (
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate,
        pytest.raises(TypeError, match="hight"),
    ):
        generate("a cat", hight=64)


def test_another_class_a_part_compiled_alone_and_unknown_processors_are_refused_by_name(tmp_path):
    pipe = make_pipeline()

    def refused(something, there=()) -> str:
        with pytest.raises(CaptureError) as caught, sd35h5.capture(something, tmp_path / "a.h5"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == list(there)
        return str(caught.value)

    assert "not a Linear" in refused(torch.nn.Linear(1, 1))
    transformer = pipe.transformer
    pipe.transformer = torch.compile(torch.nn.Linear(1, 1))
    assert "is a OptimizedModule, not an SD3Transformer2DModel" in refused(pipe)
    pipe.transformer = transformer
    transformer.transformer_blocks[1].attn.compile()
    assert "transformer_blocks.1.attn alone is compiled" in refused(pipe)
    transformer.transformer_blocks[1].attn._compiled_call_impl = None
    transformer.transformer_blocks[1].attn.set_processor(FusedJointAttnProcessor2_0())
    said = refused(pipe)
    assert "transformer_blocks.1.attn.processor" in said and "FusedJointAttnProcessor2_0" in said
    transformer.set_attn_processor(JointAttnProcessor2_0())
    with sd35h5.capture(pipe, tmp_path / "outer.h5"):
        assert "already" in refused(pipe, ["outer.h5.parts"])
    assert type(next(iter(transformer.attn_processors.values()))) is JointAttnProcessor2_0


def test_an_unknown_option_is_refused_by_name(tiny_pipeline, tmp_path):
    with (
        pytest.raises(ConfigError, match="'columns'"),
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5", columns="centre"),
    ):
        pass


def test_truncation_is_said_once_and_kept_in_the_file(tiny_pipeline, call, tmp_path, caplog):
    prompt = " ".join(["red"] * 90)
    with (
        caplog.at_level(logging.WARNING),
        sd35h5.capture(tiny_pipeline, tmp_path / "a.h5", maps="off") as generate,
    ):
        for seed in range(2):
            generate(prompt, seed=seed, **call)
    told = [record.message for record in caplog.records if "CLIP-L" in record.message]
    assert len(told) == 1 and "T5 reads" in told[0]
    assert not any("part of your input was truncated" in record.message for record in caplog.records)
    with open_store(tmp_path / "a.h5") as store:
        assert store.samples["prompt"][0] == prompt
        assert [event["note"] for event in store.provenance["events"]] == told


def test_a_second_attention_is_captured_and_the_picture_stays(call, tmp_path):
    pipe = make_pipeline(dual_attention_layers=(0, 1))
    plain = pixels(plain_image(pipe, "a cat", 0, **call))
    with sd35h5.capture(pipe, tmp_path / "a.h5") as generate:
        assert np.array_equal(pixels(generate("a cat", seed=0, **call).images[0]), plain)
    with open_store(tmp_path / "a.h5") as store:
        entropy = store.read("attn2/entropy_all", branch="cond", query="image")
        measured = np.isfinite(entropy).any([dim for dim in entropy.dims if dim != "layer"])
        assert measured.values.tolist() == [True, True, False]
