"""What is inside a store, as data and as text; without pandas and xarray, to answer in under a second."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from sd35h5.store.reader import Store
from sd35h5.store.schema import MODEL_ATTRIBUTES, variable
from sd35h5.store.showable import showable

_SHOWN_PROMPTS = 12


def describe(store: Store) -> dict[str, Any]:
    """Everything that `info --json` prints."""
    table = {name: [_finite(value) for value in column.tolist()] for name, column in store.table().items()}
    return {
        "name": store.name,
        "status": store.status,
        "samples_sealed": len(store),
        "samples_planned": store.planned,
        "bytes": store.bytes_on_disk(),
        "attributes": store.attributes,
        "sizes": store.sizes,
        "config": store.config,
        "variables": {
            name: {
                "dims": list(variable(name).dims),
                "shape": list(variable(name).shape(store.sizes)),
                "dtype": variable(name).dtype,
                "bytes": store.bytes_on_disk(name),
                "long_name": variable(name).long_name,
            }
            for name in store.variables
        },
        "samples": [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)],
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(told: dict[str, Any]) -> Iterator[str]:
    """Lines of `info` for people."""
    sealed, planned = told["samples_sealed"], told["samples_planned"]
    yield f"{showable(told['name'])}: {told['status']}, {sealed} of {planned} samples, {nbytes(told['bytes'])}"
    for name in (*MODEL_ATTRIBUTES, "created_utc", "writer", "schema_version"):
        if told["attributes"].get(name):
            yield f"  {name:<15} {showable(told['attributes'][name], 100)}"
    yield f"  {'sizes':<15} {', '.join(f'{dim} {size}' for dim, size in told['sizes'].items())}"
    if told["samples"]:
        yield "samples"
    for row in told["samples"][:_SHOWN_PROMPTS]:
        yield f"  {row['sample']:>4}  seed {row['seed']:<6} {showable(row['prompt'], 80)}"
    if len(told["samples"]) > _SHOWN_PROMPTS:
        yield f"  ... and {len(told['samples']) - _SHOWN_PROMPTS} more (--json has them all)"
    if told["variables"]:
        yield "variables"
    for name, facts in told["variables"].items():
        dims = ", ".join(f"{dim} {n}" for dim, n in zip(facts["dims"], facts["shape"], strict=True))
        yield f"  {name:<28} {facts['dtype']:<8} {nbytes(facts['bytes']):>9}  ({dims})"


def nbytes(count: int) -> str:
    """A number of bytes as people read it."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
