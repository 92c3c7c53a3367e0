"""The load matrix runs from the command line, every row of it passes, and it writes what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.long
def test_every_layout_of_every_component_passes(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "load_matrix.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (tmp_path / "load_matrix.md").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "load_matrix.json").read_text(encoding="utf-8"))
    assert {row["component"] for row in written["rows"]} == {
        "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"
    }  # fmt: skip
    assert {row["gates"].partition(" ")[0] for row in written["rows"]} == {"none", "a", "b", "c"}
    layouts = {(row["component"], row["layout"].partition(" (")[0]) for row in written["rows"]}
    assert {
        ("transformer", "scaled fp8"),
        ("text_encoder_3", "scaled fp8"),
        ("text_encoder_2", "OpenCLIP"),
        ("transformer", "fp8 with marks"),
        ("vae", "sharded variant"),
        ("vae", "wrapped, EMA beside"),
    } <= layouts
    assert len(written["audits"]) == 8 and "FAIL" not in done.stdout
