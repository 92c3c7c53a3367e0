"""What a worker process does: it loads the job's model once, and draws the batches that it is given."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from distributed import Worker, WorkerPlugin

from sd35h5.capturing.jobs.drawing import (
    Draw,
    drawing,
    load_model,
    notes_on_prompts,
    open_session,
    settings_here,
)
from sd35h5.capturing.jobs.failing import note_failure, tolerant_sealing
from sd35h5.capturing.jobs.remaining import remaining
from sd35h5.capturing.jobs.tasks import NAME, STEPS
from sd35h5.capturing.session import Session
from sd35h5.errors import ConfigError
from sd35h5.planning.job import Job
from sd35h5.store.processes.writer_process import STOP_SIGNALS
from sd35h5.store.runs import RUN_FILE, parts_of, sealed_indices

_TOLD_EVERY = 0.3  # seconds


class Over(Exception):
    """The command has ended: what is being drawn is let go."""


@dataclass(frozen=True)
class Drawn:
    """What a worker answers.

    Args:
        components: what the store tells of the model that drew.
    """

    batch: range
    components: Mapping[str, Any]


class Drawer(WorkerPlugin):
    """The job in a worker process, with what it holds in memory; the engine brings it to each worker, also to one that
    comes in place of a dead one.

    Args:
        folder: that of the command, from which paths of the job go out; the same for all.
        is_here: the workers are processes of the command's own host.
    """

    name = NAME

    def __init__(self, job: Job, folder: Path, is_here: bool) -> None:
        self._job, self._folder, self._is_here = job, folder, is_here

    def setup(self, worker: Worker) -> None:
        """Called in the worker's process when it begins."""
        self._worker, self._stack = worker, ExitStack()
        self._loaded, self._draw = None, None
        self._session: Session | None = None
        self._is_drawing = self._is_over = False
        if self._is_here and threading.current_thread() is threading.main_thread():
            for number in set(STOP_SIGNALS) - {signal.SIGTERM}:  # for the command, which ends its workers
                signal.signal(number, signal.SIG_IGN)

    def stop(self) -> None:
        """Have what is being drawn end with the step."""
        self._is_over = True

    def teardown(self, worker: Worker) -> None:
        """Called when the worker ends, or when the job has."""
        self.stop()
        if not self._is_drawing:
            self._let_go()

    def _let_go(self) -> None:
        self._stack.close()
        self._loaded = self._draw = self._session = None

    def settings(self) -> dict[str, object]:
        """The job's settings on this machine.

        Raises:
            ConfigError: the command's folder is not here.
        """
        if self._worker.state.nthreads != 1:
            raise ConfigError(
                f"the worker {self._worker.address} has {self._worker.state.nthreads} threads, and a pipeline draws in "
                "one: start workers with --nthreads 1"
            )
        try:
            os.chdir(self._folder)
        except OSError:
            raise ConfigError(
                f"{self._folder} is not on the host of the worker {self._worker.address}: give the command from a "
                "folder that all hosts see under one name"
            ) from None
        return settings_here(self._job)

    def load(self) -> None:
        """Have the text encoders read the prompts, and load what draws."""
        if self._loaded is None:
            settings, parts = self.settings(), parts_of(self._job.out).absolute()
            self._loaded = load_model(self._job, parts, settings, remaining(self._job, parts, settings).todo)

    def ready(self) -> tuple[Draw, Session]:
        """What draws a batch, with the model loaded and compared with that of the samples that are there."""
        if self._draw is None:
            self.load()
            parts = parts_of(self._job.out).absolute()
            if not (parts / RUN_FILE).is_file():
                raise ConfigError(
                    f"{parts} is not on the host of the worker {self._worker.address}: write to a disk that all hosts "
                    "share"
                )
            self._session = open_session(self._job, parts, self.settings(), *self._loaded)
            self._session.seal = tolerant_sealing(self._job, parts)
            self._draw = self._stack.enter_context(drawing(self._job, self._session, self._loaded[1]))
        return self._draw, self._session

    def notes(self) -> list[str]:
        """What is to be said of the prompts before anything is drawn."""
        return notes_on_prompts(self._job, self.ready()[1])

    def draw(self, batch: range) -> Drawn:
        """Draw a batch of which anything is missing; what cannot be drawn is written down."""
        draw, session = self.ready()
        if not sealed_indices(session.parts) >= set(batch):
            self._is_drawing = True
            try:
                draw(batch, self._steps_of(batch))
            except torch.AcceleratorError:
                os._exit(1)  # nothing of this process reaches its GPU again: another one takes its place
            except Exception as error:
                if self._is_over:
                    self._let_go()
                    raise
                note_failure(self._job, session.parts, batch, error)
            finally:
                self._is_drawing = False
        return Drawn(batch, session.components)

    def _steps_of(self, batch: range) -> Callable[[], None]:
        """What is called after each step: it tells the command, and ends where that has."""
        steps, told = 0, 0.0

        def step() -> None:
            nonlocal steps, told
            if self._is_over:
                raise Over
            steps += 1
            if time.monotonic() - told > _TOLD_EVERY:
                told = time.monotonic()
                self._worker.log_event(STEPS, {"batch": batch.start, "step": steps})

        return step

    def flush(self) -> None:
        """Wait for the samples that are drawn and not sealed yet."""
        if self._session is not None:
            self._session.sealing.wait()
