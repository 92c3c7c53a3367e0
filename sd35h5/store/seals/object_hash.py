"""The hash of one object of a file: its type, its shape, its attributes, and its values where they are few."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import h5py
import numpy as np

#: references by which HDF5 attaches scales: addresses in this file, which verify compares with the schema
ADDRESSES = ("DIMENSION_LIST", "REFERENCE_LIST")


def attribute_names(obj: h5py.Group | h5py.Dataset) -> list[str]:
    """Names of the attributes that a seal can cover, sorted."""
    return sorted(name for name in obj.attrs if name not in ADDRESSES)


def object_hash(obj: h5py.Group | h5py.Dataset, attributes: Collection[str], with_values: bool) -> str:
    """SHA-256 over lines that any program can make, each ending in a newline, in this order:

    `group`, or `dataset TYPE SHAPE`; for each of `attributes` that it has, sorted: `attribute NAME TYPE SHAPE HASH`;
    `values HASH` where they are covered. TYPE is `text`, of fixed or of variable length, or as in numpy (`<f4`);
    SHAPE a Python tuple, `()` for one value; HASH is `values_hash`.
    """
    lines = ["group"]
    if isinstance(obj, h5py.Dataset):
        lines = [f"dataset {_type_name(obj.dtype)} {obj.shape}"]
    for name in attribute_names(obj):
        if name in attributes:
            values = np.asarray(obj.attrs[name])
            lines.append(f"attribute {name} {_type_name(values.dtype)} {values.shape} {values_hash(values)}")
    if with_values:
        lines.append(f"values {values_hash(obj[()])}")
    text = "".join(f"{line}\n" for line in lines)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def values_hash(values: object) -> str:
    """SHA-256 of numbers, row-major and little-endian; of texts as their UTF-8 behind its length and a colon."""
    array = np.asarray(values)
    if array.dtype.kind in "biuf":
        return hashlib.sha256(np.ascontiguousarray(array, array.dtype.newbyteorder("<"))).hexdigest()
    texts = (_encoded(text) for text in array.ravel().tolist())
    return hashlib.sha256(b"".join(b"%d:%s" % (len(text), text) for text in texts)).hexdigest()


def _type_name(dtype: np.dtype) -> str:
    return dtype.newbyteorder("<").str if dtype.kind in "biuf" else "text"


def _encoded(text: object) -> bytes:
    """A text as it lies in the file: h5py keeps what is no UTF-8 as lone surrogates."""
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogateescape")
