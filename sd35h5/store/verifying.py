"""Is this file well-formed, whole and safe to open: asked in a subprocess, as files can crash HDF5."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from sd35h5.errors import StoreError, StoreNotFoundError
from sd35h5.store.places.addresses import is_address, shown_name
from sd35h5.store.places.far_files import FarFile
from sd35h5.store.processes import children
from sd35h5.store.runs import part_files, parts_of
from sd35h5.store.seals.signing_off import CHECKS, DEEP_CHECKS, in_words, made_by

_CHECKER = "sd35h5.store.processes.checker"
MEMORY_BYTES = 2 << 30
FAR_SECONDS = 120  # of the processor, and on the wall: bytes come from afar
MAX_LINE_BYTES = 1 << 20
_SECONDS = 30
MAX_ENDS = 5  # files that may end the check before the rest is not looked at
TOO_LARGE = "reading it takes more than 2 GiB of memory: it is damaged, or made to exhaust readers"
TOO_LONG = "reading it did not end in {seconds} s: it is damaged, or made to hang readers"
CRASHED = "reading it crashed the HDF5 library: it is damaged"


@dataclass(frozen=True)
class Report:
    """What verification found: `ok`, or one sentence a problem, without paths of this machine; and what it is said of.

    `by` names the programs and the format's version, `checks` what was looked at. Of a deep check that found nothing,
    `covered` says what equals what was sealed, and by which program, and `not_covered` what of the file nobody sealed.
    """

    ok: bool
    problems: tuple[str, ...] = ()
    by: str = ""
    checks: tuple[str, ...] = ()
    covered: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.ok


def verify(path: str | Path, deep: bool = False, seconds: int | None = None) -> Report:
    """Check a file, or every sealed file of a folder, before anything in this process opens it.

    Args:
        path: or the address of a file elsewhere, of which the structure is checked.
        deep: besides structure, types, links and sizes, read every value and compare it with what was sealed.
        seconds: how long it may take; by default 30 and some more for large files and many files.
    Raises: StoreNotFoundError; CannotStartError where nothing can be checked, for which no file is to blame.
    """
    if is_address(path):
        if deep:
            raise StoreError(
                f"{shown_name(path)}: a deep check reads every value: download the file, then check it"
            )
        return verify_far(FarFile(path), seconds or FAR_SECONDS)
    files = _files(Path(path))
    if seconds is None:
        megabytes = sum(_stored(file) for file in files) >> 20
        seconds = _SECONDS + len(files) // 4 + (megabytes // 5 if deep else megabytes // 100)
    problems: list[str] = []
    covered: list[dict] = []
    deadline = time.monotonic() + seconds
    remaining, ends = files, 0
    while remaining and ends < MAX_ENDS:
        # after a file that hung the others have time of their own, or they would be blamed for it
        left = max(min(seconds, _SECONDS), round(deadline - time.monotonic()))
        lines, end = _run_check(remaining, deep, left)
        told = [(line["file"], line["problem"]) for line in lines if "problem" in line]
        covered += [line["covered"] for line in lines if "covered" in line]
        begun = max(1, sum("problem" not in line and "covered" not in line for line in lines))
        if end:
            told.append((remaining[begun - 1].name, end.format(seconds=left)))
            ends += 1
        problems += [f"{name}: {problem}" if len(files) > 1 else problem for name, problem in told]
        remaining = remaining[begun:]
    if remaining:
        problems.append(f"{len(remaining)} more files were not looked at after these")
    checks = (*CHECKS, *DEEP_CHECKS) if deep else CHECKS
    told = in_words(covered) if deep and not problems else ((), ())
    return Report(not problems, tuple(problems), made_by(), checks, *told)


def verify_far(far: FarFile, seconds: int = FAR_SECONDS) -> Report:
    """Check the structure of a file elsewhere, in a process that is handed its bytes.

    Raises: CannotStartError; StoreError where they cannot be fetched.
    """
    lines, end = _run_far_check(far, seconds)
    told = [line["problem"] for line in lines if "problem" in line] + [end.format(seconds=seconds)] * bool(
        end
    )
    return Report(not told, tuple(told))


def refuse_problems(path: str | Path | FarFile) -> None:
    """Verify the structure of what is to be opened. Raises: StoreError with the first problem."""
    is_far = isinstance(path, FarFile)
    problems = (verify_far(path) if is_far else verify(path)).problems
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        name = path.name if is_far else Path(path).name
        raise StoreError(f"{name} cannot be opened: {problems[0]}{more}")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path, *part_files(parts_of(path))]
    folder = path if path.is_dir() else parts_of(path)
    if not folder.is_dir():
        raise StoreNotFoundError(f"{path.name}: there is no such file or folder")
    files = part_files(folder)
    if not files and not (folder / "run.json").is_file():
        raise StoreNotFoundError(f"{path.name} is a folder without sealed samples")
    return files


def _stored(file: Path) -> int:
    """Bytes that a file takes on its disk: one with holes may claim any length."""
    told = file.stat()
    return min(told.st_size, 512 * getattr(told, "st_blocks", told.st_size))


def _run_check(files: list[Path], deep: bool, seconds: int) -> tuple[list[dict[str, str]], str]:
    """Run the checker. Returns: its lines, and why it ended early, "" if it came to its end.

    Raises: CannotStartError.
    """
    paths = [str(file.resolve()) for file in files]
    request = json.dumps({"files": paths, "deep": deep, "seconds": seconds, "memory": MEMORY_BYTES})
    with children.started(_CHECKER) as process:
        try:
            children.await_ready(process, _CHECKER)
            output, words = process.communicate(request.encode(), timeout=seconds + 2)
            end = _end(process.returncode, words)
        except subprocess.TimeoutExpired:
            process.kill()
            output, end = process.communicate()[0], TOO_LONG
        finally:
            process.kill()  # also when this thread was interrupted
            process.wait()
    return [json.loads(line) for line in output.decode().splitlines() if line.endswith("}")], end


def _run_far_check(far: FarFile, seconds: int) -> tuple[list[dict[str, str]], str]:
    """As `_run_check`, and hand over the bytes that the checker asks for."""
    request = json.dumps(
        {"files": [], "far": [far.told], "deep": False, "seconds": seconds, "memory": MEMORY_BYTES}
    )
    lines: list[dict[str, str]] = []
    with children.started(_CHECKER) as process:
        deadline, alarm = math.inf, None
        try:
            children.await_ready(process, _CHECKER)
            deadline = time.monotonic() + seconds + 2
            alarm = children.started_alarm(process, _CHECKER, seconds + 2)
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
            while line := process.stdout.readline(MAX_LINE_BYTES):
                told = json.loads(line)
                if not far.hand(told, process.stdin):
                    lines.append(told)
            status = process.wait(timeout=2)
            end = TOO_LONG if time.monotonic() >= deadline else _end(status, process.stderr.read())
        except (StoreError, children.CannotStartError):  # the file cannot be fetched, or no checker runs
            raise
        except (OSError, ValueError, subprocess.TimeoutExpired):  # it ended, or was ended, or speaks nonsense
            end = CRASHED if time.monotonic() < deadline else TOO_LONG
        finally:
            if alarm is not None:
                alarm.cancel()
            process.kill()
            process.wait()
    return lines, end


def _end(status: int, words: bytes) -> str:
    """Why a check ended early, from how its process ended; "" if it came to its end.

    Raises: CannotStartError where somebody ended it.
    """
    if status == 0:
        return ""
    if status == 64:  # sd35h5.store.processes.checker.OUT_OF_MEMORY
        return TOO_LARGE
    if -status == getattr(signal, "SIGXCPU", None):
        return TOO_LONG
    if outside := children.ended_from_outside(_CHECKER, status):
        raise outside
    if status < 0:
        return CRASHED
    told = words.decode(errors="replace").strip().splitlines() or ["no word"]
    return f"the check itself failed ({told[-1].partition(':')[0][:60]}): please report it"
