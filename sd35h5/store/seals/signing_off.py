"""What a verification was made by, what it looked at, and what of a file nobody signed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import h5py

from sd35h5.store import schema
from sd35h5.store.content_hash import hashed_in, variables_in
from sd35h5.store.schema import SCALES, SEAL
from sd35h5.store.seals.file_seal import read_seal
from sd35h5.store.seals.object_hash import attribute_names
from sd35h5.store.showable import showable
from sd35h5.store.versions import program

CHECKS = (
    "groups, datasets and hard links alone, of allowed types, filters and sizes",
    "names, types, shapes and scales of the format",
    "texts: UTF-8 without control characters, none too long",
    "the table of samples: complete, every sample sealed",
)
DEEP_CHECKS = (
    "chunks, filters and checksums as the format demands",
    "attributes upon which readers act: what the format says, no others",
    "values: the content hash of each sample",
    "scales, attributes, scores, summaries and provenance: the seal of the file",
    "summaries: made anew from the samples",
)
MAX_TOLD = 20


def made_by() -> str:
    """The programs that look."""
    return f"{program()}, format {schema.SCHEMA_VERSION}, HDF5 {h5py.version.hdf5_version}"


def coverage(file: h5py.File, names: Iterable[str]) -> dict[str, Any]:
    """What the seals of a file that verified deeply are over.

    Args: names: of all objects, as `object_rules.walk` yields them.
    """
    seal = read_seal(file)
    told: dict[str, Any] = {
        "sealed_by": seal["sealed_by"] if seal else "",
        "samples": len(file["sample"]),
        "variables": len(hashed_in(file)),
        "objects": len(seal["whole"]) + len(seal["described"]) if seal else 0,
        "attributes": 0,
        "not_covered": [],
    }
    known = {
        *SCALES,
        *schema.SUMMARIES,
        *schema.VARIABLE_GROUPS,
        *variables_in(file),
        "summary",
        "provenance",
        SEAL,
    }
    known |= {f"provenance/{name}" for name in schema.PROVENANCE} | {""}
    for name in sorted(each.strip("/") for each in names):
        if name not in known:
            told["not_covered"].append(showable(name, 80))
        elif seal is None:
            continue
        elif name != SEAL:
            own = attribute_names(file[name or "/"])
            told["attributes"] += sum(each in seal["attributes"] for each in own)
            left = (each for each in own if each not in seal["attributes"])
            told["not_covered"] += [
                showable(f"the attribute {each} of {name or 'the file'}", 120) for each in left
            ]
    if seal is None:
        told["not_covered"].insert(
            0, "scales, attributes, scores and provenance, which files of format 1.0 do not seal"
        )
    return told


def in_words(told: list[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is covered, and what is not, of all files of a store, a phrase each."""
    samples = sum(each["samples"] for each in told)
    covered = [
        f"every value of {samples} samples in {max((each['variables'] for each in told), default=0)} variables"
    ]
    if objects := max((each["objects"] for each in told), default=0):
        attributes = max(each["attributes"] for each in told)
        covered.append(
            f"{attributes} attributes of {objects} objects, with the values of scales and provenance"
        )
    covered += [f"sealed by {by}" for by in dict.fromkeys(each["sealed_by"] for each in told) if by]
    left = list(dict.fromkeys(phrase for each in told for phrase in each["not_covered"]))
    more = [f"and {len(left) - MAX_TOLD} more"] if len(left) > MAX_TOLD else []
    return tuple(covered), (*left[:MAX_TOLD], *more)
