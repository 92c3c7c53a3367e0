"""Samples on their way from one file into another: variables created, blocks copied, content hashes made anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import h5py
import numpy as np

from sd35h5.errors import StoreError
from sd35h5.long_work import counted
from sd35h5.store import schema
from sd35h5.store.blocks import block_hash, content_hash
from sd35h5.store.bounded_queue import Drain, half_of_the_cores
from sd35h5.store.content_hash import block_hashes, hashed_in, sample_hash, sizes_in, variables_in
from sd35h5.store.cutting.block_copies import Row, chunks_for, copy_row, row_jobs
from sd35h5.store.cutting.wanted_part import MAP_INDEX, TABLES, Cut
from sd35h5.store.derived.summary import create_summary, fill_summary, summaries_in
from sd35h5.store.opening import opened, reading
from sd35h5.store.packing import AT_ONCE, by_value, empty_values, is_first_look, precision_of, values_of
from sd35h5.store.sample_files import check_version
from sd35h5.store.schema import Variable, variable
from sd35h5.store.seals.file_seal import refuse_broken_seal, seal_file
from sd35h5.store.sharing.room import Room, bytes_of
from sd35h5.store.showable import showable
from sd35h5.store.skeleton import create_variable

HASH = "samples/content_sha256"
Tables = dict[str, np.ndarray]  # variable -> its values of all samples of the new file
Names = Mapping[int, Mapping[str, str]]  # row -> variable -> the text that it has in the new file


def copy_samples(
    target: h5py.File, room: Room, chosen: Cut, samples: Sequence[tuple[Path, int]], what: str,
    names: Names | None = None,
) -> None:  # fmt: skip
    """Copy samples into a file that has its head, in their order, and derive what is derived.

    All variables are created before the first value, so that a file's list lies together.

    Args:
        samples: file, position in it; those of a file behind each other.
        what: is done, for the bar.
        names: texts of samples that the target has in place of the file's.
    Raises: StoreError for a sample that is to be sealed anew and is not as it was sealed.
    """
    tables: Tables = {}
    for path in dict.fromkeys(path for path, _ in samples):
        with reading(path) as file:
            check_version(file, path.name)
            refuse_broken_seal(file, path.name)
            create(file, target, chosen, tables)
    create_summary(target)
    drain = Drain(2 * half_of_the_cores())  # no GPU waits for the others
    try:
        _copy_texts(target, room, chosen, samples)
        _copy_first_looks(target, room, chosen, samples, drain)
        for _ in counted(
            _each_copied(target, room, chosen, samples, tables, drain, names or {}), what, len(samples)
        ):
            continue
        drain.finish()
    finally:
        drain.cancel()
    for name, values in tables.items():
        room.take(bytes_of(values))
        target[name][...] = values
    room.take(sum(target[name].nbytes for name in summaries_in(target)))
    fill_summary(target)
    seal_file(target)


def _copy_texts(target: h5py.File, room: Room, chosen: Cut, samples: Sequence[tuple[Path, int]]) -> None:
    """Copy the texts that are no tables before anything large: what holds them lies together, before that."""
    names = [name for name in variables_in(target) if variable(name).is_text and not variable(name).is_table]
    for path, some in groupby(enumerate(samples), lambda pair: pair[1][0]):
        with reading(path) as file:
            for row, (_, position) in some:
                for name in filter(file.__contains__, names):
                    source = file[name]
                    texts = source.asstr()[position][np.ix_(*_places(source, variable(name), chosen))]
                    room.take(bytes_of(texts))
                    target[name][row] = texts


def _copy_first_looks(
    target: h5py.File, room: Room, chosen: Cut, samples: Sequence[tuple[Path, int]], drain: Drain
) -> None:
    """Copy what a heatmap needs of all samples, as `packing` lays it: the same block of each, then the next."""
    by_file = [(path, list(some)) for path, some in groupby(enumerate(samples), lambda pair: pair[1][0])]
    names = [name for name in variables_in(target) if is_first_look(name)]
    for first in range(0, len(by_file), AT_ONCE):
        with ExitStack() as stack:
            some = [
                (stack.enter_context(opened(path)), rows) for path, rows in by_file[first : first + AT_ONCE]
            ]
            try:
                for name in names:
                    rows = [
                        _row(file, target, room, name, chosen, position, row)
                        for file, own in some if name in file for row, (_, position) in own
                    ]  # fmt: skip
                    for _, job, nbytes in merge(*map(row_jobs, rows), key=itemgetter(0)):
                        drain.submit(job, nbytes)
                drain.wait()
            except BaseException:
                drain.cancel()  # its threads still read the files, which are closed behind this
                raise


def _row(
    file: h5py.File, target: h5py.File, room: Room, name: str, chosen: Cut, position: int, row: int
) -> Row:
    """One sample of a variable, from a file into the target."""
    spec, source = variable(name), file[name]
    kept = _kept(file, spec, chosen, position)
    return Row(source, target[name], room, spec, position, row, _places(source, spec, chosen), kept)


def _each_copied(
    target: h5py.File,
    room: Room,
    chosen: Cut,
    samples: Sequence[tuple[Path, int]],
    tables: Tables,
    drain: Drain,
    names: Names,
) -> Iterator[None]:
    for path, some in groupby(enumerate(samples), lambda pair: pair[1][0]):
        with opened(path) as file:
            try:
                yield from copy_file(
                    file, target, room, chosen, {row: place for row, (_, place) in some}, tables, drain, names
                )
            except BaseException:
                drain.cancel()  # its threads still read the file, which is closed behind this
                raise


def create(file: h5py.File, target: h5py.File, chosen: Cut, tables: Tables) -> None:
    """Create those of a file's variables that are chosen and not there yet; tables get a place in `tables`."""
    sizes = sizes_in(target)
    for name in variables_in(file):
        if name not in chosen.variables:
            continue
        if name in target:
            if precision_of(file[name]) == "rounded":  # of some samples, which is all that can be said of all
                target[name].attrs["quantization_nsb"] = np.int32(schema.MANTISSA_BITS)
            continue
        spec = variable(name)
        chunks = None if by_value(spec) else chunks_for(file[name], spec.shape(sizes))
        dataset = create_variable(target, spec, sizes, precision_of(file[name]), chunks)
        if spec.is_table:
            tables[name] = empty_values(dataset)


