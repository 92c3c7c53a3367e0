"""Join scores to the samples of a packed file: into a copy that takes the file's place, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from sd35h5.errors import StoreError, StoreNotFoundError
from sd35h5.store import schema
from sd35h5.store.opening import reading, reason
from sd35h5.store.runs import RUN_FILE, parts_of
from sd35h5.store.sample_files import check_version
from sd35h5.store.schema import PARTS_SUFFIX, SEAL, variable
from sd35h5.store.scores_csv import read_scores
from sd35h5.store.seals.file_seal import refuse_broken_seal, seal_file
from sd35h5.store.sharing.locks import lock
from sd35h5.store.skeleton import TEXT, create_variable, publish
from sd35h5.store.verifying import refuse_problems, verify

EVENTS = "provenance/events"
_PIECE = 4 << 20  # bytes


def join_scores(
    path: str | Path, table: str | Path, names: Sequence[str] = (), overwrite: bool = False
) -> dict[str, int]:
    """Write columns of a CSV as `scores/NAME`, float32 along `sample`, into a packed file.

    The file is copied, the copy is written, verified and renamed: readers that hold the file open keep the
    one they opened, and a process that is killed leaves it as it was. The samples' content hashes, which
    leave scores out, stay valid. `provenance/events` says which table the scores come from.

    Args:
        table: CSV with `sample_id`, or `prompt_id` and `seed`, and columns of numbers; see `read_scores`.
        names: the columns to join; by default all that can be scores.
        overwrite: replace scores of these names, whole: samples that the table leaves out get NaN.
    Returns: name -> number of samples that have a value.
    Raises: StoreError, one sentence; StoreNotFoundError.
    """
    path, table = _packed(Path(path)), Path(table)
    temporary = path.with_name(path.name + ".tmp")
    try:
        held = lock(temporary)
    except OSError as error:
        raise StoreError(f"{path.name} cannot be written: {reason(error)}") from error
    try:
        refuse_problems(path)
        scores = _new_scores(path, table, names, overwrite)
        copy_data(path, temporary)
        shutil.copymode(path, temporary)
        with h5py.File(temporary, "r+", libver=schema.LIBVER, locking=False) as file:
            _write(file, scores, table)
        report = verify(temporary)
        if not report.ok:
            raise StoreError(f"{path.name} is not joined, it does not verify: {report.problems[0]}")
        publish(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError) and not isinstance(error, StoreError):
            raise StoreError(f"{path.name} cannot be written: {reason(error)}") from error
        raise
    finally:
        held.close()
    return {name: int(np.isfinite(values).sum()) for name, values in scores.items()}


def copy_data(source: Path, target: Path) -> None:
    """Copy a file's bytes, and leave out its holes: a file that claims 100 GB may hold a few kilobytes."""
    with source.open("rb", buffering=0) as file, target.open("wb", buffering=0) as copy:
        size = file.seek(0, os.SEEK_END)
        copy.truncate(size)
        position = 0
        while position < size:
            begin, end = _data_from(file, position, size)
            for place in range(begin, end, _PIECE):
                file.seek(place), copy.seek(place)
                rest = memoryview(file.read(min(_PIECE, end - place)))
                while rest:
                    rest = rest[copy.write(rest) :]
            position = end


def _data_from(file: BinaryIO, position: int, size: int) -> tuple[int, int]:
    """The next stretch of a file that is no hole; all of it where the system knows no holes."""
    if not hasattr(os, "SEEK_DATA"):
        return position, size
    try:
        begin = file.seek(position, os.SEEK_DATA)
        return begin, file.seek(begin, os.SEEK_HOLE)
    except OSError as error:
        return (size, size) if error.errno == errno.ENXIO else (position, size)


def _packed(path: Path) -> Path:
    """Return the file itself, behind links; refuse what is no single file, or not whole yet."""
    hint = "pack it first (python -m sd35h5 pack)"
    if path.is_dir() or (not path.exists() and parts_of(path).is_dir()):
        raise StoreError(f"{path.name} is no single file yet but a folder of sealed samples: {hint}")
    if not path.is_file():
        raise StoreNotFoundError(f"{path.name}: there is no such file")
    path = path.resolve()
    if path.parent.name.endswith(PARTS_SUFFIX) or (path.parent / RUN_FILE).is_file():
        raise StoreError(f"{path.name} is a sealed sample of the capture {path.parent.name}: {hint}")
    if (parts_of(path) / RUN_FILE).is_file():
        raise StoreError(
            f"{path.name} is being captured, {parts_of(path).name} is still there: "
            "let the capture end, or pack it with --remove_parts, then join"
        )
    return path


def _new_scores(path: Path, table: Path, names: Sequence[str], overwrite: bool) -> dict[str, np.ndarray]:
    with reading(path) as file:
        check_version(file, path.name)
        refuse_broken_seal(file, path.name)
        there = set(file.get("scores", ()))
        try:
            samples = {name: file[f"samples/{name}"] for name in ("sample_id", "prompt_id", "seed")}
            samples = {
                name: (values if name == "seed" else values.asstr())[:] for name, values in samples.items()
            }
        except (KeyError, TypeError) as error:
            raise StoreError(f"{path.name} has no table of samples: it is damaged") from error
    scores = read_scores(table, samples, names)
    before = [name for name in scores if name in there]
    if before and not overwrite:
        raise StoreError(f"{path.name} has scores/{before[0]} already: pass --overwrite to replace it")
    return scores


def _write(file: h5py.File, scores: Mapping[str, np.ndarray], table: Path) -> None:
    sizes = {"sample": len(file["sample"])}
    for name, values in scores.items():
        spec = variable(f"scores/{name}")
        dataset = file[spec.name] if spec.name in file else create_variable(file, spec, sizes, "exact")
        dataset[...] = values
    event = {
        "event": "scores joined",
        "scores": list(scores),
        "table": table.name,
        "sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    events = _events(file)
    if EVENTS in file:
        del file[EVENTS]
    file.create_dataset(EVENTS, data=json.dumps([*events, event], ensure_ascii=False), dtype=TEXT)
    if SEAL in file:  # what was never sealed is not sealed as it happens to be now
        seal_file(file)


def _events(file: h5py.File) -> list[object]:
    if EVENTS not in file:
        return []
    try:
        events = json.loads(file[EVENTS].asstr()[()])
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{EVENTS} is not JSON: the file is damaged") from error
    return events if isinstance(events, list) else [events]
