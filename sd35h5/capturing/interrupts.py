"""Ctrl-C, and the signals by which schedulers and closing terminals end a process: each ends a capture in order."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sd35h5.store.processes.writer_process import STOP_SIGNALS


class Stopped(KeyboardInterrupt):
    """A signal asks to end, as Ctrl-C does.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that tells of it, by the shells' convention."""
        return 128 + self.number


class _Handler:
    """Raises `Stopped` where the main thread is, and again at the next step where Python lost it."""

    def __init__(self) -> None:
        self.number = 0
        self.hook = sys.unraisablehook  # of the program

    def __call__(self, number: int, frame: FrameType | None) -> None:
        stopping, self.number = self.number, self.number or number
        if (
            stopping and number != signal.SIGINT
        ):  # schedulers repeat themselves: what is left is put in order first
            return
        raise Stopped(number)

    def lost(self, told: sys.UnraisableHookArgs) -> None:
        """Python's hook for what it cannot raise: nothing is said of a stop, which `heed` raises."""
        if not isinstance(told.exc_value, Stopped):
            self.hook(told)

    def heed(self) -> None:
        """Raise what was lost."""
        if self.number:
            raise Stopped(self.number)


@contextmanager
def heeded_interrupts(is_ending: bool = False) -> Iterator[Callable[[], None]]:
    """Let SIGTERM, SIGHUP and SIGUSR1 end this process as Ctrl-C does; yield a function that raises a lost one.

    Python raises KeyboardInterrupt wherever the main thread is. In the callback of a weak reference, of which torch's
    tensors have many, it is ignored: 5 of 70 interrupted captures of a small model went on. In another
    thread nothing is changed, and a signal that is ignored (in a script's background job, under nohup) or has a handler
    of the program's own keeps it.

    Args:
        is_ending: the process ends after one: that a scheduler repeats itself does not cut short what it says.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    ours = next((handler for handler in before.values() if isinstance(handler, _Handler)), None)
    if ours is not None:
        yield ours.heed
        return
    handler = _Handler()
    usual = [number for number, of in before.items() if of in (signal.SIG_DFL, signal.default_int_handler)]
    for number in usual:
        signal.signal(number, handler)
    sys.unraisablehook = handler.lost
    try:
        yield handler.heed
    finally:
        sys.unraisablehook = handler.hook
        for number in usual:
            is_over = is_ending and handler.number and number != signal.SIGINT
            signal.signal(
                number, signal.SIG_IGN if is_over else before[number]
            )  # Python keeps what is ignored
