"""Safetensors and GGUF files by their headers: which tensors they hold, whether they are whole. Torch-free.

Nothing is unpickled: a file of another kind is refused by its first bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sd35h5.errors import ConfigError
from sd35h5.gates.wrappers import unwrapped
from sd35h5.weights.quantised_files.gguf_header import BLOCKS, MAGIC, is_gguf, packed_bytes, read_header

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
DTYPE_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
PICKLED_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
_MAX_HEADER = 100 << 20
_HASH_IS_QUICK = 64 << 20  # smaller files are hashed every time: no file is put beside them


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, as the header tells it.

    Args:
        offset: of its first byte in the file.
        name: its key in the file, where wrappers were taken off.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    name: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in its file."""
        if self.dtype in BLOCKS:
            return packed_bytes(self.dtype, self.shape)
        return ITEM_BYTES.get(self.dtype, 0) * math.prod(self.shape)

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """The tensor's bytes as stored, from `start` on, at most `size` of them."""
        left = self.nbytes - start
        with self.file.open("rb") as stream:
            stream.seek(self.offset + start)
            return stream.read(left if size is None else min(size, left))


def read_entries(files: Iterable[Path]) -> dict[str, Entry]:
    """Read the headers. Returns: the tensors of all files by key, without the wrappers that stand in it.

    Raises:
        ConfigError: pickled, truncated or otherwise neither safetensors nor GGUF, or a key that comes twice.
    """
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in _read_header(file).items():
            if (key := unwrapped(name)) in entries:
                other = entries[key]
                raise ConfigError(
                    f"{key} is in {file} twice, as {other.name} and as {name}"
                    if other.file == file
                    else f"{key} is in both {other.file.name} and {file.name} of {file.parent}"
                )
            entries[key] = replace(entry, name=name)
    return entries


def pickled_sentence(file: Path) -> str:
    """Why a pickled file is refused."""
    return (
        f"{file} is a pickled PyTorch file, which can run code when it is read: nothing is unpickled here; "
        "get or make a .safetensors file of it"
    )


def read_metadata(file: Path) -> dict[str, str]:
    """What a file says of itself beside its tensors; the header was checked by `read_entries`."""
    if is_gguf(file):
        return read_header(file)[1]
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    told = header.get("__metadata__")
    return {str(name): str(value) for name, value in told.items()} if isinstance(told, dict) else {}


def _read_header(file: Path) -> dict[str, Entry]:
    """Read and check one file's header, whole and against the file's size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start.startswith(MAGIC):
            stored = read_header(file)[0]
            return {each.name: Entry(file, each.kind, each.shape, each.offset) for each in stored}
        length = int.from_bytes(start, "little")
        is_header = len(start) == 8 and 2 <= length <= _MAX_HEADER
        if file.suffix in PICKLED_SUFFIXES or (
            not is_header and re.match(rb"PK\x03\x04|\x80[\x02-\x05]", start)
        ):
            raise ConfigError(pickled_sentence(file))
        if start.startswith(b"version "):
            raise ConfigError(f"{file} is a git-lfs pointer, not the weights: fetch them with `git lfs pull`")
        if not is_header:
            raise ConfigError(f"{file} is no safetensors file: it does not begin with a header of tensors")
        text = stream.read(length)
    if len(text) < length:
        raise ConfigError(f"{file} is truncated: it ends within its header, after {size} bytes")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries, end = {}, 0
        for key, item in header.items():
            begin, stop = item["data_offsets"]
            shape = tuple(int(side) for side in item["shape"])
            entry = Entry(file, item["dtype"], shape, 8 + length + begin)
            if ITEM_BYTES.get(entry.dtype, 0) * math.prod(entry.shape) not in (0, stop - begin):
                raise ConfigError(
                    f"{file} is damaged: {key} of shape {entry.shape} does not fill {stop - begin} bytes"
                )
            entries[key], end = entry, max(end, stop)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file} is no safetensors file: its header is not a table of tensors") from error
    if size < 8 + length + end:
        raise ConfigError(
            f"{file} is truncated: its header tells of {8 + length + end} bytes, it has {size}; get it again"
        )
    if not entries:
        raise ConfigError(f"{file} holds no tensors")
    return entries


def stored_dtypes(entries: Iterable[Entry]) -> str:
    """The dtypes in which weights are stored, the commonest first: `float16`, `float8_e4m3fn, float32`."""
    counts: dict[str, int] = {}
    for entry in entries:
        if name := f"GGUF {entry.dtype}" if entry.dtype in BLOCKS else DTYPE_NAMES.get(entry.dtype):
            counts[name] = counts.get(name, 0) + math.prod(entry.shape)
    return ", ".join(sorted(counts, key=counts.__getitem__, reverse=True))


def sha256_of(file: Path, quick: int = _HASH_IS_QUICK) -> str:
    """The file's sha256, kept beside it as FILE.sha256.json, since hashing 16 GB takes a minute.

    The hub's cache is not written to: there a large file is a link to one that is named by its sha256.
    Where the folder cannot be written, the hash is made anew each time.

    Args:
        quick: files of fewer bytes are hashed every time.
    """
    if file.is_symlink() and re.fullmatch("[0-9a-f]{64}", file.resolve().name):
        return file.resolve().name
    state = file.stat()
    mark = {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
    beside = file.with_name(file.name + ".sha256.json")
    if known := _known_hash(beside, mark):
        return known
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if state.st_size >= quick:
        try:
            beside.write_text(json.dumps({"sha256": digest, **mark}) + "\n", encoding="utf-8")
        except OSError:  # a read-only folder: only slower the next time
            return digest
    return digest


def told_of(files: Iterable[Path]) -> list[dict[str, object]]:
    """Name, size and sha256 of files."""
    return [{"name": file.name, "size": file.stat().st_size, "sha256": sha256_of(file)} for file in files]


def _known_hash(beside: Path, mark: Mapping[str, int]) -> str | None:
    try:
        known = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(known, dict) or {name: known.get(name) for name in mark} != mark:
        return None
    digest = str(known.get("sha256"))
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else None
