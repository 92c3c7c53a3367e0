"""Is this file well-formed, whole and safe to open: asked in a subprocess, as files can crash HDF5."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .errors import StoreNotFoundError
from .runs import part_files, parts_of

MEMORY_BYTES = 2 << 30
_SENTENCES = {
    "memory": "reading it takes more than 2 GiB of memory: it is damaged, or made to exhaust readers",
    "time": "reading it did not end in {seconds} s: it is damaged, or made to hang readers",
    "crash": "reading it crashed the HDF5 library: it is damaged",
}


@dataclass(frozen=True)
class Report:
    """What verification found: `ok`, or one sentence a problem, without paths of this machine."""

    ok: bool
    problems: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.ok


def verify(path: str | Path, deep: bool = False, seconds: int | None = None) -> Report:
    """Check a file, or every sealed file of a folder, before anything in this process opens it.

    Args:
        deep: besides structure, types, links and sizes, read every value and compare it with what was sealed.
        seconds: how long it may take; by default 30 and some more for large files and many files.
    Raises: StoreNotFoundError.
    """
    files = _files(Path(path))
    if seconds is None:
        megabytes = sum(file.stat().st_size for file in files) >> 20
        seconds = 30 + len(files) // 4 + (megabytes // 5 if deep else megabytes // 100)
    lines, how = _run_check(files, deep, seconds)
    several = len(files) > 1
    problems = [
        f"{line['file']}: {line['problem']}" if several else line["problem"]
        for line in lines
        if "problem" in line
    ]
    if how:
        last = f"{lines[-1]['file']}: " if several and lines else ""
        problems.append(last + _SENTENCES[how].format(seconds=seconds))
    return Report(not problems, tuple(problems))


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


def _run_check(files: list[Path], deep: bool, seconds: int) -> tuple[list[dict[str, str]], str]:
    """Run sd35h5.check. Returns: its lines, and "" or what ended it early: memory, time or crash."""
    if not files:
        return [], ""
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    request = json.dumps(
        {"files": [str(f.resolve()) for f in files], "deep": deep, "seconds": seconds, "memory": MEMORY_BYTES}
    )
    command = [sys.executable, "-m", "sd35h5.check"]
    how = ""
    try:
        done = subprocess.run(
            command, input=request.encode(), capture_output=True, env=environment, timeout=seconds + 2
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        output, code, how = late.stdout or b"", 0, "time"
    if code:
        how = {64: "memory", -24: "time"}.get(code, "crash")  # 64: sd35h5.check's own; 24: SIGXCPU
    lines = [json.loads(line) for line in output.decode().splitlines() if line.endswith("}")]
    return lines, how
