"""One call of the pipeline as a capture sees it: its arguments, and of each sample its seed and what pairs it."""

from __future__ import annotations

import hashlib
import inspect
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from sd35h5.errors import CaptureError
from sd35h5.planning.token_table import CLIP_TOKENS
from sd35h5.store.showable import forbidden

_UNPAIRED = {  # arguments that do not change the picture, or that have a pairing field of their own
    "prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "height", "width",
    "max_sequence_length",
    "num_images_per_prompt", "generator", "sigmas", "mu", "output_type", "return_dict",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs", "skip_guidance_layers", "skip_layer_guidance_scale",
    "skip_layer_guidance_stop", "skip_layer_guidance_start",
}  # fmt: skip


_OWN_TEXTS = ("prompt", "prompt_2", "prompt_3")  # the pipeline takes one for each sample
_SHARED_TEXTS = ("negative_prompt", "negative_prompt_2", "negative_prompt_3")  # or one for all of them
_LABELS = {  # text states in place of texts -> the texts that stand beside them, for the tokens
    "prompt_embeds": _OWN_TEXTS, "negative_prompt_embeds": _SHARED_TEXTS,
}  # fmt: skip
_INPUTS = (  # what a picture is drawn from beside its texts, with what decides how
    "image", "mask_image", "masked_image_latents", "strength", "padding_mask_crop", "control_image", "control_mask",
    "controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end",
    "controlnet_pooled_projections",
    "latents", "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
)  # fmt: skip
_ROW_EACH = (  # of a batch, one for each sample
    "latents", "image", "mask_image", "masked_image_latents",
    "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
)  # fmt: skip
_BATCHED = {name: (2, 3) for name in _ROW_EACH if name.endswith("_embeds")}  # axes of a batch, else four


@dataclass(frozen=True)
class Drawing:
    """One call of the pipeline, checked to be samples that a capture can tell apart.

    Args:
        arguments: what the pipeline is called with, the generators included.
        samples: the call as each sample sees it, in the order of the batch.
    """

    arguments: Mapping[str, Any]
    samples: tuple[Call, ...]

    @classmethod
    def bind(
        cls,
        signature: inspect.Signature,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        seed: int | Sequence[int] | None,
    ) -> Drawing:
        """Read a call of the pipeline.

        Args:
            seed: of the first prompt, the next ones count on from it; or a list, one for each prompt.

        Raises:
            CaptureError: several images a prompt, no prompt as text, texts or seeds of another number than the
                prompts, two sources of noise, or a picture of another size than is drawn.
            TypeError: an argument that the pipeline does not have.
        """
        arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
        defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
        prompt = arguments.get("prompt")
        if prompt is None or prompt == []:
            raise CaptureError(
                "a capture needs a prompt"
                + ", the text that prompt_embeds were made of, as a label for the tokens"
                * (arguments.get("prompt_embeds") is not None)
            )
        if arguments.get("padding_mask_crop") is not None:
            raise CaptureError(
                "padding_mask_crop draws a part of a picture and pastes it into the whole: crop the image before, "
                "so that the picture in the file is the one that the maps lie on"
            )
        if (arguments.get("num_images_per_prompt") or 1) != 1:
            raise CaptureError(
                "a capture draws one image a prompt: call it once an image, or give the prompt several times in a "
                "list, each with its seed"
            )
        count = len(prompt) if isinstance(prompt, (list, tuple)) else 1
        generators, seeds = _noise(arguments, seed, count)
        arguments["generator"] = generators if count > 1 else generators[0]
        labels = _labels({**defaults, **arguments}, count)
        samples = []
        for sample in range(count):
            own = _of_sample(arguments, sample, count) | {"generator": generators[sample]}
            samples.append(Call(own, defaults, own["prompt"], seeds[sample]))
        passed = {name: value for name, value in arguments.items() if name not in labels}
        return cls(passed, tuple(samples))


