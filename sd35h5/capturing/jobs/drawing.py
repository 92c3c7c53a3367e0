"""A job's model in memory, and the batches that it draws."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sd35h5.capturing.call import Drawing
from sd35h5.capturing.encoding import Encoded, Encoding, Texts, encode_texts
from sd35h5.capturing.generate import generating
from sd35h5.capturing.interrupts import heeded_interrupts
from sd35h5.capturing.pipeline import Loaded, prepared, resolve_device, resolve_dtype
from sd35h5.capturing.prompt_notes import notes_on, table_of
from sd35h5.capturing.session import Identity, Session
from sd35h5.planning.job import Job
from sd35h5.planning.token_table import TokenTable
from sd35h5.store.runs import sealed_texts

log = logging.getLogger("sd35h5")
Draw = Callable[[range, Callable[[], None]], None]  # (batch, what is called after each step)


def settings_here(job: Job) -> dict[str, object]:
    """A job's settings with the device of this machine that draws, and the dtype on it."""
    model = job.config.model
    device = resolve_device(model.device)
    rank = os.environ.get(
        "LOCAL_RANK", ""
    )  # of the processes that torchrun or accelerate started on this host
    if job.config.spread.shard == "auto" and (model.device, device) == ("auto", "cuda") and rank.isdecimal():
        device = resolve_device(f"cuda:{rank}")
    return {**job.settings, "device": device, "dtype": resolve_dtype(model.dtype, device)}


def load_model(
    job: Job, parts: Path, settings: Mapping[str, object], batches: Sequence[range]
) -> tuple[Loaded, Encoded]:
    """Have the text encoders read what batches are drawn of, and load what draws them.

    Raises:
        ConfigError, CaptureError, StoreError: as `prepared` and `encode_texts`.
    """
    config = job.config
    model = replace(config.model, device=str(settings["device"]))
    how = Encoding(config.sampling.max_sequence_length, config.sampling.encoder_masks)
    with prepared(model, job.facts, config.gating, job.adapters) as ready:
        texts = [each for batch in batches for each in _texts(job, batch)]
        known = [] if config.output.overwrite else sealed_texts(parts, "components")
        encoded = encode_texts(ready, texts, how, parts, known)
        loaded = ready.pipeline(with_encoders=False)
    if loaded.gates is not None and loaded.gates.untrained:
        log.warning("these gates are untrained: all weights are zero, so that each gate is a constant")
    loaded.pipe.set_progress_bar_config(disable=True)
    return loaded, encoded


def open_session(
    job: Job, parts: Path, settings: Mapping[str, object], loaded: Loaded, encoded: Encoded
) -> Session:
    """Begin to capture with a loaded model.

    Raises:
        CaptureError: the samples that are there are another model's.
    """
    config = job.config
    session = Session(
        loaded.pipe, parts, config.tiers, settings, config.model.model_id, job.facts.revision, loaded.sources,
        config.causal, config.sampling.encoder_masks, job.samples, encoded.record,
    )  # fmt: skip
    session.check_model()
    return session


def notes_on_prompts(job: Job, session: Session) -> list[str]:
    """What truncation leaves of the prompts, and which asked words have no map: said once, before anything is drawn."""
    pipe, sampling = session.pipe, job.config.sampling
    tokens = pipe.tokenizer_max_length + sampling.max_sequence_length

    def read(texts: Mapping[str, str]) -> dict[str, TokenTable]:
        return {name: table_of(pipe, (text,) * 3, tokens, session.has_t5) for name, text in texts.items()}

    prompts = {prompt.id: prompt.text for prompt in job.prompts}
    words = job.config.tiers.words if job.config.tiers.maps == "words" else ()
    notes = [*notes_on(read(prompts), words)]
    if sampling.guidance > 1:
        images = job.config.prompts.num_images
        texts = {
            job.negative_prompt(place * images): prompt.id
            for place, prompt in reversed([*enumerate(job.prompts)])
        }
        notes += notes_on(read({name: text for text, name in texts.items()}), (), "negative prompt")
    return notes


def _texts(job: Job, batch: range) -> list[Texts]:
    """What is encoded for a call of the pipeline: its prompts, and with guidance its negative prompts."""
    prompts = tuple(job.prompts[job.places(index)[0]].text for index in batch)
    negative = tuple(job.negative_prompt(index) for index in batch)
    return [prompts, negative] if job.config.sampling.guidance > 1 else [prompts]


@contextmanager
def drawing(job: Job, session: Session, encoded: Encoded) -> Iterator[Draw]:
    """Make the loaded model ready to capture; yield what draws a batch, whose samples are sealed while the next one is
    drawn, and when this ends."""
    session.are_prompts_noted = True
    sampling = job.config.sampling
    common = {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "height": session.settings["height"],
        "width": session.settings["width"],
        "max_sequence_length": sampling.max_sequence_length,
    }
    signature = inspect.signature(session.pipe.__call__)
    with heeded_interrupts() as heed, generating(session) as generate:

        def draw(batch: range, on_step: Callable[[], None]) -> None:
            def step() -> None:
                heed()
                on_step()

            places = [job.places(index) for index in batch]
            texts = [job.prompts[prompt].text for prompt, _ in places]
            negative = [job.negative_prompt(index) for index in batch]
            own = {"negative_prompt": negative if len(batch) > 1 else negative[0]}
            seeds = [job.seed(index) for index in batch]
            drawn = Drawing.bind(signature, (texts if len(batch) > 1 else texts[0],), common | own, seeds)
            identities = [
                Identity(index, job.prompts[prompt].id, prompt, image, job.prompts[prompt].tags)
                for index, (prompt, image) in zip(batch, places, strict=True)
            ]
            drawn = encoded.instead_of_texts(drawn, session.pipe._execution_device)
            generate.draw(drawn, identities, step)

        yield draw
