"""What other programs show of files, as a hash each: run with paths as arguments, prints `NAME HASH` lines, or why not.

Every value and attribute by h5py, addresses apart, and every variable that xarray opens, decoded as xarray does.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

ADDRESSES = ("DIMENSION_LIST", "REFERENCE_LIST")


def shown(path: Path) -> str:
    """A hash of all that h5py and xarray make of a file."""
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        for part in parts:
            array = np.asarray(part)
            digest.update(repr((array.shape, array.dtype.str)).encode())
            digest.update(repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes())

    with h5py.File(path, "r") as file:

        def visit(name: str, obj: h5py.Group | h5py.Dataset) -> None:
            add(
                name,
                *(part for key in sorted(set(obj.attrs) - {*ADDRESSES}) for part in (key, obj.attrs[key])),
            )
            if isinstance(obj, h5py.Dataset):
                add(obj[()])

        visit("/", file)
        file.visititems(visit)
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        for node in tree.subtree:
            for name, values in node.variables.items():
                add(node.path, name, repr(values.dims), values.values)
    return digest.hexdigest()


if __name__ == "__main__":
    for each in map(Path, sys.argv[1:]):
        try:
            print(each.name, shown(each), flush=True)
        except Exception as error:  # a reader that refuses shows nothing that is wrong
            print(each.name, f"refused:{type(error).__name__}", flush=True)
