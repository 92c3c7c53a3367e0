"""The benchmark of what a capture works with: every case at a tiny size, met, in the table and the JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from parts.coverage_cases import CASES

ROOT = Path(__file__).resolve().parents[2]
HUNG = [case.name for case in CASES if case.hang or case.offload]
PLAIN = [case.name for case in CASES if not (case.compiled or case.offload or case.hang or case.way)]
FOLLOWED = [case.name for case in CASES if case.way]
COMPILED = [case.name for case in CASES if case.compiled]
SOME = ["768 × 1344", "77 T5 tokens", "skip-layer guidance", "2 images of a prompt", "2 prompts in a batch",
        "SD3.5-Medium, gates a head", "GGUF Q8_0", "fused projections", "offload by model"]  # fmt: skip


def _measured(out: Path, cases: list[str]) -> dict[str, dict]:
    """Run these cases; each must be met and written."""
    flags = ("--size", "tiny", "--device", "cpu", "--steps", "2", "--out", str(out), "--cases", *cases)
    command = [sys.executable, str(ROOT / "benchmarks" / "coverage.py"), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    text = (out / "coverage.md").read_text(encoding="utf-8")
    assert done.returncode == 0, text
    results = json.loads((out / "coverage.json").read_text(encoding="utf-8"))["results"]
    assert (
        set(cases) <= results.keys()
        and "**no**" not in text
        and all(f"| {name} |" in text for name in results)
    )
    assert {told["latents"] for told in results.values() if "latents" in told} == {"equal"}
    return results


@pytest.mark.slow
@pytest.mark.parametrize("cases", [SOME, pytest.param(PLAIN, marks=pytest.mark.long)], ids=["some", "all"])
def test_cases_are_met_on_a_cpu_or_refused_or_left_out_with_a_reason_and_written(tmp_path, cases):
    results = _measured(tmp_path, cases)
    if cases is SOME:
        assert (
            results["GGUF Q8_0"]["latents"] == "equal"
            and "needs CUDA" in results["offload by model"]["left_out"]
        )
        assert "unfuse_qkv_projections" in results["fused projections"]["refused"]
        assert _measured(tmp_path, SOME[:1]).keys() == results.keys()  # the others are kept
    assert results["skip-layer guidance"]["branches"] == ["cond", "uncond", "skip"]
    assert results["SD3.5-Medium, gates a head"]["holds"] == ["attn2", "gates"]
    assert results["2 prompts in a batch"]["samples"] == results["2 images of a prompt"]["samples"] == 2
    assert results["77 T5 tokens"]["text_tokens"] == 154 and results["768 × 1344"]["patches"] == [3, 8]


@pytest.mark.slow
@pytest.mark.long
def test_what_is_hung_in_quantised_or_offloaded_is_met_refused_or_left_out_with_a_reason(tmp_path):
    results = _measured(tmp_path, HUNG)
    told = {
        name: each.get("refused", each.get("left_out", each.get("latents"))) for name, each in results.items()
    }
    assert told["offload by model"] == told["offload by leaf, streams"] == "needs CUDA"
    assert told["GGUF Q8_0"] == told["device map of two places"] == told["offload by leaf"] == "equal"
    assert "unfuse_qkv_projections" in told["fused projections"]
    assert all(
        each.endswith(("is not installed", "on a GPU only")) for name, each in told.items() if "T5" in name
    )
    assert _measured(tmp_path, HUNG[-1:]).keys() == results.keys()  # the others are kept


@pytest.mark.slow
@pytest.mark.long  # tests/capturing has each of them in small
def test_every_other_pipeline_and_cache_is_met_or_refused_by_its_sentence(tmp_path):
    results = _measured(tmp_path, FOLLOWED)
    assert "first-block cache" in results["first-block cache"]["refused"]
    assert results["guidance ends, skip-layer"]["branches"] == ["cond", "uncond", "skip"]


@pytest.mark.slow
@pytest.mark.long
def test_every_compiled_case_is_met_or_refused_by_its_sentence(tmp_path):
    results = _measured(tmp_path, COMPILED)
    assert "CUDA graphs" in results["compiled, reduce-overhead"]["refused"]
    assert results["compiled, skip-layer"]["branches"] == ["cond", "uncond", "skip"]
