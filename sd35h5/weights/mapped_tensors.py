"""A component's tensors, mapped from its files: read when they are used, and never held."""

from __future__ import annotations

from contextlib import ExitStack

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sd35h5.errors import ConfigError
from sd35h5.weights.quantised_files.gguf_header import is_gguf
from sd35h5.weights.quantised_files.gguf_tensors import open_gguf
from sd35h5.weights.sources import Part

_LET_GO = 1 << 30  # bytes read from files that are then opened anew


def open_part(part: Part, stack: ExitStack) -> dict[str, Tensor]:
    """The part's tensors, mapped from their files: a page is read when it is used, and can be dropped."""
    state: dict[str, Tensor] = {}
    for path in part.files:
        if is_gguf(path):
            state |= open_gguf(path, {key: each for key, each in part.entries.items() if each.file == path})
            continue
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
            for key, entry in part.entries.items():
                if entry.file == path:
                    tensor, rows = file.get_tensor(entry.name or key), entry.shape[:1]
                    state[key] = tensor[: rows[0]] if rows else tensor  # fewer where gates were split off
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path} cannot be read as a safetensors file: {error}") from error
    return state


class Mapped:
    """A part's tensors, mapped from their files when asked for. Files are opened anew by the GB: the pages of what was
    read count as the process's memory as long as their file is open."""

    def __init__(self, part: Part) -> None:
        self._part, self._read = part, 0
        self._state: dict[str, Tensor] = {}

    def __getitem__(self, key: str) -> Tensor:
        if not self._state or self._read > _LET_GO:
            self._state, self._read = {}, 0
            with ExitStack() as stack:  # tensors hold their mapping
                self._state = open_part(self._part, stack)
        self._read += self._part.entries[key].nbytes
        return self._state[key]
