"""May a capture go on where another command stopped? What decides the data is compared, not how it was spelled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sd35h5.errors import ConfigError, StoreError
from sd35h5.gates.decision import decide
from sd35h5.gates.gate_options import GateOptions
from sd35h5.index_lists import choose
from sd35h5.planning.job import Job
from sd35h5.planning.options import CaptureConfig, Tiers
from sd35h5.planning.selectors import choose_steps
from sd35h5.weights.adapters.adapter_files import split_scale
from sd35h5.weights.model_facts import ModelFacts
from sd35h5.weights.model_options import DTYPES

_BY_CONTENT = (  # files, which the fingerprints of what was read from them tell apart
    "model_id", "transformer", "dit_path", "clip_l_path", "clip_g_path", "t5xxl_path", "vae_path", "vae_is_sd3",
    "variant", "tokenizer_path", "gates",
)  # fmt: skip
_BY_SAMPLE = (  # every sealed sample tells its own
    "prompts", "prompt_ids", "num_images", "seed", "seeds", "negative_prompt", "negative_prompts", "tags",
)  # fmt: skip
_BY_EFFECT = (
    "no_t5",
    "no_unconditional",
    "offload",
)  # `t5` and `branches` tell the first two; bits stay the same
_GATING = tuple(field.name for field in fields(GateOptions))


def deciding(settings: Mapping[str, Any], facts: ModelFacts | None = None) -> dict[str, Any]:
    """What of a capture's settings decides the data, spelled in one way.

    Args:
        settings: as `Job.settings`, of this version or an earlier one, or a part of them.
        facts: of the model that draws now; None for a pipeline in memory, whose settings are its tiers.
    """
    told = dict(settings)
    if facts is not None and "steps" in told:  # an earlier version lacks options that had their defaults then
        told = {**CaptureConfig().flat(), **told}
    if told.get("lora"):  # what is in them, the fingerprints tell
        told["lora"] = [split_scale(each)[1] for given in told["lora"] for each in given]
    if "branches" in told:
        kept = Tiers(branches=tuple(told["branches"]), no_unconditional=bool(told.get("no_unconditional")))
        told["branches"] = list(kept.kept_branches)
    if "device" in told:
        told["device"] = told["device"].partition(":")[0]
    if "dtype" in told:
        told["dtype"] = DTYPES.get(told["dtype"], told["dtype"])
    if facts is not None and "steps" in told:
        told |= _chosen(told, facts)
        told |= _gates(told, facts)
    unasked = {"prompt", "prompts_json", "limit", *_BY_CONTENT, *_BY_SAMPLE, *_BY_EFFECT}
    return json.loads(json.dumps({name: value for name, value in told.items() if name not in unasked}))


def _chosen(told: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """Lists of steps and layers as the numbers that they stand for."""
    try:
        return {
            **{name: choose_steps(name, told[name], told["steps"]) for name in ("map_steps", "top_steps")},
            "map_layers": choose("map_layers", told["map_layers"], facts.layers, "layer"),
        }
    except ConfigError:  # of another model: its spelling tells
        return {}


def _gates(told: dict[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """The gates that the options decide on, in place of the options."""
    options = GateOptions(**{name: told.pop(name) for name in _GATING})
    try:
        decision = dataclasses.asdict(decide(facts.sizes, facts.held, options, facts.attn2))
    except ConfigError:
        return dataclasses.asdict(options)
    decision.pop("record")
    return {"attn2_layout": decision.pop("attn2_layout"), "gating": decision}


def check_samples(job: Job, sealed: Mapping[int, Mapping[str, Any]], shape: str) -> None:
    """Refuse to go on where a sealed sample is another than the job would draw in its place.

    Args:
        sealed: the rows of the table of samples, by index.
        shape: that of the model which drew them, where the file tells.
    Raises:
        StoreError: naming the sample and what differs.
    """
    if sealed and shape != (
        now := f"{job.facts.layers} layers, {job.facts.heads} heads of {job.facts.head_dim}"
    ):
        raise StoreError(
            f"{job.out.name} holds samples of another model ({shape} there, {now} now): capture into another file, "
            "or overwrite the file (--overwrite)"
        )
    for index, row in sealed.items():
        if index >= job.samples:
            raise StoreError(
                f"{job.out.name} holds sample {index}, and these options draw samples 0..{job.samples - 1}: give all "
                "prompts that it was begun with first, another output file, or overwrite it"
            )
        prompt = job.prompts[job.places(index)[0]]
        guided = job.config.sampling.guidance > 1  # without, the pipeline ignores it
        wanted = {
            "prompt": prompt.text, "prompt_id": prompt.id, "seed": job.seed(index), "tags": prompt.tags,
            "negative_prompt": job.negative_prompt(index) if guided else "",
        }  # fmt: skip
        for name, now in wanted.items():
            if row[name] != now:
                raise StoreError(
                    f"{job.out.name} was begun with another configuration (sample {index} has {name} "
                    f"{_short(row[name])} there, {_short(now)} now): keep the prompts that it was begun with in "
                    "front, choose another output file, or overwrite it"
                )


def _short(value: object) -> str:
    text = json.dumps(value if isinstance(value, str) else int(value), ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
