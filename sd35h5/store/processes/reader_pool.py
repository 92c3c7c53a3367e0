"""A small pool of reader processes: a file that crashes or hangs the HDF5 library ends one of them, not the server.

The readers see hostile files, so nothing they send is trusted: a line of JSON of bounded length, and raw
numbers into an array whose shape and dtype this side has made. Nothing is unpickled.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sd35h5.errors import Sd35h5Error, StoreError, StoreNotFoundError, UnreadableError
from sd35h5.store.places.far_files import FarFile
from sd35h5.store.processes import children
from sd35h5.store.showable import showable

_PROCESS = "sd35h5.store.processes.reader_process"
SECONDS = 20
MEMORY_BYTES = 1 << 30
MAX_LINE_BYTES = 32 << 20
REMEMBERED = 60  # seconds that a file which ended its reader is not tried again
CRASHED = "reading it crashed the HDF5 library: it is damaged"
TOO_LONG = "reading it did not end in {seconds:g} s: it is damaged, or made to hang readers"
BUSY = "all readers were busy for {seconds:g} s: try again in a moment"
NONSENSE = "its reader answered nonsense: it is damaged, or made to mislead readers"


class _ReaderEnded(Exception):
    """A reader that had to be ended, or ended itself; `late` if it took too long, `outside` if somebody ended it."""

    def __init__(self, late: bool, outside: children.CannotStartError | None = None) -> None:
        super().__init__()
        self.late, self.outside = late, outside


class Readers:
    """Reader processes that answer questions about stores, each file by whichever is idle.

    Args:
        count: processes; so many reads run at the same time.
        seconds: how long an answer may take, and how long one waits for an idle reader.
        memory: bytes of address space of each.
        started: how many are started now; the others are when they are needed.
    """

    def __init__(
        self, count: int = 3, seconds: float = SECONDS, memory: int = MEMORY_BYTES, started: int | None = None
    ) -> None:
        self.count, self.seconds = count, seconds
        self._readers = [_Reader(seconds, memory) for _ in range(count)]
        self._idle: queue.LifoQueue[_Reader] = queue.LifoQueue()
        self._threads = ThreadPoolExecutor(count, "read")
        self._closed = False
        self._ended: dict[tuple[str, tuple[int, ...]], tuple[float, Sd35h5Error]] = {}
        for place, reader in enumerate(self._readers):
            if started is None or count - place <= started:  # the last to be put is the first to be taken
                with suppress(children.CannotStartError):  # who asks it is told
                    reader.start()
            self._idle.put(reader)

    def ask(
        self,
        path: str,
        mark: tuple[int, ...],
        request: dict[str, Any],
        into: np.ndarray | None = None,
        far: FarFile | None = None,
    ) -> dict[str, Any]:
        """Ask any reader about the run at a path.

        Args:
            far: the file, where it is elsewhere; `path` is then any name of it.
            mark: what changes when the file does; another mark makes the reader open it anew.
            into: contiguous numbers to fill with the bytes that follow the answer.
        Raises: StoreError, one sentence; a file that ended its reader is refused for a minute.
        """
        if self._closed:
            raise StoreError(f"{Path(path).name} is closed")
        self._refuse_ended(path, mark)
        more = {} if far is None else {"far": far.told}
        line = json.dumps({**request, **more, "path": path, "mark": mark}).encode() + b"\n"
        try:
            told = self._asked(line, into, far)
        except _ReaderEnded as end:
            sentence = TOO_LONG.format(seconds=self.seconds) if end.late else CRASHED
            refusal = end.outside or UnreadableError(f"{Path(path).name}: {sentence}")
            while len(self._ended) >= 64:
                self._ended.pop(next(iter(self._ended)), None)
            self._ended[path, mark] = (time.monotonic(), refusal)
            raise refusal from None
        if "error" in told:
            kind = StoreNotFoundError if told.get("missing") is True else UnreadableError
            raise kind(showable(told["error"], 500))
        return told

    def ask_together(
        self,
        path: str,
        mark: tuple[int, ...],
        asked: list[tuple[dict[str, Any], np.ndarray]],
        far: FarFile | None = None,
    ) -> None:
        """Ask for several arrays at the same time, each a request and what to fill."""
        futures = [self._threads.submit(self.ask, path, mark, *one, far) for one in asked]
        for future in futures:
            future.result()

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, also those that read: whoever waits for one gets a sentence."""
        self._closed = True
        for reader in self._readers:
            reader.end()
        self._threads.shutdown()

    def processes(self) -> list[int]:
        """Process ids of the readers that are at work or ready for it."""
        return [process.pid for reader in self._readers if (process := reader.process) and reader.is_ready]

    def _asked(self, line: bytes, into: np.ndarray | None, far: FarFile | None) -> dict[str, Any]:
        """Ask one reader; one that was killed by something else than its file deserves a second try."""
        try:
            reader = self._idle.get(timeout=self.seconds)
        except queue.Empty:
            raise StoreError(BUSY.format(seconds=self.seconds)) from None
        try:
            try:
                return reader.ask(line, into, far)
            except _ReaderEnded as end:
                if end.late or self._closed:
                    raise
            return reader.ask(line, into, far)
        finally:
            self._idle.put(reader)

    def _refuse_ended(self, path: str, mark: tuple[int, ...]) -> None:
        since, refusal = self._ended.get((path, mark), (-np.inf, None))
        if refusal is not None and time.monotonic() - since < REMEMBERED:
            raise type(refusal)(str(refusal))


