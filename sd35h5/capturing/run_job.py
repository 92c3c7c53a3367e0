"""Draw a job: what is not sealed yet, here or with workers, and pack what is."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

from sd35h5.capturing.encoding import Encoded
from sd35h5.capturing.finishing import finish, finish_shares
from sd35h5.capturing.jobs.drawing import (
    drawing,
    load_model,
    notes_on_prompts,
    open_session,
    settings_here,
)
from sd35h5.capturing.jobs.failing import note_failure, raise_failures, tolerant_sealing
from sd35h5.capturing.jobs.out_of_memory import within_memory
from sd35h5.capturing.jobs.remaining import Remaining, is_unchanged, remaining, tell
from sd35h5.capturing.progress import Progress, say
from sd35h5.capturing.session import Session
from sd35h5.planning.describing import describe
from sd35h5.planning.job import Job
from sd35h5.store.runs import parts_of, running, sealed_indices
from sd35h5.store.sharing.failures import forget_failures

log = logging.getLogger("sd35h5")


def run(job: Job, is_held: bool = False) -> Path:
    """Draw what a job says, going on where an earlier run stopped. Returns: the store.

    Args:
        is_held: the caller holds the run already, by `store.runs.running`, and packs a shared one when it has let go
            of it, by `finish_shares`.
    Raises:
        ConfigError, CaptureError, StoreError: a sentence; sealed samples stay.
    """
    if job.config.output.budget:
        say(describe(job))
    is_shared = job.share is not None
    with nullcontext(parts_of(job.out)) if is_held else running(job.out, is_shared) as parts:
        draw = _run_with_workers if job.config.spread.is_with_workers else _run
        store = within_memory(job, parts, lambda settled: draw(settled, parts))
    return finish_shares(job.out, job.samples) if is_shared and not is_held else store


def _run_with_workers(job: Job, parts: Path) -> Path:
    from sd35h5.capturing.jobs.coordinator import run_with_workers  # needs the extra `cluster`

    return run_with_workers(job, parts)


def _run(job: Job, parts: Path) -> Path:
    settings = settings_here(job)
    left = remaining(job, parts, settings)
    if not left.todo and (job.share or is_unchanged(job, parts)):
        return _complete(job, left)
    tell(job, left)
    loaded, encoded = load_model(job, parts, settings, left.todo)
    if job.config.output.overwrite:
        left.begin(overwrite=True)
    session = open_session(job, parts, settings, loaded, encoded)
    left.begin()
    if not left.todo:
        return _complete(job, left)
    forget_failures(parts, (index for batch in left.todo for index in batch))
    for note in notes_on_prompts(job, session):
        log.warning("%s", note)
    try:
        _draw_all(job, left, session, encoded)
    except BaseException:
        count = f"{len(sealed_indices(parts))} of {job.samples} samples are sealed in {parts}"
        say(f"{count}; the same command goes on from there")
        raise
    return parts if job.share else finish(parts, job.out)


def _complete(job: Job, left: Remaining) -> Path:
    parts = left.begin()
    if job.share:
        say(f"nothing is left to draw of share {job.share} of {job.out}")
        return parts
    say(f"{job.out} is complete already: {job.samples} samples")
    return finish(parts, job.out)


def _draw_all(job: Job, left: Remaining, session: Session, encoded: Encoded) -> None:
    """Draw the batches of which anything is not sealed, under a progress bar. An error ends a capture, but not a share
    of one: there it is written down, and comes last."""
    progress = Progress(left.mine, left.mine - sum(map(len, left.todo)), job.config.sampling.steps)
    if job.share:
        session.seal = tolerant_sealing(job, session.parts)
    try:
        with drawing(job, session, encoded) as draw:
            for batch in left.todo:
                progress.begin(len(batch))
                try:
                    draw(batch, progress.step)
                except Exception as error:
                    if not job.share:
                        raise
                    note_failure(job, session.parts, batch, error)
    finally:
        progress.close()
    if job.share:
        raise_failures(session.parts, [index for batch in left.todo for index in batch])
