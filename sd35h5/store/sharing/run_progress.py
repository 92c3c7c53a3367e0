"""How far a capture is: counts, speed and an estimate, from names and times in its folder; no HDF5 file is opened."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd35h5.store.runs import LOCK_FILE, RUN_FILE, part_files
from sd35h5.store.sharing.failures import ENDING, failures_in
from sd35h5.store.sharing.locks import lock

_HOUR = 3600.0


@dataclass(frozen=True)
class RunProgress:
    """A capture that is not packed.

    Args:
        is_held: a process of this host fills it, or one of a host whose file locks are seen here.
        per_hour: samples an hour since a process began it or went on with it last; None before the second is sealed.
        seconds_left: at that speed; None where there is no speed.
        seconds_since: since the last sample was sealed; None without one.
        failed: index -> prompt_id, seed, why, utc.
    """

    is_held: bool
    per_hour: float | None
    seconds_left: float | None
    seconds_since: float | None
    failed: Mapping[int, Mapping[str, Any]]


def run_progress(parts: Path, missing: int) -> RunProgress:
    """Look at the folder `run.h5.parts`.

    Args:
        missing: how many samples are to come.
    """
    times = sorted(filter(None, (_time(path) for path in part_files(parts))))
    began = _time(parts / RUN_FILE) or 0.0
    since = [each for each in times if each > began]  # of the process, or of the share, that came last
    spent = since[-1] - began if since else 0.0
    per_hour = _HOUR * len(since) / spent if len(since) > 1 and spent > 0 else None
    return RunProgress(
        is_held=_is_held(parts),
        per_hour=per_hour,
        seconds_left=_HOUR * missing / per_hour if per_hour else None,
        seconds_since=max(0.0, time.time() - times[-1]) if times else None,
        failed=failures_in(parts) if any(parts.glob(f"*{ENDING}")) else {},
    )


def _time(path: Path) -> float | None:
    """When a file was changed; None for one that has been packed meanwhile."""
    with suppress(OSError):
        return path.stat().st_mtime
    return None


def _is_held(parts: Path) -> bool:
    """Whether a process holds the capture; a starting one that comes upon this look asks again."""
    path = parts / LOCK_FILE
    if not path.exists():
        return False
    try:
        lock(path).close()
    except BlockingIOError:
        return True
    except OSError:  # a folder that may not be written
        return False
    return False
