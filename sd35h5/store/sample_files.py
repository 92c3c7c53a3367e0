"""The files behind a store: where they are, what they share, and how a selection of them is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice, product
from pathlib import Path
from threading import RLock
from typing import Any

import h5py
import numpy as np

from sd35h5.errors import StoreError, StoreNotFoundError
from sd35h5.store import schema
from sd35h5.store.content_hash import variables_in
from sd35h5.store.derived.summary import is_current, summaries_in
from sd35h5.store.opening import opened, reading, unread
from sd35h5.store.places.runs_in_folders import stores_in
from sd35h5.store.processes.fetched_file import FetchedFile
from sd35h5.store.runs import (
    RUN_FILE,
    packed_indices,
    part_files,
    parts_of,
    read_run,
    stem_of,
)
from sd35h5.store.schema import SCALES, Variable
from sd35h5.store.showable import as_text, well_formed_json
from sd35h5.store.versions import version_problem

MAX_WANTED = 4096  # chunks that are asked for before they are read


class Parts:
    """One packed file, or many sealed ones, as one list of samples."""

    def __init__(
        self, path: Path | FetchedFile, paths: list[Path | FetchedFile], run: Mapping[str, Any] | None
    ) -> None:
        self.path = path
        self.name = as_text(stem_of(path.name))
        self._handles: dict[Path, h5py.File] = {}
        self._lock = RLock()  # of who reads: dask does in several threads
        self._closed = False
        self._uuids: dict[Path, str] = {}
        self._sources: list[tuple[int, Path, int]] = []  # index in the capture, file, position in it
        self.scales: dict[str, np.ndarray] = {}
        self.attributes: dict[str, str] = {}
        self.provenance: dict[str, Any] = {}
        names: set[str] = set()
        for file_path in paths:
            with reading(file_path) as file:
                check_version(file, file_path.name)
                names |= set(variables_in(file))
                self._join(file, file_path)
        if len(paths) > 1:
            self._sources.sort(key=lambda source: source[0])
        self._where = [(file_path, position) for _, file_path, position in self._sources]
        self.variables = tuple(sorted(names, key=_schema_order))
        self.planned = max(len(self), run["planned"] if run else 0)
        self.config = self.provenance.get("config") or (well_formed_json(run["config"]) if run else {})

    def __len__(self) -> int:
        return len(self._where)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the same files itself."""
        return {**self.__dict__, "_handles": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=RLock())

    @property
    def sources(self) -> tuple[tuple[int, Path, int], ...]:
        """Where each sample lies: its index in the capture, the file, and its position there."""
        return tuple(self._sources)

    def of_samples(self, indices: list[int]) -> Parts:
        """The same files with these samples of the capture alone, for one who was told of no others."""
        if indices == [index for index, _, _ in self._sources]:
            return self
        where = {source[0]: source for source in self._sources}
        if not where.keys() >= set(indices):
            raise StoreError(f"{self.name} has other samples than when it was opened: open it again")
        one = object.__new__(type(self))
        one.__dict__.update(self.__dict__, _sources=[where[index] for index in indices])
        one._where = [(path, position) for _, path, position in one._sources]
        return one

    def close(self) -> None:
        self._closed = True
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()

    def bytes_on_disk(self, name: str | None) -> int:
        """Bytes that a variable takes, compressed; without a name, that the files take."""
        paths = dict.fromkeys(path for path, _ in self._where)
        if name is None:
            return sum(path.stat().st_size for path in paths)
        found = (self._dataset(path, name) for path in paths)
        return sum(dataset.id.get_storage_size() for dataset in found if dataset is not None)

    def chunks(self, name: str) -> tuple[int, ...] | None:
        """Shape of a chunk in the first file that has the variable; None where it is one piece."""
        found = (self._dataset(path, name) for path, _ in self._where)
        return next((dataset.chunks for dataset in found if dataset is not None), None)

    def is_stored(self, name: str, sample: int) -> bool:
        """Whether any value of a variable was written for a sample."""
        path, position = self._where[sample]
        dataset = self._dataset(path, name)
        if dataset is None:
            return False
        corner = (position,) + (0,) * (dataset.ndim - 1)
        return dataset.chunks is None or dataset.id.get_chunk_info_by_coord(corner).byte_offset is not None

    def summaries(self) -> list[str]:
        """Names of the means that are of exactly the samples that are here."""
        paths = {path for path, _ in self._where}
        file = self._file(next(iter(paths))) if len(paths) == 1 else None
        if file is None or len(file["sample"]) != len(self) or not is_current(file):
            return []
        return summaries_in(file)

    def read_into(self, out: np.ndarray, spec: Variable, wanted: tuple[np.ndarray, ...]) -> None:
        """Fill `out` with the selected positions; what a file lacks keeps the fill that is there."""
        with self._lock:
            self._read_into(out, spec, wanted)

    def _read_into(self, out: np.ndarray, spec: Variable, wanted: tuple[np.ndarray, ...]) -> None:
        if spec.name in schema.SUMMARIES:
            self._read_rows(out, spec, self._where[0][0], slice(None), wanted)
            return
        samples, rest = wanted[0], wanted[1:]
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for row, sample in enumerate(samples.tolist()):
            path, position = self._where[sample]
            by_file.setdefault(path, []).append((row, position))
        for path, pairs in by_file.items():
            positions = np.array([position for _, position in pairs])
            self._read_rows(out, spec, path, [row for row, _ in pairs], (positions, *rest))

    def _read_rows(
        self, out: np.ndarray, spec: Variable, path: Path, rows: Any, wanted: tuple[np.ndarray, ...]
    ) -> None:
        dataset = self._dataset(path, spec.name)
        if dataset is None:
            return
        try:
            if isinstance(path, FetchedFile):
                path.want(chunk_spans(dataset, wanted))
            found = read_hyperslab(dataset, wanted)
            out[rows] = _texts(found) if spec.is_text else found
        except (OSError, RuntimeError) as error:
            raise StoreError(f"{spec.name} of {path.name} cannot be read: {unread(path, error)}") from error

    def _join(self, file: h5py.File, path: Path) -> None:
        scales = {name: file[name][:] for name in SCALES if name in file}
        own = scales.pop("sample")
        self._uuids[path] = as_text(file.attrs.get("file_uuid", ""))
        if not self._sources:
            self.scales = scales
            self.attributes = {name: as_text(value) for name, value in file.attrs.items()}
            self.provenance = {
                name: _parsed(held)
                for name, held in file.get("provenance", {}).items()
                if isinstance(held, h5py.Dataset)  # a later version may keep groups there
                and f"provenance/{name}" != schema.SEAL
            }
        for name, values in scales.items():
            if not np.array_equal(self.scales.get(name), values, equal_nan=True):
                raise StoreError(
                    f"{path.name} has another {name} than the first sample: they do not belong to one run"
                )
        self._sources += [(index, path, position) for position, index in enumerate(own.tolist())]

    def _dataset(self, path: Path, name: str) -> h5py.Dataset | None:
        """A variable of a file, None if it lacks it; refused if its values come from elsewhere."""
        file = self._file(path)
        group, _, short = name.partition("/")
        if group not in file or short not in file[group]:
            return None
        links = (file.get(group, getlink=True), file[group].get(short, getlink=True))
        dataset = file[name]
        if not all(isinstance(link, h5py.HardLink) for link in links) or not isinstance(
            dataset, h5py.Dataset
        ):
            raise StoreError(f"{path.name}: {name} is a link to somewhere else, only hard links are read")
        if dataset.is_virtual or dataset.external:
            raise StoreError(f"{path.name}: {name} keeps its values in another file, which is not read")
        return dataset

    def _file(self, path: Path) -> h5py.File:
        if self._closed:
            raise StoreError(f"{self.name} is closed")
        if path not in self._handles:
            if len(self._handles) >= 64:
                self._handles.pop(next(iter(self._handles))).close()
            handle = opened(path)
            if as_text(handle.attrs.get("file_uuid", "")) != self._uuids[path]:
                handle.close()
                raise StoreError(f"{path.name} is another file than when it was opened: open it again")
            self._handles[path] = handle
        return self._handles[path]


