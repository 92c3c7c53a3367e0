"""Capture a pipeline at hand (`with capture(pipe, "run.h5") as generate`), or a whole `run(config)`."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from sd35h5.capturing.budget import describe_choice, within_budget
from sd35h5.capturing.call import Call
from sd35h5.capturing.config import CaptureConfig, Prompt, Tiers, sample_seed, validate
from sd35h5.capturing.encoder_masks import check_masks, masked_encoders
from sd35h5.capturing.interventions import CausalOptions, parse_interventions
from sd35h5.capturing.pipelines import load, resolve_device, resolve_dtype, without_truncation_noise
from sd35h5.capturing.plan import check_size, in_bytes, make_plan
from sd35h5.capturing.probe import Probe, check_processors, installed, regrouped_attentions
from sd35h5.capturing.recorder import Progress, say
from sd35h5.capturing.session import Identity, Session
from sd35h5.capturing.watcher import PassWatcher
from sd35h5.errors import CaptureError, ConfigError
from sd35h5.store.runs import forget_run, part_files, parts_of
from sd35h5.store.writer import begin_run, pack, sealed_indices
from sd35h5.weights.facts import ModelFacts, read_facts

log = logging.getLogger("sd35h5")
FEW_PROMPTS = 50
PACK_LIMIT = 20 << 30  # above this, a capture stays a folder until it is packed by hand


class Generate:
    """The pipeline, capturing: takes what it takes, and `seed`; returns what it returns; seals a sample."""

    def __init__(self, session: Session, probe: Probe) -> None:
        self._session, self._probe = session, probe
        self._signature = inspect.signature(session.pipe.__call__)
        self._calls = 0
        self._prompts: dict[str, list[int]] = {}  # prompt -> [its index, images so far]

    def __repr__(self) -> str:
        return f"<capture into {self._session.parts.name}: {self._calls} samples drawn>"

    def __call__(self, *args: object, seed: int | None = None, **kwargs: object) -> Any:
        """Draw one image and seal it as the next sample.

        Args:
            seed: draw with `torch.Generator("cpu").manual_seed(seed)`; without `seed` and `generator`, one
                is drawn by lot and stored.
        """
        call = Call.bind(self._signature, args, kwargs, seed)
        entry = self._prompts.setdefault(call.prompt, [len(self._prompts), 0])
        identity = Identity(self._calls, f"p{entry[0]:03d}", entry[0], entry[1])
        result = self.sample(call, identity)
        self._calls, entry[1] = self._calls + 1, entry[1] + 1
        return result

    def sample(self, call: Call, identity: Identity, on_step: Callable[[], None] | None = None) -> Any:
        """Draw one sample under a given identity and have it sealed, while the next is drawn; a sample that is
        sealed already is only drawn."""
        watcher = PassWatcher(self._session, self._probe, call, identity, on_step)
        pipe, transformer = self._session.pipe, self._session.pipe.transformer
        hooks = [
            transformer.register_forward_pre_hook(watcher.before, with_kwargs=True),
            transformer.register_forward_hook(watcher.after),
        ]
        try:
            with without_truncation_noise():
                result = pipe(**call.arguments)
            watcher.finish(_pixels(result))
        except BaseException as error:
            watcher.abandon(interrupted=isinstance(error, KeyboardInterrupt))
            self._session.sealing.wait()  # who handles the error finds the samples before sealed
            raise
        finally:
            for hook in hooks:
                hook.remove()
        return result


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
    with _generating(session) as generate:
        yield generate
    _finish(parts, out)


@contextmanager
def _generating(session: Session) -> Iterator[Generate]:
    """The probe installed on the pipeline's transformer, and a `Generate` that uses it."""
    transformer = session.pipe.transformer
    config = transformer.config
    gates = session.gates
    probe = Probe(
        config.num_layers, config.num_attention_heads, gated=gates is not None and bool(gates.layers),
        second_gated=gates is not None and bool(gates.second_layers),
    )  # fmt: skip
    if second := regrouped_attentions(transformer):
        log.warning(
            "%d second attentions (attn2) are computed in sd-scripts' layout, whose heads are not those of the "
            "joint attention: only their gates are measured",
            len(second),
        )
    with installed(transformer, probe), masked_encoders(session.pipe, session.encoder_masks):
        try:
            yield Generate(session, probe)
        finally:
            session.sealing.finish()


def _check_pipeline(pipe: object) -> None:
    if not isinstance(pipe, StableDiffusion3Pipeline):
        raise CaptureError(f"a capture needs a StableDiffusion3Pipeline, not a {type(pipe).__name__}")
    if not isinstance(pipe.transformer, SD3Transformer2DModel):
        raise CaptureError(
            f"the pipeline's transformer is a {type(pipe.transformer).__name__}, "
            "not an SD3Transformer2DModel: capture before torch.compile, or without it"
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


def _pixels(result: object) -> np.ndarray | None:
    """The image of a pipeline's answer as uint8 (y, x, rgb); None for latents."""
    image = (result[0] if isinstance(result, tuple) else result.images)[0]
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            return None
        image = image.permute(1, 2, 0).float().cpu().numpy()
    pixels = np.asarray(image)
    if pixels.dtype.kind == "f":
        pixels = (pixels * 255).round().clip(0, 255).astype(np.uint8)
    return pixels if pixels.ndim == 3 and pixels.shape[-1] == 3 else None


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
    todo = [index for index in range(planned) if index not in sealed]
    if not todo:
        say(f"{out} is complete already: {planned} samples")
        return _finish(parts, out)
    if sealed:
        say(f"{len(sealed)} of {planned} samples are sealed already; going on with the others")
    say(f"drawing {len(todo)} samples of {config.sampling.steps} steps, about {size} each, into {out}")
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


def _draw_all(config: CaptureConfig, prompts: list[Prompt], todo: list[int], session: Session) -> None:
    """Draw the samples that are not sealed, under a progress bar."""
    images, sampling = config.prompts.num_images, config.sampling
    planned = len(prompts) * images
    progress = Progress(planned, planned - len(todo), sampling.steps)
    common = {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "height": session.settings["height"],
        "width": session.settings["width"],
        "max_sequence_length": sampling.max_sequence_length,
        "negative_prompt": config.prompts.negative_prompt,
    }
    try:
        with _generating(session) as generate:
            signature = inspect.signature(session.pipe.__call__)
            for index in todo:
                prompt, image = divmod(index, images)
                seed = sample_seed(config.prompts.seed, prompt, image)
                call = Call.bind(signature, (prompts[prompt].text,), common, seed)
                progress.begin()
                generate.sample(call, Identity(index, prompts[prompt].id, prompt, image), progress.step)
    finally:
        progress.close()
