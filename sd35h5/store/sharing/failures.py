"""Samples that could not be drawn: one small JSON file each beside the sealed ones, which count before it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sd35h5.store.runs import sealed_indices
from sd35h5.store.showable import well_formed_json
from sd35h5.store.skeleton import publish

ENDING = ".failed.json"
_MAX_BYTES = 64 << 10
_MAX_SENTENCE = 1000


def record_failure(parts: Path, index: int, prompt_id: str, seed: int, why: str) -> None:
    """Write down why a sample could not be drawn; a later failure of it takes its place.

    Raises: OSError, as where the disk is full.
    """
    told = {
        "prompt_id": prompt_id,
        "seed": seed,
        "why": why[:_MAX_SENTENCE],
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    path = parts / f"{index:06d}{ENDING}"
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(json.dumps(told), encoding="utf-8")
    publish(temporary, path)


def forget_failures(parts: Path, samples: Iterable[int]) -> None:
    """Remove what is written down of samples, which are drawn anew by who calls this."""
    for index in samples:
        (parts / f"{index:06d}{ENDING}").unlink(missing_ok=True)


def failures_in(parts: Path) -> dict[int, Mapping[str, Any]]:
    """What is written down of samples that are not sealed, by index: prompt_id, seed, why, utc."""
    found = {}
    for path in sorted(parts.glob(f"*{ENDING}")):
        index = path.name.removesuffix(ENDING)
        if index.isdecimal() and (told := _read(path)) is not None:
            found[int(index)] = told
    sealed = sealed_indices(parts) if found else set()
    return {index: told for index, told in found.items() if index not in sealed}


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        told = well_formed_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):  # replaced under us, or no file of ours
        return None
    is_ours = isinstance(told, dict) and all(
        isinstance(told.get(name), str) for name in ("prompt_id", "why", "utc")
    )
    return told if is_ours and isinstance(told.get("seed"), int) else None
