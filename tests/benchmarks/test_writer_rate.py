"""The writer's benchmark runs from the command line and writes what it prints; its three writers agree."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from sd35h5 import open_store

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "writer_rate.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("writer_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_writers_hold_the_same_values_in_the_same_chunks(benchmark, tmp_path):
    maps = benchmark.make_maps(1)
    rounded = benchmark.round_mantissa(maps)
    ours, plain = benchmark.write_ours(tmp_path, maps), benchmark.write_h5py(tmp_path, rounded)
    with open_store(ours) as store, h5py.File(plain) as file:
        np.testing.assert_array_equal(
            store.read(benchmark.NAME, sample=0, branch=0, map_step=0), file["maps"]
        )
    with h5py.File(ours) as file, h5py.File(plain) as other:
        assert file[benchmark.NAME].chunks[-3:] == other["maps"].chunks[-3:] == (38, 32, 32)


def test_rates_are_of_raw_values_and_shares_of_the_median(benchmark):
    seconds = {"sd35h5": [1.0, 2.0, 4.0], "h5py": [8.0] * 3, "disk": [0.5] * 3}
    told = benchmark.summary({"seconds": seconds, "bytes": {"values": 8e6}})
    assert told["sd35h5"] == {"median": 4, "least": 2, "most": 8, "of_h5py": 4, "of_disk": 0.25}


def test_the_benchmark_writes_what_it_prints(tmp_path):
    flags = ["--megabytes", "6", "--runs", "1", "--out", tmp_path / "results", "--folder", tmp_path]
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, flags)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "results" / "writer_rate.md").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "results" / "writer_rate.json").read_text(encoding="utf-8"))
    assert f"{written['results']['sd35h5']['median']:.0f} (" in done.stdout
    assert written["bytes"]["disk"] == written["bytes"]["sd35h5"] < written["bytes"]["values"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
