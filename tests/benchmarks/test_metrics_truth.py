"""The benchmark of the numbers runs, is within its limits, and writes what it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "metrics_truth.py"


@pytest.mark.slow
@pytest.mark.long
def test_every_number_agrees_with_full_attention_matrices(tmp_path):
    command = [sys.executable, str(SCRIPT), "--models", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (tmp_path / "metrics_truth.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (\d[\d.e+-]*) \| (\d[\d.e+-]*) \|$", done.stdout, re.MULTILINE)
    names = {name for name, _, _ in rows}
    assert len(names) >= 40 and {"group_gates", "attn2: patch_gini", "gate_statistic, attn2"} <= names
    assert all(float(exact) <= 1e-5 and float(rounded) <= 1e-3 for _, exact, rounded in rows)
