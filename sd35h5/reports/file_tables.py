"""What a file holds besides its numbers, as tables: its variables with their sizes, and where it comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from sd35h5.store.schema import variable

if TYPE_CHECKING:
    from sd35h5.store.reader import Store

LONGEST = 2000  # characters of a value that is shown


def variables(store: Store) -> pd.DataFrame:
    """Return the schema as it is in the file, a row a variable.

    Columns: variable, dimensions ("sample 2, step 28"), dtype, chunk (as text, "" where it is one piece), stored
    (bytes, compressed), raw (bytes; NaN for texts), units, long_name.
    """
    rows = []
    for name in store.variables:
        spec = variable(name)
        shape = spec.shape(store.sizes)
        raw = np.nan if spec.is_text else math.prod(shape) * np.dtype(spec.dtype).itemsize
        rows.append({
            "variable": name,
            "dimensions": ", ".join(f"{dim} {size}" for dim, size in zip(spec.dims, shape, strict=True)),
            "dtype": spec.dtype,
            "chunk": " × ".join(map(str, store.chunks(name) or ())),
            "stored": store.bytes_on_disk(name),
            "raw": raw,
            "units": spec.units,
            "long_name": spec.long_name,
        })  # fmt: skip
    return pd.DataFrame(rows)


def facts(told: Any) -> pd.DataFrame:
    """Return nested JSON of a file as a table: field ("vae.dtype"), value (as text)."""
    return pd.DataFrame(list(_leaves(told, "")), columns=["field", "value"])


def _leaves(told: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(told, dict) and told and name.count(".") < 4:
        for key, value in told.items():
            yield from _leaves(value, f"{name}.{key}".lstrip("."))
    else:
        text = told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)
        yield name, text if len(text) <= LONGEST else text[:LONGEST] + "…"


def size_bars(table: pd.DataFrame, *, most: int = 14) -> alt.Chart:
    """Return bars of the bytes that the largest variables take, stored, beside what they are raw.

    Args: table: of `variables`.
    """
    largest = table.nlargest(most, "stored")
    long = largest.melt("variable", ["stored", "raw"], "kind", "bytes").dropna()
    long["kind"] = long["kind"].map({"stored": "stored, compressed", "raw": "raw"})
    long["megabytes"] = long["bytes"] / 1e6
    kinds = ["stored, compressed", "raw"]
    return (
        alt.Chart(long)
        .mark_bar()
        .encode(
            x=alt.X("megabytes:Q", title="MB (10⁶ bytes)", axis=alt.Axis(tickCount=6)),
            y=alt.Y("variable:N", sort=largest["variable"].tolist(), title=None, axis=alt.Axis(labelLimit=260)),
            yOffset=alt.YOffset("kind:N", sort=kinds),
            color=alt.Color("kind:N", sort=kinds, title=None, legend=alt.Legend(orient="top", columns=2),
                            scale=alt.Scale(domain=kinds, range=["#0072B2", "#999999"])),
            tooltip=["variable:N", "kind:N", alt.Tooltip("bytes:Q", format=",")],
        )
        .properties(height=26 * len(largest) + 40)
    )  # fmt: skip
