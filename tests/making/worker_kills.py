"""Workers that are killed in the middle of a sample, for tests and benchmarks of who gives them work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil


@contextmanager
def workers_killed(parts: Path, times: int, every: int = 1, parent: int | None = None) -> Iterator[list[int]]:
    """SIGKILL a process that is writing a sample, whenever so many others were sealed since the one before.

    Yields: the victims so far.
    Args:
        parent: the process whose children they are; this one if None.
    """
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        after = 0  # sealed samples before which the next one dies
        while not done.wait(0.02) and len(killed) < times:
            if len(list(parts.glob("*.h5"))) <= after:
                continue
            if pid := writing(list(parts.glob("*.tmp")), parent):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                after += every

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


def writing(files: list[Path], parent: int | None = None) -> int | None:
    """A process below another one that holds one of these files open."""
    names = {str(path.resolve()) for path in files}
    with suppress(psutil.Error):
        for process in psutil.Process(parent).children(recursive=True):
            with suppress(psutil.Error):
                if names & {file.path for file in process.open_files()}:
                    return process.pid
    return None
