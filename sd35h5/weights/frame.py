"""What a pipeline has beside its weights: tokenizers and scheduler, from a folder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from transformers import CLIPTokenizer, T5TokenizerFast

from sd35h5.errors import ConfigError
from sd35h5.weights.configs import COMPONENT_CONFIGS, SCHEDULER
from sd35h5.weights.fetching import local_base
from sd35h5.weights.layouts import TITLES
from sd35h5.weights.model_options import Model
from sd35h5.weights.sources import TOKENIZERS, TOKENIZERS_HERE, Part, bundled_tokenizers

_ENCODER_TOKENIZERS = dict(zip(("text_encoder", "text_encoder_2", "text_encoder_3"), TOKENIZERS, strict=True))
_PUBLISHED = {  # tokenizer -> its folder among the bundled ones, and what tells it from the other of that folder
    "tokenizer": ("clip", {"pad_token": "<|endoftext|>", "model_max_length": 77}),
    "tokenizer_2": ("clip", {"pad_token": "!", "model_max_length": 77}),
    "tokenizer_3": (
        "t5", {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "model_max_length": 512},
    ),
}  # fmt: skip
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def load_tokenizers(model: Model, base: Path | None, encoders: Collection[str]) -> dict[str, Any]:
    """Load the tokenizers of these text encoders: those of --tokenizer_path, else the base folder's own, else the
    bundled ones.

    Raises:
        ConfigError: a folder of --tokenizer_path without them, or none anywhere.
    """
    root = base
    if model.tokenizer_path:
        root = local_base(model.tokenizer_path, TOKENIZERS, "--tokenizer_path")
    found = {}
    for name in (_ENCODER_TOKENIZERS[each] for each in _ENCODER_TOKENIZERS if each in encoders):
        folder = None if root is None else root / name
        if folder is not None and folder.is_dir():
            found[name] = _read(name, folder)
        elif model.tokenizer_path:
            raise ConfigError(
                f"--tokenizer_path {model.tokenizer_path} lacks {name}: expected a folder with "
                f"{', '.join(TOKENIZERS)}, such as any SD3 folder in diffusers' layout"
            )
        else:
            part, special = _PUBLISHED[name]
            found[name] = _read(name, bundled_tokenizers() / part, **special)
    return found


def _read(name: str, folder: Path, **special: Any) -> Any:
    of = T5TokenizerFast if name == "tokenizer_3" else CLIPTokenizer
    try:
        return of.from_pretrained(folder, local_files_only=True, **special)
    except (OSError, ValueError, TypeError, KeyError) as error:
        first = str(error).strip().split("\n")[0][:200]
        raise ConfigError(f"{folder} holds no tokenizer that can be read: {first}") from error


def with_tokens(part: Part, tokenizers: dict[str, Any]) -> Part:
    """Refuse a tokenizer with more words than the encoder; a config from shapes takes its special tokens.

    CLIP pools where its end token is, which no shape tells.

    Raises:
        ConfigError: as said.
    """
    tokenizer = tokenizers.get(_ENCODER_TOKENIZERS.get(part.component, ""))
    if tokenizer is None:
        return part
    own = COMPONENT_CONFIGS[part.component]["vocab_size"]
    if Path(tokenizer.name_or_path).is_relative_to(TOKENIZERS_HERE) and part.config["vocab_size"] != own:
        raise ConfigError(
            f"{part.said} knows {part.config['vocab_size']} words, SD3's {TITLES[part.component]} {own}: its "
            "tokenizer is another than the bundled one, give it with --tokenizer_path"
        )
    if len(tokenizer) > part.config["vocab_size"]:
        raise ConfigError(
            f"{part.said} knows {part.config['vocab_size']} words, but its tokenizer has {len(tokenizer)}: "
            "give the tokenizers of this model with --tokenizer_path"
        )
    if not part.derived:
        return part
    tokens = {name: getattr(tokenizer, name) for name in _TOKENS if getattr(tokenizer, name) is not None}
    return replace(part, config={**part.config, **tokens})


def load_scheduler(base: Path | None) -> SchedulerMixin:
    """Load the base folder's scheduler; without a folder, the one that all published SD3 models have.

    Raises:
        ConfigError: a class that is no scheduler.
    """
    folder = base / "scheduler" if base is not None and base.is_dir() else None
    if folder is None or not folder.is_dir():
        return FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    name = FlowMatchEulerDiscreteScheduler.load_config(folder, local_files_only=True).get("_class_name", "")
    of = getattr(diffusers, name, None)
    if not (isinstance(of, type) and issubclass(of, SchedulerMixin)):
        raise ConfigError(f"{folder} names {name or 'no class'}, which is no scheduler of diffusers")
    return of.from_pretrained(folder, local_files_only=True)
