"""The benchmark of what a capture works with: every case at a tiny size, met, in the table and the JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def test_every_case_is_met_on_a_cpu_and_written(tmp_path):
    flags = ("--size", "tiny", "--device", "cpu", "--steps", "2", "--out", str(tmp_path))
    command = [sys.executable, str(ROOT / "benchmarks" / "coverage.py"), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    text = (tmp_path / "coverage.md").read_text(encoding="utf-8")
    assert done.returncode == 0, text
    results = json.loads((tmp_path / "coverage.json").read_text(encoding="utf-8"))["results"]
    assert len(results) == 33 and "**no**" not in text
    assert (
        "CUDA graphs" in results["compiled, reduce-overhead"]["refused"] and "offload by layer" not in results
    )
    assert results["compiled, skip-layer"]["latents"] == results["compiled whole"]["latents"] == "equal"
    assert results["skip-layer guidance"]["branches"] == ["cond", "uncond", "skip"]
    assert results["SD3.5-Medium, gates a head"]["holds"] == ["attn2", "gates"]
    assert results["2 prompts in a batch"]["samples"] == results["2 images of a prompt"]["samples"] == 2
    assert results["77 T5 tokens"]["text_tokens"] == 154 and results["768 × 1344"]["patches"] == [3, 8]
    assert {told["latents"] for told in results.values() if "latents" in told} == {"equal"}
    assert all(f"| {name} |" in text for name in results)
