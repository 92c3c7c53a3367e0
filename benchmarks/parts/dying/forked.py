"""A command in a child of this process that has imported what takes seconds, so that it can be ended many times.

The child runs the command's own `main`, with its own words; before that, it may be given a fault of its own. It tells
through a pipe when it enters and leaves a function, so that it can be ended while it is there.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path

ENTERED, LEFT = b"(", b")"
FOREVER = 300  # seconds: a command that takes so long hangs
Place = tuple[object, str]  # a class or a module, and the name of a function there


class Child:
    """A process that runs a command.

    Args:
        command: what to run; its answer is the exit code.
        said: the file that takes what it prints.
        watched: the function whose calls are told.
        fault: what is done to the process before.
    """

    def __init__(
        self, command: Callable[[], int], said: Path, watched: Place, fault: Callable[[], None] | None = None
    ) -> None:
        self.said, self.watched, self.status = said, watched, None
        self._told, tell = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.began = time.perf_counter()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._told)
            _become(command, said, watched, tell, fault)
        os.close(tell)
        self.calls = 0  # that were entered
        self.marks: list[tuple[bytes, float]] = []  # and when, in seconds since the beginning

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.began

    def wait(self, until: float = FOREVER, calls: int | None = None) -> bool:
        """Wait until it ends, a moment is there, or it has entered the watched function so often.

        Args: until: seconds since it began.
        Returns: whether it still runs.
        """
        while self.status is None and self.seconds < until and not (calls and self.calls >= calls):
            is_told, _, _ = select.select([self._told], [], [], max(0.0, until - self.seconds))
            if is_told and not self._heard():
                self._end()
        return self.status is None

    def kill(self) -> None:
        """End it as the system does that runs out of memory."""
        os.kill(self.pid, signal.SIGKILL)
        self._end()

    def finish(self) -> int:
        """Wait for its end. Returns: its exit code. Raises: RuntimeError: it hangs."""
        if self.wait():
            self.kill()
            raise RuntimeError(f"a command did not end in {FOREVER} seconds: {self.text()[-2000:]}")
        return self.status

    def text(self) -> str:
        """What it has printed."""
        return self.said.read_text(errors="replace")

    def _heard(self) -> bool:
        """Take what it tells. Returns: False once it has ended."""
        marks = os.read(self._told, 4096)
        self.marks += [(bytes([mark]), self.seconds) for mark in marks]
        self.calls += marks.count(ENTERED)
        return bool(marks)

    def _end(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        while self._heard():
            continue
        os.close(self._told)


def _become(
    command: Callable[[], int], said: Path, watched: Place, tell: int, fault: Callable[[], None] | None
) -> None:
    """Run the command and end the process, whatever comes."""
    status = 70
    try:
        to = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(to, 1)
        os.dup2(to, 2)
        _watch(*watched, tell)
        if fault:
            fault()
        status = command()
        sys.stdout.flush()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _watch(owner: object, name: str, tell: int) -> None:
    """Have this process, which ends with its command, tell of a function's calls."""
    real = getattr(owner, name)

    @wraps(real)
    def told(*args: object, **more: object) -> object:
        os.write(tell, ENTERED)
        try:
            return real(*args, **more)
        finally:
            os.write(tell, LEFT)

    setattr(owner, name, told)


def spans(child: Child) -> list[float]:
    """How many seconds each call of the watched function took, one after the other."""
    entered = [at for mark, at in child.marks if mark == ENTERED]
    left = [at for mark, at in child.marks if mark == LEFT]
    return [end - begin for begin, end in zip(entered, left, strict=True)]
