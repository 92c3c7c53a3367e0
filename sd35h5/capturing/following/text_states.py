"""Which branch each row of a call of the transformer is: told by the text that it reads, not by its place."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sd35h5.errors import CaptureError

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

TEXTS = ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3")
_KEPT = 4  # tensors whose branches are known: those of a step, with skip-layer guidance


class TextStates:
    """What the text encoders gave in one call of the pipeline: which rows are the prompt's, which the negative one's.

    Args:
        arguments: what the pipeline is called with.
    """

    def __init__(self, arguments: Mapping[str, object]) -> None:
        self._arguments = arguments
        self._of: dict[str, Tensor] = {}
        self._known: list[tuple[Tensor, int, tuple[str, ...]]] = []

    def take(self, asked: Mapping[str, object], given: tuple[Tensor | None, ...]) -> None:
        """Take what `encode_prompt` was asked and returned: the prompt's states, the negative prompt's or None.

        Raises:
            CaptureError: other texts than the pipeline was called with, or several prompts one after the other.
        """
        for name in TEXTS:
            if _listed(asked.get(name)) != _listed(self._arguments.get(name)):
                raise CaptureError(
                    f"the pipeline encodes another {name} than it was called with: the file would tell of tokens "
                    "that the transformer did not read"
                )
        pairs = zip(("uncond", "cond"), (given[1], given[0]), strict=True)
        states = {branch: each for branch, each in pairs if each is not None}
        known = self._of
        if known and not (
            known.keys() == states.keys() and all(_equal(states[each], known[each]) for each in known)
        ):
            raise CaptureError(
                "the pipeline encodes several prompts one after the other: a capture could not tell which of them a "
                "row of the batch reads"
            )
        self._of = states

    def branches(self, states: Tensor, samples: int, step: int) -> tuple[str, ...]:
        """Branches of the blocks of a batch, each of a row a sample, in their order.

        Args:
            states: what the transformer reads, (batch row, text token, channel).
        Raises:
            CaptureError: rows that read neither the prompt nor the negative prompt, or one of them twice.
        """
        version = 0 if states.is_inference() else states._version
        for tensor, seen, branches in self._known:
            if tensor is states and seen == version:  # the same again, as in all steps but the first
                return branches
        if states.shape[0] % samples:
            rows = f"{samples} samples" if samples > 1 else "a sample"
            raise CaptureError(
                f"step {step}: the transformer was called with {states.shape[0]} rows for {rows}"
            )
        branches = self._read(states.split(samples), step)
        self._known = [*self._known[1 - _KEPT :], (states, version, branches)]
        return branches

    def _read(self, blocks: tuple[Tensor, ...], step: int) -> tuple[str, ...]:
        if not self._of:
            raise CaptureError(
                "the pipeline drew without its encode_prompt, which tells what the rows of a batch read: "
                "a capture cannot follow it"
            )
        matches = [[name for name, states in self._of.items() if _equal(block, states)] for block in blocks]
        taken: list[str] = []
        for place, names in enumerate(matches):
            free = [name for name in names if name not in taken]
            if len(blocks) == 1:  # where both prompts are the same text, a row alone is the prompt's
                free = free[::-1]
            if not names and "uncond" not in self._of and len(blocks) > 1:
                raise CaptureError(
                    f"step {step}: guidance begins on the way, and a file has the branches of its first step: call "
                    "with a guidance_scale above 1, which a callback may change or end later"
                )
            if not free:
                again = f"{names[0]} a second time" if names else "neither the prompt nor the negative prompt"
                raise CaptureError(
                    f"step {step}: row {place * blocks[0].shape[0]} of the transformer's {len(blocks)} × "
                    f"{blocks[0].shape[0]} rows reads {again}, so that the file could not tell what it is: a callback "
                    "or the pipeline's own __call__ changed the text states or draws another branch"
                )
            taken.append(free[0])
        return tuple(taken)


def _listed(text: object) -> list[object]:
    return list(text) if isinstance(text, (list, tuple)) else [text or None]


def _equal(block: Tensor, states: Tensor) -> bool:
    """Whether two tensors are the same to the bit, NaN too, in the first one's dtype."""
    if block.shape != states.shape:
        return False
    pair = (each.to(block).contiguous().view(torch.uint8) for each in (block, states))
    return torch.equal(*pair)


@contextmanager
def watched_encoding(pipe: StableDiffusion3Pipeline, texts: TextStates) -> Iterator[None]:
    """Let `texts` take what the pipeline's `encode_prompt` returns; it is as before on exit, after an error too."""
    before, encode = vars(pipe).get("encode_prompt"), pipe.encode_prompt
    signature = inspect.signature(encode)

    def encoding(*args: object, **kwargs: object) -> Any:
        given = encode(*args, **kwargs)
        texts.take(signature.bind(*args, **kwargs).arguments, given)
        return given

    object.__setattr__(pipe, "encode_prompt", encoding)
    try:
        yield
    finally:
        if before is None:
            object.__delattr__(pipe, "encode_prompt")
        else:
            object.__setattr__(pipe, "encode_prompt", before)
