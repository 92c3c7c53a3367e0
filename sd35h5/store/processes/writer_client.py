"""`SampleWriter` in a process of its own: the same calls, which return when the values are on their way."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sd35h5.errors import Sd35h5Error, StoreError
from sd35h5.store.processes import children
from sd35h5.store.processes.shared_buffer import SharedBuffer
from sd35h5.store.runs import part_name
from sd35h5.store.schema import variable
from sd35h5.store.writer import Header

SUPPORTED = os.name == "posix"  # elsewhere a process inherits no descriptors
_PIPE_BYTES = 1 << 20  # more than the first calls of a sample take, so that they do not wait for the start
_SMALL = 1 << 16  # bytes of numbers that go through the pipe

_PROCESS = "sd35h5.store.processes.writer_process"


class ProcessWriter:
    """One sample on its way to PARTS/000012.h5, written by another process: see `writer.SampleWriter`.

    What goes wrong there comes out of a later call. When the writer is slower than its caller, `put` waits.
    A caller that dies takes the unsealed sample with it. Use it from one thread at a time.
    """

    def __init__(self, parts: Path, index: int, header: Header, rounded_already: bool = False) -> None:
        self.path = Path(parts) / part_name(index)
        self._buffers = [SharedBuffer(), SharedBuffer()]  # one is filled while the other is emptied
        self._filled = 0  # calls that went through a buffer
        self._emptied = 0
        self._is_ready = False  # whether it has said so
        descriptors = [buffer.descriptor for buffer in self._buffers]
        self._process = subprocess.Popen(
            children.command(_PROCESS, *descriptors), pass_fds=descriptors,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=children.with_import_path(os.environ),
            start_new_session=True,  # Ctrl-C is for the caller, who then abandons
        )  # fmt: skip
        _widen(self._process.stdin.fileno())
        scales = {
            name: (np.asarray(v).dtype.str, np.asarray(v).tolist()) for name, v in header.scales.items()
        }
        self._send({
            "parts": str(Path(parts).resolve()), "index": index, "rounded_already": rounded_already, "scales": scales,
            "attributes": dict(header.attributes), "provenance": dict(header.provenance),
            "precision": header.precision,
        })  # fmt: skip

    def put(self, name: str, values: object, **at: int | Sequence[int]) -> None:
        """Send values of a variable to positions along named dimensions; the other dimensions are whole."""
        call: dict[str, Any] = {"do": "put", "name": name, "at": {dim: _plain(p) for dim, p in at.items()}}
        if variable(name).is_text:
            texts = np.asarray(values, dtype=object)
            self._send(call | {"texts": texts.ravel().tolist(), "shape": texts.shape})
            return
        numbers = np.asarray(values, order="C")
        if numbers.dtype.kind not in "biuf":
            raise StoreError(f"{name} holds numbers, the values are {numbers.dtype}")
        call |= {"dtype": numbers.dtype.str, "shape": numbers.shape}
        if numbers.nbytes <= _SMALL:
            self._send(call, numbers)
            return
        number = self._filled % len(self._buffers)
        while self._filled - self._emptied >= len(self._buffers):
            self._answer()
        self._buffers[number].put(numbers)
        self._filled += 1
        self._send(call | {"buffer": number})

    def seal(
        self, events: Sequence[Mapping[str, object]] = (), provenance: Mapping[str, str] | None = None
    ) -> Path:
        """Wait until all is written and sealed. Returns: the sealed file."""
        told = {"events": [dict(event) for event in events], "provenance": dict(provenance or {})}
        self._send({"do": "seal", **told})
        while not self._answer():
            continue
        return self.path

    def abandon(self) -> None:
        """End the process; it leaves no file behind. After `seal()` the sealed file stays."""
        if self._process.poll() is None:
            with suppress(Sd35h5Error):  # it has ended by itself, and left nothing either
                self._send({"do": "abandon"})
        self._end()

    def _send(self, call: dict[str, Any], numbers: np.ndarray | None = None) -> None:
        try:
            self._write(json.dumps(call).encode() + b"\n")
            if numbers is not None and numbers.size:
                self._write(memoryview(numbers.reshape(-1)).cast("B"))
        except (BrokenPipeError, ValueError):  # ValueError: closed before
            while not self._answer():
                continue
            raise StoreError(f"sample {self.path.stem} is written already") from None

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._process.stdin.write(rest) :]

    def _answer(self) -> bool:
        """Wait for one answer. Returns: whether it was the last, which tells of the sealed file.

        Raises:
            StoreError: what went wrong there, or that it was killed.
        """
        line = b"" if self._process.stdout.closed else self._process.stdout.readline()
        if line == children.READY:
            self._is_ready = True
            return False
        told = json.loads(line) if line.endswith(b"\n") else {"error": ""}
        if not told:
            self._emptied += 1
            return False
        self._end()
        if not self._is_ready and self._process.returncode > 0:  # less than 0: it was killed
            raise children.cannot_start(_PROCESS, "its words are above")
        if "error" in told:
            raise StoreError(
                told["error"]
                or f"sample {self.path.stem} cannot be written: its writing process ended with code "
                f"{self._process.returncode}"
            )
        return True

    def _end(self) -> None:
        for each in (self._process.stdin, self._process.stdout, *self._buffers):
            each.close()
        self._process.wait()


def _plain(positions: int | Sequence[int]) -> int | list[int]:
    return [int(p) for p in positions] if isinstance(positions, Sequence) else int(positions)


def _widen(pipe: int) -> None:
    """Let a pipe hold more, where the system can."""
    try:
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except (ImportError, AttributeError, OSError):  # not Linux, or more than this user may have
        return
