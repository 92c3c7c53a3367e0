"""Which pipelines a capture takes: diffusers' around SD3's transformer, and what is derived from them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from diffusers import (
    SD3Transformer2DModel,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from torch import nn

from sd35h5.errors import CaptureError
from sd35h5.measuring.compiled import bare, compiled_how
from sd35h5.measuring.layer_caches import caches_of
from sd35h5.measuring.processor import check_processors
from sd35h5.weights.in_memory.held_adapters import check_offloaded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TAKEN = (
    StableDiffusion3Pipeline, StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline,
    StableDiffusion3ControlNetPipeline, StableDiffusion3ControlNetInpaintingPipeline,
)  # fmt: skip
_NEEDED = ("prompt", "generator", "guidance_scale")  # of a __call__: what a capture gives it or reads from it


def check_pipeline(pipe: object) -> None:
    """Refuse what a capture cannot follow.

    Raises:
        CaptureError: another class, another transformer, a cache, a processor or an offloaded adapter that cannot be
            followed, by name.
    """
    name = type(pipe).__name__
    if not isinstance(pipe, TAKEN):
        names = ", ".join(each.__name__ for each in TAKEN)
        why = ""
        if "PAG" in name:
            why = (
                ". Perturbed-attention guidance puts processors of its own on the transformer while it draws: "
                "StableDiffusion3Pipeline.from_pipe(pipe) draws without"
            )
        raise CaptureError(f"a capture needs a {names} or one derived from them, not a {name}{why}")
    if not isinstance(bare(pipe.transformer), SD3Transformer2DModel):
        raise CaptureError(
            f"the pipeline's transformer is a {type(pipe.transformer).__name__}, not an SD3Transformer2DModel"
        )
    known = signature_of(pipe).parameters
    if missing := [each for each in _NEEDED if each not in known]:
        raise CaptureError(
            f"{name}.__call__ takes no {', '.join(missing)}, by which a capture tells what is drawn: add it, or "
            "**kwargs that it gives on"
        )
    compiled_how(pipe.transformer)
    caches_of(pipe.transformer)
    check_processors(pipe.transformer)
    for component, model in pipe.components.items():
        if isinstance(model, nn.Module):
            check_offloaded(model, component)


def signature_of(pipe: DiffusionPipeline) -> inspect.Signature:
    """The arguments of a pipeline's call; where it gives **kwargs on, with those of the class it is derived from."""
    own = inspect.signature(pipe.__call__)
    kinds = {parameter.kind for parameter in own.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return own
    base = list(inspect.signature(_base(pipe).__call__).parameters.values())[1:]
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [parameter for parameter in own.parameters.values() if parameter.kind not in several]
    if not named:
        return own.replace(parameters=base)
    rest = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in base if each.name not in own.parameters
    ]
    return own.replace(parameters=[*named, *rest])


def kind_of(pipe: DiffusionPipeline) -> str:
    """What a pipeline's calls are called among the arguments that a pair must share: "" for the plain pipeline's."""
    plain = type(pipe).__call__ is StableDiffusion3Pipeline.__call__
    return "" if plain else type(pipe).__call__.__qualname__.split(".")[-2]


def _base(pipe: DiffusionPipeline) -> type:
    return next(each for each in type(pipe).__mro__ if each in TAKEN)
