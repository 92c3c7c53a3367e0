"""What the provenance of a slice or a merge says of the files that it was made of: `events` and `origin`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sd35h5.store.cutting.wanted_part import Cut, Wanted
from sd35h5.store.reader import Store

MOST_HASHES = 100_000  # that are told one by one: provenance has its cap
OF_FILE = ("file_uuid", "kind", "created_utc", "writer", "schema_version")
NOT_CHOSEN = "its tier was not chosen"
NOTES = {
    "heads": "maps and rows that are means over heads are means over all heads",
    "tokens": "group masses, entropies and heaviest keys are over all keys; the axis token is whole, and what was "
    "not chosen of it is fill",
    "attn2": "an attn2 with heads of its own keeps all of them",
}


def events_of(events: Any, sample_ids: Collection[str], named: dict[str, str] | None = None) -> list[Any]:
    """The events that are of no sample, or of one of these.

    Args: named: sample_id -> what it is called now, where it is another.
    """
    told = events if isinstance(events, list) else [events]
    ids, named = set(sample_ids), named or {}
    kept = [
        each for each in told if not isinstance(each, dict) or each.get("sample_id", None) in ({None} | ids)
    ]
    return [
        {**each, "sample_id": named[each["sample_id"]]}
        if isinstance(each, dict) and each.get("sample_id") in named
        else each
        for each in kept
    ]


def source_of(store: Store, samples: Sequence[int]) -> dict[str, Any]:
    """What tells a source and the samples that were taken from it: its name, attributes and content hashes."""
    table = store.table()
    hashes = table["content_sha256"].tolist()
    told: dict[str, Any] = {"file": store.path.name}
    told |= {name: store.attributes[name] for name in OF_FILE if name in store.attributes}
    told |= {"samples": len(hashes), "content_sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest()}
    if len(samples) <= MOST_HASHES:
        told["sample_sha256"] = {table["sample_id"][one]: hashes[one] for one in samples}
    if "origin" in store.provenance:
        told["origin"] = store.provenance["origin"]
    return told


def origin_of_slice(store: Store, chosen: Cut, wanted: Wanted) -> dict[str, Any]:
    """What a slice says of where it comes from: the file and its hashes, the selection, what is left out."""
    asked = wanted.told()
    notes = [NOTES[name] for name in ("heads", "tokens") if name in asked]
    notes += [NOTES["attn2"]] * ("heads" in asked and "head_attn2" in chosen.scales)
    told: dict[str, Any] = {
        "made": "slice",
        "of": source_of(store, chosen.samples.tolist()),
        "selection": asked,
    }
    left_out = {name: NOT_CHOSEN for name in store.variables if name not in chosen.variables} | dict(
        chosen.left_out
    )
    return told | ({"left_out": left_out} if left_out else {}) | ({"notes": notes} if notes else {})


def merged_provenance(
    stores: Sequence[Store], taken: Sequence[tuple[int, int]], names: Mapping[int, Mapping[str, str]]
) -> dict[str, Any]:
    """The provenance of a merge: what all files say alike, the first's environment and components, all events, and
    `origin`, which tells of each file what it says otherwise and which samples have another name now.

    Args:
        taken: source and position of each sample.
        names: row -> variable -> its new text.
    """
    first = stores[0].provenance
    merged = {name: told for name, told in first.items() if name in ("environment", "components")}
    merged["config"] = {
        name: value
        for name, value in stores[0].config.items()
        if all(name in store.config and store.config[name] == value for store in stores)
    }
    events, files = [], []
    for number, store in enumerate(stores):
        rows = {position: row for row, (source, position) in enumerate(taken) if source == number}
        ids = store.table()["sample_id"]
        named = {
            str(ids[position]): names[row]["samples/sample_id"]
            for position, row in rows.items()
            if "samples/sample_id" in names.get(row, {})
        }
        own = events_of(store.provenance.get("events", []), ids[list(rows)].tolist(), named)
        events += [event for event in own if event not in events]
        files.append(
            source_of(store, list(rows)) | _otherwise(store, merged) | ({"named": named} if named else {})
        )
    return merged | ({"events": events} if events else {}) | {"origin": {"made": "merge", "of": files}}


def _otherwise(store: Store, merged: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says otherwise than the merge."""
    config = {name: value for name, value in store.config.items() if name not in merged["config"]}
    told: dict[str, Any] = {"config": config} if config else {}
    for name in ("environment", "components"):
        if name in store.provenance and store.provenance[name] != merged.get(name):
            told[name] = store.provenance[name]
    return told | {
        name: store.attributes[name] for name in ("model_id", "model_revision") if name in store.attributes
    }
