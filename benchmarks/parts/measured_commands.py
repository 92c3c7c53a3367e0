"""Commands of this package, each in a process of its own: what they take."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parts.visits import children, held_mb

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: object) -> tuple[float, float]:
    """Run `python -m sd35h5 …`. Returns: seconds, and the most MB that it held with the processes it started.

    Raises: RuntimeError with what it said where it failed.
    """
    begin, most = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as said:
        line = [sys.executable, "-m", "sd35h5", *map(str, arguments)]
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            most = max(most, family_mb(process.pid))
            time.sleep(0.05)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(said.read()[-2000:])
    return time.perf_counter() - begin, most


def family_mb(process: int) -> float:
    """What a process and those that it started hold now; 0 for one that has just ended."""
    try:
        return held_mb(process) + sum(map(held_mb, children(process)))
    except (OSError, StopIteration):  # ended between two looks
        return 0.0