@dataclass(frozen=True)
class Call:
    """Arguments of one call as one of its samples sees them: one prompt, one generator.

    Args:
        defaults: what the pipeline takes where an argument is not given.
        seed: that of the CPU generator, or -1 where the noise comes from elsewhere.
    """

    arguments: Mapping[str, Any]
    defaults: Mapping[str, Any]
    prompt: str
    seed: int

    def get(self, name: str) -> Any:
        """The argument, or the pipeline's default."""
        return self.arguments.get(name, self.defaults.get(name))

    @property
    def guided(self) -> bool:
        """True if there is an unconditional branch, as the pipeline decides it."""
        return self.get("guidance_scale") > 1

    @property
    def negative_prompt(self) -> str:
        """The negative prompt; empty without guidance, which ignores it."""
        return (self.get("negative_prompt") or "") if self.guided else ""

    @property
    def branches(self) -> tuple[str, ...]:
        """Branches of the call, in the file's order."""
        skips = self.guided and self.get("skip_guidance_layers") is not None
        return ("cond",) + ("uncond",) * self.guided + ("skip",) * skips

    def texts(self, branch: str) -> tuple[str, str, str]:
        """What CLIP-L, CLIP-G and T5 read in a branch: where one has no text of its own, the first."""
        prefix, first = ("negative_", self.negative_prompt) if branch == "uncond" else ("", self.prompt)
        others = (self.get(f"{prefix}prompt_{n}") or first for n in (2, 3))
        return (first, *others)

    def scale(self, guidance: float | None = None, skip: float | None = None) -> float | list[float]:
        """The given guidance scale, by default the call's; with skip-layer guidance, that and its own."""
        own = self.get("guidance_scale"), self.get("skip_layer_guidance_scale")
        scales = [mine if each is None else each for each, mine in zip((guidance, skip), own, strict=True)]
        return [float(each) for each in scales] if "skip" in self.branches else float(scales[0])

    def skip_layer_guidance(self) -> dict[str, object] | None:
        """Settings of the skip-layer guidance, or None."""
        if "skip" not in self.branches:
            return None
        names = ("scale", "start", "stop")
        settings = {name: self.get(f"skip_layer_guidance_{name}") for name in names}
        return {"layers": sorted(self.get("skip_guidance_layers")), **settings}

    def events(self) -> list[dict]:
        """What of it the file tells in words: by how much it scales the adapters, beyond the model's own scales."""
        scale = (self.get("joint_attention_kwargs") or {}).get("scale", 1.0)
        return [{"event": "adapters scaled by the call", "scale": scale}] if scale != 1 else []

    def inputs(self) -> dict[str, object]:
        """What the picture is drawn from beside its texts, defaults too: pictures and tensors by size and hash."""
        given = {name: self.get(name) for name in _INPUTS}
        is_drawn_from = any(
            isinstance(each, (torch.Tensor, np.ndarray, Image.Image, list)) for each in given.values()
        )
        return {name: _told(each) for name, each in given.items() if is_drawn_from and each is not None}

    def other(self) -> dict[str, object]:
        """Arguments without a pairing field of their own that are not the pipeline's default."""
        given = {name: value for name, value in self.arguments.items() if name not in _UNPAIRED}
        found = {
            name: _told(value)
            for name, value in given.items()
            if value is not None and not _equal(value, self.defaults.get(name))
        }
        generator = self.arguments.get("generator")
        if self.seed < 0 and isinstance(generator, torch.Generator):
            found["generator"] = f"{generator.device.type} {_digest(generator.get_state().numpy().tobytes())}"
        return found


def _noise(
    arguments: Mapping[str, Any], seed: int | Sequence[int] | None, count: int
) -> tuple[list[torch.Generator], list[int]]:
    """The generator of each sample, and its seed."""
    given = arguments.get("generator")
    if seed is not None and given is not None:
        raise CaptureError("give seed or generator, not both")
    if given is None:
        if seed is None:
            seed = [secrets.randbelow(2**31) for _ in range(count)]
        seeds = list(seed) if isinstance(seed, Sequence) else [seed + sample for sample in range(count)]
        _check_count(seeds, "seeds", count)
        generators = [torch.Generator("cpu").manual_seed(each) for each in seeds]
    else:
        generators = list(given) if isinstance(given, (list, tuple)) else [given]
        _check_count(generators, "generators", count)
        seeds = [_seed_of(generator) for generator in generators]
    return generators, [-1] * count if arguments.get("latents") is not None else seeds


