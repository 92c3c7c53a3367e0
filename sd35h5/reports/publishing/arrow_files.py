"""What a page's numbers are sent in: Arrow IPC streams, uncompressed, a table each, told about in its metadata."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from sd35h5.store.showable import all_showable, as_json, seen

LARGEST = 32768.0  # below float16's 65,504: what is largest is scaled to it


def table(frame: pd.DataFrame, **about: object) -> bytes:
    """Return a table as Arrow; every character of its texts is seen.

    Args: about: what is told of it, as JSON under its name in the metadata.
    """
    columns = {}
    for name, column in frame.items():
        is_text = not pd.api.types.is_numeric_dtype(column)
        values = [seen(str(text)) for text in column] if is_text else column.to_numpy()  # NaN stays NaN
        columns[str(name)] = pa.array(values, pa.string() if is_text else None, from_pandas=False)
    return _stream(pa.table(columns), about)


def numbers(values: np.ndarray, exact: bool, **about: object) -> bytes:
    """Return an array of any shape as one column `value`, row by row.

    Args:
        exact: as float32; else as float16 of the values ÷ `scale`, which keeps 11 bits (relative error ≤ 0.05 %) over
            nine decades below the largest.
        about: what is told of it besides shape and scale.
    """
    values = np.asarray(values, np.float64)
    scale = 1.0 if exact else _largest(values) / LARGEST
    stored = (values / scale).astype(np.float32 if exact else np.float16).ravel()
    told = {"shape": list(values.shape), "scale": scale, **about}
    return _stream(pa.table({"value": pa.array(stored)}), told)


def _largest(values: np.ndarray) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size and finite.max() > 0 else LARGEST


def _stream(content: pa.Table, about: Mapping[str, object]) -> bytes:
    told = {name: as_json(all_showable(value), allow_nan=False) for name, value in about.items()}
    content = content.replace_schema_metadata(told).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, content.schema) as writer:
        writer.write_table(content)
    return sink.getvalue().to_pybytes()
