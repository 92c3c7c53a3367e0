"""What people hang into a pipeline, and how they lay it over devices: hooks, kernels, quantised models, offloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import dispatch_model
from diffusers import StableDiffusion3Pipeline
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.attention_processor import FusedJointAttnProcessor2_0, XFormersJointAttnProcessor
from parts.quantising import ENCODERS, WAYS, quantised, quantised_encoder, why_not
from torch import Tensor, nn

from sd35h5.capturing.pipeline import offload

GROUPS = {  # how a pipeline is offloaded by groups -> the arguments for it
    "blocks": {"offload_type": "block_level", "num_blocks_per_group": 2},
    "leaves": {"offload_type": "leaf_level"},
    "leaves, streams": {"offload_type": "leaf_level", "use_stream": True},
    "blocks, streams": {"offload_type": "block_level", "num_blocks_per_group": 1, "use_stream": True},
}
_DEVICES = "device map"


def left_out(hang: str, laid: str, device: torch.device) -> str:
    """Why a case cannot be tried here; empty if it can."""
    if hang in (*WAYS, *ENCODERS):
        return why_not(hang, device)
    on_cpus = not laid or laid == _DEVICES or (laid in GROUPS and "streams" not in laid)
    if device.type == "cpu" and not on_cpus:
        return "needs CUDA"
    if laid == _DEVICES and device.type == "cuda" and torch.cuda.device_count() < 2:
        return "needs two CUDA devices"
    return ""


def lay(pipe: StableDiffusion3Pipeline, how: str, device: torch.device, folder: Path) -> None:
    """Offload a pipeline that is on its device, or lay its transformer over two devices, or processor and disk."""
    if how == _DEVICES:
        transformer, first = pipe.transformer, "cpu" if device.type == "cpu" else 0
        second = "disk" if device.type == "cpu" else 1
        layers = len(transformer.transformer_blocks)
        places = {name: first for name, _ in transformer.named_children() if name != "transformer_blocks"}
        places |= {
            f"transformer_blocks.{layer}": first if layer < layers // 2 else second for layer in range(layers)
        }
        pipe.transformer = dispatch_model(transformer, places, main_device=first, offload_dir=folder)
        return
    pipe.to("cpu")
    if how in GROUPS:
        pipe.enable_group_offload(device, **GROUPS[how])
    else:
        offload(pipe, None, str(device), how)


@contextmanager
def hung(pipe: StableDiffusion3Pipeline, what: str, folder: Path) -> Iterator[None]:
    """The pipeline with something in it; as before afterwards, but for attention processors.

    Args:
        folder: for models that are saved to be loaded quantised.
    """
    if what in (*WAYS, *ENCODERS):
        yield from _replaced_model(pipe, what, folder)
    else:
        yield from HANGING[what](pipe)


def _replaced_model(pipe: StableDiffusion3Pipeline, way: str, folder: Path) -> Iterator[None]:
    name = "transformer" if way in WAYS else "text_encoder_3"
    plain = getattr(pipe, name)
    saved = folder / f"{name} {plain.dtype} {sum(each.numel() for each in plain.parameters())}"
    if not saved.is_dir():
        plain.save_pretrained(saved)
    load = quantised if way in WAYS else quantised_encoder
    setattr(pipe, name, load(way, saved, plain.dtype, plain.device))
    try:
        yield
    finally:
        setattr(pipe, name, plain)


def _louder(
    module: nn.Module, args: tuple, output: tuple[Tensor | None, Tensor]
) -> tuple[Tensor | None, Tensor]:
    """Half of the image's channels made larger, as FreeU does to a UNet's."""
    text, image = output
    return text, torch.cat(
        [image[..., : image.shape[-1] // 2] * 1.2, image[..., image.shape[-1] // 2 :]], dim=-1
    )


class _Louder(ModelHook):
    def post_forward(self, module: nn.Module, output: tuple) -> tuple:
        return _louder(module, (), output)


def _forward_hook(pipe: StableDiffusion3Pipeline) -> Iterator[None]:
    handle = pipe.transformer.transformer_blocks[1].register_forward_hook(_louder)
    try:
        yield
    finally:
        handle.remove()


def _registered_hook(pipe: StableDiffusion3Pipeline) -> Iterator[None]:
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer.transformer_blocks[1])
    registry.register_hook(_Louder(), "louder")
    try:
        yield
    finally:
        registry.remove_hook("louder")


def _wrapped_block(pipe: StableDiffusion3Pipeline) -> Iterator[None]:
    block = pipe.transformer.transformer_blocks[1]
    plain = block.forward
    block.forward = lambda *args, **kwargs: _louder(block, args, plain(*args, **kwargs))
    try:
        yield
    finally:
        block.forward = plain


def _replaced_attention(pipe: StableDiffusion3Pipeline) -> Iterator[None]:
    attn = pipe.transformer.transformer_blocks[1].attn
    attn.forward = lambda hidden_states, encoder_hidden_states: (hidden_states, encoder_hidden_states)
    try:
        yield
    finally:
        del attn.forward


def _replaced_function(pipe: StableDiffusion3Pipeline) -> Iterator[None]:
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, *args, **kwargs: plain(
        (query * 8).round() / 8, *args, **kwargs
    )
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _backend(name: str, pipe: StableDiffusion3Pipeline) -> Iterator[None]:
    pipe.transformer.set_attention_backend(name)
    try:
        yield
    finally:
        pipe.transformer.reset_attention_backend()


def _processor(of: type, pipe: StableDiffusion3Pipeline) -> Iterator[None]:
    pipe.transformer.transformer_blocks[1].attn.set_processor(of())
    yield


HANGING: dict[str, Callable[[StableDiffusion3Pipeline], Iterator[None]]] = {
    "forward hook": _forward_hook,
    "HookRegistry": _registered_hook,
    "wrapped block": _wrapped_block,
    "replaced attention": _replaced_attention,
    "replaced function": _replaced_function,
    "native": partial(_backend, "native"),
    "_native_math": partial(_backend, "_native_math"),
    "xformers": partial(_processor, XFormersJointAttnProcessor),
    "fused projections": partial(_processor, FusedJointAttnProcessor2_0),
}
