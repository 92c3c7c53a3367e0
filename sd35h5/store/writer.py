"""Write one sample into one sealed file, block by block."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import h5py
import numpy as np

from sd35h5.errors import StoreError
from sd35h5.store import schema
from sd35h5.store.blocks import (
    BY_WRITER,
    Block,
    are_whole_blocks,
    batches,
    block_hash,
    cast,
    content_hash,
    extent,
    fill_of,
    origins,
    round_mantissa,
    runs,
    whole_blocks,
)
from sd35h5.store.bounded_queue import Drain
from sd35h5.store.chunks import encode_chunk
from sd35h5.store.opening import reason
from sd35h5.store.packing import pack
from sd35h5.store.runs import begin_run, part_name, read_run, sealed_indices
from sd35h5.store.schema import SCALES, Variable, variable
from sd35h5.store.seals.file_seal import seal_file
from sd35h5.store.sharing.room import file_with_room
from sd35h5.store.sharing.temporaries import own_temporary
from sd35h5.store.skeleton import create_variable, publish, write_head, write_provenance

__all__ = ["Header", "SampleWriter", "begin_run", "pack", "read_run", "sealed_indices"]

_SYNC_EVERY = 8 << 20  # bytes
_DEFAULT_SCALES = {
    "query": np.arange(len(schema.QUERIES)),
    "group": np.arange(len(schema.GROUPS)),
    "encoder": np.arange(len(schema.ENCODERS)),
    "rgb": np.arange(3),
}


@dataclass(frozen=True)
class Header:
    """What is equal for every sample of one file."""

    attributes: Mapping[str, str]  # model_id, model_revision, model_shape, gate_type, gate_target, ...
    scales: Mapping[str, np.ndarray]  # scale name -> values
    provenance: Mapping[str, str] = field(
        default_factory=dict
    )  # config, environment, components, events, origin: JSON
    precision: str = "rounded"  # or "exact"

    def __post_init__(self) -> None:
        if self.precision not in ("rounded", "exact"):
            raise StoreError(f"precision is 'rounded' or 'exact', not '{self.precision}'")
        for what, names, known in (
            ("scale", self.scales, tuple(SCALES)),
            ("attribute", self.attributes, schema.MODEL_ATTRIBUTES),
            ("provenance text", self.provenance, schema.PROVENANCE),
        ):
            if unknown := sorted(set(names) - set(known)):
                raise StoreError(
                    f"the format has no {what} {', '.join(map(repr, unknown))}: it has {', '.join(known)}"
                )
        if "config" not in self.provenance:
            raise StoreError(
                "a header needs provenance['config']: the JSON of what the capture was asked for"
            )
        scales = {**_DEFAULT_SCALES, **self.scales}
        for name, values in scales.items():
            along = scales.get(SCALES[name].along)
            if np.ndim(values) != 1 or along is None or len(along) != len(values):
                raise StoreError(
                    f"scale '{name}' needs one value for each position along '{SCALES[name].along}'"
                )
            if (labels := SCALES[name].labels) and not np.isin(values, np.arange(len(labels))).all():
                raise StoreError(
                    f"scale '{name}' holds the flags 0..{len(labels) - 1} ({', '.join(labels)}) only"
                )


class SampleWriter:
    """One sample on its way to PARTS/000012.h5: values go in as they come, `seal()` makes the file appear.

    A block (the part of a variable that is one chunk) is handed to a few threads once it is full: they round,
    hash and deflate it and write it as a chunk. Only blocks that are partly filled are held in memory, and
    what waits for the threads, up to a bound: with a slow disk `put` waits. Use it from one thread at a time.

    Args:
        rounded_already: variables that are rounded in the file come rounded, say by the GPU.
        owned: what is put is never changed afterwards, so that it need not be copied.
    """

    def __init__(
        self, parts: Path, index: int, header: Header, rounded_already: bool = False, owned: bool = False
    ) -> None:
        self.path = Path(parts) / part_name(index)
        self._header = header
        self._rounds, self._copies = header.precision == "rounded" and not rounded_already, not owned
        self._pending: dict[str, dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]] = {}
        self._datasets: dict[str, h5py.Dataset] = {}  # h5py takes 0.3 ms to look one up by name
        self._hashes: dict[str, dict[tuple[int, ...], str]] = {}  # "" until the threads are done with it
        self._drain = Drain()
        scales = {**_DEFAULT_SCALES, **header.scales, "sample": np.array([index])}
        self.sizes = {name: len(values) for name, values in scales.items() if SCALES[name].is_dimension}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary, self._lock = own_temporary(self.path)
            self._file, self._room = file_with_room(self._temporary)
        except OSError as error:
            raise StoreError(
                f"sample {index} cannot be begun in {self.path.parent}: {reason(error)}"
            ) from error
        self._descriptor, self._unsynced = self._file.id.get_vfd_handle(), 0
        write_head(self._file, scales, header.attributes, header.provenance, kind="sample")

    def put(self, name: str, values: object, **at: int | Sequence[int]) -> None:
        """Write values of a variable at positions along named dimensions; the other dimensions are whole.

        Args:
            values: shaped as the dimensions that `at` does not name or for which it lists positions, in the
                file's order, without `sample`.
            at: one position, or a list of them.
        Raises: StoreError for an unknown name, position, shape or type, and for values that were put before.
        """
        spec = variable(name)
        if name in BY_WRITER:
            raise StoreError(f"{name} is written by seal(), not by put()")
        at = {dim: list(map(int, p)) if isinstance(p, Sequence) else int(p) for dim, p in at.items()}
        self._check_places(spec, at)
        array = self._checked(spec, values, at)
        listed = {dim: list(runs(p)) for dim, p in at.items() if isinstance(p, list)}
        for picks in product(*listed.values()):
            place = dict(zip(listed, picks, strict=True))
            where, here = [], []
            for dim in spec.dims:
                taken, there = place.get(dim, (slice(None), None))
                position = at.get(dim, slice(0, self.sizes[dim]))
                alone = slice(position, position + 1) if isinstance(position, int) else position
                where.append(there or alone)
                here.append(taken)
            self._scatter(spec, array[tuple(here)], tuple(where))

    def seal(
        self, events: Sequence[Mapping[str, object]] = (), provenance: Mapping[str, str] | None = None
    ) -> Path:
        """Write what is pending, the content hash and the seal; fsync, rename. Returns: the sealed file.

        Args:
            events: told in `provenance/events` behind those of the header. provenance: texts that it had not yet.
        """
        missing = [name for name in schema.REQUIRED if name not in self._hashes and name not in BY_WRITER]
        if missing:
            raise StoreError(f"sample {self.path.stem} cannot be sealed: {', '.join(missing)} not put")
        for name, blocks in self._pending.items():
            self._write(variable(name), [(origin, block) for origin, (block, _) in blocks.items()])
        self._pending.clear()
        try:
            self._drain.finish()
            digest = content_hash(self._hashes)
            for name, value in (("samples/content_sha256", digest), ("samples/sealed", 1)):
                create_variable(self._file, variable(name), self.sizes, self._header.precision)[0] = value
            for name, text in (provenance or {}).items():
                write_provenance(self._file, name, text)
            if events:
                before = json.loads(self._header.provenance.get("events", "[]"))
                write_provenance(self._file, "events", json.dumps([*before, *events]))
            seal_file(self._file)
            self._room.close(self._file)
            publish(self._temporary, self.path)
        except (OSError, RuntimeError) as error:
            raise self._unwritable(error) from error
        self._lock.close()
        return self.path

    def abandon(self) -> None:
        """Close and remove the temporary file; after `seal()` there is none, and the sealed file stays."""
        self._drain.cancel()
        with suppress(OSError, RuntimeError):  # a full disk fails again when HDF5 flushes
            self._file.close()
        if not self._lock.closed:
            self._temporary.unlink(missing_ok=True)
            self._lock.close()

    def _sync(self, written: int) -> None:
        """Have what was written go to the disk from time to time: the seal waits for the rest alone."""
        self._unsynced += written
        if self._unsynced > _SYNC_EVERY and hasattr(os, "fdatasync"):
            self._unsynced = 0
            os.fdatasync(self._descriptor)

    def _unwritable(self, error: OSError | RuntimeError) -> StoreError:
        return StoreError(f"sample {self.path.stem} cannot be written to {self.path.parent}: {reason(error)}")

    def _check_places(self, spec: Variable, at: Mapping[str, int | list[int]]) -> None:
        if lacking := [dim for dim in spec.dims if dim not in self.sizes]:
            raise StoreError(
                f"{spec.name} needs the scale {', '.join(map(repr, lacking))}: the header has none"
            )
        for dim, positions in at.items():
            if dim not in spec.dims or dim == "sample":
                raise StoreError(
                    f"{spec.name} has no dimension '{dim}' to put at: it has {', '.join(spec.dims[1:])}"
                )
            for position in positions if isinstance(positions, list) else (positions,):
                if not 0 <= position < self.sizes[dim]:
                    raise StoreError(f"{spec.name}: {dim}={position} is outside 0..{self.sizes[dim] - 1}")

    def _checked(self, spec: Variable, values: object, at: Mapping[str, int | list[int]]) -> np.ndarray:
        """The values in the file's type, with every dimension: of length 1 where `at` has one position."""
        array = np.asarray(values, dtype=object if spec.is_text else None)
        lengths = {
            dim: len(at[dim]) if dim in at else self.sizes[dim]
            for dim in spec.dims[1:]
            if not isinstance(at.get(dim), int)
        }
        if array.shape != tuple(lengths.values()):
            expected = " x ".join(f"{dim} {length}" for dim, length in lengths.items()) or "one value"
            place = f" at {', '.join(f'{dim}={position}' for dim, position in at.items())}" if at else ""
            raise StoreError(f"{spec.name}{place} has shape {array.shape}, the file expects {expected}")
        shape = (1, *(lengths.get(dim, 1) for dim in spec.dims[1:]))
        return cast(spec, array, self._copies).reshape(shape)

    def _scatter(self, spec: Variable, values: np.ndarray, where: tuple[slice, ...]) -> None:
        if spec.name not in self._datasets:
            self._datasets[spec.name] = create_variable(self._file, spec, self.sizes, self._header.precision)
        pending = self._pending.setdefault(spec.name, {})
        done = self._hashes.setdefault(spec.name, {})
        shape, chunk = spec.shape(self.sizes), spec.chunks(self.sizes)
        if are_whole_blocks(where, chunk, shape):
            blocks = [(origin, values[index]) for origin, index in whole_blocks(where, chunk)]
            if again := [origin for origin, _ in blocks if origin in done or origin in pending]:
                raise _put_before(spec, again[0])
            self._write(spec, blocks)
            return
        for origin in origins(where, chunk):
            whole = extent(origin, chunk, shape)
            start = tuple(max(w.start, o) for w, o in zip(where, origin, strict=True))
            stop = tuple(min(w.stop, o + n) for w, o, n in zip(where, origin, whole, strict=True))
            piece = values[
                tuple(slice(a - w.start, b - w.start) for a, b, w in zip(start, stop, where, strict=True))
            ]
            inside = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))
            if origin in done or (origin in pending and pending[origin][1][inside].any()):
                raise _put_before(spec, start)
            if origin not in pending:
                pending[origin] = np.full(whole, fill_of(spec), values.dtype), np.zeros(whole, bool)
            block, taken = pending[origin]
            block[inside], taken[inside] = piece, True
            if taken.all():
                self._write(spec, [(origin, block)])
                del pending[origin]

    def _write(self, spec: Variable, blocks: list[Block]) -> None:
        """Hand blocks to the threads; tables and texts, which are small, are written at once."""
        dataset, hashes = self._datasets[spec.name], self._hashes[spec.name]
        hashes |= {origin: "" for origin, _ in blocks}
        try:
            if spec.is_table or spec.is_text:
                for origin, block in blocks:
                    dataset[tuple(slice(o, o + n) for o, n in zip(origin, block.shape, strict=True))] = block
                    hashes[origin] = block_hash(spec, block)
                return
            for batch in batches(blocks):
                job = partial(self._deflate, spec, dataset.id, dataset.chunks, batch)
                self._drain.submit(job, sum(block.nbytes for _, block in batch))
        except (OSError, RuntimeError) as error:
            raise self._unwritable(error) from error

    def _deflate(
        self, spec: Variable, dataset: h5py.h5d.DatasetID, chunk: tuple[int, ...], blocks: list[Block]
    ) -> None:
        """Write blocks as chunks; in a thread."""
        for origin, block in blocks:
            values = round_mantissa(block) if spec.rounded and self._rounds else block
            digest = block_hash(spec, values)
            if digest or not spec.rounded:  # layers without maps take no room
                data = encode_chunk(values, chunk, fill_of(spec))
                self._room.write_chunk(dataset, origin, data)
                self._sync(len(data))
            self._hashes[spec.name][origin] = digest


def _put_before(spec: Variable, start: tuple[int, ...]) -> StoreError:
    place = ", ".join(f"{dim}={a}" for dim, a in zip(spec.dims[1:], start[1:], strict=True))
    return StoreError(f"{spec.name} was put before{f' at {place}' if place else ''}")
