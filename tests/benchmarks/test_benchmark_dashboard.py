"""The dashboard's benchmark: its synthetic store is a sound one, and its table tells what was measured."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sd35h5 import metrics, open_store, verify

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "dashboard.py"
SMALL = {"step": 4, "layer": 3, "head": 2, "token": 120, "top_step": 2, "map_step": 2, "rank": 5,
         "map_token": 4, "branch": 2, "y": 3, "x": 2, "pixel_y": 96, "pixel_x": 64}  # fmt: skip


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_dashboard", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_synthetic_store_is_sound_and_its_masses_are_shares(benchmark, tmp_path):
    path = benchmark.make_run(tmp_path / "gated.h5", 2, 1, gates=True, sizes=SMALL)
    assert verify(path, deep=True).ok
    with open_store(path) as store:
        assert store.sizes["sample"] == 2
        assert np.allclose(metrics.group_mass(store).sum("group"), 1, atol=1e-5)
        np.testing.assert_allclose(metrics.text_mass(store), 0.5, atol=1e-5)
        assert "gates/mean" in store and store.image(1).shape == (96, 64, 3)


def test_the_table_tells_percentiles_of_changes_and_largest_sizes(benchmark):
    found = {
        "start_s": [1.0], "cold_s": [3.0, 5.0], "warm_s": [2.0], "payload_bytes": [10_000, 250_000],
        "answers": [
            *[["branch uncond", 100.0], ["metric 1", 700.0], *[["steps", 100.0]] * 48],
            *[["branch uncond", 100.0], ["metric 1", 100.0], *[["steps", 100.0]] * 47, ["cell", 900.0]],
        ],
        "changes": [["steps", 300.0]] * 99 + [["cell", 0.0]],
        "pages": [["Maps", 2, 250_000]],
        "server_mb": [400.0, 450.0], "readers_mb": [200.0],
    }  # fmt: skip
    told = benchmark.summary(found)
    assert told["cold_s"] == 4.0 and told["payload_kb"] == 250 and told["server_mb"] == 450
    assert told["server_p95_ms"] == 100 and told["server_most_ms"] == 900
    assert told["first_seen_ms"] == 700  # of both servers, each time for the first time
    assert told["pixels_p95_ms"] == 300  # a change that redraws nothing has no pixels to wait for
    facts = benchmark.machine(("numpy",), 3) | {"samples": 2, "runs": 2, "tokens": 333, "bytes": 10**8}
    text = benchmark.table(told, found, facts)
    assert "| largest chart of any page, bytes sent | **250 kB** | ≤ 300 kB |" in text


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_the_dashboard_is_measured_and_written(tmp_path):
    flags = ["--samples", "1", "--runs", "1", "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "dashboard.md").read_text(encoding="utf-8")
    assert "first chart, server just started" in done.stdout
