"""Whether the samples of several files can be in one: the same axes, and the same model by its fingerprints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sd35h5.errors import StoreError
from sd35h5.store import schema
from sd35h5.store.reader import Store
from sd35h5.store.sample_files import Parts
from sd35h5.store.schema import SCALES
from sd35h5.store.showable import showable

OF_NAMES = ("model_id", "model_revision")  # what a model is called, where fingerprints tell what it is
_REMEDY = "cut both alike with `python -m sd35h5 slice` first"


def common_scales(parts: Sequence[Parts]) -> dict[str, np.ndarray]:
    """The scales of all files but `sample`; one that a file lacks, as it lacks what it is of, is that of the others.

    Raises: StoreError naming the first that differs.
    """
    found: dict[str, np.ndarray] = {}
    first: dict[str, str] = {}  # scale -> the file that has it first
    for each in parts:
        for name, values in each.scales.items():
            known = found.setdefault(name, values)
            origin = first.setdefault(name, each.path.name)
            if len(values) != len(known):
                raise StoreError(
                    f"{each.path.name} has {len(values)} positions along {SCALES[name].along}, "
                    f"{origin} has {len(known)}: {_REMEDY}"
                )
            if not np.array_equal(values, known, equal_nan=True):
                at = int(np.flatnonzero(values != known)[0])
                raise StoreError(
                    f"{each.path.name} has {name} {_shown(values[at], name)} at position {at}, {origin} has "
                    f"{_shown(known[at], name)}: {_REMEDY}"
                )
    return found


def refuse_other_models(stores: Sequence[Store]) -> None:
    """Refuse files of another model, gates or intervention than the first: a file has one of each.

    Models are told by their fingerprints; where a file has none, by their names.
    Raises: StoreError naming what differs.
    """
    first = stores[0]
    known = _fingerprints(first)
    for store in stores[1:]:
        own = _fingerprints(store)
        for name in known.keys() & own.keys():
            if known[name] != own[name]:
                raise StoreError(
                    f"{store.path.name} was drawn with another {showable(name)} than {first.path.name} (fingerprint "
                    f"{showable(own[name], 12)}, not {showable(known[name], 12)}): a merge holds samples of one model"
                )
        is_told = "transformer" in known and "transformer" in own
        for name in schema.MODEL_ATTRIBUTES:
            here, there = (
                showable(each.attributes.get(name, "") or "nothing", 60) for each in (store, first)
            )
            if here != there and not (is_told and name in OF_NAMES):
                raise StoreError(
                    f"{store.path.name} has {name} = {here}, {first.path.name} has {there}: "
                    "a merge holds samples of one model"
                )


def _fingerprints(store: Store) -> dict[str, str]:
    components: Any = store.provenance.get("components")
    if not isinstance(components, Mapping):
        return {}
    return {
        str(name): str(part["fingerprint"])
        for name, part in components.items()
        if isinstance(part, Mapping) and part.get("fingerprint")
    }


def _shown(value: Any, name: str) -> str:
    labels = SCALES[name].labels
    return labels[value] if labels and value < len(labels) else f"{value:g}"
