"""The benchmark of reading from afar: within what was asked for, and its table tells it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from sd35h5 import open_store
from sd35h5.store.cutting.joining import join
from sd35h5.store.cutting.slicing import cut
from sd35h5.store.cutting.wanted_part import Wanted
from sd35h5.store.places.block_cache import BLOCK_BYTES

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "remote.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_remote", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def packed(benchmark, tmp_path_factory):
    """A packed file of many samples."""
    sizes = {**benchmark.SHAPE, "step": 8, "layer": 10, "head": 12, "y": 8, "x": 8}
    folder = tmp_path_factory.mktemp("remote")
    return benchmark.make_run(folder / "run.h5", 40, 0, gates=False, sizes=sizes, different=2)


def _taken(benchmark, path: Path) -> tuple[list, dict[str, tuple[int, int]]]:
    with benchmark.serving(benchmark.Served(path)) as served:
        rows = list(benchmark.of_package(served))
    return rows, {what: (requests, count) for what, requests, count, _ in rows}


def test_a_packed_file_is_listed_and_looked_at_in_few_requests(benchmark, packed):
    with open_store(packed) as store:
        assert store.samples["sample_id"].is_unique and len(store) == 40
    rows, taken = _taken(benchmark, packed)
    for what, (most, most_bytes) in benchmark.LIMITS.items():
        assert taken[what][0] <= most and taken[what][1] <= (most_bytes or packed.stat().st_size / 4), what
    text = benchmark.table(rows, {**benchmark.machine((), 1), "samples": 40, "bytes": packed.stat().st_size})
    assert f"| one map | **{taken['one map'][0]}** |" in text


def test_a_merge_of_slices_is_looked_at_in_as_few_requests_as_a_packed_file(benchmark, packed, tmp_path):
    halves = [tmp_path / "first.h5", tmp_path / "last.h5"]
    for half, samples in zip(halves, ("0-19", "20-39"), strict=True):
        cut(
            packed,
            half,
            Wanted(samples=samples, tiers=("sinks/mass_group", "sinks/entropy_text", "maps", "images")),
        )
    join(halves, tmp_path / "again.h5")
    _, after = _taken(benchmark, tmp_path / "again.h5")
    assert all(after[what][0] <= most for what, (most, _) in benchmark.LIMITS.items())
    requests, count = after["heatmap of half of the samples"]
    assert requests <= 1 and count <= 2 * BLOCK_BYTES  # 20 blocks that lie apart are ten times that
