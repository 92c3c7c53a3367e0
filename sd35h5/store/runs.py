"""A capture on disk: where its parts are, what it was begun with, who fills it, which samples are sealed."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from sd35h5.errors import RunHeldError, StoreError, StoreNotFoundError
from sd35h5.store.opening import reading, reason
from sd35h5.store.schema import PARTS_SUFFIX, SUFFIX, SUFFIXES
from sd35h5.store.sharing.locks import lock
from sd35h5.store.skeleton import publish

RUN_FILE = "run.json"
LOCK_FILE = "run.lock"
TEXTS_FOLDER = "texts"  # what the text encoders gave, until the samples are packed
CLAIM_FILE = "pack.claim"  # of who packs what many processes drew
MAX_RUN_BYTES = 16 << 20
_PACKED_WITHIN, _LOOKED_AT_FOR = 600, 0.1  # seconds to wait for another that packs, or looks who holds it


def parts_of(out: Path) -> Path:
    """The folder `run.h5.parts` that the capture of `run.h5` fills."""
    return out.with_name(out.name + PARTS_SUFFIX)


def out_of(parts: Path) -> Path | None:
    """The file that a folder `run.h5.parts` is packed into; None if the folder has another name."""
    return (
        parts.with_name(parts.name.removesuffix(PARTS_SUFFIX)) if parts.name.endswith(PARTS_SUFFIX) else None
    )


def stem_of(name: str) -> str:
    """What a run is called: the name of its file or folder without `.h5`, `.hdf5` and `.parts`."""
    name = name.removesuffix(PARTS_SUFFIX)
    return name.removesuffix(next(filter(name.endswith, SUFFIXES), ""))


def part_name(index: int) -> str:
    """File name of a sealed sample."""
    return f"{index:06d}{SUFFIX}"


def part_files(parts: Path) -> list[Path]:
    """Sealed files of a folder, by index; unfinished ones have another ending."""
    return sorted(p for p in parts.glob(f"*{SUFFIX}") if p.stem.isdecimal() and p.is_file())


def is_companion(name: str) -> bool:
    """Whether other systems leave files of that name beside ours: `._x.h5`, `.DS_Store`, `Thumbs.db`."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def sealed_indices(parts: Path) -> set[int]:
    """Indices of the samples that need no capture: those in the folder, and those packed beside it."""
    out = out_of(parts)
    packed = packed_indices(out) if out and out.is_file() else ()
    return set(packed) | {int(path.stem) for path in part_files(parts)}


def packed_indices(out: Path) -> list[int]:
    """Indices of the samples in a packed file, in its order."""
    with _opened(out) as file:
        return file["sample"][:].tolist()


def sealed_texts(parts: Path, name: str) -> list[Any]:
    """What the sealed samples say in `provenance/NAME`, each different value once; [] without sealed samples."""
    out, found = out_of(parts), []
    packed = [out] if out and out.is_file() else []
    for path in (*packed, *part_files(parts)):
        with _opened(path) as file:
            told = {key: json.loads(text[()]) for key, text in file["provenance"].items()}
        events = told.get("events", [])
        found += [told[name]] if name in told else []
        found += [event["value"] for event in events if event.get("event") == f"{name} differs"]
    return [value for place, value in enumerate(found) if value not in found[:place]]


@contextmanager
def running(out: Path, shared: bool = False) -> Iterator[Path]:
    """Hold the capture of `out` for this process. Yields: its parts folder, which is made.

    Nothing is left of a capture that sealed nothing, so that it never stands in another's way.

    Args:
        shared: others may hold it so, too, each of which draws a share; then nothing is removed.
    Raises: RunHeldError at once if another process, or another capture of this one, fills it.
    """
    parts = parts_of(Path(out))
    held = _held(parts, shared)
    try:
        yield parts
    finally:
        if os.name == "nt":  # an open file cannot be removed there
            held.close()
        if not shared:
            forget_run(parts)
        held.close()


def _held(parts: Path, shared: bool) -> BinaryIO:
    path, began = parts / LOCK_FILE, time.monotonic()
    while True:
        try:
            parts.mkdir(parents=True, exist_ok=True)
            held = lock(path, shared)
        except BlockingIOError:
            is_packed = shared and (parts / CLAIM_FILE).exists()  # by one of the others
            if time.monotonic() - began < (_PACKED_WITHIN if is_packed else _LOOKED_AT_FOR):
                time.sleep(0.02)
                continue
            raise RunHeldError(
                f"{parts.name.removesuffix(PARTS_SUFFIX)} is being captured already, by process {_holder(path)}: wait "
                "for it or stop it, or choose another output file"
            ) from None
        except FileNotFoundError:  # it was removed in between
            continue
        except OSError as error:
            raise StoreError(f"{parts} cannot be made: {reason(error)}") from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held.fileno()), path.stat()):
                held.truncate(0)
                held.write(str(os.getpid()).encode())
                held.flush()
                return held
        held.close()  # who held it before has removed it: it is no longer the folder's


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii") or "?"
    except (OSError, ValueError):
        return "?"


