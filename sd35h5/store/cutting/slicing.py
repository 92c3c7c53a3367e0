"""A slice: the samples, branches, layers, heads, steps, tokens and tiers that are wanted, as a file of its own."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from sd35h5.errors import StoreError
from sd35h5.store import schema
from sd35h5.store.blocks import fill_of
from sd35h5.store.cutting.new_files import new_file, refuse_place, verified
from sd35h5.store.cutting.origins import events_of, origin_of_slice
from sd35h5.store.cutting.row_copies import copy_samples
from sd35h5.store.cutting.wanted_part import MAP_INDEX, TABLES, Cut, Wanted, resolve
from sd35h5.store.reader import Store
from sd35h5.store.sample_files import Parts, find_parts
from sd35h5.store.schema import variable
from sd35h5.store.skeleton import write_head


def cut(path: Path, out: Path, wanted: Wanted, overwrite: bool = False) -> Cut:
    """Write a part of a store into a file of its own: compressed chunks are copied where the part does not divide
    them, others are inflated, cut and deflated, a few at a time.

    Scales keep their true indices: a slice of layer 5 says layer 5. The axis `token` stays whole, as numbers are
    over all keys; what is not chosen of it is fill. Content hashes are made anew.

    Args:
        path: what `open_store` opens; verified first.
    Returns: what was kept, and what was left out and why.
    Raises: StoreError, one sentence; ConfigError for a list of indices.
    """
    path, out = Path(path), Path(out)
    refuse_place(out, [path], overwrite)
    parts = find_parts(verified(path))
    try:
        if not len(parts):
            raise StoreError(f"{parts.name} has no sealed sample to cut")
        store = Store(parts)
        chosen = resolve(
            wanted, _indices(parts), store.table(), parts.scales, parts.variables, _mapped(parts)
        )
        with new_file(out, _size(parts, chosen)) as (target, room):
            _write_head(target, store, parts, chosen, wanted)
            samples = [parts.sources[sample][1:] for sample in chosen.samples]
            copy_samples(target, room, chosen, samples, "slice")
    finally:
        parts.close()
    return chosen


def _indices(parts: Parts) -> np.ndarray:
    return np.array([index for index, _, _ in parts.sources])


def _mapped(parts: Parts) -> np.ndarray | None:
    """The token of every map, int16 (sample, branch, map_token)."""
    if MAP_INDEX not in parts.variables:
        return None
    spec = variable(MAP_INDEX)
    shape = (len(parts), *(len(parts.scales[dim]) for dim in spec.dims[1:]))
    found = np.full(shape, fill_of(spec), spec.dtype)
    parts.read_into(found, spec, tuple(map(np.arange, shape)))
    return found


def _size(parts: Parts, chosen: Cut) -> int:
    """About how many bytes the slice takes."""
    total = 0.0
    for name in chosen.variables:
        share = len(chosen.samples) / len(parts)
        for dim in variable(name).dims:
            if dim in chosen.places:
                share *= len(chosen.places[dim]) / len(parts.scales[dim])
            elif dim == "token" and chosen.tokens is not None and not name.startswith(TABLES):
                share *= chosen.tokens.mean()
        total += share * parts.bytes_on_disk(name)
    return round(1.1 * total)


def _write_head(target: h5py.File, store: Store, parts: Parts, chosen: Cut, wanted: Wanted) -> None:
    attributes = {
        name: parts.attributes[name] for name in schema.MODEL_ATTRIBUTES if name in parts.attributes
    }
    told = {name: text for name, text in parts.provenance.items() if name in schema.PROVENANCE}
    ids = store.table()["sample_id"][chosen.samples].tolist()
    if "events" in told:
        told["events"] = events_of(told["events"], ids)
    told["origin"] = origin_of_slice(store, chosen, wanted)
    scales = {**chosen.scales, "sample": _indices(parts)[chosen.samples]}
    write_head(
        target, scales, attributes, {name: json.dumps(each) for name, each in told.items()}, kind="slice"
    )
