"""Draw a job: load its model, draw what is not sealed yet, pack what is."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Set
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

from sd35h5.capturing.call import Drawing
from sd35h5.capturing.encoding import Encoded, Encoding, Texts, encode_texts, forget_texts
from sd35h5.capturing.generate import generating
from sd35h5.capturing.identity import are_files_unchanged
from sd35h5.capturing.interrupts import heeded_interrupts
from sd35h5.capturing.pipeline import prepared, resolve_device, resolve_dtype
from sd35h5.capturing.progress import Progress, say
from sd35h5.capturing.prompt_notes import notes_on, table_of
from sd35h5.capturing.session import Identity, Session, sealed_attributes, sealed_samples
from sd35h5.planning.describing import describe
from sd35h5.planning.going_on import check_samples, deciding
from sd35h5.planning.job import Job
from sd35h5.planning.plan import in_bytes
from sd35h5.planning.token_table import TokenTable
from sd35h5.store.runs import (
    RUN_FILE,
    check_run,
    empty,
    part_files,
    parts_of,
    read_run,
    running,
    sealed_texts,
)
from sd35h5.store.writer import begin_run, pack, sealed_indices

log = logging.getLogger("sd35h5")
PACK_LIMIT = 20 << 30  # above this, a capture stays a folder until it is packed by hand


def run(job: Job, is_held: bool = False) -> Path:
    """Draw what a job says, going on where an earlier run stopped. Returns: the store.

    Args:
        is_held: the caller holds the run already, by `store.runs.running`.
    Raises:
        ConfigError, CaptureError, StoreError: a sentence; sealed samples stay.
    """
    if job.config.output.budget:
        say(describe(job))
    with nullcontext(parts_of(job.out)) if is_held else running(job.out) as parts:
        return _run(job, parts)


def _run(job: Job, parts: Path) -> Path:
    config, facts, out, planned = job.config, job.facts, job.out, job.samples
    device = resolve_device(config.model.device)
    settings = {**job.settings, "device": device, "dtype": resolve_dtype(config.model.dtype, device)}
    begin = partial(begin_run, out, settings, planned, resolve=partial(deciding, facts=facts))
    sealed: dict[int, dict] = {}
    if not config.output.overwrite:  # what is to be overwritten goes when the model is there, not before
        check_run(out, settings, partial(deciding, facts=facts))
        sealed = sealed_samples(parts)
        check_samples(job, sealed, sealed_attributes(parts).get("model_shape", ""))
    before = 0  # without a sealed sample nothing binds
    if sealed:
        before = read_run(parts)["planned"] if (parts / RUN_FILE).is_file() else len(sealed)
    todo = batches_to_draw(planned, config.sampling.batch_size, set(sealed), before)
    if not todo and _is_unchanged(job, parts):
        return _complete(job, begin())
    _tell(job, todo, len(sealed))
    how = Encoding(config.sampling.max_sequence_length, config.sampling.encoder_masks)
    with prepared(config.model, facts, config.gating, job.adapters) as ready:
        texts = [each for batch in todo for each in _texts(job, batch)]
        known = [] if config.output.overwrite else sealed_texts(parts, "components")
        encoded = encode_texts(ready, texts, how, parts, known)
        pipe, gates, sources = ready.pipeline(with_encoders=False)
    if gates is not None and gates.untrained:
        log.warning("these gates are untrained: all weights are zero, so that each gate is a constant")
    pipe.set_progress_bar_config(disable=True)
    if config.output.overwrite:
        begin(overwrite=True)
    session = Session(
        pipe, parts, config.tiers, settings, config.model.model_id, facts.revision, sources, config.causal,
        config.sampling.encoder_masks, planned, encoded.record,
    )  # fmt: skip
    session.check_model()
    begin()
    if not todo:
        return _complete(job, parts)
    _say_of_prompts(job, session)
    try:
        _draw_all(job, todo, session, encoded)
    except BaseException:
        count = f"{len(sealed_indices(parts))} of {planned} samples are sealed in {parts}"
        say(f"{count}; the same command goes on from there")
        raise
    return finish(parts, out)


def _is_unchanged(job: Job, parts: Path) -> bool:
    """Whether the sealed samples are those of the model's files as they are now; False where only the loaded model
    can tell."""
    revision = sealed_attributes(parts).get("model_revision", "")
    known = sealed_texts(parts, "components")
    adapters = [adapter.file for adapter in job.adapters]
    return are_files_unchanged(job.config.model, job.facts, known, revision, adapters)


def _complete(job: Job, parts: Path) -> Path:
    say(f"{job.out} is complete already: {job.samples} samples")
    return finish(parts, job.out)


def _tell(job: Job, todo: list[range], sealed: int) -> None:
    """Say what there is to do."""
    drawn, planned, steps = sum(map(len, todo)), job.samples, job.config.sampling.steps
    if not todo:
        say("all samples are sealed; the model's files are others than theirs: is it the same model?")
        return
    if sealed:
        say(f"{sealed} of {planned} samples are sealed already; going on with the others")
    if again := drawn - (planned - sealed):
        say(f"{again} of the sealed samples are drawn again, beside those of their batch that are not")
    size = in_bytes(job.plan.file_bytes)
    say(f"drawing {drawn} samples of {steps} steps, about {size} each, into {job.out}")


def batches_to_draw(planned: int, batch_size: int, sealed: Set[int], before: int = 0) -> list[range]:
    """Indices of the samples of each call of the pipeline: batches are cut from the whole list, so that a sample
    keeps its companions when a capture goes on, and one of which anything is missing is drawn whole.

    Args:
        before: how many samples there were to be when it was begun: the batches of a longer list begin there anew.
    """
    cuts = (0, *({before} if 0 < before < planned else ()), planned)
    batches = [
        range(first, min(first + batch_size, end))
        for begin, end in pairwise(cuts)
        for first in range(begin, end, batch_size)
    ]
    return [batch for batch in batches if not sealed.issuperset(batch)]


def _say_of_prompts(job: Job, session: Session) -> None:
    """Say what truncation leaves of the prompts, and which asked words have no map, before anything is drawn."""
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
    for note in notes:
        log.warning("%s", note)
    session.are_prompts_noted = True


def _texts(job: Job, batch: range) -> list[Texts]:
    """What is encoded for a call of the pipeline: its prompts, and with guidance its negative prompts."""
    prompts = tuple(job.prompts[job.places(index)[0]].text for index in batch)
    negative = tuple(job.negative_prompt(index) for index in batch)
    return [prompts, negative] if job.config.sampling.guidance > 1 else [prompts]


def _draw_all(job: Job, todo: list[range], session: Session, encoded: Encoded) -> None:
    """Draw the batches of which anything is not sealed, under a progress bar."""
    sampling = job.config.sampling
    progress = Progress(job.samples, job.samples - sum(map(len, todo)), sampling.steps)
    common = {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "height": session.settings["height"],
        "width": session.settings["width"],
        "max_sequence_length": sampling.max_sequence_length,
    }
    try:
        with heeded_interrupts() as heed, generating(session) as generate:

            def step() -> None:
                heed()
                progress.step()

            signature = inspect.signature(session.pipe.__call__)
            for batch in todo:
                places = [job.places(index) for index in batch]
                texts = [job.prompts[prompt].text for prompt, _ in places]
                negative = [job.negative_prompt(index) for index in batch]
                own = {"negative_prompt": negative if len(batch) > 1 else negative[0]}
                seeds = [job.seed(index) for index in batch]
                drawing = Drawing.bind(
                    signature, (texts if len(batch) > 1 else texts[0],), common | own, seeds
                )
                identities = [
                    Identity(index, job.prompts[prompt].id, prompt, image, job.prompts[prompt].tags)
                    for index, (prompt, image) in zip(batch, places, strict=True)
                ]
                progress.begin(len(batch))
                drawing = encoded.instead_of_texts(drawing, session.pipe._execution_device)
                generate.draw(drawing, identities, step)
    finally:
        progress.close()


def finish(parts: Path, out: Path) -> Path:
    """Pack the sealed samples into `out`, unless they are many bytes. Returns: what can be opened."""
    files = part_files(parts)
    forget_texts(parts)
    if not files:  # nothing was captured, or nothing that is not packed already
        empty(parts)
        return out
    if sum(file.stat().st_size for file in files) > PACK_LIMIT:
        say(
            f"{parts} is large and stays a folder, which opens like a file; "
            f"to pack it: python -m sd35h5 pack {parts}"
        )
        return parts
    return pack(parts, out, keep_parts=False)
