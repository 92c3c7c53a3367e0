"""The benchmark of memory writes a model that diffusers reads, draws equal pictures from it, and tells what it took."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def benchmark():
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("memory_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


@pytest.fixture(scope="module")
def model(benchmark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parts.random_folder.SHARD", 100_000)  # bytes: several files a component
        assert benchmark.write_model(folder, "tiny", torch.device("cpu"), torch.float32) > 4e6
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    return folder


def test_every_way_draws_the_plain_pipelines_pictures_and_tells_its_memory(benchmark, model, tmp_path):
    told, pictures = {}, {}
    for way in ("plain", "captured"):
        out = tmp_path / way
        out.mkdir()
        benchmark.run_here(way, model, out, "tiny", "cpu")
        told[way] = json.loads((out / "told.json").read_text())
        pictures[way] = np.load(out / "pictures.npy")
    assert pictures["plain"].std() > 1 and pictures["plain"].shape[0] == len(benchmark.PROMPTS)
    for way, each in pictures.items():
        assert np.array_equal(each, pictures["plain"]), way
        assert 1e8 < told[way]["host_own"] <= told[way]["host_peak"]


def test_the_table_tells_ratios_of_the_quickest_runs_and_the_most_memory(benchmark):
    run = {"host_peak": 3 << 30, "host_own": 2 << 30, "allocated": 16 << 30, "reserved": 17 << 30}
    seconds = {"plain": (20, 25), "beside": (30, 22), "captured": (24, 33), "offload": (44, 55)}
    runs = {
        way: [{**run, "seconds": each, "allocated": (16 + i) << 30, "same_pictures": way != "offload" or i}
              for i, each in enumerate(of)]
        for way, of in seconds.items()
    }  # fmt: skip
    names = ("steps", "size", "device", "cpu", "cores", "system", "date")
    facts = {"versions": {}, **dict.fromkeys(names, "")}
    text = benchmark.table(runs, facts)
    assert "| command line | 24.0 | 1.20 | 1.09 | 17.0 | 17.0 | 3.0 | 2.0 | yes |" in text
    assert (
        "| command line, `--offload model` | 44.0 | 2.20 | 2.00 | 17.0 | 17.0 | 3.0 | 2.0 | **no** |" in text
    )


@pytest.mark.slow
@pytest.mark.long
def test_the_whole_runs_in_small_from_the_command_line(tmp_path):
    command = [
        sys.executable,
        SCRIPT,
        "--size",
        "tiny",
        "--device",
        "cpu",
        "--rounds",
        "1",
        "--out",
        tmp_path,
    ]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "memory.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "memory.json").read_text())["runs"].keys() == {
        "plain",
        "beside",
        "captured",
    }
