"""Memory that is not enough ends in a sentence with what would fit; --batch_size auto asks before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from sd35h5.capturing.encoding import let_go
from sd35h5.capturing.pipeline import resolve_device, resolve_dtype
from sd35h5.capturing.progress import say
from sd35h5.errors import OutOfMemoryError
from sd35h5.planning.interventions import parse_interventions
from sd35h5.planning.job import Job
from sd35h5.planning.memory_needs import is_out_of_memory, needs_of, told_as_full
from sd35h5.planning.options import AUTO
from sd35h5.store.runs import RUN_FILE, read_run, sealed_indices, sealed_texts

T = TypeVar("T")


def within_memory(job: Job, parts: Path, draw: Callable[[Job], T]) -> T:
    """Draw a job, with a number in place of --batch_size auto.

    Raises:
        OutOfMemoryError: the sentence.
    """
    if job.config.sampling.batch_size == AUTO:
        return halving(job.drawn_by(_chosen(job, parts)), parts, draw)
    with _told(job, parts):
        return draw(job)


def halving(job: Job, parts: Path, draw: Callable[[Job], T]) -> T:
    """Draw a job, and again with half as many samples a call where they were too many and nothing is sealed yet."""
    while True:
        try:
            with _told(job, parts):
                return draw(job)
        except OutOfMemoryError as error:
            size = int(job.config.sampling.batch_size)
            if size == 1 or sealed_indices(parts):
                raise
            say(f"{error}; --batch_size auto tries {size // 2}")
        job = job.drawn_by(size // 2)
        let_go()  # what the error held


def _chosen(job: Job, parts: Path) -> int:
    """The number of the samples that are there, else the largest that fits."""
    if sealed_indices(parts) and not job.config.output.overwrite:
        begun = (parts / RUN_FILE).is_file()
        config = read_run(parts)["config"] if begun else sealed_texts(parts, "config")[0]
        return int(config.get("batch_size", 1))
    device, item = _device(job)
    if device.type != "cuda" or parse_interventions(job.config.causal):
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    size = max(1, min(needs_of(job, item).most(free), job.samples))
    say(f"--batch_size auto: {size} a call of the pipeline")
    return size


def _device(job: Job) -> tuple[torch.device, int]:
    """Where a job is drawn, and the bytes of a number there."""
    device = resolve_device(job.config.model.device)
    return torch.device(device), getattr(torch, resolve_dtype(job.config.model.dtype, device)).itemsize


@contextmanager
def _told(job: Job, parts: Path) -> Iterator[None]:
    """Make one sentence of what the libraries raise."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(memory_sentence(job, parts, error)) from error


def memory_sentence(job: Job, parts: Path, error: Exception) -> str:
    """What a library's error about memory means for the job."""
    device, item = _device(job)
    cause = str(error).strip().split(". ")[0].split("\n")[0][:120] or type(error).__name__
    is_cuda, is_begun = device.type == "cuda", bool(sealed_indices(parts))
    return told_as_full(job, item, _there(device), is_cuda, is_begun, cause)


def _there(device: torch.device) -> int:
    """Bytes that this process can have of a device's memory, what it holds counted in; of the host's, all that there
    is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
