"""Attributes upon which readers act: each known object may have those that the format gives it, with its values.

A `scale_factor` makes xarray multiply, a `_FillValue` makes it mask, a `CLASS` makes a scale of a variable: what such
an attribute says has to be what the schema does, or the file reads otherwise elsewhere. Others are only shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import h5py
import numpy as np

from sd35h5.store import schema
from sd35h5.store.content_hash import variables_in
from sd35h5.store.schema import SCALES, Scale, Variable, variable
from sd35h5.store.showable import as_text, showable

#: those of CF, of netCDF's own keeping, of HDF5's dimension scales and of its image specification
ACTED_UPON = frozenset({
    "scale_factor", "add_offset", "_FillValue", "missing_value", "valid_range", "valid_min", "valid_max",
    "units", "calendar", "dtype", "_Unsigned", "_Encoding", "compress", "coordinates", "bounds", "cell_measures",
    "grid_mapping", "formula_terms", "ancillary_variables", "flag_values", "flag_masks", "flag_meanings", "Conventions",
    "_Netcdf4Dimid", "_Netcdf4Coordinates", "_nc3_strict", "_NCProperties", "NAME", "DIMENSION_LABELS", "PALETTE",
    "IMAGE_COLORMODEL", "IMAGE_MINMAXRANGE", "IMAGE_TRANSPARENCY", "IMAGE_WHITE_IS_ZERO", "quantization_nsb",
    *schema.IMAGE_ATTRIBUTES,
})  # fmt: skip
SCALE_CLASS = b"DIMENSION_SCALE"
_UNITS_BEFORE = ("nat", "patch", "pixel")  # in 1.0
_SHOWN = 40


def attribute_problems(file: h5py.File) -> Iterator[str]:
    """A sentence for each attribute that makes readers do what the format does not say."""
    is_first = as_text(file.attrs.get("schema_version", "")) == "1.0"
    extra = " ".join(name for name in SCALES if name in file and not SCALES[name].is_dimension)
    yield from _wrong(file, "/", {"Conventions": ("CF-1.11",), "coordinates": (extra, None)})
    for name in (*schema.VARIABLE_GROUPS, "summary", "provenance"):
        if name in file:
            yield from _wrong(file[name], name, {})
    for name in schema.PROVENANCE:
        if f"provenance/{name}" in file:
            yield from _wrong(file[f"provenance/{name}"], f"provenance/{name}", {})
    for name in (each for each in SCALES if each in file):
        yield from _wrong(file[name], name, _of_scale(SCALES[name], is_first))
    for name in (*variables_in(file), *(each for each in schema.SUMMARIES if each in file)):
        yield from _wrong(file[name], name, _of_variable(variable(name), is_first))


def is_marked_as_scale(dataset: h5py.Dataset) -> bool:
    """Whether a dataset has the CLASS of a dimension scale, read byte by byte.

    H5DSis_scale of HDF5 2.0 frees memory twice over another text of its length, and writes past it over several.
    """
    if not h5py.h5a.exists(dataset.id, b"CLASS"):
        return False
    held = h5py.h5a.open(dataset.id, b"CLASS")
    kind, space = held.get_type(), held.get_space()
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str():
        return False
    if kind.get_size() != len(SCALE_CLASS) + 1 or space.get_simple_extent_type() != h5py.h5s.SCALAR:
        return False
    found = np.zeros((), f"S{len(SCALE_CLASS) + 1}")
    held.read(found)
    return found.tobytes() == SCALE_CLASS + b"\0"


def _of_scale(scale: Scale, is_first: bool) -> dict[str, tuple[object, ...]]:
    own = _of_numbers(scale.labels, (scale.units, *(_UNITS_BEFORE if is_first else ())))
    return own | ({"CLASS": (SCALE_CLASS.decode(),), "NAME": (scale.name,)} if scale.is_dimension else {})


def _of_variable(spec: Variable, is_first: bool) -> dict[str, tuple[object, ...]]:
    """What a variable may have, by name: each value that may stand there, None where it may be absent."""
    allowed = (
        {} if spec.is_text else _of_numbers(spec.labels, (spec.units, *(_UNITS_BEFORE if is_first else ())))
    )
    if spec.fill is not None and spec.dtype == "float32":
        allowed["_FillValue"] = (spec.fill,)
    elif spec.fill is not None and is_first:
        allowed["_FillValue"] = (spec.fill, None)
    if spec.rounded:
        allowed["quantization_nsb"] = (schema.MANTISSA_BITS, None)
    if spec.name == "images/image":
        allowed |= {name: (text, None) for name, text in schema.IMAGE_ATTRIBUTES.items()}
    return allowed


def _of_numbers(labels: tuple[str, ...], units: tuple[str, ...]) -> dict[str, tuple[object, ...]]:
    if not labels:
        return {"units": units}
    return {"flag_values": (list(range(len(labels))),), "flag_meanings": (" ".join(labels),)}


def _wrong(
    obj: h5py.Group | h5py.Dataset, name: str, allowed: Mapping[str, tuple[object, ...]]
) -> Iterator[str]:
    own = set(obj.attrs)
    for attribute in sorted(own & ACTED_UPON - set(allowed)):
        yield f"{name} has the attribute {attribute}, upon which readers act and which the format does not give it"
    for attribute, values in allowed.items():
        if attribute not in own:
            if None not in values:
                yield f"{name} lacks the attribute {attribute}, upon which readers act"
        elif not any(_equal(obj.attrs[attribute], value) for value in values):
            found = showable(as_text(obj.attrs[attribute]), _SHOWN)
            yield f"{name} has {attribute} = {found}, the format says {values[0]}"


def _equal(found: object, expected: object) -> bool:
    """Whether an attribute says what is expected: one text, one number (also as a list of one), or numbers."""
    if isinstance(expected, str) or expected is None:
        return isinstance(found, str | bytes) and as_text(found) == expected
    array = np.ravel(found)
    return array.dtype.kind in "biuf" and np.array_equal(
        array, np.ravel(expected), equal_nan=array.dtype.kind == "f"
    )
