"""Pack sealed files into one: compressed chunks are copied as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from sd35h5.errors import StoreError, StoreNotFoundError
from sd35h5.store import schema
from sd35h5.store.content_hash import sample_hash, variables_in
from sd35h5.store.derived.summary import create_summary, fill_summary, summaries_in
from sd35h5.store.opening import opened, reading
from sd35h5.store.runs import RUN_FILE, empty, out_of, packed_indices, part_files, read_run
from sd35h5.store.sample_files import check_version
from sd35h5.store.schema import SCALES, Variable, variable
from sd35h5.store.seals.file_seal import refuse_broken_seal, seal_file
from sd35h5.store.seals.storage_rules import filters_of
from sd35h5.store.sharing.room import Room, bytes_of
from sd35h5.store.sharing.whole_files import whole_file
from sd35h5.store.showable import as_text
from sd35h5.store.skeleton import create_variable, write_head

_FIRST_LOOKS = ("tokens/", "sinks/mass_group", "sinks/entropy_text")
AT_ONCE = 64  # files that are open


def pack(parts: Path, out: Path, keep_parts: bool = True) -> Path:
    """Make one file of all sealed files in a folder, in the order of their indices. Returns: `out`.

    Samples of the same run that only `out` holds, packed earlier, are kept. The file appears whole or not at
    all. With `keep_parts=False` the folder is removed afterwards.
    """
    parts, out = Path(parts), Path(out)
    sources = [(int(path.stem), path, 0) for path in part_files(parts)]
    if not sources:
        raise StoreNotFoundError(f"{parts.name} holds no sealed sample to pack")
    if out.is_file():
        fresh = {index for index, _, _ in sources}
        kept = [(index, out, at) for at, index in enumerate(packed_indices(out)) if index not in fresh]
        is_begun = (
            out_of(parts) == out and (parts / RUN_FILE).is_file()
        )  # then `begin_run` has compared them, by what decides the data
        if kept and not is_begun and _config(out) != _config(sources[0][1]):
            raise StoreError(f"{out.name} holds samples of another configuration: pack into another file")
        sources += kept
    with whole_file(out, f"{out.name} cannot be packed") as (target, room):
        _pack_into(target, room, sorted(sources), _begun_config(parts))
    if not keep_parts:
        empty(parts)
    return out


def _begun_config(parts: Path) -> dict[str, str]:
    """What the run was last begun with, as a provenance text: it may draw more samples than when it was begun first."""
    return {"config": json.dumps(read_run(parts)["config"])} if (parts / RUN_FILE).is_file() else {}


def _config(path: Path) -> object:
    with reading(path) as file:
        return json.loads(_text(file, "config"))


def _pack_into(
    target: h5py.File, room: Room, sources: list[tuple[int, Path, int]], provenance: Mapping[str, str]
) -> None:
    """Copy samples, each (index, file, position in the file), in their order.

    Args:
        provenance: texts that go before those of the samples.
    """
    rows: dict[Path, dict[int, int]] = {}  # file -> position in it -> position in the target
    for row, (_, path, position) in enumerate(sources):
        rows.setdefault(path, {})[position] = row
    paths = list(rows)
    with reading(paths[0]) as first:
        scales = {name: first[name][:] for name in SCALES if name in first}
        attributes = {
            name: as_text(first.attrs[name]) for name in schema.MODEL_ATTRIBUTES if name in first.attrs
        }
    scales["sample"] = np.array([index for index, _, _ in sources])
    write_head(target, scales, attributes, _provenance(paths, provenance), kind="run")
    sizes = {name: len(values) for name, values in scales.items() if SCALES[name].is_dimension}
    tables: dict[str, np.ndarray] = {}
    for path in paths:  # all variables before any value: what lists a file then lies together
        with opened(path) as part:
            check_version(part, path.name)
            refuse_broken_seal(part, path.name)
            _check_alike(part, scales, attributes, path)
            _create(part, target, sizes, tables)
    create_summary(target)
    recut: list[int] = []  # positions in the target of samples that a version with other chunks wrote
    for some in (paths[first : first + AT_ONCE] for first in range(0, len(paths), AT_ONCE)):
        with ExitStack() as stack:
            parts = {path: stack.enter_context(opened(path)) for path in some}
            for name in filter(is_first_look, variables_in(target)):
                held = [(part[name], rows[path]) for path, part in parts.items() if name in part]
                _copy_chunks(held, target[name], room)
            for path, part in parts.items():
                if not _copy_part(part, target, room, tables, rows[path]):
                    recut += [row for position, row in rows[path].items() if _is_sealed_as(part, position)]
    for name, values in tables.items():
        room.take(bytes_of(values))
        target[name][...] = values
    for row in recut:
        target["samples/content_sha256"][row] = sample_hash(target, row)
    room.take(sum(target[name].nbytes for name in summaries_in(target)))
    fill_summary(target)
    seal_file(target)


def _create(
    part: h5py.File, target: h5py.File, sizes: Mapping[str, int], tables: dict[str, np.ndarray]
) -> None:
    """Create those of a file's variables that the target lacks, empty; small ones get a place in `tables`."""
    for name in variables_in(part):
        if name not in target:
            spec = variable(name)
            chunks = None if by_value(spec) else _chunks(part[name])
            dataset = create_variable(target, spec, sizes, precision_of(part[name]), chunks)
            if by_value(spec):
                tables[name] = empty_values(dataset)


