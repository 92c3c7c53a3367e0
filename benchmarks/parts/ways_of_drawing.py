"""Ways to draw with one transformer that `coverage.py` tries: other pipelines, guidance that changes, caches."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import (
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    apply_first_block_cache,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
)
from PIL import Image
from torch import nn


@dataclass
class Way:
    """How a case draws.

    Args:
        pipe: the pipeline that is captured.
        call: arguments of it, instead of or beside the case's.
        plain: what is called without a capture, if not the pipeline itself.
        reset: brings what a picture leaves behind back, before each.
    """

    pipe: Any
    call: dict[str, object] = field(default_factory=dict)
    plain: Callable[..., object] | None = None
    reset: Callable[[], None] = lambda: None


@contextmanager
def drawn_by(pipe: StableDiffusion3Pipeline, name: str, call: dict[str, object]) -> Iterator[Way]:
    """The way of that name, "" for the plain one; the pipeline is as before afterwards.

    Args:
        call: the case's arguments.
    """
    if not name:
        yield Way(pipe)
        return
    yield from WAYS[name](pipe, call)


def _of(kind: type, pipe: StableDiffusion3Pipeline, **more: object) -> Any:
    held = {name: each for name, each in pipe.components.items() if each is not None}
    made = kind(**held, **more)
    made.set_progress_bar_config(disable=True)
    return made


def _picture(call: dict[str, object]) -> Image.Image:
    shape = (call["height"], call["width"], 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))


def _image_to_image(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    yield Way(_of(StableDiffusion3Img2ImgPipeline, pipe), {"image": _picture(call), "strength": 0.7})


def _inpainting(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    picture = _picture(call)
    mask = picture.convert("L").point(lambda value: 255 * (value > 127))
    more = {"image": picture, "mask_image": mask, "strength": 0.7}
    yield Way(_of(StableDiffusion3InpaintPipeline, pipe), more)


def _wide_inpainting(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    """A transformer that takes mask and masked image beside the latents, as models made for inpainting do."""
    transformer, plain = pipe.transformer, pipe.transformer.pos_embed.proj
    wide = nn.Conv2d(33, plain.out_channels, plain.kernel_size, plain.stride)
    transformer.pos_embed.proj = wide.to(plain.weight.device, plain.weight.dtype)
    transformer.register_to_config(in_channels=33)
    try:
        yield from _inpainting(pipe, call)
    finally:
        transformer.pos_embed.proj = plain
        transformer.register_to_config(in_channels=16)


def _controlnet(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    told = pipe.transformer.config
    names = (
        "sample_size", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "caption_projection_dim",
        "pooled_projection_dim", "pos_embed_max_size", "qk_norm",
    )  # fmt: skip
    torch.manual_seed(1)
    with pipe.transformer.device:
        model = SD3ControlNetModel(num_layers=2, **{name: told[name] for name in names if name != "qk_norm"})
    for block in model.controlnet_blocks:  # which begin as zeros, and would change nothing
        nn.init.normal_(block.weight, std=0.02)
    made = _of(StableDiffusion3ControlNetPipeline, pipe, controlnet=model.to(pipe.transformer.dtype).eval())
    more = {"control_image": _picture(call), "controlnet_conditioning_scale": 0.7}
    yield Way(made, more, reset=lambda: torch.manual_seed(0) and None)


class TwoCalls(StableDiffusion3Pipeline):
    """Guidance by two calls of the transformer, the prompt's first: a `__call__` of its own."""

    @torch.no_grad()
    def __call__(self, prompt, generator, guidance_scale, height, width, num_inference_steps, **kwargs):
        cond, uncond, pooled, negative = self.encode_prompt(
            prompt, None, None, max_sequence_length=kwargs["max_sequence_length"]
        )
        device = self._execution_device
        latents = self.prepare_latents(len(cond), 16, height, width, cond.dtype, device, generator)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for t in self.scheduler.timesteps:
            inputs = {"hidden_states": latents, "timestep": t.expand(len(latents)), "return_dict": False}
            [told] = self.transformer(encoder_hidden_states=cond, pooled_projections=pooled, **inputs)
            [blind] = self.transformer(encoder_hidden_states=uncond, pooled_projections=negative, **inputs)
            noise = blind + guidance_scale * (told - blind)
            latents = self.scheduler.step(noise, t, latents, return_dict=False)[0]
        return types.SimpleNamespace(images=latents)


