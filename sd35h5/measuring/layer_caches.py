"""Caches on a transformer, which leave layers out and give back what these computed before: followed or refused.

A layer that does not run has no attention in that step. Which ones ran is seen as they run; here it is told which
caches of `diffusers.hooks` sit there, so that they are part of what two samples must have in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from sd35h5.errors import CaptureError
from sd35h5.measuring.compiled import bare
from sd35h5.measuring.replaced import forwards_of, module_of, named

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

_FOLLOWED = ("pyramid_attention_broadcast", "mag_cache", "taylorseer_cache", "sea_cache", "text_kv_cache")
_REFUSED = {  # how the names of hooks begin -> what it is and why
    "faster_cache": "FasterCache, which lets only a part of the batch through",
    "fbc_": "a first-block cache, which SD3's blocks cannot have: the last one gives no text states back",
    "layer_skip": "a layer skip of diffusers.hooks, which knows no joint attention: use skip_guidance_layers",
}
_OWN_FORWARDS = ("diffusers.", "accelerate.", "torch.", "peft.")


def caches_of(transformer: nn.Module) -> dict[str, Any]:
    """Caches that sit on a transformer, by name, with their settings; {} without any.

    Raises:
        CaptureError: one that cannot be followed, by name.
    """
    found: dict[str, Any] = {}
    for name, hook in _hooks(bare(transformer)):
        for begin, what in _REFUSED.items():
            if name.startswith(begin):
                raise CaptureError(f"the transformer has {what}: take it off ({name})")
        if (cache := next((each for each in _FOLLOWED if name.startswith(each)), "")) and cache not in found:
            if cache == "taylorseer_cache" and hook.state_manager._context is None:
                raise CaptureError(
                    "the transformer has a TaylorSeer cache without a cache context, which SD3's pipeline does not "
                    "set: take it off (taylorseer_cache)"
                )
            found[cache] = _settings(hook)
    if forward := _replaced_forward(bare(transformer)):
        found["forward"] = forward
    return found


def _hooks(transformer: SD3Transformer2DModel) -> Iterator[tuple[str, Any]]:
    """Name and hook of all that diffusers.hooks has put on a model and its parts."""
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        yield from (registry.hooks.items() if registry is not None else ())


def _settings(hook: object) -> dict[str, object]:
    """Numbers and choices of a hook and of its configuration, as JSON can tell them."""
    config = getattr(hook, "config", None)
    told = vars(hook) | (asdict(config) if is_dataclass(config) else {})
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}
    return {name: value for name, value in sorted(plain.items()) if _is_plain(value) and name[0] != "_"}


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str))


def _replaced_forward(transformer: nn.Module) -> str:
    """Name of a forward that someone put in the place of diffusers' own, as TeaCache is plugged in; else ""."""
    strange = (each for each in forwards_of(transformer) if not module_of(each).startswith(_OWN_FORWARDS))
    return next(map(named, strange), "")
