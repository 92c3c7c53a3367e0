"""The skeleton of a file: attributes, scales, provenance and empty variables, as netCDF4 wants them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

from sd35h5.store import schema
from sd35h5.store.blocks import fill_of, numpy_dtype
from sd35h5.store.schema import SCALES, Variable
from sd35h5.store.versions import min_reader, program

TEXT = h5py.string_dtype("utf-8")


def write_head(
    file: h5py.File,
    scales: Mapping[str, np.ndarray],
    attributes: Mapping[str, str],
    provenance: Mapping[str, str],
    kind: str,
) -> None:
    """Write root attributes, scales and provenance texts into an empty file."""
    created, writer = datetime.now(UTC).isoformat(timespec="seconds"), program()
    fixed = {
        "Conventions": "CF-1.11",
        "schema_name": schema.SCHEMA_NAME,
        "schema_version": schema.SCHEMA_VERSION,
        "min_reader": min_reader(scales),
        "kind": kind,
        "status": "complete",
        "file_uuid": str(uuid.uuid4()),
        "created_utc": created,
        "writer": writer,
        "title": f"Attention of {attributes.get('model_id') or 'a diffusion transformer'}",
        "history": f"{created}: {_how(kind, provenance)} by {writer}",
        "coordinates": " ".join(name for name in scales if not SCALES[name].is_dimension),
    }
    for name, value in {**fixed, **attributes}.items():
        if value != "":
            write_text(file, name, value)
    for name in sorted(scales, key=lambda name: not SCALES[name].is_dimension):
        _write_scale(file, name, scales[name])
    for name, text in {**provenance, "schema": schema_json()}.items():
        write_provenance(file, name, text)


def _how(kind: str, provenance: Mapping[str, str]) -> str:
    """By what a file was made, in a word."""
    if kind != "sample":
        return {"slice": "cut", "merge": "joined"}.get(kind, "packed")
    return (
        "imported"
        if json.loads(provenance.get("origin", "{}")).get("kind") == schema.IMPORTED
        else "captured"
    )


def write_provenance(file: h5py.File, name: str, text: str) -> None:
    """Write one provenance text, in place of what is there."""
    if f"provenance/{name}" in file:
        file[f"provenance/{name}"][()] = text
    else:
        file.create_dataset(f"provenance/{name}", data=text, dtype=TEXT)


def create_variable(
    file: h5py.File,
    spec: Variable,
    sizes: Mapping[str, int],
    precision: str,
    chunks: tuple[int, ...] | None = None,
) -> h5py.Dataset:
    """Create an empty variable with its scales: chunks shuffled, deflated, check-summed; texts plain.

    Args:
        chunks: shape of a chunk in place of this version's.
    """
    shape = spec.shape(sizes)
    if spec.is_text:
        dataset = file.create_dataset(spec.name, shape, TEXT)
    else:
        dataset = file.create_dataset(
            spec.name, shape, numpy_dtype(spec), chunks=chunks or spec.chunks(sizes), fillvalue=fill_of(spec),
            shuffle=True, compression="gzip", compression_opts=schema.GZIP_LEVEL, fletcher32=True,
        )  # fmt: skip
    _describe(dataset, spec.long_name, spec.units, spec.labels, numpy_dtype(spec))
    if spec.fill is not None and spec.dtype == "float32":  # xarray makes floats of integers that have one
        dataset.attrs["_FillValue"] = np.array([spec.fill], numpy_dtype(spec))
    if spec.rounded and precision == "rounded":
        dataset.attrs["quantization_nsb"] = np.int32(schema.MANTISSA_BITS)
    for axis, dim in enumerate(spec.dims):
        dataset.dims[axis].attach_scale(file[dim])
    if spec.name == "images/image":  # after its scales, which HDF5 attaches to nothing that has a CLASS
        for name, text in schema.IMAGE_ATTRIBUTES.items():
            _write_c_text(dataset, name, text)
    return dataset


def write_text(target: h5py.Group | h5py.Dataset, name: str, text: str) -> None:
    """Write an attribute as UTF-8 of fixed length, which more readers know than texts of variable length."""
    encoded = text.encode()
    target.attrs.create(name, encoded, dtype=h5py.string_dtype("utf-8", len(encoded)))


def publish(temporary: Path, path: Path) -> None:
    """Give a closed file its final name: a reader sees it whole or not at all, also after a power cut."""
    _fsync(temporary)
    os.replace(temporary, path)
    with suppress(OSError):  # SMB, FUSE, WSL's drives: what they refuse for a folder, the file does not need
        _fsync(path.parent)


def schema_json() -> str:
    """The schema that a file was written with, for readers without this package."""
    variables = {
        name: {"dims": v.dims, "dtype": v.dtype, "long_name": v.long_name, "units": v.units}
        for name, v in schema.VARIABLES.items()
    }
    scales = {name: {"dim": s.along, "dtype": s.dtype, "labels": s.labels} for name, s in SCALES.items()}
    return json.dumps({"schema_version": schema.SCHEMA_VERSION, "scales": scales, "variables": variables})


def _write_scale(file: h5py.File, name: str, values: np.ndarray) -> None:
    spec = SCALES[name]
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    dataset = file.create_dataset(name, data=np.asarray(values, dtype))
    _describe(dataset, spec.long_name, spec.units, spec.labels, dtype)
    if spec.is_dimension:
        dataset.make_scale(name)
    else:
        dataset.dims[0].attach_scale(file[spec.along])


def _describe(
    dataset: h5py.Dataset, long_name: str, units: str, labels: tuple[str, ...], dtype: np.dtype
) -> None:
    write_text(dataset, "long_name", long_name)
    if labels:
        dataset.attrs["flag_values"] = np.arange(len(labels), dtype=dtype)
        write_text(dataset, "flag_meanings", " ".join(labels))
    elif dtype.kind != "O":
        write_text(dataset, "units", units)


def _write_c_text(dataset: h5py.Dataset, name: str, text: str) -> None:
    """Write an attribute as HDF5's image specification has it: ASCII with a zero at its end."""
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(text) + 1)
    h5py.h5a.create(dataset.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR)).write(
        np.array(text, f"S{len(text) + 1}")
    )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
