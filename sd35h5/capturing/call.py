"""One call of the pipeline as a capture sees it: its arguments, its seed, and what pairs it."""

from __future__ import annotations

import hashlib
import inspect
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sd35h5.errors import CaptureError

_UNPAIRED = {  # arguments that do not change the picture, or that have a pairing field of their own
    "prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "height", "width",
    "max_sequence_length",
    "num_images_per_prompt", "generator", "sigmas", "mu", "output_type", "return_dict",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs", "skip_guidance_layers", "skip_layer_guidance_scale",
    "skip_layer_guidance_stop", "skip_layer_guidance_start",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """Arguments of one call, checked to be one sample.

    Args:
        arguments: what the pipeline is called with, the generator included.
        defaults: what the pipeline takes where an argument is not given.
        seed: that of the CPU generator, or -1 where the noise comes from elsewhere.
    """

    arguments: Mapping[str, Any]
    defaults: Mapping[str, Any]
    prompt: str
    seed: int

    @classmethod
    def bind(
        cls,
        signature: inspect.Signature,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        seed: int | None,
    ) -> Call:
        """Read a call of the pipeline.

        Raises:
            CaptureError: more than one sample a call, no prompt as text, or two sources of noise.
            TypeError: an argument that the pipeline does not have.
        """
        arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
        prompt = _single(arguments.get("prompt"), "prompt")
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            if arguments.get(name) is not None:
                raise CaptureError(
                    f"a capture needs the prompt as text, for its token table: {name} cannot be used"
                )
        if prompt is None:
            raise CaptureError("a capture needs a prompt")
        if (arguments.get("num_images_per_prompt") or 1) != 1:
            raise CaptureError("a capture draws one image a call: call it once an image, each with its seed")
        if seed is not None and arguments.get("generator") is not None:
            raise CaptureError("give seed or generator, not both")
        if seed is None and arguments.get("generator") is None:
            seed = secrets.randbelow(2**31)
        if seed is not None:
            arguments["generator"] = torch.Generator("cpu").manual_seed(seed)
        else:
            seed = _seed_of(arguments["generator"])
        if arguments.get("latents") is not None:
            seed = -1
        defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
        return cls(arguments, defaults, prompt, seed)

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
        return (_single(self.get("negative_prompt"), "negative_prompt") or "") if self.guided else ""

    @property
    def branches(self) -> tuple[str, ...]:
        """Branches of the call, in the file's order."""
        skips = self.guided and self.get("skip_guidance_layers") is not None
        return ("cond",) + ("uncond",) * self.guided + ("skip",) * skips

    def texts(self, branch: str) -> tuple[str, str, str]:
        """What CLIP-L, CLIP-G and T5 read in a branch: where one has no text of its own, the first."""
        prefix, first = ("negative_", self.negative_prompt) if branch == "uncond" else ("", self.prompt)
        others = (_single(self.get(f"{prefix}prompt_{n}"), f"{prefix}prompt_{n}") or first for n in (2, 3))
        return (first, *others)

    def skip_layer_guidance(self) -> dict[str, object] | None:
        """Settings of the skip-layer guidance, or None."""
        if "skip" not in self.branches:
            return None
        names = ("scale", "start", "stop")
        settings = {name: self.get(f"skip_layer_guidance_{name}") for name in names}
        return {"layers": sorted(self.get("skip_guidance_layers")), **settings}

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


def _single(value: object, name: str) -> str | None:
    """A text, or the only text of a list."""
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise CaptureError(
                f"a capture draws one sample a call, but {name} has {len(value)} texts: call it once for each"
            )
        value = value[0]
    if value is not None and not isinstance(value, str):
        raise CaptureError(f"{name} is a {type(value).__name__}, not a text")
    return value


def _seed_of(generator: object) -> int:
    """Seed of a CPU generator that was not drawn from yet, else -1."""
    if isinstance(generator, list) and len(generator) == 1:
        generator = generator[0]
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        return -1
    seed = generator.initial_seed()
    fresh = torch.Generator("cpu").manual_seed(seed)
    return seed if seed < 2**63 and torch.equal(fresh.get_state(), generator.get_state()) else -1


def _told(value: object) -> object:
    """A value as JSON tells it; tensors by shape and hash."""
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {_digest(value.detach().float().cpu().numpy().tobytes())}"
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return type(value).__name__


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _equal(value: object, default: object) -> bool:
    return not isinstance(value, torch.Tensor) and value == default
