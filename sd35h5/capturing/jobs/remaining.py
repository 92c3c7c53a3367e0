"""What is left to draw of a job, and whether it may go on with the samples that are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sd35h5.capturing.identity import are_files_unchanged
from sd35h5.capturing.progress import say
from sd35h5.planning.going_on import check_samples, deciding
from sd35h5.planning.job import Job
from sd35h5.planning.plan import in_bytes
from sd35h5.store.runs import check_run, earlier_ends, sealed_texts
from sd35h5.store.sharing.sealed_samples import sealed_attributes, sealed_samples
from sd35h5.store.sharing.shares import batches_of
from sd35h5.store.writer import begin_run


@dataclass(frozen=True)
class Remaining:
    """What a process, or its workers, have to draw.

    Args:
        todo: the batches of which anything is missing.
        mine: how many samples are to be there in the end, of the job or of this process' share of it.
        sealed: how many of those are there.
        begin: `begin_run` for this job.
    """

    todo: list[range]
    mine: int
    sealed: int
    begin: Callable[..., Path]


def remaining(job: Job, parts: Path, settings: Mapping[str, object]) -> Remaining:
    """Compare a job with what is there.

    Args:
        settings: the job's, with the device and dtype that draw.
    Raises:
        StoreError: the samples that are there are of another configuration or model.
    """
    resolve, planned = partial(deciding, facts=job.facts), job.samples
    sealed: dict[int, dict] = {}
    cuts: list[int] = []
    if not job.config.output.overwrite:  # what is to be overwritten goes when the model is there, not before
        check_run(job.out, dict(settings), resolve)
        sealed = sealed_samples(parts)
        check_samples(job, sealed, sealed_attributes(parts).get("model_shape", ""))
        cuts = earlier_ends(job.out, planned)
    batches = batches_of(planned, job.config.sampling.batch_size, cuts)
    own = batches if job.share is None else job.share.of(batches)
    todo = [batch for batch in own if not sealed.keys() >= set(batch)]
    shares = None if job.share is None else job.share.count
    begin = partial(begin_run, job.out, dict(settings), planned, resolve=resolve, shares=shares)
    return Remaining(todo, sum(map(len, own)), sum(index in sealed for each in own for index in each), begin)


def is_unchanged(job: Job, parts: Path) -> bool:
    """Whether the sealed samples are those of the model's files as they are now; False where only the loaded model
    can tell."""
    revision = sealed_attributes(parts).get("model_revision", "")
    known = sealed_texts(parts, "components")
    adapters = [adapter.file for adapter in job.adapters]
    return are_files_unchanged(job.config.model, job.facts, known, revision, adapters)


def tell(job: Job, left: Remaining) -> None:
    """Say what there is to do."""
    drawn, steps = sum(map(len, left.todo)), job.config.sampling.steps
    whose = f" of share {job.share}" if job.share else ""
    if not left.todo:
        say("all samples are sealed; the model's files are others than theirs: is it the same model?")
        return
    if left.sealed:
        say(f"{left.sealed} of {left.mine} samples{whose} are sealed already; going on with the others")
    if again := drawn - (left.mine - left.sealed):
        say(f"{again} of the sealed samples are drawn again, beside those of their batch that are not")
    size = in_bytes(job.plan.file_bytes)
    say(f"drawing {drawn} samples{whose} of {steps} steps, about {size} each, into {job.out}")
