"""GGUF files by their headers: which tensors they hold and where, each count and length checked by the file's size.

Nothing of the weights is read, and a header from anywhere can be given: it is believed only as far as the file goes.
The format is llama.cpp's, versions 2 and 3. Torch-free.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sd35h5.errors import ConfigError

MAGIC = b"GGUF"
BLOCKS = {  # what is quantised and read, by diffusers: type -> (weights of a block, its bytes)
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84),
    "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
}  # fmt: skip
_PLAIN = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "I16": 2, "I32": 4, "I64": 8}
_TYPES = {  # all that the format has had, by number
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 4: "Q4_2", 5: "Q4_3", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS",
    18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_MAX_HEADER = 100 << 20
_MAX_TEXT = 1 << 20
_MAX_DIMENSIONS, _MAX_DEPTH, _MAX_TEXTS = 4, 4, 1 << 20
_MAX_ALIGNMENT = 1 << 16


@dataclass(frozen=True)
class Stored:
    """One tensor: its type's name, its shape as torch has it, and the offset of its first byte in the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in its file."""
        return packed_bytes(self.kind, self.shape)


def packed_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes that weights of this type and shape take."""
    weights, size = BLOCKS.get(kind) or (1, _PLAIN[kind])
    return math.prod(shape) // weights * size


def is_gguf(file: Path) -> bool:
    """Whether a file begins as a GGUF file does."""
    with file.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def read_header(file: Path) -> tuple[list[Stored], dict[str, str]]:
    """Read a header. Returns: the tensors, and the texts and numbers by which the file describes itself.

    Raises:
        ConfigError: damaged or truncated, one of several parts, or weights of a type that is not read, by its name.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header = _Header(file, stream, min(size, _MAX_HEADER))
        tensors, told = _read(header, size)
    if int(told.get("split.count", "1") or 1) > 1:
        raise ConfigError(
            f"{file} is one of {told['split.count']} parts: join them with llama-gguf-split --merge"
        )
    return tensors, told


class _Header:
    """The bytes of a header in turn; whoever asks for more than there are gets a sentence."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self.file, self._stream, self.size, self.at = file, stream, size, 0

    def damaged(self, why: str) -> ConfigError:
        return ConfigError(f"{self.file} is damaged or no GGUF file: {why}; get it again")

    def need(self, count: int) -> None:
        """Refuse what must take more bytes than are left."""
        if count > self.size - self.at:
            raise self.damaged(f"its header asks for {count} bytes at byte {self.at} of {self.size}")

    def take(self, count: int) -> bytes:
        self.need(count)
        self.at += count
        return self._stream.read(count)

    def skip(self, count: int) -> None:
        self.need(count)
        self.at += count
        self._stream.seek(self.at)

    def number(self, form: str) -> int | float | bool:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        length = self.number("<Q")
        if length > _MAX_TEXT:
            raise self.damaged(f"a text of {length} bytes at byte {self.at}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"a text at byte {self.at} is no UTF-8") from error

    def value(self, depth: int = 0) -> str:
        """A value of any type as text; of arrays nothing, which are passed over."""
        kind = self.number("<I")
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            self._pass_array(depth)
            return ""
        if kind not in _SCALARS:
            raise self.damaged(f"a value of the unknown type {kind} at byte {self.at}")
        return str(self.number(_SCALARS[kind]))

    def _pass_array(self, depth: int) -> None:
        kind, count = self.number("<I"), self.number("<Q")
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]))
            return
        self.need(8 * count)
        if kind != _TEXT or count > _MAX_TEXTS:
            raise self.damaged(f"an array of {count} values of type {kind} at byte {self.at}")
        for _ in range(count):
            self.skip(self.number("<Q"))


def _read(header: _Header, size: int) -> tuple[list[Stored], dict[str, str]]:
    if header.take(4) != MAGIC:
        raise header.damaged("it does not begin with GGUF")
    version = header.number("<I")
    if version not in (2, 3):
        little = int.from_bytes(version.to_bytes(4, "little"), "big") not in (2, 3)
        what = f"version {version}" if little else "big-endian numbers"
        raise ConfigError(
            f"{header.file} is a GGUF file of {what}, which is not read: convert it to version 3"
        )
    tensors, values = header.number("<Q"), header.number("<Q")
    header.need(24 * tensors + 13 * values)  # the least that they take
    told: dict[str, str] = {}
    for _ in range(values):
        name = header.text()
        told[name] = header.value()
    found = [_tensor(header) for _ in range(tensors)]
    alignment = int(told.get("general.alignment", "32") or 0)
    if not 8 <= alignment <= _MAX_ALIGNMENT or alignment % 8:
        raise header.damaged(f"its alignment is {alignment}")
    start = -(-header.at // alignment) * alignment
    return _placed(header, found, start, alignment, size), told


def _tensor(header: _Header) -> Stored:
    """One tensor's name, type and shape; its offset counts from the end of the header."""
    name, rank = header.text(), header.number("<I")
    if not 1 <= rank <= _MAX_DIMENSIONS:
        raise header.damaged(f"{name} has {rank} dimensions")
    sides = [header.number("<Q") for _ in range(rank)]
    number, offset = header.number("<I"), header.number("<Q")
    kind = _TYPES.get(number, f"number {number}")
    if kind not in BLOCKS and kind not in _PLAIN:
        raise ConfigError(
            f"{header.file} holds {name} in GGUF's type {kind}, which is not read: give the file in one of "
            f"{', '.join(BLOCKS)}, BF16, F16 or F32"
        )
    if 0 in sides or sides[0] % (BLOCKS.get(kind) or (1,))[0]:
        raise header.damaged(f"{name} of shape {tuple(sides[::-1])} cannot be {kind}")
    return Stored(name, kind, tuple(sides[::-1]), offset)


def _placed(header: _Header, found: list[Stored], start: int, alignment: int, size: int) -> list[Stored]:
    """The tensors with offsets from the beginning of the file, which must hold them all, side by side."""
    end, names = 0, set()
    for each in sorted(found, key=lambda stored: stored.offset):
        if each.offset < end or each.offset % alignment:
            raise header.damaged(
                f"{each.name} begins at byte {each.offset} of the data, where there is another"
            )
        end = each.offset + each.nbytes
        if each.name in names:
            raise header.damaged(f"it holds {each.name} twice")
        names.add(each.name)
    if start + end > size:
        raise ConfigError(
            f"{header.file} is truncated: its header tells of {start + end} bytes, it has {size}; get it again"
        )
    if not found:
        raise ConfigError(f"{header.file} holds no tensors")
    return [Stored(each.name, each.kind, each.shape, start + each.offset) for each in found]
