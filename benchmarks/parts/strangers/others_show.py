"""What h5py or xarray shows of files, run with its name and paths, prints `NAME HASH` lines, or why not."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import h5py
import numpy as np

ADDRESSES = ("DIMENSION_LIST", "REFERENCE_LIST")


def by_h5py(path: Path) -> str:
    """A hash of every value, every attribute and the scales of every axis."""
    digest = hashlib.sha256()
    with h5py.File(path, "r") as file:

        def visit(name: str, obj: h5py.Group | h5py.Dataset) -> None:
            _add(
                digest,
                name,
                *(part for key in sorted(set(obj.attrs) - {*ADDRESSES}) for part in (key, obj.attrs[key])),
            )
            if isinstance(obj, h5py.Dataset):
                scales = [held.name for axis in obj.dims for held in axis.values()]
                _add(digest, obj[()], repr(scales), repr(obj.chunks))

        visit("/", file)
        file.visititems(visit)
    return digest.hexdigest()


def by_xarray(path: Path) -> str:
    """A hash of every variable as xarray decodes it, and of its attributes."""
    import xarray as xr

    digest = hashlib.sha256()
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        for node in tree.subtree:
            _add(digest, node.path, repr(sorted(node.attrs.items())))
            for name, values in node.variables.items():
                _add(digest, name, repr(values.dims), repr(sorted(values.attrs)), values.values)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, *parts: object) -> None:
    for part in parts:
        array = np.asarray(part)
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes())


if __name__ == "__main__":
    shown = {"h5py": by_h5py, "xarray": by_xarray}[sys.argv[1]]
    for each in map(Path, sys.argv[2:]):
        try:
            print(each.name, shown(each), flush=True)
        except Exception as error:  # a reader that refuses shows nothing that is wrong
            print(each.name, f"refused:{type(error).__name__}", flush=True)
