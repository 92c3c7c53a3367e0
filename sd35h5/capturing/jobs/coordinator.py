"""Have workers draw a job: hand out its batches, follow them under one bar, and see in the folder what they sealed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from distributed import KilledWorker, as_completed, fire_and_forget

from sd35h5.capturing.finishing import check_one_model, finish
from sd35h5.capturing.identity import differing_models
from sd35h5.capturing.jobs.cluster import workers_of
from sd35h5.capturing.jobs.failing import note_failure, raise_failures
from sd35h5.capturing.jobs.remaining import Remaining, is_unchanged, remaining, tell
from sd35h5.capturing.jobs.tasks import (
    NAME,
    STEPS,
    draw_there,
    flush_there,
    load_there,
    notes_there,
    settings_there,
    stop_there,
)
from sd35h5.capturing.jobs.worker import Drawer, Drawn
from sd35h5.capturing.progress import SharedProgress, say
from sd35h5.errors import CaptureError
from sd35h5.planning.job import Job
from sd35h5.store.runs import sealed_indices
from sd35h5.store.sharing.failures import failures_in, forget_failures
from sd35h5.store.sharing.temporaries import remove_leavings

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("sd35h5")
_ROUNDS = 10  # in which what dead workers had drawn and not sealed is drawn again


def run_with_workers(job: Job, parts: Path) -> Path:
    """Draw what is left of a job with workers. Returns: the store.

    Raises:
        ConfigError, CaptureError, StoreError: a sentence; also at the end, of samples that could not be drawn.
    """
    spread = job.config.spread
    say("starting workers …")
    with ExitStack() as stack:
        stack.callback(remove_leavings, parts)  # of workers that were killed
        client = stack.enter_context(workers_of(spread))
        client.register_plugin(Drawer(job, Path.cwd(), is_here=not spread.scheduler))
        left = remaining(job, parts, client.submit(settings_there, pure=False).result())
        if not left.todo and is_unchanged(job, parts):
            say(f"{job.out} is complete already: {job.samples} samples")
            return finish(left.begin(), job.out)
        tell(job, left)
        _load(client)
        if job.config.output.overwrite:
            left.begin(overwrite=True)
        left.begin()
        forget_failures(parts, (index for batch in left.todo for index in batch))
        for note in client.submit(notes_there, pure=False).result():
            log.warning("%s", note)
        try:
            _draw_all(client, job, left, parts)
        except BaseException:
            client.run(stop_there, on_error="ignore")
            sealed = len(sealed_indices(parts))
            say(
                f"{sealed} of {job.samples} samples are sealed in {parts}; the same command goes on from there"
            )
            raise
        if spread.scheduler:  # its workers stay, and let go of the model
            client.unregister_worker_plugin(NAME)
    raise_failures(parts, (index for batch in left.todo for index in batch))
    check_one_model(parts)
    return finish(parts, job.out)


def _load(client: Client) -> None:
    """Have every worker load the model, and wait for the first one that has.

    Raises: what it raises.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"]
    loads = [
        client.submit(load_there, workers=[address], allow_other_workers=True, pure=False)
        for address in workers
    ]
    next(as_completed(loads)).result()
    fire_and_forget(loads)


def _draw_all(client: Client, job: Job, left: Remaining, parts: Path) -> None:
    """Draw until every batch is sealed or failed: what is there is told by the folder, not by an answer, for a worker
    can die between the two."""
    progress = SharedProgress(job.samples, left.mine - sum(map(len, left.todo)), job.config.sampling.steps)
    client.subscribe_topic(STEPS, lambda event: progress.tell(event[1]["batch"], event[1]["step"]))
    todo, components = left.todo, None
    try:
        for _ in range(_ROUNDS):
            components = _round(client, job, parts, todo, progress, components)
            done = sealed_indices(parts) | failures_in(parts).keys()
            if not (todo := [batch for batch in todo if not done.issuperset(batch)]):
                return
        lost = CaptureError(f"{_ROUNDS} times a worker died after it had drawn it and before it was sealed")
        for batch in todo:
            note_failure(job, parts, batch, lost)
    finally:
        client.unsubscribe_topic(STEPS)
        progress.close()


def _round(
    client: Client, job: Job, parts: Path, todo: Sequence[range], progress: SharedProgress,
    components: Mapping[str, Any] | None,
) -> Mapping[str, Any] | None:  # fmt: skip
    """Have each batch drawn once, and the samples sealed. Returns: the components of the model that drew.

    Args:
        components: those of the rounds before.
    Raises:
        CaptureError: a worker drew with another model.
    """
    name = uuid4().hex[:8]
    futures = {
        client.submit(draw_there, batch.start, batch.stop, key=f"draw-{name}-{batch.start}"): batch
        for batch in todo
    }
    for future in as_completed(futures):
        batch = futures[future]
        if isinstance(error := future.exception(), KilledWorker):
            deaths = CaptureError(
                f"{error.allowed_failures + 1} workers died while they drew it: is there enough memory?"
            )
            note_failure(job, parts, batch, deaths)
        elif error is not None:
            raise error
        else:
            drawn: Drawn = future.result()
            components = components or drawn.components
            if told := differing_models(components, drawn.components):
                raise CaptureError(
                    f"a worker draws with another model ({'; '.join(told)}): give all of them the same weights"
                )
        progress.finished(batch)
    flushes = [
        client.submit(flush_there, workers=[address], allow_other_workers=True, pure=False)
        for address in client.scheduler_info(n_workers=-1)["workers"]
    ]
    client.gather(flushes)
    return components
