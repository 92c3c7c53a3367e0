"""A few threads behind a queue of bounded size: work that shall not hold up who hands it over."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Condition

MAX_THREADS = 8
MAX_WAITING = 256 << 20  # bytes


def half_of_the_cores() -> int:
    """Threads to deflate with: more would starve the thread that launches the GPU's kernels."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 2
    return max(1, min(MAX_THREADS, cores // 2))


class Drain:
    """Runs jobs in threads. When too many bytes wait, `submit` waits too: memory does not grow on a slow disk.

    The first error of a job comes out of the next `submit` or of `finish`; the jobs behind it are left out.
    """

    def __init__(self, threads: int | None = None, max_waiting: int = MAX_WAITING) -> None:
        self._pool = ThreadPoolExecutor(threads or half_of_the_cores(), thread_name_prefix="drain")
        self._max_waiting = max_waiting
        self._waiting = 0
        self._changed = Condition()
        self._error: BaseException | None = None
        self._cancelled = False

    @property
    def waiting(self) -> int:
        """Bytes that are handed over and not done."""
        return self._waiting

    def submit(self, job: Callable[[], None], nbytes: int) -> None:
        """Hand over a job that holds so many bytes; a job larger than the whole queue goes in alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._waiting + nbytes <= self._max_waiting)
            self._raise()
            self._waiting += nbytes
        self._pool.submit(self._run, job, nbytes)

    def wait(self) -> None:
        """Wait for all jobs; the threads stay."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)
        self._raise()

    def finish(self) -> None:
        """Wait for all jobs and end the threads."""
        self._pool.shutdown(wait=True)
        self._raise()

    def cancel(self) -> None:
        """Leave out what waits, and end the threads."""
        self._cancelled = True
        self._pool.shutdown(wait=True)

    def _run(self, job: Callable[[], None], nbytes: int) -> None:
        try:
            if self._error is None and not self._cancelled:
                job()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._waiting -= nbytes
                self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