def copy_file(
    file: h5py.File, target: h5py.File, room: Room, chosen: Cut, places: Mapping[int, int], tables: Tables,
    drain: Drain, names: Names,
) -> Iterator[None]:  # fmt: skip
    """Copy samples of one file. Yields: after each.

    Args: places: row in the target -> position in the file.
    """
    held = [name for name in variables_in(file) if name in chosen.variables]
    _fill_tables(file, chosen, places, tables)
    for row, changed in names.items():
        for name, text in changed.items() if row in places else ():
            tables[name][row] = text
    large = [name for name in held if not by_value(variable(name))]
    is_whole = not chosen.places and chosen.tokens is None and set(hashed_in(file)) <= set(chosen.variables)
    is_alike = all(file[name].chunks == target[name].chunks for name in large)
    sizes = sizes_in(target)
    for row, position in places.items():
        changed = names.get(row, {})
        is_sealed_so = is_whole and is_alike and not changed
        hashes = {}
        for name in held:
            spec = variable(name)
            if is_first_look(name):
                hashes[name] = {} if is_sealed_so else block_hashes(target[name], spec, sizes, row)
            elif name in large:
                one = _row(file, target, room, name, chosen, position, row)
                hashes[name] = copy_row(one, drain, not is_sealed_so)
            elif name not in tables:
                hashes[name] = block_hashes(target[name], spec, sizes, row)
            elif not name.startswith("scores/"):
                hashes[name] = {(0,) * len(spec.dims): block_hash(spec, tables[name][row : row + 1])}
        drain.wait()
        if is_whole and not is_sealed_so:
            found = _hash_before(file, position, hashes, changed) if is_alike else sample_hash(file, position)
            _refuse_changed(file, position, found)
        if not is_sealed_so:
            tables[HASH][row] = content_hash(hashes)
        yield


def _hash_before(
    file: h5py.File,
    position: int,
    hashes: Mapping[str, Mapping[tuple[int, ...], str]],
    changed: Iterable[str],
) -> str:
    """The content hash of a sample with the texts that its file has."""
    texts = {name: np.array([file[name].asstr()[position]], object) for name in changed}
    return content_hash(
        {**hashes, **{name: {(0,): block_hash(variable(name), text)} for name, text in texts.items()}}
    )


def _refuse_changed(file: h5py.File, position: int, found: str) -> None:
    """Refuse to seal anew what is not as it was sealed."""
    if found != file[HASH].asstr()[position]:
        name = showable(file["samples/sample_id"].asstr()[position], 80)
        raise StoreError(f"sample {name} is not as it was sealed: `verify --deep` its file")


def _fill_tables(file: h5py.File, chosen: Cut, places: Mapping[int, int], tables: Tables) -> None:
    rows, positions = list(places), list(places.values())
    for name in [name for name in variables_in(file) if name in tables]:
        own = values_of(file[name])[positions]
        tables[name][rows] = own[np.ix_(np.arange(len(own)), *_places(file[name], variable(name), chosen))]


def _places(source: h5py.Dataset, spec: Variable, chosen: Cut) -> tuple[np.ndarray, ...]:
    """The positions that are kept along each dimension but `sample`."""
    lengths = zip(spec.dims[1:], source.shape[1:], strict=True)
    return tuple(chosen.places.get(dim, np.arange(length)) for dim, length in lengths)


def _kept(file: h5py.File, spec: Variable, chosen: Cut, position: int) -> np.ndarray | None:
    """Which values of a sample stay, as `copy_row` takes it: those of chosen tokens, and maps of chosen tokens."""
    if chosen.tokens is None or spec.group in TABLES:
        return None
    if "token" in spec.dims:
        return chosen.tokens.reshape([-1 if dim == "token" else 1 for dim in spec.dims])
    if "map_token" in spec.dims:
        found = file[MAP_INDEX][position]
        kept = chosen.is_of_token(found)[np.ix_(*_places(file[MAP_INDEX], variable(MAP_INDEX), chosen))]
        lengths = dict(zip(("branch", "map_token"), kept.shape, strict=True))
        return kept.reshape([lengths.get(dim, 1) for dim in spec.dims])
    return None
