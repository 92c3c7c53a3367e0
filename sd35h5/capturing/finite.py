"""NaN and inf are told with the step, the layer and the likely cause, and never stored as if nothing were measured.

What is asked on the device comes over with the step's results: nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sd35h5.errors import CaptureError
from sd35h5.weights.in_memory.held_tensors import computing_dtype, held_tensors

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

_LAYERWISE = ("group", "entropy", "top.mass", "top.value_norm")  # (…, layer, head[, rank]) of a pass
_WHOLE = {  # what a flag is of, in the order in which it comes about
    "texts": "what the text encoders give is", "latents": "the latents are", "noise": "the transformer's output is",
}  # fmt: skip
_FLAG = "finite."
_ROUNDING = 4  # of a timestep near 1000 in bfloat16


def flags(step: int, inputs: Mapping[str, object], output: object, timestep: float) -> dict[str, Tensor]:
    """Whether what goes into the transformer and what comes out of it is finite, and of this step, on its device, by
    name.

    Args:
        inputs: the transformer's arguments.
        output: what it returned.
        timestep: the step's, as the scheduler has it.
    """
    told = {"latents": inputs["hidden_states"], "noise": output[0]}
    if step == 0:
        told["texts"] = inputs["encoder_hidden_states"]
        told["pooled"] = inputs.get("pooled_projections")
    found = {name: torch.isfinite(each).all() for name, each in told.items() if isinstance(each, Tensor)}
    if (pooled := found.pop("pooled", None)) is not None:
        found["texts"] = found["texts"] & pooled
    there = inputs["timestep"]
    reach = 0 if there.dtype in (torch.float32, torch.float64) else _ROUNDING
    found["timestep"] = ((there.to(told["latents"].device) - timestep).abs() <= reach).all()
    return {f"{_FLAG}{name}": each for name, each in found.items()}


def check(step: int, skipped: frozenset[int], cause: Cause, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a pass of which anything is not finite.

    Args:
        skipped: layers that the pass left out, which are NaN.
        arrays: the pass's results and flags.
    Raises:
        CaptureError: the sentence.
    """
    if not arrays.get(f"{_FLAG}timestep", True):
        raise CaptureError(
            f"step {step}: the transformer was called with another timestep than the scheduler has there, so that the "
            "pipeline's steps cannot be followed"
        )
    for name in ("texts", "latents"):
        if not arrays.get(f"{_FLAG}{name}", True):
            raise _not_finite(f"step {step}: {_WHOLE[name]}", cause.of(name))
    layer = min((bad for bad in _bad_layers(arrays) if bad not in skipped), default=None)
    if layer is not None:
        raise _not_finite(f"step {step}, layer {layer}: its attention is", cause.of("noise"))
    if not arrays.get(f"{_FLAG}noise", True):
        raise _not_finite(f"step {step}: {_WHOLE['noise']}", cause.of("noise"))


def check_texts(pipe: StableDiffusion3Pipeline, states: Mapping[str, Tensor]) -> None:
    """Refuse what the text encoders gave where anything is not finite.

    Raises:
        CaptureError: the sentence.
    """
    if not all(torch.isfinite(each).all() for each in states.values()):
        raise _not_finite(_WHOLE["texts"], Cause(pipe).of("texts"))


def _bad_layers(arrays: Mapping[str, np.ndarray]) -> Iterator[int]:
    for name in _LAYERWISE:
        if name in arrays:
            values = arrays[name]
            axis = values.ndim - (3 if name.startswith("top.") else 2)
            others = tuple(each for each in range(values.ndim) if each != axis)
            yield from np.flatnonzero(~np.isfinite(values).all(axis=others)).tolist()


def _not_finite(what: str, cause: str) -> CaptureError:
    return CaptureError(f"{what} not finite (NaN or inf), so this sample is not sealed: {cause}")


class Cause:
    """Why something of a pipeline may be not finite; the weights are looked through only when it is asked."""

    def __init__(self, pipe: StableDiffusion3Pipeline) -> None:
        self._pipe = pipe

    def of(self, what: str) -> str:
        """The likely cause, and what to do."""
        pipe = self._pipe
        encoders = (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3)
        models = {"texts": encoders, "picture": (pipe.vae,)}.get(what, (pipe.transformer,))
        for model in (each for each in models if each is not None):
            if (bad := _broken_weight(model)) is not None:
                return f"{bad} of its weights holds such numbers, get them again"
        if any(each is not None and computing_dtype(each) == torch.float16 for each in models):
            return "float16 overflows beyond 65504, use bfloat16 (--dtype bfloat16) or float32"
        return "numbers grow too large in this model, use float32 (--dtype float32) or look at what was changed in it"


def _broken_weight(model: nn.Module) -> str | None:
    for name, tensor in held_tensors(model, type(model).__name__):
        if tensor.is_floating_point():
            wide = tensor if tensor.element_size() > 1 else tensor.float()
            if not torch.isfinite(wide).all():
                return name.partition(" of ")[0]
    return None


@contextmanager
def watched_decoder(pipe: StableDiffusion3Pipeline) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield a list that grows by a pair of flags whenever the VAE decodes: are the latents finite, is the picture?"""
    seen: list[tuple[Tensor, Tensor]] = []

    def look(module: nn.Module, args: tuple, output: Tensor) -> None:
        seen.append((torch.isfinite(args[0]).all(), torch.isfinite(output).all()))

    hook = pipe.vae.decoder.register_forward_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def check_picture(
    step: int, decoded: list[tuple[Tensor, Tensor]], result: object, pipe: StableDiffusion3Pipeline
) -> None:
    """Refuse a picture of latents that are not finite, or that the VAE made so.

    Args:
        step: the last one.
        result: what the pipeline returned, which may be the latents themselves.
    Raises:
        CaptureError: the sentence.
    """
    images = result[0] if isinstance(result, tuple) else result.images
    latents = [latents for latents, _ in decoded]
    if not decoded and isinstance(images, Tensor):
        latents = [torch.isfinite(images).all()]
    if not all(map(bool, latents)):
        raise _not_finite(f"after step {step}: {_WHOLE['latents']}", Cause(pipe).of("latents"))
    if not all(bool(picture) for _, picture in decoded):
        raise _not_finite("the picture that the VAE decodes is", Cause(pipe).of("picture"))
