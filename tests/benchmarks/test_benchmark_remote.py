"""The benchmark of reading from afar: within what was asked for, and its table tells it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from sd35h5 import open_store

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "remote.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_remote", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_packed_file_is_listed_and_looked_at_in_few_requests(benchmark, tmp_path):
    sizes = {**benchmark.SHAPE, "step": 8, "layer": 10, "head": 12, "y": 8, "x": 8}
    path = benchmark.make_run(tmp_path / "run.h5", 40, 0, gates=False, sizes=sizes, different=2)
    with open_store(path) as store:
        assert store.samples["sample_id"].is_unique and len(store) == 40
    with benchmark.serving(benchmark.Served(path)) as served:
        rows = list(benchmark.of_package(served))
    taken = {what: (requests, count) for what, requests, count, _ in rows}
    for what, (most, most_bytes) in benchmark.LIMITS.items():
        assert taken[what][0] <= most and taken[what][1] <= (most_bytes or path.stat().st_size / 4), what
    text = benchmark.table(rows, {**benchmark.machine((), 1), "samples": 40, "bytes": path.stat().st_size})
    assert f"| one map | **{taken['one map'][0]}** |" in text
