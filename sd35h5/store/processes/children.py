"""How processes of our own are started: where they find what this one imports, and whether they came to work at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from sd35h5.errors import Sd35h5Error

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
    except OSError as error:
        raise cannot_start(module, error.strerror or str(error)) from error


def await_ready(process: subprocess.Popen[bytes], module: str) -> None:
    """Wait for a process to say READY; what others print before, as start-up files of clusters do, is passed over.

    Raises: CannotStartError with its last words.
    """
    alarm = threading.Timer(START_SECONDS, process.kill)
    alarm.daemon = True
    alarm.start()
    try:
        while line := process.stdout.readline(1 << 16):
            if line.endswith(READY):
                return
        process.kill()
        words = process.stderr.read().decode(errors="replace").strip().splitlines()
    finally:
        alarm.cancel()
    raise cannot_start(module, words[-1] if words else "it says nothing")


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