def find_parts(path: Path) -> Parts:
    """Find what a person names: a file, a folder of sealed files, or `run.h5` while it is captured."""
    parts = parts_of(path)
    if path.is_file():
        if not (parts / RUN_FILE).is_file():
            return Parts(path, [path], None)
        packed = set(packed_indices(path))  # samples that were captured since it was packed are in the folder
        later = [file for file in part_files(parts) if int(file.stem) not in packed]
        return Parts(path, [path, *later], read_run(parts))
    if not path.exists() and parts.is_dir():
        path = parts
    if not path.is_dir():
        raise StoreNotFoundError(f"{path.name}: there is no such file or folder")
    run = read_run(path) if (path / RUN_FILE).is_file() else None
    files = part_files(path)
    if not files and run is None:
        others = [found.relative_to(path).as_posix() for found in stores_in(path).stores if found != path]
        hint = f": open one of its runs ({', '.join(others[:4])})" if others else ""
        raise StoreNotFoundError(f"{path.name} is a folder without sealed samples{hint}")
    return Parts(path, files, run)


def check_version(file: h5py.File, name: str) -> None:
    """Refuse a file of another format, or of a version that this reader may not read."""
    if as_text(file.attrs.get("schema_name", "")) != schema.SCHEMA_NAME or "sample" not in file:
        raise StoreError(f"{name} is HDF5, but no sd35h5 store")
    told = {
        attribute: as_text(file.attrs.get(attribute, "")) for attribute in ("schema_version", "min_reader")
    }
    if problem := version_problem(told):
        raise StoreError(f"{name} cannot be read: {problem}")