def _copy_part(
    part: h5py.File, target: h5py.File, room: Room, tables: dict[str, np.ndarray], rows: Mapping[int, int]
) -> bool:
    """Copy one file's variables, small ones into `tables`, but those of a first look.

    Returns: whether all its chunks are the target's.
    """
    for name in variables_in(part):
        if name in tables:
            tables[name][list(rows.values())] = values_of(part[name])[list(rows)]
        elif not is_first_look(name):
            _copy_chunks([(part[name], rows)], target[name], room)
    return all(part[name].chunks == target[name].chunks for name in variables_in(part) if name not in tables)


def is_first_look(name: str) -> bool:
    """Whether the same chunk of many samples is read at once, by a heatmap say: these then lie together."""
    return not variable(name).is_text and name.startswith(_FIRST_LOOKS)


def _chunks(dataset: h5py.Dataset) -> tuple[int, ...] | None:
    """The chunks to copy as they are: those of one sample each; None for this version's."""
    return dataset.chunks if dataset.chunks and dataset.chunks[0] == 1 else None


def _is_sealed_as(part: h5py.File, position: int) -> bool:
    """Whether a sample's values are those that were sealed."""
    sealed = part["samples/content_sha256"].asstr()[position]
    return sample_hash(part, position) == sealed


def by_value(spec: Variable) -> bool:
    """Whether a variable is written anew, not chunk by chunk: texts and the small tables of samples."""
    return spec.is_table or spec.is_text


def values_of(dataset: h5py.Dataset) -> np.ndarray:
    """All values, texts as str."""
    return dataset.asstr()[:] if h5py.check_string_dtype(dataset.dtype) else dataset[:]


def empty_values(dataset: h5py.Dataset) -> np.ndarray:
    """What a variable holds before anything is written."""
    if h5py.check_string_dtype(dataset.dtype):
        return np.full(dataset.shape, "", object)
    return np.full(dataset.shape, dataset.fillvalue, dataset.dtype)


def precision_of(dataset: h5py.Dataset) -> str:
    """How a variable was rounded, as `create_variable` takes it."""
    return "rounded" if "quantization_nsb" in dataset.attrs else "exact"


def _copy_chunks(
    sources: Sequence[tuple[h5py.Dataset, Mapping[int, int]]], target: h5py.Dataset, room: Room
) -> None:
    """Copy samples of files, each with (position in it -> in the target): the same chunk of all, then the next."""
    chunks: list[tuple[tuple[int, ...], int, h5py.Dataset, tuple[int, ...]]] = []
    for source, rows in sources:
        if source.chunks != target.chunks or filters_of(source) != filters_of(target):
            for position, row in rows.items():  # written by another tool: through the filters
                room.take(target[row].nbytes)
                target[row] = source[position]
            continue
        found: list[h5py.h5d.StoreInfo] = []
        source.id.chunk_iter(found.append)
        offsets = [chunk.chunk_offset for chunk in found]
        chunks += [(offset[1:], rows[offset[0]], source, offset) for offset in offsets if offset[0] in rows]
    for rest, row, source, offset in sorted(chunks, key=lambda chunk: chunk[:2]):
        mask, data = source.id.read_direct_chunk(offset)
        room.write_chunk(target.id, (row, *rest), data, mask)


def _check_alike(
    part: h5py.File, scales: Mapping[str, np.ndarray], attributes: Mapping[str, str], path: Path
) -> None:
    for name, values in scales.items():
        if name != "sample" and (
            name not in part or not np.array_equal(part[name][:], values, equal_nan=True)
        ):
            raise StoreError(
                f"{path.name} has another {name} than the first sample: they do not belong to one run"
            )
    for name, value in attributes.items():
        if as_text(part.attrs.get(name, "")) != value:
            raise StoreError(
                f"{path.name} has another {name} than the first sample: they do not belong to one run"
            )


def _provenance(paths: list[Path], texts: Mapping[str, str]) -> dict[str, str]:
    """Given texts, else those of the first sample; what samples say otherwise is appended to `events`, once each."""
    merged: dict[str, str] = dict(texts)
    events: list[object] = []
    for path in paths:
        with reading(path) as part:
            texts = {name: _text(part, name) for name in schema.PROVENANCE if f"provenance/{name}" in part}
        for name, text in texts.items():
            if name == "events":
                events += [event for event in _as_list(text) if event not in events]
                continue
            value = json.loads(text)
            if value == json.loads(merged.setdefault(name, text)):
                continue
            told = {"event": f"{name} differs", "sample": path.stem, "value": value}
            if not any(isinstance(each, dict) and {**each, "sample": path.stem} == told for each in events):
                events.append(told)
    return merged | ({"events": json.dumps(events)} if events else {})


def _text(file: h5py.File, name: str) -> str:
    return file[f"provenance/{name}"].asstr()[()]


def _as_list(text: str) -> list[object]:
    value = json.loads(text)
    return value if isinstance(value, list) else [value]
