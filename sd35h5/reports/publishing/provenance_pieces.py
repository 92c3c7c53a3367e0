"""Where the files of a page come from, as the captures wrote it, without the folders of their machines."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from sd35h5.reports import file_tables, missing_tiers
from sd35h5.reports.publishing import arrow_files
from sd35h5.reports.publishing.pieces import Piece
from sd35h5.reports.publishing.published_runs import PublishedRun, without_folders

PARTS = {
    "config": "Configuration", "components": "Components", "environment": "Environment", "events": "Events",
    "origin": "Origin",
}  # fmt: skip
PROMPTS = ("prompt", "negative_prompt", "words")  # how the names of fields begin that hold what people wrote


def provenance_pieces(run: PublishedRun) -> Iterator[Piece]:
    """Yield the facts of a run's file, its variables and its tiers."""
    yield Piece(f"{run.key}/provenance.arrow", "provenance", partial(_facts, run))
    yield Piece(f"{run.key}/variables.arrow", "provenance", partial(_variables, run))
    yield Piece(f"{run.key}/tiers.arrow", "provenance", partial(_tiers, run))


def _facts(run: PublishedRun) -> bytes:
    store = run.store
    told = {**store.provenance, "config": store.config}
    parts = {title: told[name] for name, title in PARTS.items() if told.get(name)} | {
        "Attributes": store.attributes
    }
    tables = [file_tables.facts(part).assign(part=title) for title, part in parts.items()]
    table = pd.concat(tables, ignore_index=True)[["part", "field", "value"]]
    table["value"] = [
        value if field.startswith(PROMPTS) else without_folders(value)
        for field, value in zip(table["field"], table["value"], strict=True)
    ]
    return arrow_files.table(table)


def _variables(run: PublishedRun) -> bytes:
    table = file_tables.variables(run.store)[
        ["variable", "dimensions", "dtype", "stored", "raw", "units", "long_name"]
    ]
    return arrow_files.table(table)


def _tiers(run: PublishedRun) -> bytes:
    return arrow_files.table(missing_tiers.tiers(run.store).astype({"held": "int8"}))