def check_run(out: Path, config: dict, resolve: Callable[[dict], dict] = dict) -> None:
    """Refuse to go on with samples that another configuration sealed; without a sealed one there is nothing to refuse.

    Args:
        config: what must be equal to go on with the samples that are there; it goes through JSON.
        resolve: what of a configuration decides the data, spelled in one way; applied to both.
    Raises: StoreError naming the fields that differ.
    """
    out, parts = Path(out), parts_of(Path(out))
    if not sealed_indices(parts):
        return
    before, now = resolve(_config_before(out, parts)), resolve(json.loads(json.dumps(config)))
    if fields := _differing(before, now):
        told = "; ".join(
            f"{name}: {_short(before, name)} there, {_short(now, name)} now" for name in fields[:6]
        )
        more = f" and {len(fields) - 6} more" if len(fields) > 6 else ""
        raise StoreError(
            f"{out.name} was begun with another configuration ({told}{more}): "
            "use the same options, another output file, or overwrite it"
        )


def begin_run(
    out: Path,
    config: dict,
    planned: int,
    overwrite: bool = False,
    resolve: Callable[[dict], dict] = dict,
    shares: int | None = None,
) -> Path:
    """Make the parts folder of `out`, or find the one that the same configuration began. Returns: the folder.

    Args:
        config, resolve: as `check_run`.
        planned: how many samples there will be.
        overwrite: remove what is there first.
        shares: into how many shares the capture is divided, if it is.
    Raises: StoreError naming the fields that differ.
    """
    out, parts = Path(out), parts_of(Path(out))
    if overwrite:
        empty(parts, (TEXTS_FOLDER,))  # kept by content: they are of no sample that is there
        out.unlink(missing_ok=True)
    check_run(out, config, resolve)
    run = {"config": config, "planned": int(planned)}
    run |= {"cuts": cuts} if (cuts := earlier_ends(out, planned)) else {}
    run |= {"shares": shares} if shares else {}
    try:
        parts.mkdir(parents=True, exist_ok=True)
        temporary = parts / f"{RUN_FILE}.{uuid.uuid4().hex[:8]}.tmp"
        temporary.write_text(json.dumps(run, indent=1), encoding="utf-8")
        publish(temporary, parts / RUN_FILE)
    except OSError as error:
        raise StoreError(f"{parts} cannot be made: {reason(error)}") from error
    return parts


def earlier_ends(out: Path, planned: int) -> list[int]:
    """How many samples there were to be before, each time that the list became longer; [] without a sealed one."""
    parts = parts_of(Path(out))
    if not (sealed := sealed_indices(parts)):
        return []
    run = read_run(parts) if (parts / RUN_FILE).is_file() else {"planned": len(sealed)}
    told = run.get("cuts", [])
    before = {*told, run["planned"]} if isinstance(told, list) else {run["planned"]}
    return sorted(end for end in before if isinstance(end, int) and 0 < end < planned)


def empty(parts: Path, kept: Collection[str] = ()) -> None:
    """Remove a capture's parts, but what is kept and the file by which a process holds them, which goes with the
    process."""
    if not (kept or (parts / LOCK_FILE).exists()):
        shutil.rmtree(parts, ignore_errors=True)
        return
    for path in parts.iterdir() if parts.is_dir() else ():
        if path.name not in (LOCK_FILE, *kept):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def forget_run(parts: Path) -> None:
    """Let go of a capture: remove one that was begun and has nothing yet; what holds anything else stays."""
    if not parts.is_dir():
        return
    if all(path.name in (RUN_FILE, LOCK_FILE) or is_companion(path.name) for path in parts.iterdir()):
        for path in parts.iterdir():
            if path.name != LOCK_FILE:
                path.unlink(missing_ok=True)
    (parts / LOCK_FILE).unlink(missing_ok=True)
    with suppress(OSError):  # there is more in it, or the next one has begun
        parts.rmdir()


def read_run(parts: Path) -> dict:
    """What `begin_run` wrote: {"config": dict, "planned": int}."""
    path = Path(parts) / RUN_FILE
    try:
        if path.stat().st_size > MAX_RUN_BYTES:
            raise ValueError("larger than any configuration")
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreNotFoundError(
            f"{path.parent.name} has no {RUN_FILE}: it is no folder of a capture"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{path.parent.name}/{RUN_FILE} cannot be read: remove the folder and capture again"
        ) from error
    if (
        not isinstance(run, dict)
        or not isinstance(run.get("config"), dict)
        or not isinstance(run.get("planned"), int)
    ):
        raise StoreError(
            f"{path.parent.name}/{RUN_FILE} has no config and planned: remove the folder and capture again"
        )
    return run


def _config_before(out: Path, parts: Path) -> dict:
    """The configuration of the samples that are sealed."""
    if (parts / RUN_FILE).is_file():
        return read_run(parts)["config"]
    with _opened(out if out.exists() else part_files(parts)[0]) as file:
        return json.loads(file["provenance/config"][()].decode())


@contextmanager
def _opened(out: Path) -> Iterator[h5py.File]:
    with reading(out) as file:
        if "sample" not in file or "provenance/config" not in file:
            raise StoreError(
                f"{out.name} is there and is another HDF5 file, no store: choose another output file, or overwrite it"
            )
        yield file


def _differing(before: dict, now: dict) -> list[str]:
    return sorted(name for name in {*before, *now} if before.get(name, ...) != now.get(name, ...))


def _short(config: dict, name: str) -> str:
    text = json.dumps(config[name], ensure_ascii=False) if name in config else "nothing"
    return text if len(text) <= 60 else f"{text[:57]}..."
