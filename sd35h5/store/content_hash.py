"""The variables of a file, the blocks of one sample as they lie in it, and the hash over them."""

from __future__ import annotations

from collections.abc import Mapping

import h5py
import numpy as np

from sd35h5.store import schema
from sd35h5.store.blocks import block_hash, content_hash, extent, origins
from sd35h5.store.schema import SCALES, Variable, variable


def variables_in(file: h5py.File) -> list[str]:
    """Names of the variables in a file that this version knows, in the schema's order; scores come last."""
    groups = {group: set(file[group]) for group in schema.VARIABLE_GROUPS if group in file}
    known = [name for name, spec in schema.VARIABLES.items() if spec.short_name in groups.get(spec.group, ())]
    return known + [f"scores/{name}" for name in sorted(groups.get("scores", ())) if schema.is_score(name)]


def hashed_in(file: h5py.File) -> list[str]:
    """Names of the variables that a sample's content hash is over: no scores, which are joined to a sealed sample,
    and nothing that is of many samples. The file's seal has those (store/seals)."""
    return [name for name in variables_in(file) if is_hashed(variable(name))]


def is_hashed(spec: Variable) -> bool:
    """Whether a sample's content hash is over a variable."""
    return spec.group != "scores" and "sample" in spec.dims


def sizes_in(file: h5py.File) -> dict[str, int]:
    """Lengths of the dimensions that a file has."""
    return {name: len(file[name]) for name, scale in SCALES.items() if scale.is_dimension and name in file}


def sample_hash(file: h5py.File, sample: int) -> str:
    """The content hash of one sample, from the values of its variables."""
    sizes = sizes_in(file)
    return content_hash(
        {name: block_hashes(file[name], variable(name), sizes, sample) for name in hashed_in(file)}
    )


def block_hashes(
    dataset: h5py.Dataset, spec: Variable, sizes: Mapping[str, int], sample: int
) -> dict[tuple[int, ...], str]:
    """Hash of each block of one sample, by its origin."""
    shape = spec.shape({**sizes, "sample": 1})
    # the file's own chunks are the blocks that were hashed: a later version may cut a variable otherwise
    chunk = (1, *dataset.chunks[1:]) if dataset.chunks else spec.chunks({**sizes, "sample": 1})
    source = dataset.asstr() if spec.is_text else dataset
    found = {}
    for origin in origins(tuple(slice(0, n) for n in shape), chunk):
        spans = [slice(o, o + n) for o, n in zip(origin, extent(origin, chunk, shape), strict=True)]
        found[origin] = block_hash(spec, np.asarray(source[(slice(sample, sample + 1), *spans[1:])]))
    return found