def read_hyperslab(dataset: h5py.Dataset, wanted: tuple[np.ndarray, ...]) -> np.ndarray:
    """Read positions along every dimension, touching as few chunks as it can.

    Where a chunk is one position thick, each is read alone; elsewhere the span is read and positions picked.
    Returns: an array with one axis a dimension.
    """
    if any(len(w) == 0 for w in wanted):
        return np.empty([len(w) for w in wanted], object if _is_text(dataset) else dataset.dtype)
    chunks = dataset.chunks or dataset.shape
    pieces = [_pieces(w, chunk) for w, chunk in zip(wanted, chunks, strict=True)]
    source = dataset.asstr(errors="replace") if _is_text(dataset) else dataset
    out = np.empty([len(w) for w in wanted], object if _is_text(dataset) else dataset.dtype)
    for combined in product(*pieces):
        into, spans, picks = zip(*combined, strict=True)
        block = np.asarray(source[spans])
        out[into] = block[np.ix_(*picks)]
    return out


def chunk_spans(dataset: h5py.Dataset, wanted: tuple[np.ndarray, ...]) -> list[tuple[int, int]]:
    """Where the chunks lie that a selection touches: first byte, byte after the last."""
    if not dataset.chunks:
        return []
    touched = (np.unique(w // chunk) * chunk for w, chunk in zip(wanted, dataset.chunks, strict=True))
    found = (dataset.id.get_chunk_info_by_coord(origin) for origin in islice(product(*touched), MAX_WANTED))
    return [(at.byte_offset, at.byte_offset + at.size) for at in found if at.byte_offset is not None]


def _pieces(wanted: np.ndarray, chunk: int) -> list[tuple[slice, slice, np.ndarray]]:
    """Cut positions into (where to put them, the span to read, what to pick from the span)."""
    low, high = int(wanted.min()), int(wanted.max()) + 1
    if high - low == len(wanted) or chunk > 1:
        return [(slice(0, len(wanted)), slice(low, high), wanted - low)]
    return [(slice(i, i + 1), slice(w, w + 1), np.zeros(1, int)) for i, w in enumerate(wanted.tolist())]


def _is_text(dataset: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(dataset.dtype) is not None


def _texts(found: np.ndarray) -> np.ndarray:
    return np.array([as_text(text) for text in found.ravel().tolist()], object).reshape(found.shape)


def _parsed(dataset: h5py.Dataset) -> Any:
    try:
        return well_formed_json(json.loads(dataset[()]))
    except (ValueError, RecursionError):
        return as_text(dataset[()])


def _schema_order(name: str) -> tuple[int, str]:
    names = list(schema.VARIABLES)
    return (names.index(name) if name in schema.VARIABLES else len(names), name)
