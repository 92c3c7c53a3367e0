"""Reader processes that die whenever they run, for tests of who asks them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sd35h5.store.processes.reader_pool import Readers


@contextmanager
def killed_again_and_again(readers: Readers, by: int = signal.SIGSEGV) -> Iterator[None]:
    """Crash every reader as soon as it runs, as a file does that crashes HDF5 whenever it is read."""
    done = threading.Event()

    def kill() -> None:
        while not done.is_set():
            for pid in readers.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, by)
            time.sleep(0.001)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
