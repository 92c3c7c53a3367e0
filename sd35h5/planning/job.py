"""A capture, resolved once: what `--dry_run` prints, what is drawn, and all that a worker needs. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sd35h5.errors import ConfigError
from sd35h5.gates.decision import Decision, decide
from sd35h5.planning.budget import within_budget
from sd35h5.planning.options import CaptureConfig
from sd35h5.planning.plan import Plan, check_size, make_plan
from sd35h5.planning.prompts import Prompt, sample_seed
from sd35h5.planning.spread_options import resolve_share
from sd35h5.planning.validation import validate
from sd35h5.store.sharing.shares import Share
from sd35h5.weights.adapters.adapter_changes import Adapter
from sd35h5.weights.adapters.adapter_files import read_adapters
from sd35h5.weights.model_facts import ModelFacts, read_facts

FEW_PROMPTS = 50


@dataclass(frozen=True)
class Job:
    """What is captured. Only the device, and with it a dtype of `auto`, is still the drawing machine's to say.

    Args:
        config: as given, with the tiers that --budget stands for.
        gates: those of the model's own files, as far as headers tell; files on the hub are read when they are there.
        adapters: those of --lora, by their headers.
        settings: all that decides the data: kept in the file, and compared when a capture goes on.
        share: what this process draws of it, where others draw the rest.
    """

    config: CaptureConfig
    prompts: tuple[Prompt, ...]
    facts: ModelFacts
    gates: Decision
    plan: Plan
    settings: Mapping[str, object]
    adapters: tuple[Adapter, ...] = ()
    share: Share | None = None

    @property
    def out(self) -> Path:
        """The file to make."""
        return Path(self.config.output.out)

    @property
    def samples(self) -> int:
        """Prompts times images."""
        return len(self.prompts) * self.config.prompts.num_images

    def places(self, index: int) -> tuple[int, int]:
        """(prompt, image) of a sample: the images of a prompt follow each other."""
        return divmod(index, self.config.prompts.num_images)

    def seed(self, index: int) -> int:
        """Seed of a sample."""
        prompt, image = self.places(index)
        return sample_seed(self.config.prompts.seed, prompt, image, self.prompts[prompt].seed)

    def negative_prompt(self, index: int) -> str:
        """What a sample is steered away from: its prompt's own, or that of all."""
        own = self.prompts[self.places(index)[0]].negative_prompt
        return self.config.prompts.negative_prompt if own is None else own

    def drawn_by(self, batch_size: int) -> Job:
        """The same job, of which so many samples are drawn in a call."""
        sampling = replace(self.config.sampling, batch_size=batch_size)
        config = replace(self.config, sampling=sampling)
        return replace(self, config=config, settings={**self.settings, "batch_size": batch_size})


def make_job(config: CaptureConfig, offline_guess: bool = False) -> Job:
    """Resolve a capture, and refuse all that can be refused without weights.

    Args:
        offline_guess: plan a published model by a table of shapes where the hub cannot be reached.

    Raises:
        ConfigError, CaptureError: a sentence naming the option or the file.
    """
    prompts = validate(config)
    return resolve(config, prompts, read_facts(config.model, offline_guess))


def resolve(config: CaptureConfig, prompts: Sequence[Prompt], facts: ModelFacts) -> Job:
    """The job of a valid configuration for a model of this shape.

    Raises:
        ConfigError: layers, heads, tokens or gates that this model does not have, adapters of another, or a budget too
            small.
    """
    adapters = read_adapters(config.model.adapters, facts.layers)
    for adapter in adapters:
        if config.model.offload == "sequential" and adapter.stays_apart and "DoRA" in adapter.kind:
            raise ConfigError(
                f"{adapter.said} is a DoRA, which reads weights that --offload sequential has put away: "
                "use --offload model"
            )
    gates = decide(facts.sizes, facts.held, config.gating, facts.attn2)
    config = within_budget(config, facts, len(prompts) * config.prompts.num_images, gates)
    plan = make_plan(config, facts, gates)
    share = resolve_share(config.spread.shard, os.environ)
    settings = _settings(config, facts, prompts)
    return Job(config, tuple(prompts), facts, gates, plan, settings, adapters, share)


def _settings(config: CaptureConfig, facts: ModelFacts, prompts: Sequence[Prompt]) -> dict[str, object]:
    settings = config.flat()
    for name in ("prompt", "prompts_json", "limit", "vae_is_sd3"):
        del settings[name]
    for name, default in (("compile", "off"), ("variant", ""), ("lora", [])):
        if settings[name] == default:  # captures that were begun when there was no such option go on
            del settings[name]
    height, width = check_size(config, facts)
    return settings | {
        "height": height,
        "width": width,
        "scheduler": facts.scheduler,
        "t5": facts.has_t5,
        "offload": config.model.offload or False,  # as captures say that were begun when it had one form
        "gates": str(facts.gates_file or ""),
        "prompts": _told_in_short([prompt.text for prompt in prompts]),
        "prompt_ids": _told_in_short([prompt.id for prompt in prompts]),
        **_own_values(prompts),
    }


def _own_values(prompts: Sequence[Prompt]) -> dict[str, object]:
    """What prompts say for themselves, where any does: captures before could not, and go on without."""
    own = {
        "negative_prompts": [prompt.negative_prompt for prompt in prompts],
        "seeds": [prompt.seed for prompt in prompts],
        "tags": [prompt.tags or None for prompt in prompts],
    }
    return {
        name: _told_in_short(values) for name, values in own.items() if any(v is not None for v in values)
    }


def _told_in_short(texts: list) -> list | str:
    """A list as it is, or its hash if it is long: every sample's file holds a copy of the settings."""
    if len(texts) <= FEW_PROMPTS:
        return texts
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return f"{len(texts)} texts, sha256 {digest[:16]}"
