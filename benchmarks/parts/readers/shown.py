"""What a reader shows of a file: numbers, texts, names of axes, attributes; and how much of it is what h5py shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

#: attributes by which HDF5 and netCDF themselves attach scales: readers that know them hide them
HIDDEN = {
    "DIMENSION_LIST",
    "REFERENCE_LIST",
    "CLASS",
    "NAME",
    "_Netcdf4Dimid",
    "_Netcdf4Coordinates",
    "_NCProperties",
}
ROOT = "/"


@dataclass
class Shown:
    """What a reader shows, by the dataset's path without the first slash.

    Args:
        numbers: values in the file's order of axes; texts: the same as a flat list.
        axes: names of a variable's dimensions; attributes: path -> name -> text, the file's own under "/".
        trouble: the first sentences that the reader said of what it did not read.
    """

    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    axes: dict[str, list[str]] = field(default_factory=dict)
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)

    def put(self, name: str, values: object) -> None:
        """Keep a dataset's values, of either kind."""
        array = np.asarray(values)
        if array.dtype.kind in "OSU":
            self.texts[name] = [as_text(one) for one in array.ravel()]
        else:
            self.numbers[name] = array

    def describe(self, name: str, attributes: dict[str, object]) -> None:
        """Keep the attributes that are texts."""
        texts = {key: as_text(value) for key, value in attributes.items() if key not in HIDDEN}
        self.attributes[name] = {key: text for key, text in texts.items() if text is not None}


def as_text(value: object) -> str | None:
    """Return a text as such, None for what is none."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    if isinstance(value, bytes):
        return value.rstrip(b"\0").decode("utf-8", "replace")
    return str(value) if isinstance(value, str) else None


def truth(path: Path) -> Shown:
    """What h5py reads."""
    shown = Shown()
    with h5py.File(path) as file:
        shown.describe(ROOT, dict(file.attrs))

        def keep(name: str, each: h5py.Group | h5py.Dataset) -> None:
            if isinstance(each, h5py.Dataset):
                shown.put(name, each[()])
                shown.describe(name, dict(each.attrs))
                if "/" in name and each.ndim:
                    shown.axes[name] = [dim[0].name.strip("/") for dim in each.dims]

        file.visititems(keep)
    return shown


def compared(shown: Shown, expected: Shown) -> dict[str, tuple[int, int]]:
    """Return how many are equal, of how many: numbers, texts, axes, attributes."""
    attributes = [(name, key) for name, own in expected.attributes.items() for key in own]
    equal = {
        "numbers": sum(_same(shown.numbers.get(name), values) for name, values in expected.numbers.items()),
        "texts": sum(shown.texts.get(name) == values for name, values in expected.texts.items()),
        "axes": sum(shown.axes.get(name) == names for name, names in expected.axes.items()),
        "attributes": sum(
            shown.attributes.get(name, {}).get(key) == expected.attributes[name][key] for name, key in attributes
        ),
    }  # fmt: skip
    counts = {
        "numbers": len(expected.numbers), "texts": len(expected.texts), "axes": len(expected.axes),
        "attributes": len(attributes),
    }  # fmt: skip
    return {name: (equal[name], counts[name]) for name in counts}


def wrong(shown: Shown, expected: Shown) -> list[str]:
    """Return the numbers and texts that a reader shows, without an error, otherwise than they are."""
    return [
        *(name for name, one in shown.numbers.items() if not _same(one, expected.numbers.get(name))),
        *(name for name, one in shown.texts.items() if one != expected.texts.get(name)),
    ]


def _same(values: np.ndarray | None, expected: np.ndarray | None) -> bool:
    """Whether values are equal one by one, in order: other languages have other types and may turn the axes around."""
    if values is None or expected is None or values.size != expected.size:
        return False
    return np.array_equal(
        values.ravel().astype(np.float64), expected.ravel().astype(np.float64), equal_nan=True
    )
