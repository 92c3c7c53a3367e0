"""What a pipeline has beside its weights: tokenizers and scheduler, from a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from transformers import CLIPTokenizer, T5TokenizerFast

from sd35h5.errors import ConfigError
from sd35h5.weights.configs import SCHEDULER
from sd35h5.weights.fetching import local_base
from sd35h5.weights.model_options import Model
from sd35h5.weights.sources import TOKENIZERS, Part

_ENCODER_TOKENIZERS = dict(zip(("text_encoder", "text_encoder_2", "text_encoder_3"), TOKENIZERS, strict=True))
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def load_tokenizers(model: Model, base: Path | None) -> dict[str, Any]:
    """Load CLIP's two tokenizers, and T5's if it is wanted and there.

    Raises:
        ConfigError: a folder without them.
    """
    names = TOKENIZERS[: 2 if model.no_t5 else 3]
    said, root = f"--model_id {model.model_id}", base
    if model.tokenizer_path:
        said = f"--tokenizer_path {model.tokenizer_path}"
        root = local_base(model.tokenizer_path, names, "--tokenizer_path")
    found = {}
    for name in names:
        folder = root / name
        if (
            not folder.is_dir()
            and name == "tokenizer_3"
            and not model.t5xxl_path
            and not model.tokenizer_path
        ):
            continue  # a folder without T5
        if not folder.is_dir():
            raise ConfigError(
                f"{said} lacks {name}: expected a folder with {', '.join(names)}, "
                "such as any SD3 folder in diffusers' layout"
            )
        of = T5TokenizerFast if name == "tokenizer_3" else CLIPTokenizer
        try:
            found[name] = of.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            first = str(error).strip().split("\n")[0][:200]
            raise ConfigError(f"{folder} holds no tokenizer that can be read: {first}") from error
    return found


def with_tokens(part: Part, tokenizers: dict[str, Any]) -> Part:
    """Refuse a tokenizer with more words than the encoder; a config from shapes takes its special tokens.

    CLIP pools where its end token is, which no shape tells.

    Raises:
        ConfigError: as said.
    """
    tokenizer = tokenizers.get(_ENCODER_TOKENIZERS.get(part.component, ""))
    if tokenizer is None:
        return part
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
