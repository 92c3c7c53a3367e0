"""A capture on disk: where its parts are, what it was begun with, which samples are sealed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py

from sd35h5.errors import StoreError, StoreNotFoundError
from sd35h5.store.opening import reading, reason
from sd35h5.store.schema import PARTS_SUFFIX, SUFFIX
from sd35h5.store.skeleton import publish

RUN_FILE = "run.json"
MAX_RUN_BYTES = 16 << 20


def parts_of(out: Path) -> Path:
    """The folder `run.h5.parts` that the capture of `run.h5` fills."""
    return out.with_name(out.name + PARTS_SUFFIX)


def out_of(parts: Path) -> Path | None:
    """The file that a folder `run.h5.parts` is packed into; None if the folder has another name."""
    return (
        parts.with_name(parts.name.removesuffix(PARTS_SUFFIX)) if parts.name.endswith(PARTS_SUFFIX) else None
    )


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


def begin_run(out: Path, config: dict, planned: int, overwrite: bool = False) -> Path:
    """Make the parts folder of `out`, or find the one that the same configuration began. Returns: the folder.

    Args:
        config: what must be equal to go on with the samples that are there; it goes through JSON.
        planned: how many samples there will be.
        overwrite: remove what is there first.
    Raises: StoreError naming the fields that differ.
    """
    out, config = Path(out), json.loads(json.dumps(config))
    parts = parts_of(out)
    if overwrite:
        shutil.rmtree(parts, ignore_errors=True)
        out.unlink(missing_ok=True)
    before = _config_before(out, parts)
    if before is not None and (fields := _differing(before, config)):
        told = "; ".join(
            f"{name}: {_short(before, name)} there, {_short(config, name)} now" for name in fields[:6]
        )
        more = f" and {len(fields) - 6} more" if len(fields) > 6 else ""
        raise StoreError(
            f"{out.name} was begun with another configuration ({told}{more}): "
            "use the same options, another output file, or overwrite it"
        )
    try:
        parts.mkdir(parents=True, exist_ok=True)
        temporary = parts / f"{RUN_FILE}.tmp"
        temporary.write_text(
            json.dumps({"config": config, "planned": int(planned)}, indent=1), encoding="utf-8"
        )
        publish(temporary, parts / RUN_FILE)
    except OSError as error:
        raise StoreError(f"{parts} cannot be made: {reason(error)}") from error
    return parts


def forget_run(parts: Path) -> None:
    """Remove a capture that was begun and has nothing yet; what holds anything else stays."""
    if parts.is_dir() and all(path.name == RUN_FILE or is_companion(path.name) for path in parts.iterdir()):
        for path in parts.iterdir():
            path.unlink()
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


def lock(path: Path) -> BinaryIO:
    """Create a file and hold it for this process until it is closed.

    HDF5 locks only after it has truncated, so two captures would spoil each other's sample.
    Raises: BlockingIOError if another process holds it.
    """
    held = path.open("ab")
    try:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise
    except (ImportError, OSError):  # Windows, or a file system without locks: nothing to hold it with
        return held
    return held


def _config_before(out: Path, parts: Path) -> dict | None:
    if (parts / RUN_FILE).is_file():
        return read_run(parts)["config"]
    if out.exists():
        with _opened(out) as file:
            return json.loads(file["provenance/config"][()].decode())
    return None


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
