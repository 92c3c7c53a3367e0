"""Blocks of a sample on their way into another file: copied as they are where that is possible, else cut anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import h5py
import numpy as np

from sd35h5.errors import Sd35h5Error, StoreError
from sd35h5.store.blocks import block_hash, extent, fill_of, is_all_fill, origins
from sd35h5.store.bounded_queue import Drain
from sd35h5.store.chunks import decode_chunk, encode_chunk
from sd35h5.store.opening import DAMAGED
from sd35h5.store.sample_files import read_hyperslab
from sd35h5.store.schema import Variable
from sd35h5.store.seals.storage_rules import FILTERS, filters_of
from sd35h5.store.sharing.room import Room

Pick = slice | np.ndarray


@dataclass(frozen=True)
class Piece:
    """Along one dimension, the part of a block that comes from one chunk: its start, what of it, where to."""

    start: int
    inside: Pick
    into: Pick
    is_whole: bool  # the chunk, and nothing else is in the block


@dataclass(frozen=True)
class Row:
    """One sample of a variable, on its way.

    Args:
        position, row: of the sample in the source and in the target.
        places: positions along each dimension but `sample` that the target holds.
        kept: bool, broadcastable to the target's row: where values stay; elsewhere they become fill. None: all stay.
    """

    source: h5py.Dataset
    target: h5py.Dataset
    room: Room
    spec: Variable
    position: int
    row: int
    places: tuple[np.ndarray, ...]
    kept: np.ndarray | None = None


def chunks_for(source: h5py.Dataset, lengths: Sequence[int]) -> tuple[int, ...] | None:
    """The chunks of a variable that is cut to these lengths: the source's, cut off; None for this version's.

    Args: lengths: of all dimensions, `sample` too.
    """
    if source.chunks is None or source.chunks[0] != 1:
        return None
    return tuple(min(chunk, length) for chunk, length in zip(source.chunks, lengths, strict=True))


def copy_row(one: Row, drain: Drain, is_hashed: bool) -> dict[tuple[int, ...], str]:
    """Hand the blocks of a sample to threads. Returns: their hashes by origin, filled in by the threads.

    Args: is_hashed: False copies without inflating what can be copied, and the hashes stay empty.
    """
    hashes: dict[tuple[int, ...], str] = {}
    for _, job, nbytes in row_jobs(one, hashes if is_hashed else None):
        drain.submit(job, nbytes)
    return hashes


def row_jobs(
    one: Row, hashes: dict[tuple[int, ...], str] | None = None
) -> Iterator[tuple[tuple[int, ...], Callable[[], None], int]]:
    """What is to be done for each block of a sample. Yields: its origin, a job, and how many bytes that holds.

    Args: hashes: is filled in by the jobs, unless it is None.
    """
    chunk, shape, of = one.target.chunks, (1, *one.target.shape[1:]), one.source
    is_ours = of.chunks is not None and of.chunks[0] == 1 and filters_of(of) == FILTERS
    by_chunk = [
        list(_blocks(*along))
        for along in zip(one.places, chunk[1:], (of.chunks or of.shape)[1:], of.shape[1:], strict=True)
    ]
    for origin in origins(tuple(slice(0, length) for length in shape), chunk):
        whole = extent(origin, chunk, shape)
        kept = _within(one.kept, origin, whole)
        if kept is not None and not kept.any():
            continue
        kept = None if kept is None or kept.all() else kept
        starts = zip(by_chunk, origin[1:], chunk[1:], strict=True)
        pieces = [blocks[start // length] for blocks, start, length in starts] if is_ours else None
        job = partial(_try_block, one, origin, whole, pieces, kept, hashes)
        yield origin, job, int(np.prod(whole)) * one.target.dtype.itemsize


def _try_block(one: Row, *block: object) -> None:
    """Copy one block. Raises: StoreError where its chunks are no chunks."""
    try:
        _copy_block(one, *block)
    except ValueError as error:
        if isinstance(error, Sd35h5Error):
            raise
        name = Path(one.source.file.filename).name
        raise StoreError(f"{name} cannot be read: {error}; {DAMAGED}") from error


def _copy_block(
    one: Row, origin: tuple[int, ...], shape: tuple[int, ...], pieces: list[list[Piece]] | None,
    kept: np.ndarray | None, hashes: dict[tuple[int, ...], str] | None,
) -> None:  # fmt: skip
    """Copy one block; in a thread, where inflating, hashing and deflating let the others work.

    Args: pieces: of the block along each dimension but `sample`; None where the chunks are not as we write them.
    """
    place, of = (one.row, *origin[1:]), one.source
    whole = pieces is not None and all(len(along) == 1 and along[0].is_whole for along in pieces)
    if whole and kept is None and of.chunks == one.target.chunks:
        data = _stored(one, tuple(along[0].start for along in pieces))
        if data is not None:
            _write(one, place, data)
            if hashes is not None:
                within = tuple(slice(0, length) for length in shape)
                hashes[origin] = block_hash(one.spec, decode_chunk(data, of.chunks, of.dtype, within))
        return
    block = _read(one, origin, shape) if pieces is None else _gathered(one, shape, pieces)
    if kept is not None:
        block = np.where(kept, block, np.array(fill_of(one.spec), block.dtype))
    if not is_all_fill(one.spec, block):
        _write(one, place, encode_chunk(block, one.target.chunks, fill_of(one.spec)))
        if hashes is not None:
            hashes[origin] = block_hash(one.spec, block)


def _write(one: Row, place: tuple[int, ...], data: bytes) -> None:
    one.room.write_chunk(one.target.id, place, data)


def _gathered(one: Row, shape: tuple[int, ...], pieces: list[list[Piece]]) -> np.ndarray:
    """A block from the chunks that it lies in."""
    block = np.full(shape, fill_of(one.spec), one.source.dtype)
    for combined in product(*pieces):
        data = _stored(one, tuple(piece.start for piece in combined))
        if data is not None:
            inside = _key([piece.inside for piece in combined])
            part = decode_chunk(data, one.source.chunks, one.source.dtype, inside)
            into = _key([piece.into for piece in combined])
            block[tuple(into) if isinstance(into[0], slice) else np.ix_(*into)] = part
    return block


def _key(picks: list[Pick]) -> list[Pick]:
    """Picks of a sample's block: slices, or lists along all dimensions where one is a list."""
    if all(isinstance(pick, slice) for pick in picks):
        return [slice(0, 1), *picks]
    return [np.arange(1), *(np.arange(p.start, p.stop) if isinstance(p, slice) else p for p in picks)]


