"""A process that reads stores for another: JSON requests on stdin, JSON and raw bytes on stdout, nothing pickled.

`python -m sd35h5.store.processes.reader_process BYTES SECONDS`; `reader_pool.py` starts it. A file may crash,
hang or swell this process; the one that asks only sees it end.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sd35h5.errors import Sd35h5Error, StoreError, StoreNotFoundError
from sd35h5.store.blocks import fill_of, numpy_dtype
from sd35h5.store.opening import unread
from sd35h5.store.processes.children import READY
from sd35h5.store.processes.fetched_file import FetchedFile
from sd35h5.store.sample_files import Parts, find_parts
from sd35h5.store.schema import variable

MAX_OPEN = 8  # runs that are kept open
TOO_LARGE = "reading it takes more memory than a reader may have: it is damaged, or made to exhaust readers"


class _Files:
    """The runs that this process holds open; one that changed is opened anew."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source, self._sink = source, sink
        self._open: dict[str, tuple[list[int], Parts]] = {}

    def get(self, path: str, mark: list[int], far: dict[str, Any] | None = None) -> Parts:
        """The run at a path, or in the file elsewhere that is told of."""
        held = self._open.pop(path, None)
        if held is not None and held[0] != mark:
            held[1].close()
            held = None
        if held is None:
            held = (mark, self._found(Path(path), far))
            if len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open)))[1].close()
        self._open[path] = held
        return held[1]

    def _found(self, path: Path, far: dict[str, Any] | None) -> Parts:
        if far is None:
            return find_parts(path)
        fetched = FetchedFile(far, self._source, self._sink)
        return Parts(fetched, [fetched], None)


def describe(parts: Parts) -> dict[str, Any]:
    """Everything of a run but the values of its variables."""
    return {
        "name": parts.name,
        "samples": [index for index, _, _ in parts.sources],
        "planned": parts.planned,
        "attributes": parts.attributes,
        "provenance": parts.provenance,
        "config": parts.config,
        "variables": list(parts.variables),
        "scales": {name: values.tolist() for name, values in parts.scales.items()},
    }


def values(parts: Parts, name: str, wanted: list[list[int]]) -> np.ndarray:
    """The selected positions of a variable, the fill value where a file lacks it."""
    spec = variable(name)
    lists = tuple(np.array(positions, np.int64) for positions in wanted)
    out = np.full([len(positions) for positions in lists], fill_of(spec), numpy_dtype(spec))
    parts.read_into(out, spec, lists)
    return out


def answer(files: _Files, request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
    """Answer a request: what goes into the line of JSON, and the numbers whose bytes follow it."""
    parts = files.get(request["path"], request["mark"], request.get("far"))
    if request.get("uuid", uuid := parts.attributes.get("file_uuid", "")) != uuid:
        raise StoreError(f"{parts.name} is another file than when it was opened: open it again")
    if "of" in request:  # a capture may have gone on since another reader told of it
        parts = parts.of_samples(request["of"])
    match request["ask"]:
        case "describe":
            return describe(parts), None
        case "bytes":
            return {"value": parts.bytes_on_disk(request["name"])}, None
        case "stored":
            return {"value": parts.is_stored(request["name"], request["sample"])}, None
        case "chunks":
            return {"value": parts.chunks(request["name"])}, None
        case "summaries":
            return {"value": parts.summaries()}, None
        case "values":
            found = values(parts, request["name"], request["wanted"])
            if found.dtype == object:
                return {"texts": found.ravel().tolist()}, None
            return {}, np.ascontiguousarray(found)
    raise ValueError(request["ask"])


def serve(source: BinaryIO, sink: BinaryIO, seconds: int) -> None:
    """Answer requests until there are none."""
    files = _Files(source, sink)
    for line in source:
        _limit_cpu(seconds)
        numbers = None
        try:
            told, numbers = answer(files, json.loads(line))
            head = json.dumps(told)
        except Sd35h5Error as error:
            is_missing = isinstance(error, StoreNotFoundError)
            head, numbers = json.dumps({"error": str(error), "missing": is_missing}), None
        except MemoryError:
            head, numbers = json.dumps({"error": TOO_LARGE}), None
        except Exception as error:  # whatever a damaged file makes of h5py: the other side shows one sentence
            path = Path(json.loads(line)["path"])
            head, numbers = json.dumps({"error": f"{path.name} cannot be read: {unread(path, error)}"}), None
        sink.write(head.encode() + b"\n")
        if numbers is not None and numbers.size:
            sink.write(memoryview(numbers).cast("B"))
        sink.flush()


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: the other side's wall clock is the only limit
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _limit_cpu(seconds: int) -> None:
    """Allow so many seconds from now: a reader that hangs ends even if the process that asks is gone."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 2, hard))


def main() -> int:
    """Serve stdin; what libraries print goes nowhere, never between the answers."""
    memory, seconds = map(int, sys.argv[1:])
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as sink:
        with open(os.devnull, "wb") as nowhere:  # nobody listens once it is ready
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
        _limit(memory)
        sink.write(READY)
        sink.flush()
        serve(sys.stdin.buffer, sink, seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
