"""The other pipelines around the same transformer, those derived from them, and text states in place of texts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchHeunDiscreteScheduler,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from making.drawn_attention import masses_of, watched_masses
from making.pipelines import HEAD_DIM, HEADS, HEIGHT, LAYERS, T5_TOKENS, WIDTH, make_pipeline, torch_generator
from PIL import Image

import sd35h5
from sd35h5 import open_store
from sd35h5.errors import CaptureError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
PICTURE, OTHER = Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())
MASK = Image.fromarray((RANDOM.random((HEIGHT, WIDTH)) > 0.5).astype(np.uint8) * 255)
BRANCHES = {"precision": "exact", "branches": ("cond", "uncond"), "maps": "off", "topk": 0}


def _as(kind: type, pipe: StableDiffusion3Pipeline, **more: object):
    made = kind(**{name: each for name, each in pipe.components.items() if each is not None}, **more)
    made.set_progress_bar_config(disable=True)
    return made


def _controlnet() -> SD3ControlNetModel:
    torch.manual_seed(1)
    model = SD3ControlNetModel(
        sample_size=8, num_layers=2, attention_head_dim=HEAD_DIM, num_attention_heads=HEADS, joint_attention_dim=32,
        caption_projection_dim=HEADS * HEAD_DIM, pooled_projection_dim=32, pos_embed_max_size=16,
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


CASES = {  # name -> (class, arguments, how many of 5 steps are drawn)
    "image to image": (StableDiffusion3Img2ImgPipeline, {"image": PICTURE, "strength": 0.6}, 3),
    "image to image, unguided": (
        StableDiffusion3Img2ImgPipeline,
        {"image": PIXELS[None] / 255.0, "strength": 0.5, "guidance_scale": 1.0},
        3,
    ),
    "image to image, batch": (
        StableDiffusion3Img2ImgPipeline,
        {"image": [PICTURE, OTHER], "strength": 0.4},
        2,
    ),
    "inpainting": (
        StableDiffusion3InpaintPipeline,
        {"image": PICTURE, "mask_image": MASK, "strength": 0.8},
        4,
    ),
    "inpainting, 33 channels": (
        StableDiffusion3InpaintPipeline,
        {"image": PICTURE, "mask_image": MASK, "strength": 0.8},
        4,
    ),
    "controlnet": (
        StableDiffusion3ControlNetPipeline,
        {"control_image": PICTURE, "controlnet_conditioning_scale": 0.7},
        5,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_another_pipeline_is_drawn_to_the_bit_and_its_transformer_measured(
    name, tiny_pipeline, call, tmp_path
):
    kind, more, steps = CASES[name]
    pipe = make_pipeline(in_channels=33) if "33" in name else tiny_pipeline
    pipe = _as(kind, pipe, **({"controlnet": _controlnet()} if "control_image" in more else {}))
    prompts = ["a cat", "a red dog"] if "batch" in name else ["a cat"]
    call = {**call, "output_type": "latent", **more}
    torch.manual_seed(3)  # from which a ControlNet's picture is encoded
    with watched_masses(pipe.transformer) as calls:
        plain = pipe(
            prompts, generator=[torch_generator(seed) for seed in range(len(prompts))], **call
        ).images
    torch.manual_seed(3)
    with sd35h5.capture(pipe, tmp_path / "a.h5", **BRANCHES) as generate:
        assert torch.equal(generate(prompts, seed=0, **call).images, plain)
    assert sd35h5.verify(tmp_path / "a.h5", deep=True).ok and len(calls) == steps
    with open_store(tmp_path / "a.h5") as store:
        mass, count = store.read("sinks/mass_image"), len(prompts)
        for place, branch in enumerate(("cond",) if "unguided" in name else ("uncond", "cond")):
            for sample in range(count):
                expected = masses_of(calls, place * count + sample, LAYERS)
                np.testing.assert_allclose(
                    mass.sel(sample=sample, branch=branch), expected, rtol=1e-4, atol=1e-7
                )
        assert np.allclose(mass["sigma"] * 1000, mass["timestep"]) and mass.sizes["step"] == steps
        assert store.samples["row_sum_error"].max() < 1e-5
        told = [each for each in store.provenance["events"] if each["event"] == "drawn from"]
        given = {
            key: value for key, value in more.items() if isinstance(value, float) and key != "guidance_scale"
        }
        assert all(each["pipeline"] == kind.__name__ and given.items() <= each.items() for each in told)
        assert (
            len({str(each) for each in told}) == count
            and "96 × 64 RGB" in str(told)
            or "float64" in str(told)
        )
        if "control_image" in more:
            assert len(store.provenance["components"]["controlnet"]["fingerprint"]) == 64


def test_steps_of_heun_that_begin_with_a_picture_are_those_that_were_drawn(call, tmp_path):
    pipe = _as(StableDiffusion3Img2ImgPipeline, make_pipeline())
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    seen: list[float] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    with sd35h5.capture(pipe, tmp_path / "a.h5", **BRANCHES) as generate:
        generate("a cat", seed=0, image=PICTURE, strength=0.6, **call)
    hook.remove()
    with open_store(tmp_path / "a.h5") as store:
        assert store.read("sinks/mass_group", sample=0)["timestep"].values.tolist() == seen and len(seen) == 5


def test_what_a_picture_is_drawn_from_is_part_of_the_pairing_key(tiny_pipeline, call, tmp_path):
    call, keys = {**call, "num_inference_steps": 4}, []
    images = _as(StableDiffusion3Img2ImgPipeline, tiny_pipeline)
    inpaint = _as(StableDiffusion3InpaintPipeline, tiny_pipeline)
    control = _as(StableDiffusion3ControlNetPipeline, tiny_pipeline, controlnet=_controlnet())
    ways = [
        (images, {"image": PICTURE, "strength": 0.5}), (images, {"image": PICTURE.copy(), "strength": 0.5}),
        (images, {"image": OTHER, "strength": 0.5}), (images, {"image": PICTURE, "strength": 0.6}),
        (inpaint, {"image": PICTURE, "mask_image": MASK, "strength": 0.5}),
        (control, {"control_image": PICTURE}), (control, {"control_image": OTHER}),
        (control, {"control_image": PICTURE, "controlnet_conditioning_scale": 0.5}), (tiny_pipeline, {}),
    ]  # fmt: skip
    for place, (pipe, more) in enumerate(ways):
        with sd35h5.capture(pipe, tmp_path / f"{place}.h5", no_images=True, **BRANCHES) as generate:
            generate("a cat", seed=0, **call, **more)
        with open_store(tmp_path / f"{place}.h5") as store:
            keys += list(store.samples["pairing_key"])
    assert keys[0] == keys[1] and len(set(keys)) == len(ways) - 1


class GivesOn(StableDiffusion3Pipeline):
    """A call of its own that gives its arguments on."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Styled(StableDiffusion3Pipeline):
    """A call that writes something behind the prompt."""

    def __call__(self, prompt, **kwargs):
        return super().__call__(prompt + " on blue", **kwargs)


