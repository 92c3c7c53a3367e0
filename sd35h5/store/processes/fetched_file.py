"""A file of which another process hands over the bytes: asked for in lines of output, they come on the input."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO

PIECE_BYTES = 64 << 10
MAX_PIECES = 128
WANTED_BYTES = 32 << 20  # at once: half of what the other side keeps


class FetchedFile(io.RawIOBase):
    """Read-only, for HDF5: small reads, of which it makes thousands, come in pieces that are kept.

    It has of `Path` what checker and readers use: `name`, `stat().st_size` and `open`.
    """

    def __init__(self, told: Mapping[str, Any], source: BinaryIO, sink: BinaryIO) -> None:
        self.name, self.size = str(told["name"]), int(told["size"])
        self._source, self._sink = source, sink
        self._position = 0
        self._pieces: OrderedDict[int, bytes] = OrderedDict()

    def stat(self) -> SimpleNamespace:
        """The length of the file, as st_size."""
        return SimpleNamespace(st_size=self.size)

    def open(self, mode: str = "rb") -> FetchedFile:
        """Another look at the same file, from its beginning."""
        return FetchedFile({"name": self.name, "size": self.size}, self._source, self._sink)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        )
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start = self._position
        stop = min(start + len(view), self.size)
        if stop <= start:
            return 0
        data = self._fetched(start, stop) if stop - start > PIECE_BYTES else self._of_pieces(start, stop)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def want(self, spans: Sequence[tuple[int, int]]) -> None:
        """Say what will be read next, so that it is fetched together."""
        asked: list[tuple[int, int]] = []
        room = WANTED_BYTES
        for start, stop in spans:
            if 0 <= start < stop <= self.size and (room := room - (stop - start)) >= 0:
                asked.append((start, stop))
        if len(asked) > 1:
            self._ask("want", asked, 1)

    def _of_pieces(self, start: int, stop: int) -> bytes:
        first = start // PIECE_BYTES
        data = b"".join(self._piece(number) for number in range(first, (stop - 1) // PIECE_BYTES + 1))
        return data[start - first * PIECE_BYTES : stop - first * PIECE_BYTES]

    def _piece(self, number: int) -> bytes:
        if number not in self._pieces:
            if len(self._pieces) >= MAX_PIECES:
                self._pieces.popitem(last=False)
            start = number * PIECE_BYTES
            self._pieces[number] = self._fetched(start, min(start + PIECE_BYTES, self.size))
        self._pieces.move_to_end(number)
        return self._pieces[number]

    def _fetched(self, start: int, stop: int) -> bytes:
        return self._ask("fetch", [(start, stop)], stop - start)

    def _ask(self, what: str, spans: list[tuple[int, int]], length: int) -> bytes:
        self._sink.write(json.dumps({what: spans}).encode() + b"\n")
        self._sink.flush()
        data = self._source.read(length)
        if len(data) != length:
            raise OSError("the bytes of the file come no more")
        return data