def _two_calls(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    yield Way(_of(TwoCalls, pipe))


def _text_states(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    """The plain pipeline takes the states alone, the captured one their label, too."""
    with torch.no_grad():
        given = pipe.encode_prompt(
            "a red cat", None, None, negative_prompt="blue", max_sequence_length=call["max_sequence_length"]
        )
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    states = dict(zip(names, given, strict=True))

    def plain(prompt: str, negative_prompt: str, **more: object) -> object:
        return pipe(**more)

    yield Way(pipe, {**states, "negative_prompt": "blue"}, plain)


def _ending(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    def end(pipe: StableDiffusion3Pipeline, step: int, timestep: object, tensors: dict) -> dict:
        if step != 0:
            return tensors
        pipe._guidance_scale = 0.0
        return {name: each.chunk(2)[-1] for name, each in tensors.items()}

    inputs = ["prompt_embeds", "pooled_prompt_embeds"]
    yield Way(pipe, {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": inputs})


def _falling(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    def fall(pipe: StableDiffusion3Pipeline, step: int, timestep: object, tensors: dict) -> dict:
        pipe._guidance_scale -= 1.0
        return tensors

    yield Way(pipe, {"callback_on_step_end": fall})


def _hooked(
    pipe: StableDiffusion3Pipeline, apply: Callable[[nn.Module], None], hooks: tuple[str, ...]
) -> Iterator[Way]:
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    apply(pipe.transformer)
    registry.invalidate_child_registries_cache()
    try:
        yield Way(pipe, reset=registry.reset_stateful_hooks)
    finally:
        for hook in hooks:
            registry.remove_hook(hook)


def _broadcast(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    yield from _hooked(
        pipe, lambda model: apply_pyramid_attention_broadcast(model, config), ("pyramid_attention_broadcast",)
    )


def _mag(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    steps = call["num_inference_steps"]
    config = MagCacheConfig(
        mag_ratios=[1.0] * steps, num_inference_steps=steps, threshold=1.0, retention_ratio=0.0
    )
    hooks = ("mag_cache_leader_block_hook", "mag_cache_block_hook")
    yield from _hooked(pipe, lambda model: apply_mag_cache(model, config), hooks)


def _tea(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    """A forward of one's own that gives every second answer again."""
    transformer, answers = pipe.transformer, []
    plain = transformer.forward

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        answers.append(answers[-1] if len(answers) % 2 else plain(*args, **kwargs))
        return answers[-1]

    transformer.forward = types.MethodType(forward, transformer)
    try:
        yield Way(pipe, reset=answers.clear)
    finally:
        del transformer.forward


def _first_block(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    hooks = ("fbc_leader_block_hook", "fbc_block_hook")
    yield from _hooked(pipe, lambda model: apply_first_block_cache(model, FirstBlockCacheConfig()), hooks)


def _perturbed(pipe: StableDiffusion3Pipeline, call: dict[str, object]) -> Iterator[Way]:
    yield Way(_of(StableDiffusion3PAGPipeline, pipe))


WAYS: dict[str, Callable[[StableDiffusion3Pipeline, dict[str, object]], Iterator[Way]]] = {
    "image to image": _image_to_image,
    "inpainting": _inpainting,
    "inpainting, 33 channels": _wide_inpainting,
    "ControlNet": _controlnet,
    "two calls a step": _two_calls,
    "text states": _text_states,
    "guidance ends": _ending,
    "guidance falls": _falling,
    "pyramid attention broadcast": _broadcast,
    "MagCache": _mag,
    "TeaCache": _tea,
    "first-block cache": _first_block,
    "perturbed-attention guidance": _perturbed,
}
