"""The files behind a store, each selection of which is read once: for a few samples of which much is computed."""

from __future__ import annotations

from typing import Any

import numpy as np

from sd35h5.store.schema import Variable


class ReadOnce:
    """What sample_files.Parts tells and reads, remembering every value: let go of it with the samples."""

    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self._kept: dict[tuple[object, ...], np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parts, name)

    def __len__(self) -> int:
        return len(self._parts)

    def read_into(self, out: np.ndarray, spec: Variable, wanted: tuple[np.ndarray, ...]) -> None:
        """Fill `out`, from what was read before where that is the same."""
        key = (spec.name, *(positions.tobytes() for positions in wanted))
        if key in self._kept:
            out[...] = self._kept[key]
            return
        self._parts.read_into(out, spec, wanted)
        self._kept[key] = out.copy()
