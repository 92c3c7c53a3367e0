"""Attention masks of the text encoders: padding is not looked at inside an encoder, as sd-scripts can train and draw.

diffusers encodes without a mask. A hook adds the one that the tokenizer would give, which follows from the ids;
the transformer sees the padding's states as before, so that the text axis stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sd35h5.planning.options import CLIP, T5

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline
    from torch import Tensor, nn

_ENCODERS = {  # what is masked -> (encoder, tokenizer) components
    CLIP: (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")),
    T5: (("text_encoder_3", "tokenizer_3"),),
}


@contextmanager
def masked_encoders(pipe: StableDiffusion3Pipeline, masks: Sequence[str]) -> Iterator[None]:
    """Mask padding inside the named kinds of text encoders; the hooks go on exit, after an error too.

    Args:
        masks: of `CLIP` (CLIP-L and CLIP-G) and `T5`.
    """
    with ExitStack() as stack:
        for kind in masks:
            for encoder, tokenizer in _ENCODERS[kind]:
                module, of = getattr(pipe, encoder), getattr(pipe, tokenizer)
                if module is not None:
                    mask_of = _until_end(of.eos_token_id) if kind == CLIP else _not(of.pad_token_id)
                    hook = module.register_forward_pre_hook(_with_mask(mask_of), with_kwargs=True)
                    stack.callback(hook.remove)
        yield


def _with_mask(mask_of: Callable[[Tensor], Tensor]) -> Callable:
    def add(module: nn.Module, args: tuple, kwargs: Mapping[str, object]) -> tuple[tuple, dict[str, object]]:
        ids = args[0] if args else kwargs["input_ids"]
        return args, {**kwargs, "attention_mask": mask_of(ids)}

    return add


def _until_end(end: int) -> Callable[[Tensor], Tensor]:
    """CLIP's mask: everything to the first end-of-text token, with which CLIP-L also pads."""
    return lambda ids: ((ids == end).cumsum(-1) - (ids == end).long() == 0).long()


def _not(pad: int) -> Callable[[Tensor], Tensor]:
    """T5's mask: everything that is not padding."""
    return lambda ids: (ids != pad).long()
