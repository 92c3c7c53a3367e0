"""The benchmark of slices and merges: a small run is cut, and every row is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cutting.py"


@pytest.mark.long
def test_a_small_run_is_cut_and_joined_and_told(tmp_path):
    line = [
        sys.executable,
        SCRIPT,
        "--small",
        "--gigabytes",
        "0.003",
        "--out",
        tmp_path,
        "--folder",
        tmp_path,
    ]
    subprocess.run(line, check=True, capture_output=True)
    rows = [
        line.split("|")[1:5] for line in (tmp_path / "cutting.md").read_text().splitlines() if "**" in line
    ]
    told = {name.strip(): (seconds, memory, size) for name, seconds, memory, size in rows}
    assert len(told) == 8
    sizes = {name: float(size.split()[0]) for name, (_, _, size) in told.items()}
    assert (
        sizes["one layer, sinks alone"]
        < sizes["one layer"]
        < sizes["the other half"]
        < sizes["both halves joined"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cutting.md"]
