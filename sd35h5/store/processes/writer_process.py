"""A process that writes one sample for another: `SampleWriter`'s calls on stdin, its answer on stdout.

`python -m sd35h5.store.processes.writer_process DESCRIPTOR…`; `writer_client.py` starts it. The threads that hash and
deflate live here, so that they do not take turns with the thread that launches a GPU's kernels: under one
interpreter lock they made it three times slower. A call is a line of JSON; its numbers are the bytes behind it,
or in a shared buffer.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from sd35h5.errors import Sd35h5Error
from sd35h5.store.processes.children import READY
from sd35h5.store.processes.shared_buffer import SharedBuffer
from sd35h5.store.writer import Header, SampleWriter

_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _STOPPING if hasattr(signal, name))


def begin(told: dict[str, Any]) -> SampleWriter:
    """Begin the sample that the first line tells of."""
    scales = {name: np.array(values, dtype) for name, (dtype, values) in told["scales"].items()}
    header = Header(told["attributes"], scales, told["provenance"], told["precision"])
    return SampleWriter(Path(told["parts"]), told["index"], header, told["rounded_already"], owned=True)


def received(source: BinaryIO, call: dict[str, Any], buffers: list[SharedBuffer]) -> np.ndarray:
    """The values of a `put`: texts out of the line itself, numbers from behind it or from a shared buffer."""
    if "texts" in call:
        return np.array(call["texts"], object).reshape(call["shape"])
    shape, dtype = call["shape"], np.dtype(call["dtype"])
    if "buffer" in call:
        return buffers[call["buffer"]].take(shape, dtype)
    data = bytearray(source.read(math.prod(shape) * dtype.itemsize))
    return np.frombuffer(data, dtype).reshape(shape)


def serve(source: BinaryIO, sink: TextIO, buffers: list[SharedBuffer]) -> str | None:
    """Write what is told, and say `{}` for each shared buffer that may be filled anew.

    Returns: the sealed file, or None if the sample was left out.
    """
    writer = begin(json.loads(source.readline()))
    try:
        for line in source:
            call = json.loads(line)
            if call["do"] == "seal":
                return str(writer.seal(call["events"], call["provenance"]))
            if call["do"] == "abandon":
                return None
            values = received(source, call, buffers)
            if "buffer" in call:
                print("{}", file=sink, flush=True)
            writer.put(call["name"], values, **call["at"])
        return None  # the other side has ended
    finally:
        writer.abandon()


def main() -> int:
    """Serve stdin. What goes wrong is answered in one line, and ends the process.

    Signals to stop are for who asked for the sample: a scheduler sends them to every process of a job. When that one
    ends, so does this, and leaves no half file.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        return answering()
    except BrokenPipeError:  # who asked has ended, or abandoned the sample before this process was ready
        return 1


def answering() -> int:
    """Serve stdin, answers on what was stdout. Returns: the exit code."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as sink:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
        sink.write(READY.decode())
        sink.flush()
        try:
            sealed = serve(sys.stdin.buffer, sink, [SharedBuffer(int(number)) for number in sys.argv[1:]])
        except (Sd35h5Error, MemoryError) as error:
            sink.write(json.dumps({"error": str(error)}) + "\n")
            return 1
        except ValueError:  # the other side ended within a call
            return 1
        if sealed:  # who abandons does not listen
            sink.write(json.dumps({"sealed": sealed}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
