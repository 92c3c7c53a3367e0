"""Capture a pipeline at hand (`with capture(pipe, "run.h5") as generate`), or a whole `run(config)`."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from sd35h5.capturing.budget import describe_choice, within_budget
from sd35h5.capturing.call import Drawing
from sd35h5.capturing.config import CaptureConfig, Prompt, Tiers, sample_seed, validate
from sd35h5.capturing.encoder_masks import check_masks
from sd35h5.capturing.generate import Generate, generating
from sd35h5.capturing.interrupts import heeded_interrupts
from sd35h5.capturing.interventions import CausalOptions, parse_interventions
from sd35h5.capturing.pipelines import load, resolve_device, resolve_dtype
from sd35h5.capturing.plan import check_size, in_bytes, make_plan
from sd35h5.capturing.processor import check_processors
from sd35h5.capturing.progress import Progress, say
from sd35h5.capturing.session import Identity, Session
from sd35h5.errors import CaptureError, ConfigError
from sd35h5.store.runs import forget_run, part_files, parts_of
from sd35h5.store.writer import begin_run, pack, sealed_indices
from sd35h5.weights.facts import ModelFacts, read_facts

log = logging.getLogger("sd35h5")
FEW_PROMPTS = 50
PACK_LIMIT = 20 << 30  # above this, a capture stays a folder until it is packed by hand


@contextmanager
def capture(
    pipe: StableDiffusion3Pipeline,
    out: str | Path,
    *,
    overwrite: bool = False,
    encoder_masks: Sequence[str] = (),
    **options: Any,
) -> Iterator[Generate]:
    """Capture what a pipeline draws: `with capture(pipe, "run.h5") as generate: generate("a cat", seed=0)`.

    Samples are sealed one by one in `OUT.parts` and packed into `out` when the block ends. After an error
    the sealed samples stay; the same calls again continue: those that are sealed are drawn, but not
    captured anew.

    Args:
        overwrite: remove what is at `out` first.
        encoder_masks: text encoders in which padding is masked, of `clip` and `t5`; the picture is then no
            longer the plain pipeline's.
        options: fields of `config.Tiers`, such as `maps="off"` or `map_steps="all"`, and of
            `interventions.CausalOptions`: `intervene="mask:clip_bos"`, `control="random:0"`.

    Raises:
        CaptureError: another pipeline class, an unknown attention processor, a capture under way on it.
        ConfigError: an unknown option or value.
    """
    out = Path(out)
    _check_pipeline(pipe)
    tiers, causal = _options(options)
    masks = check_masks(encoder_masks)
    settings = json.loads(json.dumps(asdict(tiers) | asdict(causal) | {"encoder_masks": masks}))
    name = str(getattr(pipe.config, "_name_or_path", "") or "a pipeline in memory")
    parts = begin_run(out, settings, 0, overwrite=overwrite)
    session = Session(pipe, parts, tiers, settings, name, "", causal=causal, encoder_masks=masks)
    with generating(session) as generate:
        yield generate
    _finish(parts, out)


def _check_pipeline(pipe: object) -> None:
    if not isinstance(pipe, StableDiffusion3Pipeline):
        raise CaptureError(f"a capture needs a StableDiffusion3Pipeline, not a {type(pipe).__name__}")
    if not isinstance(pipe.transformer, SD3Transformer2DModel):
        raise CaptureError(
            f"the pipeline's transformer is a {type(pipe.transformer).__name__}, "
            "not an SD3Transformer2DModel: capture before torch.compile, or without it"
        )
    for name, module in pipe.transformer.named_modules():
        if module._compiled_call_impl is not None or "_orig_mod" in module._modules:
            raise CaptureError(
                f"{name or 'the transformer'} is compiled: what it fuses cannot be looked at to the bit, "
                "capture before torch.compile, or without it"
            )
    check_processors(pipe.transformer)


def _options(options: Mapping[str, Any]) -> tuple[Tiers, CausalOptions]:
    known = Tiers.__dataclass_fields__ | CausalOptions.__dataclass_fields__
    if unknown := [repr(name) for name in options if name not in known]:
        raise ConfigError(
            f"capture has no option {', '.join(unknown)}: it has {', '.join(known)}, and overwrite"
        )
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    if isinstance(given.get("intervene"), str):
        given["intervene"] = (given["intervene"],)
    causal = {name: given.pop(name) for name in CausalOptions.__dataclass_fields__ if name in given}
    options = Tiers(**given), CausalOptions(**causal)
    parse_interventions(options[1])
    return options


def _finish(parts: Path, out: Path) -> Path:
    """Pack the sealed samples into `out`, unless they are many bytes. Returns: what can be opened."""
    files = part_files(parts)
    if not files:  # nothing was captured, or nothing that is not packed already
        shutil.rmtree(parts)
        return out
    if sum(file.stat().st_size for file in files) > PACK_LIMIT:
        say(
            f"{parts} is large and stays a folder, which opens like a file; "
            f"to pack it: python -m sd35h5 pack {parts}"
        )
        return parts
    return pack(parts, out, keep_parts=False)


def settings_of(config: CaptureConfig, facts: ModelFacts, prompts: list[Prompt]) -> dict[str, object]:
    """All that decides a capture's data, resolved: kept in the file, and compared when it is continued."""
    settings = config.flat()
    for name in ("prompt", "prompts_json", "limit"):
        del settings[name]
    device = resolve_device(config.model.device)
    settings |= {
        "device": device,
        "dtype": resolve_dtype(config.model.dtype, device),
        **dict(zip(("height", "width"), check_size(config, facts), strict=True)),
        "scheduler": facts.scheduler,
        "t5": facts.has_t5,
        "offload": config.model.offload or False,  # as captures say that were begun when it had one form
        "gates": str(facts.gates_file or ""),
        "prompts": _told_in_short([prompt.text for prompt in prompts]),
        "prompt_ids": _told_in_short([prompt.id for prompt in prompts]),
    }
    return settings


