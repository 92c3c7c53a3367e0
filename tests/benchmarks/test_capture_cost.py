"""The benchmark of a capture's cost checks itself, runs every row at a tiny size, and keeps each as it comes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "capture_cost.py"


def _run(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *flags]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_row_is_measured_printed_and_written(tmp_path):
    done = _run("--shape", "tiny", "--device", "cpu", "--steps", 3, "--runs", 2, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "capture_cost_tiny.json").read_text(encoding="utf-8"))
    text = (tmp_path / "capture_cost_tiny.md").read_text(encoding="utf-8")
    check, results = written["results"]["check"], written["results"]
    assert check["bit_identical"] and 0 < max(check["errors"].values()) <= 1e-5
    assert {"sinks", "default", "atlas", "raw, pool 1", "eager softmax", "amd exact/all", "growth"} <= set(
        results
    )
    for name, told in results.items():
        if "ratio" in told:
            ratios = [taken / plain for plain, taken in told["seconds_stock_and_row"]]
            assert told["ratio"] == pytest.approx(np.median(ratios))
            row = next(line for line in done.stdout.splitlines() if line.startswith(f"| {name} |"))
            assert row in text and f"**{told['ratio']:.3f}**" in row
    assert results["raw, pool 1"]["rates"]["reached"] > 0 and "binds" in text


def test_chosen_rows_alone_are_measured(tmp_path):
    flags = ("--shape", "tiny", "--device", "cpu", "--steps", 2, "--runs", 1, "--rows", "sinks")
    assert _run(*flags, "--out", tmp_path).returncode == 0
    written = json.loads((tmp_path / "capture_cost_tiny.json").read_text(encoding="utf-8"))
    assert list(written["results"]) == ["check", "sinks"]


def test_a_missing_device_and_folder_are_told(tmp_path):
    assert "no such folder" in _run("--device", "cpu", "--folder", tmp_path / "nowhere").stderr
    assert _run("--steps", 0).returncode == 2