def _of_sample(arguments: Mapping[str, Any], sample: int, count: int) -> dict[str, Any]:
    """The arguments with the sample's own texts and latents in place of lists and batches."""
    own = dict(arguments)
    for name in (*_OWN_TEXTS, *_SHARED_TEXTS):
        value = own.get(name)
        if isinstance(value, (list, tuple)):
            _check_count(value, f"texts in {name}", count)
            value = value[sample]
        elif value is not None and count > 1 and name in _OWN_TEXTS:
            raise CaptureError(f"{name} is one text for {count} prompts: give a list of {count}")
        if value is not None and not isinstance(value, str):
            raise CaptureError(f"{name} is a {type(value).__name__}, not a text")
        if found := forbidden(value or ""):
            raise CaptureError(f"{name} has {found}, a character that no file can hold: take it out")
        if name in own:
            own[name] = value
    for name in _ROW_EACH:
        value = own.get(name)
        if isinstance(value, (list, tuple)) and len(value) == count:
            own[name] = value[sample]
        elif count > 1 and getattr(value, "ndim", 0) in _BATCHED.get(name, (4,)) and len(value) == count:
            own[name] = value[sample : sample + 1]
    return own


def _labels(arguments: Mapping[str, Any], count: int) -> set[str]:
    """Names of the texts that are labels of text states: the pipeline takes one or the other.

    Raises:
        CaptureError: states without a label, or that are not of the label's length or number.
    """
    labels: set[str] = set()
    for name, texts in _LABELS.items():
        states = arguments.get(name)
        if states is None:
            continue
        if name != "prompt_embeds" and arguments["guidance_scale"] > 1 and arguments.get(texts[0]) is None:
            raise CaptureError(
                f"{name} need {texts[0]}= beside them, the text that they were made of, as a label, be it empty"
            )
        tokens = CLIP_TOKENS + arguments["max_sequence_length"]
        if states.ndim != 3 or states.shape[:2] != (count, tokens):
            raise CaptureError(
                f"{name} are {' × '.join(map(str, states.shape))}, where {count} × {tokens} tokens are expected of the "
                f"prompt beside them: {CLIP_TOKENS} of CLIP and max_sequence_length={tokens - CLIP_TOKENS} of T5"
            )
        labels.update(texts)
    return labels


def _check_count(values: Sequence[object], what: str, count: int) -> None:
    if len(values) != count:
        prompts = f"{count} prompts" if count > 1 else "one prompt"
        raise CaptureError(f"there are {len(values)} {what} for {prompts}: give one for each")


def _seed_of(generator: object) -> int:
    """Seed of a CPU generator that was not drawn from yet, else -1."""
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        return -1
    seed = generator.initial_seed()
    fresh = torch.Generator("cpu").manual_seed(seed)
    return seed if seed < 2**63 and torch.equal(fresh.get_state(), generator.get_state()) else -1


def _told(value: object) -> object:
    """A value as JSON tells it; tensors, arrays and pictures by shape and hash."""
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {_digest(value.detach().float().cpu().numpy().tobytes())}"
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype} {_digest(np.ascontiguousarray(value).tobytes())}"
    if isinstance(value, Image.Image):
        return f"{value.width} × {value.height} {value.mode} {_digest(value.tobytes())}"
    if isinstance(value, (list, tuple)):
        return [_told(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): _told(each) for name, each in value.items()}
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return type(value).__name__


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _equal(value: object, default: object) -> bool:
    return not isinstance(value, (torch.Tensor, np.ndarray)) and value == default
