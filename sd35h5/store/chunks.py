"""One block as HDF5 keeps it on disk: padded to its chunk, byte-shuffled, deflated, check-summed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sd35h5.store.schema import GZIP_LEVEL

try:  # the same zlib stream as zlib's, five times as fast
    from isal.isal_zlib import compress, decompressobj
    from isal.isal_zlib import error as DeflateError
except ImportError:
    from zlib import compress, decompressobj
    from zlib import error as DeflateError

_ROW = 256  # words: the largest row whose weighted sum fits 32 bits


def encode_chunk(block: np.ndarray, chunk: tuple[int, ...], fill: float | int) -> bytes:
    """Bytes of a chunk after the filters shuffle, gzip and fletcher32, for a direct chunk write.

    Args:
        block: little-endian numbers, cut off at the end of the variable.
        chunk: shape of a whole chunk; what the block lacks of it is `fill`.
    """
    if block.shape != chunk:
        whole = np.full(chunk, fill, block.dtype)
        whole[tuple(slice(0, length) for length in block.shape)] = block
        block = whole
    deflated = compress(shuffle(block), GZIP_LEVEL)
    return deflated + fletcher32(deflated).to_bytes(4, "little")


def decode_chunk(
    data: bytes, chunk: tuple[int, ...], dtype: np.dtype, within: Sequence[slice | np.ndarray] = ()
) -> np.ndarray:
    """The chunk again, as HDF5 would read it, or a part of it; a block that inflates to more than a chunk is refused.

    Args:
        within: the part along each dimension: slices, or lists of positions along all.
    Raises:
        ValueError: the checksum is that of other bytes, or they are another number of values.
    """
    if fletcher32(data[:-4]).to_bytes(4, "little") != data[-4:]:
        raise ValueError("the checksum of the chunk is that of other bytes")
    length = math.prod(chunk) * dtype.itemsize
    try:
        inflated = decompressobj().decompress(data[:-4], length + 1)
    except DeflateError as error:
        raise ValueError("the chunk is not deflated as gzip does it") from error
    if len(inflated) != length:
        raise ValueError("the chunk holds another number of values")
    planes = np.frombuffer(inflated, np.uint8).reshape(dtype.itemsize, *chunk)
    if within and not isinstance(within[0], slice):
        planes = planes[np.ix_(np.arange(dtype.itemsize), *within)]
    elif within:
        planes = planes[(slice(None), *within)]
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view(dtype)[..., 0]


def shuffle(block: np.ndarray) -> bytes:
    """Bytes of numbers, all first bytes before all second ones, as HDF5's shuffle filter orders them."""
    planes = np.ascontiguousarray(block).view(np.uint8).reshape(-1, block.dtype.itemsize).T
    return planes.tobytes()


def fletcher32(data: bytes) -> int:
    """HDF5's Fletcher-32: sums of big-endian 16-bit words modulo 65,535, which stands for 0 after any word.

    Zeros in front change neither sum, so that the words fill whole rows. Modulo 65,535 a factor of 256 swaps
    a word's bytes: the sums of little-endian words, which numpy need not swap, are swapped at the end.
    """
    odd = len(data) % 2
    padded = bytes(-(len(data) + odd) % (2 * _ROW)) + data + bytes(odd)
    rows = np.frombuffer(padded, "<u2").reshape(-1, _ROW)
    sums = rows.sum(axis=1, dtype=np.uint32).astype(np.uint64)
    weights = np.arange(_ROW, 0, -1, dtype=np.uint32)
    weighted = np.einsum("ij,j->i", rows, weights, dtype=np.uint32, casting="safe")
    rows_after = np.arange(len(rows) - 1, -1, -1, dtype=np.uint64)
    second = int(weighted.sum(dtype=np.uint64)) + _ROW * int(np.dot(sums, rows_after))
    return _folded(second) << 16 | _folded(int(sums.sum()))


def _folded(total: int) -> int:
    """The sum of swapped words modulo 65,535, from that of the words."""
    rest = (total - 1) % 65535 + 1 if total else 0
    return (rest & 255) << 8 | rest >> 8
