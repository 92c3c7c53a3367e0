"""The benchmark of statistics on many samples: a small one is measured and told."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "out_of_core.py"
SMALL = {"step": 4, "layer": 3, "head": 2, "token": 120, "top_step": 2, "map_step": 2, "rank": 5,
         "map_token": 4, "branch": 1, "y": 3, "x": 2, "pixel_y": 96, "pixel_x": 64}  # fmt: skip


@pytest.mark.long
def test_a_small_one_is_measured_and_told(tmp_path):
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("out_of_core_benchmark", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    sys.path[:] = before
    found = benchmark.measure(tmp_path, 3, 2, SMALL, visited=False)
    assert 50 < found["compare_mb"] < 1500 and 50 < found["csv_mb"] < 1500
    assert found["csv_gb"] > 3 * 4 * 3 * 2 * 40 / 1e9  # a line a sample, step, layer and head
    facts = benchmark.machine(("numpy",), 2) | {"samples": 3, "pairs": 2, "shape": "a small shape"}
    text = benchmark.table(found, facts)
    assert (
        "| compare, 2 pairs | **" in text and "| compare, 3 pairs | **" in text and "≤ 1e+03 MB" not in text
    )
    with pytest.raises(RuntimeError, match="error: "):
        benchmark.command("compare", tmp_path / "baseline.h5", "--out_dir", tmp_path / "out")
