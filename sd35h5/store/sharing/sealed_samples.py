"""What the samples of a capture that are on disk already say of themselves, packed or not."""

from __future__ import annotations

from pathlib import Path

from sd35h5.store.places.open_store import open_store
from sd35h5.store.runs import out_of, sealed_indices


def sealed_samples(parts: Path) -> dict[int, dict]:
    """Rows of the samples table that are on disk already, by sample index."""
    indices = sorted(sealed_indices(parts))
    if not indices:
        return {}
    with open_store(_opened_as(parts)) as store:
        rows = store.samples.to_dict("records")
    return dict(zip(indices, rows, strict=True))


def sealed_attributes(parts: Path) -> dict[str, str]:
    """The root attributes of the samples that are on disk already, {} without any."""
    if not sealed_indices(parts):
        return {}
    with open_store(_opened_as(parts)) as store:
        return dict(store.attributes)


def _opened_as(parts: Path) -> Path:
    """The packed file, which knows of its parts, or the parts alone."""
    out = out_of(parts)
    return out if out is not None and out.is_file() else parts
