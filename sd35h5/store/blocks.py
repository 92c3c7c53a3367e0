"""Blocks: the pieces that a variable is cut into, their rounding, their fill and their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from sd35h5.errors import StoreError
from sd35h5.store.schema import MANTISSA_BITS, Variable
from sd35h5.store.showable import forbidden

BY_WRITER = ("samples/sealed", "samples/content_sha256")
Block = tuple[tuple[int, ...], np.ndarray]  # origin, values
_BATCH_BYTES = 1 << 18


def numpy_dtype(spec: Variable) -> np.dtype:
    """Little-endian dtype of a variable in memory; texts are objects."""
    return np.dtype(object) if spec.is_text else np.dtype(spec.dtype).newbyteorder("<")


def fill_of(spec: Variable) -> float | int | str:
    """What a position holds that was never written."""
    if spec.is_text:
        return ""
    return 0 if spec.fill is None else spec.fill


def origins(where: tuple[slice, ...], chunk: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """First positions of all blocks that a selection touches, in row-major order."""
    return product(*(range(w.start // c * c, w.stop, c) for w, c in zip(where, chunk, strict=True)))


def extent(origin: tuple[int, ...], chunk: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the block at `origin`: a chunk, cut off at the end of the variable."""
    return tuple(min(c, s - o) for o, c, s in zip(origin, chunk, shape, strict=True))


def cast(spec: Variable, array: np.ndarray, copies: bool) -> np.ndarray:
    """Values in the type of their variable; `copies` them also where they have it.

    Raises:
        StoreError: a type or a value that the variable cannot hold.
    """
    if spec.is_text:
        if wrong := [text for text in array.ravel() if not isinstance(text, str) or forbidden(text)]:
            raise StoreError(f"{spec.name} holds texts without control characters, not {wrong[0]!r}")
        return array
    dtype = numpy_dtype(spec)
    if array.dtype.kind not in ("biuf" if dtype.kind == "f" else "biu"):
        raise StoreError(f"{spec.name} is {spec.dtype}, the values are {array.dtype}")
    # copied where the caller may change its array while threads read this one
    typed = array.astype(dtype, copy=copies)
    if dtype.kind != "f" and not np.array_equal(typed, array):
        raise StoreError(f"{spec.name} is {spec.dtype}, the values span {array.min()}..{array.max()}")
    return typed


def runs(positions: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Neighbours in a list of positions that follow one another: (places in the list, positions) of each run."""
    start = 0
    for place in range(1, len(positions) + 1):
        if place == len(positions) or positions[place] != positions[place - 1] + 1:
            yield slice(start, place), slice(positions[start], positions[start] + place - start)
            start = place


def are_whole_blocks(where: tuple[slice, ...], chunk: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a selection cuts no block."""
    return all(
        w.start % c == 0 and (w.stop % c == 0 or w.stop == n)
        for w, c, n in zip(where, chunk, shape, strict=True)
    )


def whole_blocks(
    where: tuple[slice, ...], chunk: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """(origin, its part of the values) of each block; little Python a block, as threads wait for it."""
    index = [slice(None)] * len(where)
    cut = [(d, w.start, c) for d, (w, c) in enumerate(zip(where, chunk, strict=True)) if w.stop - w.start > c]
    for origin in origins(where, chunk):
        for dim, start, length in cut:
            index[dim] = slice(origin[dim] - start, origin[dim] - start + length)
        yield origin, tuple(index)


def batches(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Blocks in lists of a quarter of a megabyte or more: what a thread takes at a time."""
    batch: list[Block] = []
    size = 0
    for block in blocks:
        batch.append(block)
        size += block[1].nbytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def round_mantissa(values: np.ndarray, bits: int = MANTISSA_BITS) -> np.ndarray:
    """Round float32 to `bits` explicit mantissa bits, half to even; NaN and infinities stay.

    Returns: float32, a copy of the same shape; the relative error is at most 2**-(bits + 1).
    """
    raw = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    drop = np.uint32(23 - bits)
    half = np.uint32((1 << (22 - bits)) - 1)
    rounded = (raw + half + ((raw >> drop) & np.uint32(1))) >> drop << drop
    return np.where(np.isfinite(values), rounded, raw).view("<f4")


def is_all_fill(spec: Variable, block: np.ndarray) -> bool:
    """Whether a block holds nothing but the fill value, as a block that was never written does."""
    fill = fill_of(spec)
    if fill != fill:  # NaN
        return bool(np.isnan(block.flat[0]) and np.isnan(block).all())
    return bool(block.flat[0] == fill and (block == fill).all())


def block_hash(spec: Variable, block: np.ndarray) -> str:
    """SHA-256 of one sample's block: its shape without the sample axis, then its values in row-major order.

    Numbers are little-endian; a text is its UTF-8 behind its length. "" stands for a block that is all fill.
    """
    if is_all_fill(spec, block):
        return ""
    digest = hashlib.sha256(f"{block.shape[1:]}".encode())
    if spec.is_text:
        texts = (str(text).encode() for text in block.ravel())
        digest.update(b"".join(b"%d:%s" % (len(text), text) for text in texts))
    else:
        digest.update(np.ascontiguousarray(block, dtype=numpy_dtype(spec)).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def content_hash(hashes: Mapping[str, Mapping[tuple[int, ...], str]]) -> str:
    """SHA-256 over the sorted lines `name origin hash` of all blocks of one sample that are not all fill.

    The origin leaves out the sample axis: a sample has the same hash in its sealed file and in a packed one.
    """
    lines = sorted(
        f"{name} {','.join(map(str, origin[1:]))} {digest}\n"
        for name, blocks in hashes.items()
        if name not in BY_WRITER
        for origin, digest in blocks.items()
        if digest
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()
