"""Two files compared array by array, as HDF5 has them: nothing of ours reads them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of a file but its provenance."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, each: object) -> None:
        if isinstance(each, h5py.Dataset) and not name.startswith("provenance/"):
            found[name] = each[()]

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def assert_equal_arrays(first: Path, second: Path) -> None:
    """Every array of two files is equal, bit for bit."""
    one, other = arrays(first), arrays(second)
    assert one.keys() == other.keys() and len(one) > 30
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def differing(first: Path, second: Path) -> list[str]:
    """Names of arrays that are not equal to the bit, or that one file lacks."""
    one, other = arrays(first), arrays(second)
    return sorted(
        name
        for name in one.keys() | other.keys()
        if name not in one or name not in other or not are_equal(one[name], other[name])
    )


def are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays hold the same, NaN where the other has it."""
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
