"""Where one of many processes cannot draw a sample, that is written down and the others are drawn."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from sd35h5.capturing.jobs.out_of_memory import memory_sentence
from sd35h5.capturing.sealing import Sealing, seal_all
from sd35h5.errors import CaptureError, Sd35h5Error
from sd35h5.planning.job import Job
from sd35h5.planning.memory_needs import is_out_of_memory
from sd35h5.store.runs import sealed_indices
from sd35h5.store.sharing.failures import failures_in, record_failure


def note_failure(job: Job, parts: Path, samples: Iterable[int], error: Exception) -> None:
    """Write down why samples could not be drawn, those that are not sealed.

    Raises:
        the error itself, where it leaves this process without its GPU.
    """
    if isinstance(error, torch.AcceleratorError):
        raise error
    why = str(error) if isinstance(error, Sd35h5Error) else f"{type(error).__name__}: {error}"
    if is_out_of_memory(error) and not isinstance(error, Sd35h5Error):
        why = memory_sentence(job, parts, error)
    for index in sorted(set(samples) - sealed_indices(parts)):
        prompt = job.prompts[job.places(index)[0]]
        record_failure(parts, index, prompt.id, job.seed(index), why)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # of what did not fit


def sealed_or_noted(job: Job, parts: Path, samples: Sequence[Sealing]) -> None:
    """Seal one after the other; which cannot be, is written down."""
    for each in samples:
        try:
            seal_all([each])
        except Exception as error:
            note_failure(job, parts, [each.index], error)


def tolerant_sealing(job: Job, parts: Path) -> partial[None]:
    """What seals the samples of a process that goes on after a failure."""
    return partial(sealed_or_noted, job, parts)


def raise_failures(parts: Path, samples: Iterable[int]) -> None:
    """Raise: CaptureError where any of these samples failed, with the first reason."""
    failed = {index: told for index, told in failures_in(parts).items() if index in set(samples)}
    if failed:
        index, told = next(iter(failed.items()))
        others = f"{len(failed)} samples could not be drawn, the first of them"
        count = others if len(failed) > 1 else "1 sample could not be drawn:"
        raise CaptureError(
            f"{count} sample {index} ({told['prompt_id']}): {told['why']}; the others are sealed, the same command "
            f"draws what is missing, and python -m sd35h5 missing {parts} lists all"
        )
