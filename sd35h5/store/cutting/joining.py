"""A merge: the samples of several files of one shape and one model, as one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from sd35h5.errors import StoreError
from sd35h5.store import schema
from sd35h5.store.cutting.new_files import new_file, refuse_place, verified
from sd35h5.store.cutting.one_shape import common_scales, refuse_other_models
from sd35h5.store.cutting.origins import merged_provenance
from sd35h5.store.cutting.row_copies import copy_samples
from sd35h5.store.cutting.wanted_part import Cut
from sd35h5.store.reader import Store
from sd35h5.store.sample_files import Parts, find_parts
from sd35h5.store.sharing.room import Room
from sd35h5.store.skeleton import write_head

IDS = ("sample_id", "prompt_id")


@dataclass
class Joined:
    """Which samples a merge holds.

    Args:
        taken: source, position in it; in the merge's order.
        names: row -> variable -> the id that the sample has in the merge, where it is another than before.
        skipped: ids of samples that an earlier source holds with equal values.
    """

    taken: list[tuple[int, int]] = field(default_factory=list)
    names: dict[int, dict[str, str]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def join(paths: Sequence[Path], out: Path, overwrite: bool = False, skip_equal: bool = False) -> Joined:
    """Write the samples of several stores into one file, those of the first first; compressed chunks are copied.

    A sample whose id an earlier file has gets that of its file behind it (`p000-s1@B`), so that both are kept; so
    does a prompt's id that stands for another prompt there. Samples are numbered anew. What a file lacks is fill.

    Args:
        paths: what `open_store` opens; verified first.
        skip_equal: take a sample once that several files hold with equal values, which is refused otherwise.
    Returns: what was taken, named anew and skipped.
    Raises: StoreError, one sentence that names what differs.
    """
    paths, out = [Path(path) for path in paths], Path(out)
    if len(paths) < 2:
        raise StoreError("a merge needs two files or more: name them behind each other")
    refuse_place(out, paths, overwrite)
    parts = [find_parts(verified(path)) for path in paths]
    try:
        stores = [Store(each) for each in parts]
        if empty := [store.path.name for store in stores if not len(store)]:
            raise StoreError(f"{empty[0]} has no sealed sample to merge")
        refuse_other_models(stores)
        scales = common_scales(parts)
        joined = _joined(stores, skip_equal)
        with new_file(out, sum(each.bytes_on_disk(None) for each in parts)) as (target, room):
            _write(target, room, stores, parts, scales, joined)
    finally:
        for each in parts:
            each.close()
    return joined


def _joined(stores: Sequence[Store], skip_equal: bool) -> Joined:
    """Decide which samples are taken, and what they are called."""
    joined = Joined()
    known: dict[str, tuple[int, str]] = {}  # sample_id as it was -> source, content hash
    prompts: dict[str, str] = {}  # prompt_id -> prompt
    used: set[str] = set()  # ids of samples in the merge
    for number, store in enumerate(stores):
        table = store.table()
        columns = (table[name].tolist() for name in ("sample_id", "prompt_id", "prompt", "content_sha256"))
        own: dict[str, str] = {}
        for position, (sample, prompt_id, prompt, content) in enumerate(zip(*columns, strict=True)):
            before = known.setdefault(sample, (number, content))
            if before[0] != number and before[1] == content:
                if not skip_equal:
                    raise StoreError(
                        f"{store.path.name} and {stores[before[0]].path.name} hold the same sample {sample}, "
                        "equal in every value: pass --skip_equal to take it once"
                    )
                joined.skipped.append(sample)
                continue
            changed = {}
            if sample in used:
                changed["samples/sample_id"] = sample = _free(sample, store, used)
            if prompts.setdefault(prompt_id, prompt) != prompt:
                own.setdefault(prompt_id, _free(prompt_id, store, set(prompts)))
                changed["samples/prompt_id"] = own[prompt_id]
                prompts[own[prompt_id]] = prompt
            used.add(sample)
            if changed:
                joined.names[len(joined.taken)] = changed
            joined.taken.append((number, position))
    return joined


def _free(name: str, store: Store, used: set[str]) -> str:
    """A name with that of its file behind it, and a number where that is taken, too."""
    found, number = f"{name}@{store.name}", 2
    while found in used:
        found, number = f"{name}@{store.name}-{number}", number + 1
    return found


def _write(
    target: h5py.File,
    room: Room,
    stores: Sequence[Store],
    parts: Sequence[Parts],
    scales: Mapping[str, np.ndarray],
    joined: Joined,
) -> None:
    attributes = {
        name: stores[0].attributes[name] for name in schema.MODEL_ATTRIBUTES if name in stores[0].attributes
    }
    provenance = merged_provenance(stores, joined.taken, joined.names)
    own = {**scales, "sample": np.arange(len(joined.taken))}
    write_head(
        target, own, attributes, {name: json.dumps(told) for name, told in provenance.items()}, kind="merge"
    )
    variables = dict.fromkeys(name for each in parts for name in each.variables)
    whole = Cut(np.arange(len(joined.taken)), {}, tuple(variables), scales)
    samples = [parts[number].sources[position][1:] for number, position in joined.taken]
    copy_samples(target, room, whole, samples, "merge", joined.names)
