"""How processes of our own are started: where they find what this one imports, and whether they came to work at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from sd35h5.errors import Sd35h5Error

#: how a process ends that a file makes crash; by any other signal it was ended from outside
CRASHES = {
    getattr(signal, name, None)
    for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGSYS", "SIGTRAP", "SIGXCPU")
} - {None}
READY = b'{"ready": true}\n'  # the first word of a process that has imported what it needs
START_SECONDS = 120  # imports from a network drive on a busy machine
_KEPT = ("PATH", "SYSTEMROOT", "LANG", "PYTHONHOME", "PYTHONNOUSERSITE")
_KEPT_KINDS = ("HDF5_", "LD_", "DYLD_", "LC_")


class CannotStartError(Sd35h5Error, RuntimeError):
    """A process of our own does not start: no file is to blame."""


def started(module: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a module that reads files, by pipes: with no secret of this process, and without locks on files.

    Raises: CannotStartError.
    """
    try:
        return subprocess.Popen(
            command(module, *arguments),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(),
        )  # fmt: skip
    except (OSError, MemoryError) as error:
        raise cannot_start(module, getattr(error, "strerror", None) or "there is no memory for it") from error


def await_ready(process: subprocess.Popen[bytes], module: str) -> None:
    """Wait for a process to say READY; what others print before, as start-up files of clusters do, is passed over.

    Raises: CannotStartError with its last words.
    """
    alarm = started_alarm(process, module, START_SECONDS)
    try:
        while line := process.stdout.readline(1 << 16):
            if line.endswith(READY):
                return
        process.kill()
        words = process.stderr.read().decode(errors="replace").strip().splitlines()
    finally:
        alarm.cancel()
    raise cannot_start(module, words[-1] if words else "it says nothing")


def started_alarm(process: subprocess.Popen[bytes], module: str, seconds: float) -> threading.Timer:
    """Start what kills a process after so many seconds, unless it is cancelled. Raises: CannotStartError."""
    alarm = threading.Timer(seconds, process.kill)
    alarm.daemon = True
    try:
        alarm.start()
    except RuntimeError as error:  # no more threads
        process.kill()
        raise cannot_start(module, str(error)) from error
    return alarm


def ended_from_outside(module: str, status: int) -> CannotStartError | None:
    """The sentence for a process that somebody else ended, from how it ended; None for one that crashed."""
    if status >= 0 or -status in CRASHES:
        return None
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return CannotStartError(
        f"{module} was ended from outside ({name}), as a system does that runs out of memory; no file is to blame, "
        "try again in a minute"
    )


def cannot_start(module: str, why: str) -> CannotStartError:
    """The sentence for a process that did not come to work."""
    shown = "".join(c if c.isprintable() else " " for c in why)[:200]
    return CannotStartError(
        f"{module} does not start: {shown}; no file is to blame, `{sys.executable} -m {module}` tells more"
    )


def command(module: str, *arguments: object) -> list[str]:
    """The command line of a module under this interpreter; the folder it is started in is not searched."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def with_import_path(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that imports what this one does.

    Packages come by PYTHONPATH, user site, .pth files or changes of sys.path: all are in sys.path by now.
    """
    root = str(Path(__file__).resolve().parents[3])
    found = [os.path.abspath(place) for place in sys.path if place]
    path = dict.fromkeys(found if root in found else [root, *found])
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}


def _environment() -> dict[str, str]:
    """What a reader of files may know."""
    kept = {
        name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_KINDS)
    }
    more = {"HDF5_USE_FILE_LOCKING": "FALSE", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return with_import_path(kept | more)