class _Reader:
    """One process, started anew when it has ended."""

    def __init__(self, seconds: float, memory: int) -> None:
        self._seconds, self._memory = seconds, memory
        self.process: subprocess.Popen[bytes] | None = None
        self.is_ready = False  # whether it has imported what it needs

    def start(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.end()
            self.process = children.started(_PROCESS, self._memory, int(np.ceil(self._seconds)))
        return self.process

    def ask(self, line: bytes, into: np.ndarray | None, far: FarFile | None = None) -> dict[str, Any]:
        """Send a line, take the answer; a reader that does not answer wholly and in time is ended.

        Of a file elsewhere it is handed the bytes that it asks for, however long they take to come.

        Raises: CannotStartError; _ReaderEnded, which the file is to blame for.
        """
        process = self._ready()
        begin, alarm = time.monotonic(), self._alarm(process)
        answered = False
        try:
            process.stdin.write(line)
            process.stdin.flush()
            told = _parsed(process.stdout.readline(MAX_LINE_BYTES))
            while far is not None and ("fetch" in told or "want" in told):
                alarm.cancel()
                _hand(far, told, process.stdin)
                begin, alarm = time.monotonic(), self._alarm(process)
                told = _parsed(process.stdout.readline(MAX_LINE_BYTES))
            if into is not None and "error" not in told:
                _fill(process.stdout, into)
            answered = True
            return told
        except (OSError, EOFError):
            late = time.monotonic() - begin >= self._seconds
            raise _ReaderEnded(late, None if late else _ended_from_outside(process)) from None
        finally:
            alarm.cancel()
            if not answered:  # also when this thread was interrupted: what is left in the pipe is of no use
                self.end()

    def _alarm(self, process: subprocess.Popen[bytes]) -> threading.Timer:
        return children.started_alarm(process, _PROCESS, self._seconds)

    def _ready(self) -> subprocess.Popen[bytes]:
        process = self.start()
        if not self.is_ready:
            try:
                children.await_ready(process, _PROCESS)
                self.is_ready = True
            finally:
                if not self.is_ready:
                    self.end()
        return process

    def end(self) -> None:
        self.is_ready = False
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                try:
                    pipe.close()
                except BrokenPipeError:  # a request that was never read
                    continue


def _ended_from_outside(process: subprocess.Popen[bytes]) -> children.CannotStartError | None:
    """The sentence for a reader that somebody ended; None for one that its file made crash, or that speaks nonsense."""
    with suppress(subprocess.TimeoutExpired):
        return children.ended_from_outside(_PROCESS, process.wait(timeout=1))
    return None


def _parsed(line: bytes) -> dict[str, Any]:
    if not line:
        raise EOFError
    try:
        told = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise StoreError(NONSENSE)
    return told


def _hand(far: FarFile, told: dict[str, Any], pipe: Any) -> None:
    try:
        far.hand(told, pipe)
    except StoreError:  # the file cannot be fetched: that is a ValueError, too
        raise
    except (TypeError, ValueError):
        raise StoreError(NONSENSE) from None


def _fill(pipe: Any, into: np.ndarray) -> None:
    if not into.size:
        return
    rest = memoryview(into).cast("B")
    while rest:
        count = pipe.readinto(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
