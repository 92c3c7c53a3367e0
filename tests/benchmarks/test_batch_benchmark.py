"""The benchmark of a batch draws on killed workers, compares every array, and writes what it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_the_benchmark_in_small_finds_equal_arrays(tmp_path):
    flags = "--limit 4 --kills 2 --steps 3 --variants transformer_headwise"
    line = [sys.executable, "benchmarks/batch.py", *flags.split(), "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "batch.md").read_text(encoding="utf-8")
    row = next(row for row in done.stdout.splitlines() if row.startswith("| transformer_headwise | 4 |"))
    assert "| 2 | 0 of " in row