class TwoCalls(StableDiffusion3Pipeline):
    """Guidance by two calls of the transformer, the prompt's first; or by a third one of the prompt without layers."""

    perturbed = False

    @torch.no_grad()
    def __call__(
        self, prompt, generator, guidance_scale=4.5, height=0, width=0, num_inference_steps=2, **kwargs
    ):
        cond, uncond, pooled, negative = self.encode_prompt(
            prompt, None, None, max_sequence_length=kwargs["max_sequence_length"]
        )
        x = self.prepare_latents(len(cond), 16, height, width, cond.dtype, cond.device, generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            inputs = {"hidden_states": x, "timestep": t.expand(len(x)), "return_dict": False}
            told = self.transformer(x, cond, pooled, t.expand(len(x))).sample
            [blind] = self.transformer(encoder_hidden_states=uncond, pooled_projections=negative, **inputs)
            if self.perturbed:
                self.transformer(encoder_hidden_states=cond * 1.0, pooled_projections=pooled, **inputs)
            x = self.scheduler.step(blind + guidance_scale * (told - blind), t, x, return_dict=False)[0]
        return SimpleNamespace(images=x)


def test_a_derived_pipeline_with_a_call_of_its_own_is_followed(tiny_pipeline, call, tmp_path):
    call = {**call, "num_inference_steps": 2, "output_type": "latent"}
    stores = []
    for kind in (StableDiffusion3Pipeline, GivesOn, TwoCalls):
        path = tmp_path / f"{kind.__name__}.h5"
        with sd35h5.capture(_as(kind, tiny_pipeline), path, **BRANCHES) as generate:
            latents = generate(["a cat", "a dog"], seed=0, **call).images
        with open_store(path) as store:
            stores.append(
                (latents, store.read("sinks/mass_image").values, list(store.samples["pairing_key"]))
            )
    for latents, mass, keys in stores[1:]:
        torch.testing.assert_close(latents, stores[0][0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(mass, stores[0][1], rtol=1e-3, atol=1e-6)
        assert set(keys).isdisjoint(stores[0][2])


def test_a_derived_pipeline_that_cannot_be_followed_is_refused_by_name(tiny_pipeline, call, tmp_path):
    two = _as(TwoCalls, tiny_pipeline)
    two.perturbed = True

    class Silent(StableDiffusion3Pipeline):
        def __call__(self, prompt):
            return None

    drawn = {"encodes another prompt": _as(Styled, tiny_pipeline), "another timestep": two}
    for place, (said, pipe) in enumerate(drawn.items()):
        with (
            sd35h5.capture(pipe, tmp_path / f"{place}.h5") as generate,
            pytest.raises(CaptureError, match=said),
        ):
            generate("a cat", seed=0, **call)
    refused = {
        "Silent.__call__ takes no generator, guidance_scale": _as(Silent, tiny_pipeline),
        "PAGPipeline. Perturbed-attention guidance puts processors": _as(
            StableDiffusion3PAGPipeline, tiny_pipeline
        ),
    }
    for said, pipe in refused.items():
        with pytest.raises(CaptureError, match=said), sd35h5.capture(pipe, tmp_path / "a.h5"):
            pass


def test_an_ip_adapter_is_refused_by_name(tmp_path):
    pipe = make_pipeline()
    adapter = SD3IPAdapterJointAttnProcessor2_0(HEADS * HEAD_DIM, 16, HEAD_DIM)
    pipe.transformer.transformer_blocks[0].attn.set_processor(adapter)
    with (
        pytest.raises(CaptureError, match="SD3IPAdapterJoint.*IP-Adapter"),
        sd35h5.capture(pipe, tmp_path / "a.h5"),
    ):
        pass


def test_text_states_with_a_prompt_as_their_label_are_drawn_and_told(tiny_pipeline, call, tmp_path):
    call = {**call, "num_inference_steps": 2, "output_type": "latent"}
    texts = {
        "prompt": ["a red cat", "a dog"],
        "negative_prompt": ["green", "blue"],
        "prompt_3": ["a tree", "an apple"],
    }
    states = torch.no_grad()(tiny_pipeline.encode_prompt)(
        **texts, prompt_2=None, negative_prompt_3=texts["negative_prompt"], max_sequence_length=T5_TOKENS
    )
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    embeds = dict(zip(names, states, strict=True))
    with sd35h5.capture(tiny_pipeline, tmp_path / "texts.h5", **BRANCHES) as generate:
        drawn = generate(**texts, seed=0, **call).images
    with sd35h5.capture(tiny_pipeline, tmp_path / "states.h5", **BRANCHES) as generate:
        assert torch.equal(generate(**embeds, **texts, seed=0, **call).images, drawn)
        twice = {**embeds, "prompt_embeds": embeds["prompt_embeds"] * 2}
        generate(**twice, **texts, seed=0, **call)
    with open_store(tmp_path / "texts.h5") as first, open_store(tmp_path / "states.h5") as second:
        mass = [store.read("sinks/mass_image").values[:2] for store in (first, second)]
        assert np.array_equal(*mass)
        for sample in range(2):
            assert first.tokens(sample).equals(second.tokens(sample))
        assert len({*first.samples["pairing_key"], *second.samples["pairing_key"]}) == 6
        told = [
            each["prompt_embeds"] for each in second.provenance["events"] if each["event"] == "drawn from"
        ]
        assert len(set(told)) == 4 and all(each.startswith("(1, 101, 32) ") for each in told)


def test_text_states_that_their_label_cannot_be_of_are_refused(tiny_pipeline, call, tmp_path):
    states = tiny_pipeline.encode_prompt("a cat", None, None, max_sequence_length=T5_TOKENS)
    embeds = dict(zip(("prompt_embeds", "negative_prompt_embeds"), states[:2], strict=True))
    calls = [
        ("needs a prompt, the text that prompt_embeds", embeds),
        ("negative_prompt_embeds need negative_prompt= beside them", {**embeds, "prompt": "a cat"}),
        (
            "1 × 101 × 32, where 1 × 333 tokens are expected",
            {**embeds, "prompt": "a cat", "negative_prompt": "", "max_sequence_length": 256},
        ),
        ("where 2 × 101 tokens", {**embeds, "prompt": ["a cat", "a dog"], "negative_prompt": ""}),
    ]
    with sd35h5.capture(tiny_pipeline, tmp_path / "a.h5") as generate:
        for said, more in calls:
            with pytest.raises(CaptureError, match=said):
                generate(seed=0, **{**call, **more})


def test_text_states_of_encoders_that_are_gone_have_the_tokens_of_their_label(call, tmp_path):
    pipe = make_pipeline()
    texts = {"prompt": "a red cat", "negative_prompt": ""}
    states = pipe.encode_prompt(**texts, prompt_2=None, prompt_3=None, max_sequence_length=T5_TOKENS)
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    pipe.text_encoder = pipe.text_encoder_2 = pipe.text_encoder_3 = None
    with sd35h5.capture(pipe, tmp_path / "a.h5", **BRANCHES) as generate:
        generate(**texts, **dict(zip(names, states, strict=True)), seed=0, **call)
    with open_store(tmp_path / "a.h5") as store:
        assert {"t5_word", "t5_pad"} <= set(store.tokens(0)["group"])
    pipe.tokenizer_3 = None
    with (
        sd35h5.capture(pipe, tmp_path / "b.h5", **BRANCHES) as generate,
        pytest.raises(CaptureError, match="give the pipeline a tokenizer_3"),
    ):
        generate(**texts, **dict(zip(names, states, strict=True)), seed=0, **call)
