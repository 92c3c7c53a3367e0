"""A file elsewhere as this process knows it: a name, a length, blocks; HDF5 is opened by other processes only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

from sd35h5.store.places.block_cache import BlockCache
from sd35h5.store.places.far_bytes import FarBytes

MAX_FETCH_BYTES, MAX_SPANS = 64 << 20, 1 << 14


class FarFile:
    """A file at an address, whose blocks are handed to the processes that check and read it.

    They have no network and no secrets: what they need of the file they ask for, in a line of their output.
    """

    def __init__(self, address: str, options: Mapping[str, Any] | None = None) -> None:
        self.bytes = FarBytes(address, options)
        self.name, self.size = self.bytes.name, self.bytes.size
        self.blocks = BlockCache(self.size, self.bytes.fetch)
        self.blocks.put(self.bytes.beginning)

    @property
    def told(self) -> dict[str, Any]:
        """What a process has to know of the file to ask for its bytes."""
        return {"name": self.name, "size": self.size}

    def hand(self, asked: Mapping[str, Any], sink: BinaryIO) -> bool:
        """Hand over what a line asks for; bytes, or one byte when what it wants is here. Returns: whether it asked.

        Raises: ValueError for nonsense; StoreError where the file cannot be fetched.
        """
        what = next((what for what in ("fetch", "want") if what in asked), None)
        if what is None:
            return False
        spans = [(int(start), int(stop)) for start, stop in asked[what]]
        if len(spans) > MAX_SPANS or sum(stop - start for start, stop in spans) > MAX_FETCH_BYTES:
            raise ValueError(what)
        if any(not 0 <= start <= stop <= self.size for start, stop in spans):
            raise ValueError(what)
        found = self.blocks.read_all(spans)
        for data in found if what == "fetch" else [b"\n"]:
            sink.write(data)
        sink.flush()
        return True


def is_question(line: bytes) -> dict[str, Any] | None:
    """What a line of a process asks for, None if it is an answer."""
    if not line.startswith((b'{"fetch"', b'{"want"')):
        return None
    asked = json.loads(line)
    return asked if isinstance(asked, dict) else None
