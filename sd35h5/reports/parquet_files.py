"""Tables as Parquet, one way for all: typed columns that say what they hold, a bounded number of rows in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sd35h5.reports.output_files import writing

ROWS = 1 << 16  # of a row group at least: smaller ones take more bytes to describe than to hold


@dataclass(frozen=True)
class Column:
    """A column of a file.

    Args:
        kind: of Arrow: string, int32, int64 or float32. Texts are no Arrow dictionaries, which the hub's viewer
            refuses: the file stores each text once anyway.
        units: "" for texts and indices.
    """

    name: str
    kind: str
    meaning: str
    units: str = ""


def write_parquet(tables: Iterable[pd.DataFrame], columns: Sequence[Column], path: Path, title: str) -> Path:
    """Write tables below each other; no table is parted between row groups of `ROWS` rows and more.

    Texts are as the file has them; NaN is null, so that means in SQL leave it out. What columns mean is in the metadata
    of their fields (`long_name`, `units`), the title in that of the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        pa.field(
            one.name, pa.type_for_alias(one.kind), metadata={"long_name": one.meaning, "units": one.units}
        )
        for one in columns
    ]
    schema = pa.schema(fields, metadata={"title": title})
    with (
        writing(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_index=True) as writer,
    ):
        for rows in _gathered(tables):
            writer.write_table(pa.Table.from_pandas(rows[schema.names], schema, preserve_index=False))
    return path


def _gathered(tables: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Put tables together until there are enough rows for a row group."""
    some: list[pd.DataFrame] = []
    for table in tables:
        some.append(table)
        if sum(map(len, some)) >= ROWS:
            yield pd.concat(some, ignore_index=True)
            some = []
    if some:
        yield pd.concat(some, ignore_index=True)
