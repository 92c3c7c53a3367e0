"""Options that can be judged without the model: each wrong value is refused by name. Torch-free."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sd35h5.errors import ConfigError
from sd35h5.gates.gate_options import validate_gate_options
from sd35h5.planning.interventions import parse_interventions
from sd35h5.planning.options import AUTO, CLIP, ENCODER_MASKS, T5, CaptureConfig, Tiers
from sd35h5.planning.prompts import Prompt, check_seeds, load_prompts
from sd35h5.planning.selectors import check_rows, choose_steps, count_rows, parse_raw
from sd35h5.planning.spread_options import check_spread, resolve_share
from sd35h5.planning.token_table import check_phrases
from sd35h5.weights.model_options import DTYPES


def validate(config: CaptureConfig) -> list[Prompt]:
    """Check every value that can be judged without the model. Returns: the prompts, in order.

    Raises:
        ConfigError: a sentence naming the option.
    """
    model, sampling = config.model, config.sampling
    validate_gate_options(config.gating)
    if model.dtype != "auto" and model.dtype not in DTYPES:
        raise ConfigError(f"--dtype {model.dtype!r} is unknown: use auto or one of {', '.join(DTYPES)}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", model.device):
        raise ConfigError(f"--device {model.device!r} is unknown: use auto, cpu, cuda or cuda:N")
    if model.no_t5 and model.t5xxl_path:
        raise ConfigError("--no_t5 leaves T5 out, and --t5xxl_path gives one: give one of the two")
    if model.compile != "off" and model.offload:
        raise ConfigError(
            f"--offload {model.offload} moves weights while they compute, which no graph holds: leave out --compile "
            f"{model.compile}, or --offload"
        )
    if model.offload == "sequential" and Path(model.dit_path).suffix == ".gguf":
        raise ConfigError("--offload sequential cannot take GGUF weights apart: use --offload model")
    if model.dit_path and model.transformer != "transformer":
        raise ConfigError(
            f"--dit_path and --transformer {model.transformer} both name the transformer: give one of the two"
        )
    if model.gates and not Path(model.gates).is_file():
        raise ConfigError(f"--gates {model.gates}: there is no such file")
    at_least = {
        "steps": (sampling.steps, 1),
        "batch_size": (1 if sampling.batch_size == AUTO else sampling.batch_size, 1),
        "num_images": (config.prompts.num_images, 1),
        "seed": (config.prompts.seed, 0),
        "topk": (config.tiers.topk, 0),
    }
    if config.prompts.limit is not None:
        at_least["limit"] = (config.prompts.limit, 1)
    for name, (value, least) in at_least.items():
        if value < least:
            raise ConfigError(f"--{name} {value} is too small: it is {least} or more")
    for name, pixels in (("height", sampling.height), ("width", sampling.width)):
        if pixels is not None and (pixels < 16 or pixels % 16):
            raise ConfigError(
                f"--{name} {pixels} is not a multiple of 16: use {max(16, round(pixels / 16) * 16)}"
            )
    if not math.isfinite(sampling.guidance) or sampling.guidance < 0:
        raise ConfigError(f"--guidance {sampling.guidance} is no guidance scale: use 0 or more")
    if not 1 <= sampling.max_sequence_length <= 512:
        raise ConfigError(f"--max_sequence_length {sampling.max_sequence_length} is outside 1..512")
    if sampling.apply_t5_attn_mask and config.model.no_t5:
        raise ConfigError("--apply_t5_attn_mask masks padding inside T5, and --no_t5 draws without it")
    check_spread(config.spread, model.device, config.output.overwrite)
    resolve_share(config.spread.shard, os.environ)
    if sampling.batch_size == AUTO and (config.spread.shard or config.spread.is_with_workers):
        raise ConfigError(
            "--batch_size auto is one process's to choose, and many draw this capture: give a number"
        )
    validate_tiers(config.tiers, sampling.steps)
    if parse_interventions(config.causal) and sampling.batch_size not in (1, AUTO):
        raise ConfigError("--intervene alters one sample at a time: leave out --batch_size")
    prompts = load_prompts(config.prompts)
    check_seeds(prompts, config.prompts.seed, config.prompts.num_images)
    texts = [prompt.text for prompt in prompts]
    check_phrases(config.tiers.words, texts)
    check_rows(config.tiers.rows, texts)
    return prompts


def validate_tiers(tiers: Tiers, steps: int) -> None:
    """Check the tier options against the number of steps.

    Raises:
        ConfigError: a sentence naming the option.
    """
    choose_steps("map_steps", tiers.map_steps, steps)
    choose_steps("top_steps", tiers.top_steps, steps)
    count_rows(tiers.rows)
    if (raw := parse_raw(tiers.raw)) is not None:
        choose_steps("raw steps", raw.steps, steps)
    if tiers.words and tiers.maps != "words":
        raise ConfigError(f"--words goes with --maps words, not with --maps {tiers.maps}")


def check_masks(masks: Sequence[str]) -> tuple[str, ...]:
    """Return the names in one order.

    Raises:
        ConfigError: a name that is none of `CLIP` and `T5`.
    """
    if unknown := [repr(name) for name in masks if name not in ENCODER_MASKS]:
        raise ConfigError(f"there is no text encoder {', '.join(unknown)} to mask: it is {CLIP} or {T5}")
    return tuple(name for name in ENCODER_MASKS if name in masks)