def _read(one: Row, origin: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """A block of a file that another tool wrote, through HDF5's own filters."""
    wanted = [p[o : o + n] for p, o, n in zip(one.places, origin[1:], shape[1:], strict=True)]
    return read_hyperslab(one.source, (np.array([one.position]), *wanted))


def _stored(one: Row, start: tuple[int, ...]) -> bytes | None:
    """A chunk of the source as it lies there, None where nothing was written."""
    place = (one.position, *start)
    if one.source.id.get_chunk_info_by_coord(place).byte_offset is None:
        return None
    mask, data = one.source.id.read_direct_chunk(place)
    if mask:
        raise ValueError("a chunk leaves out a filter")
    return data


def _within(kept: np.ndarray | None, origin: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray | None:
    if kept is None:
        return None
    spans = zip(kept.shape, origin, shape, strict=True)
    return kept[tuple(slice(o, o + n) if length > 1 else slice(None) for length, o, n in spans)]


def _blocks(places: np.ndarray, length: int, chunk: int, size: int) -> Iterator[list[Piece]]:
    """The pieces of each block along one dimension.

    Args:
        places: positions in the source, ascending.
        length, chunk: of a chunk in the target and in the source.
        size: of the source.
    """
    for first in range(0, len(places), length):
        block = places[first : first + length]
        pieces = []
        for number in np.unique(block // chunk).tolist():
            into = np.flatnonzero(block // chunk == number)
            inside = block[into] - number * chunk
            is_whole = len(into) == len(block) == min(chunk, size - number * chunk)
            pieces.append(Piece(number * chunk, _as_slice(inside), _as_slice(into), is_whole))
        yield pieces


def _as_slice(places: np.ndarray) -> Pick:
    """Neighbours as a slice, which copies nothing."""
    if len(places) == int(places[-1]) - int(places[0]) + 1:
        return slice(int(places[0]), int(places[-1]) + 1)
    return places
