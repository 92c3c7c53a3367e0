"""The benchmark of files from strangers in short: some refused kinds, some damaged files, nothing unnoticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_short_run_finds_every_kind_told_and_nothing_changed_unnoticed():
    line = [sys.executable, str(ROOT / "benchmarks" / "hostile.py"), "--limit", "6"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row.split("|")[1:-1] for row in done.stdout.splitlines() if row.startswith("| ")]
    assert sum(int(row[2]) for row in rows if len(row) == 3 and row[1].strip() in ("equal", "told")) == 6
    assert "NOTHING" not in done.stdout and "UNNOTICED" not in done.stdout