def _told_in_short(texts: list[str]) -> list[str] | str:
    """A list as it is, or its hash if it is long: every sample's file holds a copy of the settings."""
    if len(texts) <= FEW_PROMPTS:
        return texts
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return f"{len(texts)} texts, sha256 {digest[:16]}"


def run(config: CaptureConfig) -> Path:
    """Capture what the configuration says, going on where an earlier run stopped. Returns: the store.

    Raises:
        ConfigError, CaptureError, StoreError: a sentence; sealed samples stay.
    """
    prompts, out = validate(config), Path(config.output.out)
    facts = read_facts(config.model)
    planned, sealed, was_there = len(prompts) * config.prompts.num_images, set(), parts_of(out).exists()
    if config.output.budget:
        config = within_budget(config, facts, planned)
        say(describe_choice(config, facts, prompts))
    settings = settings_of(config, facts, prompts)
    size = in_bytes(make_plan(config, facts).file_bytes)
    if not config.output.overwrite:  # what is to be overwritten goes when the model is there, not before
        parts = begin_run(out, settings, planned)
        sealed = sealed_indices(parts)
    todo = batches_to_draw(planned, config.sampling.batch_size, sealed)
    if not todo:
        say(f"{out} is complete already: {planned} samples")
        return _finish(parts, out)
    if sealed:
        say(f"{len(sealed)} of {planned} samples are sealed already; going on with the others")
    drawn = sum(map(len, todo))
    if again := drawn - (planned - len(sealed)):
        say(f"{again} of the sealed samples are drawn again, beside those of their batch that are not")
    say(f"drawing {drawn} samples of {config.sampling.steps} steps, about {size} each, into {out}")
    try:
        pipe, gates, sources = load(config.model, facts, config.gating)
    except BaseException:
        if not was_there:  # the mended command has other options, and should not be refused for it
            forget_run(parts_of(out))
        raise
    if gates is not None and gates.untrained:
        log.warning("these gates are untrained: all weights are zero, so that each gate is a constant")
    pipe.set_progress_bar_config(disable=True)
    if config.output.overwrite:
        parts = begin_run(out, settings, planned, overwrite=True)
    session = Session(
        pipe, parts, config.tiers, settings, config.model.model_id, facts.revision, sources, config.causal,
        config.sampling.encoder_masks,
    )  # fmt: skip
    try:
        _draw_all(config, prompts, todo, session)
    except BaseException:
        count = f"{len(sealed_indices(parts))} of {planned} samples are sealed in {parts}"
        say(f"{count}; the same command goes on from there")
        raise
    return _finish(parts, out)


def batches_to_draw(planned: int, batch_size: int, sealed: Set[int]) -> list[range]:
    """Indices of the samples of each call of the pipeline: batches are cut from the whole list, so that a sample
    keeps its companions when a capture goes on, and one of which anything is missing is drawn whole."""
    batches = [range(first, min(first + batch_size, planned)) for first in range(0, planned, batch_size)]
    return [batch for batch in batches if not sealed.issuperset(batch)]


def _draw_all(config: CaptureConfig, prompts: list[Prompt], todo: list[range], session: Session) -> None:
    """Draw the batches of which anything is not sealed, under a progress bar."""
    images, sampling = config.prompts.num_images, config.sampling
    planned = len(prompts) * images
    progress = Progress(planned, planned - sum(map(len, todo)), sampling.steps)
    common = {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "height": session.settings["height"],
        "width": session.settings["width"],
        "max_sequence_length": sampling.max_sequence_length,
        "negative_prompt": config.prompts.negative_prompt,
    }
    try:
        with heeded_interrupts() as heed, generating(session) as generate:

            def step() -> None:
                heed()
                progress.step()

            signature = inspect.signature(session.pipe.__call__)
            for batch in todo:
                places = [divmod(index, images) for index in batch]
                texts = [prompts[prompt].text for prompt, _ in places]
                seeds = [sample_seed(config.prompts.seed, *place) for place in places]
                drawing = Drawing.bind(signature, (texts if len(texts) > 1 else texts[0],), common, seeds)
                identities = [
                    Identity(index, prompts[prompt].id, prompt, image)
                    for index, (prompt, image) in zip(batch, places, strict=True)
                ]
                progress.begin(len(batch))
                generate.draw(drawing, identities, step)
    finally:
        progress.close()
