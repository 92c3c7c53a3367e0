"""The seal of a file: hashes of all that its samples' content hashes leave out, so that what changed can be named.

Whoever writes a file calls `seal_file` last: the writer of a sample, packing, slicing, merging, joining scores,
whatever adds a derived table. A file's seal says nothing of where it came from: who copies from a sealed file calls
`refuse_broken_seal` first, so that nothing changed is sealed anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import h5py

from sd35h5.errors import StoreError
from sd35h5.store import schema
from sd35h5.store.content_hash import hashed_in, variables_in
from sd35h5.store.schema import SCALES, SEAL
from sd35h5.store.seals.object_hash import attribute_names, object_hash
from sd35h5.store.showable import showable
from sd35h5.store.skeleton import write_provenance
from sd35h5.store.versions import program

MAX_VALUE_BYTES = 64 << 20  # of one object whose values a seal covers


def seal_file(file: h5py.File) -> None:
    """Write `provenance/seal`, in place of the one that is there: the last thing that is written into a file."""
    sampled = hashed_in(file)
    whole = sorted(_whole_in(file))
    objects = {
        name: file[name]
        for name in ("/", *schema.VARIABLE_GROUPS, "summary", "provenance", *sampled)
        if name in file
    }
    attributes = sorted(
        {each for obj in (*objects.values(), *map(file.get, whole)) for each in attribute_names(obj)}
    )
    told = {
        "sealed_by": program(),
        "schema_version": schema.SCHEMA_VERSION,
        "attributes": attributes,
        "described": {name: object_hash(obj, attributes, False) for name, obj in objects.items()},
        "whole": {name: object_hash(file[name], attributes, True) for name in whole},
    }
    write_provenance(file, SEAL.split("/")[1], json.dumps(told))


def read_seal(file: h5py.File) -> dict[str, Any] | None:
    """What `seal_file` wrote; None for a file without a seal, as those of format 1.0 are.

    Raises: StoreError for a seal that is none.
    """
    if SEAL not in file:
        return None
    try:
        told = json.loads(file[SEAL][()])
        lists = [told["attributes"], list(told["described"].values()), list(told["whole"].values())]
        lists.append([told["sealed_by"]])
        if not all(isinstance(text, str) for texts in lists for text in texts):
            raise TypeError("names and hashes are texts")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(f"its seal ({SEAL}) cannot be read: it is damaged") from error
    return told


def seal_problems(file: h5py.File) -> Iterator[str]:
    """A sentence for each object that is not what was sealed; nothing for a file without a seal."""
    seal = read_seal(file)
    if seal is None:
        return
    attributes = set(seal["attributes"])
    for kind, hashes in (("described", seal["described"]), ("whole", seal["whole"])):
        changed = "values, type or attributes" if kind == "whole" else "type, shape or attributes"
        for name, sealed in hashes.items():
            if name not in file:
                yield f"{showable(name, 80)} is gone, which was there when the file was sealed"
            elif _hash(file[name], name, attributes, kind == "whole") != sealed:
                yield f"{showable(name, 80)} is not what was sealed: its {changed} were changed"
    known = {*_whole_in(file), *hashed_in(file)}
    for name in sorted(known - {*seal["described"], *seal["whole"]}):
        yield f"{name} was not there when the file was sealed"


def refuse_broken_seal(file: h5py.File, name: str) -> None:
    """Refuse to copy from a file of which scales, attributes or provenance are not what was sealed.

    Raises: StoreError with the first that is not. Values of samples are not looked at: their content hashes go along.
    """
    for problem in seal_problems(file):
        raise StoreError(f"{name}: {problem}; `python -m sd35h5 verify --deep` tells more")


def _whole_in(file: h5py.File) -> Iterator[str]:
    """Names of what a seal covers with its values: scales, scores, what is derived, provenance but the seal."""
    yield from (name for name in (*SCALES, *schema.SUMMARIES) if name in file)
    yield from set(variables_in(file)) - set(hashed_in(file))
    yield from (name for name in map("provenance/{}".format, schema.PROVENANCE) if name in file)


def _hash(obj: h5py.Group | h5py.Dataset, name: str, attributes: set[str], with_values: bool) -> str:
    if with_values and isinstance(obj, h5py.Dataset) and obj.nbytes > MAX_VALUE_BYTES:
        raise StoreError(
            f"its seal ({SEAL}) asks for all values of {showable(name, 80)}, which takes {obj.nbytes} bytes"
        )
    return object_hash(obj, attributes, with_values)
