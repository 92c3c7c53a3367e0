"""Read a table of scores: a CSV with a row a sample, into one float32 a sample of a store."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sd35h5.errors import StoreError, StoreNotFoundError
from sd35h5.store.opening import reason
from sd35h5.store.schema import MAX_SCORE_NAME, is_sample_column, is_score
from sd35h5.store.showable import cell

KEYS = (("sample_id",), ("prompt_id", "seed"))  # columns that name a sample, the first that are there
MISSING = ("", "nan", "na")
Row = tuple[int, Mapping[str, str]]  # line in the file, column -> text


def read_scores(
    path: Path, samples: Mapping[str, np.ndarray], names: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Read columns of numbers and put each beside its sample.

    Args:
        samples: sample_id (str), prompt_id (str) and seed (int64), each a value a sample of the store.
        names: the columns to take; by default all but those that the store's table of samples has too.
    Returns: name -> float32 (sample,), NaN where the table has an empty cell, `nan` or no row.
    Raises: StoreError, one sentence that names file, line and column; StoreNotFoundError.
    """
    header, *rows = _rows(path)
    columns = _chosen(path, header[1], names)
    key = next((key for key in KEYS if set(key) <= set(header[1])), None)
    if key is None:
        raise StoreError(
            f"{path.name} does not say which sample a row is about: it needs the column sample_id, or "
            f"prompt_id and seed; it has {_listed(header[1])}"
        )
    places = _placed(path, rows, key, samples)
    count = len(samples["sample_id"])
    scores = {name: np.full(count, np.nan, np.float32) for name in columns}
    for place, (line, row) in zip(places, rows, strict=True):
        for name, values in scores.items():
            values[place] = _number(row[name], f"{path.name}, line {line}, column {name}")
    for name, values in scores.items():
        if np.isnan(values).all():
            raise StoreError(f"{path.name} has no number in its column {name}")
    return scores


def _rows(path: Path) -> Iterator[Row]:
    """Yield the header, then the rows that are not blank, each with its line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not any(header):
                raise StoreError(f"{path.name} is empty: its first line must name its columns")
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise StoreError(f"{path.name} has two columns called {twice[0]!r}")
            yield reader.line_num, {name: name for name in header}
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise StoreError(
                        f"{path.name}, line {reader.line_num}: {len(cells)} cells, "
                        f"the first line names {len(header)} columns"
                    )
                yield reader.line_num, {n: c.strip() for n, c in zip(header, cells, strict=True)}
    except FileNotFoundError:
        raise StoreNotFoundError(f"{path.name}: there is no such file") from None
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {reason(error)}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise StoreError(f"{path.name} is no table of comma-separated values in UTF-8: {error}") from error


def _chosen(path: Path, header: Mapping[str, str], names: Sequence[str]) -> list[str]:
    if missing := [name for name in names if name not in header]:
        raise StoreError(f"{path.name} has no column {missing[0]!r}: it has {_listed(header)}")
    chosen = list(dict.fromkeys(names)) or [name for name in header if not is_sample_column(name)]
    if not chosen:
        raise StoreError(f"{path.name} has no column besides {_listed(header)}: nothing to join")
    for name in chosen:
        if is_sample_column(name):
            raise StoreError(f"{name!r} is a column of the file's own table of samples: rename it")
        if not is_score(name):
            raise StoreError(
                f"{name!r} is no name for a score: rename the column with letters, digits and underscores, "
                f"at most {MAX_SCORE_NAME}, or leave it out with --columns"
            )
    return chosen


def _placed(
    path: Path, rows: Sequence[Row], key: tuple[str, ...], samples: Mapping[str, np.ndarray]
) -> list[int]:
    """Return the position of each row's sample."""
    known: dict[tuple[str, ...], list[int]] = {}
    for place, values in enumerate(zip(*(samples[name].tolist() for name in key), strict=True)):
        names = [str(value).strip() for value in values]
        for told in {
            tuple(names),
            tuple(str(cell(name)) for name in names),
        }:  # as our own tables write them, too
            known.setdefault(told, []).append(place)
    first_line: dict[int, int] = {}
    places = []
    for line, row in rows:
        named = " and ".join(f"{name} {row[name]!r}" for name in key)
        found = known.get(tuple(row[name] for name in key), [])
        if len(found) != 1:
            told = "is no sample of the file" if not found else f"is the name of {len(found)} samples"
            raise StoreError(f"{path.name}, line {line}: {named} {told}: `python -m sd35h5 info` lists them")
        if found[0] in first_line:
            raise StoreError(f"{path.name}, line {line}: {named} was in line {first_line[found[0]]} already")
        first_line[found[0]] = line
        places += found
    return places


def _number(text: str, where: str) -> float:
    """Parse a cell; NaN for one that is empty."""
    if text.lower() in MISSING:
        return math.nan
    try:
        value = float(text) if "_" not in text else math.inf
    except ValueError:
        value = math.inf
    with np.errstate(over="ignore"):
        if not np.isfinite(np.float32(value)):
            raise StoreError(f"{where}: {text[:40]!r} is no finite number of 32 bits")
    return value


def _listed(header: Mapping[str, str]) -> str:
    return ", ".join(repr(name) for name in list(header)[:12])
