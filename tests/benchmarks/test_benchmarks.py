"""The benchmarks run from the command line, write what they print, and refuse what is not there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "demo_cost.py"


def _run(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *flags]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def demo_cost():
    spec = importlib.util.spec_from_file_location("demo_cost", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_ratio_is_of_medians_and_the_spread_of_neighbours(demo_cost):
    told = demo_cost.summary({"plain": [2.0, 1.0, 4.0], "captured": [3.0, 2.0, 4.0]})
    assert told["median_seconds"] == {"plain": 2.0, "captured": 3.0}
    assert told["ratio"] == 1.5 and told["ratio_of_neighbours"] == [1.0, 2.0]


def test_missing_models_are_told_with_the_way_out(tmp_path):
    done = _run("--models", tmp_path / "nowhere", "--out", tmp_path)
    assert done.returncode == 2 and "nowhere: give --models DIR, or --random" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.long
def test_the_cost_of_the_demo_is_measured_and_written(tmp_path):
    done = _run(
        "--random", "--steps", 1, "--runs", 1, "--variants", "baseline", "headwise", "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "demo_cost.md").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "demo_cost.json").read_text(encoding="utf-8"))
    assert list(written["results"]) == ["baseline", "headwise"] and written["versions"].keys() >= {"torch"}
    for variant, result in written["results"].items():
        assert f"| {variant} |" in done.stdout and f"**{result['ratio']:.3f}**" in done.stdout
        assert [len(seconds) for seconds in result["seconds"].values()] == [1, 1]
    assert "random weights" in done.stdout and "--random" in done.stdout
