"""Blocks of a file elsewhere, kept: neighbours that are missing come with one request, each block once.

fsspec has caches of its own; of those that keep several places of a file, each asks for every block by itself, and each
belongs to one open file, while here a checker and some readers look at the same one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

BLOCK_BYTES = 256 << 10  # of METADATA_BLOCK_BYTES: what lists a file is one
MAX_BYTES = 64 << 20

Span = tuple[int, int]  # first byte, byte after the last


class BlockCache:
    """Blocks by number, those that were not asked for longest forgotten first.

    Args:
        size: bytes of the file.
        fetch: spans -> their bytes, each a request; it may fetch them at the same time.
    """

    def __init__(
        self, size: int, fetch: Callable[[Sequence[Span]], list[bytes]], max_bytes: int = MAX_BYTES
    ) -> None:
        self.size, self._fetch = size, fetch
        self._most = max(1, max_bytes // BLOCK_BYTES)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, data: bytes) -> None:
        """Keep the beginning of the file, as far as it fills blocks."""
        for number in range(
            len(data) // BLOCK_BYTES if len(data) < self.size else -(-len(data) // BLOCK_BYTES)
        ):
            self._blocks[number] = data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of a span, cut off at the end of the file."""
        return self.read_all([(start, stop)])[0]

    def read_all(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of several spans; what is missing of them is fetched together."""
        spans = [(max(0, start), min(stop, self.size)) for start, stop in spans]
        with self._lock:
            blocks = self._held({number for span in spans for number in _numbers(span)})
            return [_joined(blocks, span) for span in spans]

    def _held(self, wanted: set[int]) -> dict[int, bytes]:
        found = {number: self._blocks[number] for number in wanted if number in self._blocks}
        runs = list(_runs(sorted(wanted - set(found))))
        asked = [(first * BLOCK_BYTES, min((last + 1) * BLOCK_BYTES, self.size)) for first, last in runs]
        for (first, last), data in zip(runs, self._fetch(asked) if asked else (), strict=True):
            for place, number in enumerate(range(first, last + 1)):
                found[number] = data[place * BLOCK_BYTES : (place + 1) * BLOCK_BYTES]
        for number in sorted(found):
            self._blocks[number] = found[number]
            self._blocks.move_to_end(number)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return found


def _numbers(span: Span) -> range:
    start, stop = span
    return range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)) if stop > start else range(0)


def _runs(numbers: Iterable[int]) -> Iterable[Span]:
    """First and last of each run of neighbours in ascending numbers."""
    first = last = None
    for number in numbers:
        if last is not None and number == last + 1:
            last = number
            continue
        if last is not None:
            yield first, last
        first = last = number
    if last is not None:
        yield first, last


def _joined(blocks: dict[int, bytes], span: Span) -> bytes:
    start, stop = span
    numbers = _numbers(span)
    if not numbers:
        return b""
    data = b"".join(blocks[number] for number in numbers)
    begin = start - numbers[0] * BLOCK_BYTES
    return data[begin : begin + stop - start]
