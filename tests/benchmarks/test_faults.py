"""The benchmark of faults in short: killed and broken commands lose nothing, and go on to an equal file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _rows(tmp_path: Path, flags: str, *mishaps: str) -> list[list[str]]:
    """Run the benchmark. Returns: the cells of its rows, heads left out."""
    line = [
        sys.executable,
        "benchmarks/faults.py",
        *flags.split(),
        "--out",
        str(tmp_path),
        "--mishaps",
        *mishaps,
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    page = (tmp_path / "faults.md").read_text(encoding="utf-8")
    rows = [row for row in done.stdout.splitlines() if row.startswith("| ")]
    assert all(row in page for row in rows) and "wrong" not in page
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    return [row for row in cells if row[0] not in ("stage", "fault", "---")]


def test_killed_packings_and_slices_and_a_thread_without_memory_lose_nothing(tmp_path):
    packing, slicing, *broken = _rows(
        tmp_path, "--stages packing slicing --kills 2", "a thread has no memory", "no file larger than 100 kB"
    )
    assert packing[2] == slicing[2] == "1" and packing[5] == "6"
    assert {*packing[6:], *slicing[6:]} == {"**0**"}
    assert sorted((row[0], row[1], row[2]) for row in broken) == [
        ("a thread has no memory", "slicing", "1"),
        ("no file larger than 100 kB", "packing", "1"),
        ("no file larger than 100 kB", "slicing", "1"),
    ]
    assert all(row[3].startswith("error: ") and row[5] == "makes an equal file" for row in broken)


@pytest.mark.long
def test_every_stage_survives_kills_and_every_fault(tmp_path):
    names = (
        "a writing process is killed",
        "the folder vanishes, and comes back",
        "a disk that two thirds fit on",
    )
    rows = _rows(tmp_path, "--kills 12", *names)
    killed = [row for row in rows if row[1].startswith(("capture_cli", "sd35h5"))]
    assert [row[0] for row in killed] == [
        "capturing",
        "sealing",
        "packing",
        "slicing",
        "merging",
        "importing",
    ]
    assert all(row[2] == "2" and set(row[6:]) == {"**0**"} for row in killed)
    assert {row[0] for row in rows[6:]} <= {*names} and all(row[2] == "1" for row in rows[6:] if len(row) > 1)
